"""Make docs/pretrained.md: load a pretrained model at its real size, and train three steps of it.

    python docs/make_pretrained.py FOLDER    measure what is missing, write the page
    python docs/make_pretrained.py --page    write the page from docs/pretrained.json alone

FOLDER, outside the repository, gets random weights in the exact shapes of Llama-3.2-1B
(docs/write_pretrained_folder.py), and workdirs. Every measurement has a process of its own, and is
kept when it ends. A training on two cores takes three to five minutes, at most 16 GB of memory and
9 GB of the disk. Eight devices are simulated on the CPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs import experiments  # noqa: E402
from memjax.testing.huggingface import KINDS, write_folder  # noqa: E402

DATA, PAGE, TEMPLATE = (ROOT / "docs" / f"pretrained.{end}" for end in ("json", "md", "md.jinja"))
LOAD, BRIDGE = "load", "bridge"
"""The measurement of loading, and the workdir of the run that `bridge_only` starts from."""
STEPS = 3
LAYERS = KINDS["llama"]["num_hidden_layers"]
SETTINGS = {
    "data.sequence_length": "128",
    "model.chunk_length": "32",
    "stages.train.batch_size": "8",
    "stages.train.warmup_steps": "0",
    "stages.train.lr_schedule": "constant",
    "stages.train.learning_rate": "1e-3",
}
"""Settings of every training."""
MESH = {"data": 1, "fsdp": 2, "tensor": 4}
"""The mesh of the eight devices."""
NARROW = "--xla_disable_hlo_passes=while-loop-invariant-code-motion"
"""CPUs have no bfloat16 products. XLA would widen the frozen matrices of all layers before the loop
over layers, in place of those of one layer in it."""
FLAGS = {
    1: NARROW,
    8: f"{NARROW} --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=1200",
}
"""XLA_FLAGS by devices. On few cores, devices wait long for each other."""


class Row(NamedTuple):
    """A training of the page."""

    variant: str
    """A variant of configs/pretrained.py."""
    layers: int
    devices: int

    @property
    def name(self) -> str:
        """Return the name of the measurement."""
        return f"{self.variant}_{self.devices}"


ROWS = [
    Row(variant, layers, devices)
    for variant, layers in (
        ("lora", LAYERS),
        ("bridge", LAYERS),
        ("bridge_only", LAYERS),
        ("all", 2),
        ("no_memory", 2),
    )
    for devices in (1, 8)
]
NAMED = {row.name: row for row in ROWS}


def weights(folder: Path, layers: int) -> Path:
    """Return the folder of weights with so many layers."""
    return folder / f"Llama-3.2-1B-{layers}-layers"


def write_weights(folder: Path, layers: int) -> Path:
    """Return the folder of weights with so many layers, and write it where it is missing."""
    out = weights(folder, layers)
    if not (out / "tokenizer.model").exists():  # It is written last.
        write_folder(out, KINDS["llama"] | {"num_hidden_layers": layers}, tokenizer="small-en")
    return out


def config(row: Row, folder: Path) -> str:
    """Return the config of a training."""
    return f"configs/pretrained.py:{row.variant},{weights(folder, row.layers)}"


def settings(row: Row, folder: Path, steps: int) -> dict[str, str]:
    """Return the settings of a training that differ from those of its config."""
    changed = SETTINGS | {"stages.train.steps": str(steps)}
    if row.devices > 1:
        changed |= {f"mesh.{axis}": str(size) for axis, size in MESH.items()}
    if row.variant == "bridge_only":
        changed["stages.train.init_from"] = f"{folder}/{BRIDGE}/stages/train"
    return changed


def train(row: Row, folder: Path, steps: int) -> dict[str, Any]:
    """Return the numbers of docs/measure_steps.py.

    Raises:
      CalledProcessError: it failed.
    """
    write_weights(folder, row.layers)
    if row.variant == "bridge_only" and not (folder / BRIDGE / "results.json").exists():
        bridge = NAMED["bridge_1"]
        changed = settings(bridge, folder, steps) | {"evaluators": "{}"}
        experiments.run(experiments.train(config(bridge, folder), f"{folder}/{BRIDGE}", changed))
    changed = [f"{key}={value}" for key, value in settings(row, folder, steps).items()]
    return child(
        "measure_steps.py",
        config(row, folder),
        folder / f"data-{row.layers}",
        *changed,
        flags=FLAGS[row.devices],
    )


def child(script: str, *args: Any, flags: str = "") -> dict[str, Any]:
    """Return the JSON that a script of this folder prints.

    Raises:
      CalledProcessError: it failed.
    """
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / script, *args],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def render(found: Mapping[str, Any]) -> str:
    """Return the page of measurements by name."""
    made = [(row, found[row.name]) for row in ROWS if row.name in found]
    return experiments.fill(
        TEMPLATE,
        load=found.get(LOAD),
        rows=made,
        steps=STEPS,
        layers=LAYERS,
        mesh=MESH,
        flag=NARROW,
        difference=difference(found),
        commits=sorted({one["commit"] for one in found.values()}),
        machine=next(iter(found.values()), None),
    )


def difference(found: Mapping[str, Any]) -> float | None:
    """Return the largest difference of a loss on eight devices from that on one, as a share."""
    pairs = [
        (found[row.name]["losses"], found[f"{row.variant}_8"]["losses"])
        for row in ROWS
        if row.devices == 1 and {row.name, f"{row.variant}_8"} <= found.keys()
    ]
    return max(
        (abs(b / a - 1) for one, many in pairs for a, b in zip(one, many, strict=True)),
        default=None,
    )


def measure(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Return the numbers of a measurement, with its commit, date and machine.

    Raises:
      CalledProcessError: it failed.
    """
    about = experiments.about(os.getloadavg()[0])
    if name == LOAD:
        return child("measure_loading.py", write_weights(folder, LAYERS)) | about
    return train(NAMED[name], folder, steps) | about


def main() -> None:
    """Measure what is missing, and write the page."""
    given = experiments.arguments(__doc__, [LOAD, *NAMED], DATA, PAGE)
    found = experiments.read(given.data)
    if given.listing:
        for row in ROWS:
            print(row.name, config(row, given.folder), settings(row, given.folder, STEPS))
        return

    def keep(found: Mapping[str, Any]) -> None:
        experiments.write(found, given.data)
        given.page.write_text(render(found), encoding="utf-8")

    if not given.page_alone:
        missing = [(name, "at its real size") for name in given.names if name not in found]
        steps = given.steps or STEPS
        failed = experiments.measure_all(
            missing, found, lambda name: measure(name, given.folder, steps), keep
        )
        if failed:
            sys.exit(f"failed: {', '.join(failed)}. The next call runs them again.")
    given.page.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
