"""Make docs/scaling.md: compile every entry of its tables with `memjax.performance.aot`.

    python docs/make_scaling.py            compile missing entries (minutes each), write the page
    python docs/make_scaling.py WORD       of those only entries with this word in their key
    python docs/make_scaling.py --page     write the page from docs/scaling.json alone

A change of the step or of the compiler invalidates docs/scaling.json: delete it and run again. The
extra `aot` is required.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jinja2  # noqa: E402

from configs import pretrained, scaling  # noqa: E402
from memjax.cli.compile import parse_mesh  # noqa: E402
from memjax.config import Config  # noqa: E402
from memjax.experiment.reproduce.run import commit  # noqa: E402
from memjax.objectives import load_config  # noqa: E402
from memjax.performance.aot.compiling import compile_program  # noqa: E402
from memjax.performance.aot.topologies import topology  # noqa: E402

DATA, PAGE, TEMPLATE = (
    ROOT / "docs/scaling.json",
    ROOT / "docs/scaling.md",
    ROOT / "docs/scaling.md.jinja",
)
TOKENS_PER_CHIP = scaling.TOKENS_PER_CHIP


class Entry(NamedTuple):
    """One program on one topology."""

    variant: str
    topology: str
    mesh: str = "fsdp"
    program: str = "train"

    @property
    def key(self) -> str:
        """Return the key of the entry in the file."""
        return "/".join(self)


MAIN = "1.3b-512x8"
WEAK = "350m-256x4"
SIZES = (*(f"{size}-512x8" for size in scaling.DECODERS), "350m-512x32")
READING = ("350m-reading-512x32", "350m-reading-512x256")
SLICES = {"v5e-256": "data=4,fsdp=64", "v5p-128": "fsdp"}
"""The slices of most tables, with the mesh on each: parameters are split over 64 chips."""
PRETRAINED = tuple(f"pretrained:{name}" for name in pretrained.VARIANTS if name != "small")
"""Variants of configs/pretrained.py at full size."""
PRETRAINED_MICROBATCHES = 4
SLOTS_OF_THEIR_OWN = {"0888ff2", "4067aa6"}
"""Commits at which chunks shared no prefix."""


def v5e(chips: int) -> str:
    """Return the topology of that many chips: one slice, or several of 256."""
    return f"v5e-{chips}" if chips <= 256 else f"{chips // 256}xv5e-256"


def weak_scaling() -> list[Entry]:
    """Return one program on 8 to 2,048 chips, with parameters sharded over 8 chips.

    Every chip then gathers the same number of bytes on every slice. Over hundreds of chips, its
    shard of a matrix is thinner than a tile, and the compiler exchanges whole matrices.
    """
    sizes = (8, 32, 256, 512, 2048)
    meshes = ("fsdp" if chips == 8 else f"data={chips // 8},fsdp=8" for chips in sizes)
    return [Entry(WEAK, v5e(chips), mesh) for chips, mesh in zip(sizes, meshes, strict=True)]


def on_slices(variants: Sequence[str], slices: Mapping[str, str] = SLICES) -> list[Entry]:
    """Return the training steps of variants on every slice."""
    return [Entry(variant, where, mesh) for where, mesh in slices.items() for variant in variants]


def tables() -> dict[str, list[Entry]]:
    """Return the entries of the page by table."""
    return {
        "sizes": on_slices(SIZES),
        "reading": on_slices(READING),
        "pretrained": on_slices(PRETRAINED, {"v5e-8": "fsdp"} | SLICES),
        "weak": weak_scaling(),
        "meshes": [Entry(MAIN, "v5e-256"), Entry(MAIN, "v5e-256", SLICES["v5e-256"])],
        "programs": [
            Entry(MAIN, "v5e-256", program=program) for program in ("evaluate", "generate")
        ],
    }


def config_of(entry: Entry) -> Config:
    """Return the variant with a constant number of tokens per chip.

    Every chip has at least one sequence.
    """
    family, _, variant = entry.variant.rpartition(":")
    given = pretrained.get_config(variant) if family else scaling.get_config(variant)
    config = load_config(given)
    chips = topology(entry.topology).chips
    rows = max(TOKENS_PER_CHIP // config.data.sequence_length, 1) * chips
    changes = {"batch_size": rows} | (
        {"grad_accum_steps": PRETRAINED_MICROBATCHES} if family else {}
    )
    stages = {name: dataclasses.replace(stage, **changes) for name, stage in config.stages.items()}
    return dataclasses.replace(config, stages=stages)


def compile_entry(entry: Entry) -> dict[str, Any]:
    """Compile an entry; return its report as plain values."""
    config = config_of(entry)
    stage = config.curriculum[-1]
    report = compile_program(config, stage, entry.topology, parse_mesh(entry.mesh), entry.program)
    return {
        **report.to_json(),
        "variant": entry.variant,
        "remat": config.model.remat,
        "microbatches": config.stages[stage].grad_accum_steps,
        "commit": commit(),
    }


def write_page(found: dict[str, Any]) -> None:
    """Write the tables of the available entries."""
    rows = {
        name: [found[entry.key] for entry in entries if entry.key in found]
        for name, entries in tables().items()
    }
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        tables=rows,
        tokens_per_chip=TOKENS_PER_CHIP,
        commits=sorted({one["commit"] for one in found.values()} - SLOTS_OF_THEIR_OWN),
        before=sorted({one["commit"] for one in found.values()} & SLOTS_OF_THEIR_OWN),
        main=MAIN,
        weak=WEAK,
    )
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Compile missing entries and write the page."""
    found: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    wanted = dict.fromkeys(entry for entries in tables().values() for entry in entries)
    for entry in wanted if "--page" not in sys.argv[1:] else []:
        if entry.key in found or not all(word in entry.key for word in words):
            continue
        found[entry.key] = compile_entry(entry)
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(
            entry.key,
            found[entry.key]["problem"] or f"{found[entry.key]['seconds']:.0f} s",
            flush=True,
        )
    write_page(found)


if __name__ == "__main__":
    main()
