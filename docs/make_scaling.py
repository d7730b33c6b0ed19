"""Make docs/scaling.md: compile every entry of its tables with `memjax.performance.aot`.

    python docs/make_scaling.py            compile missing entries (minutes each), write the page
    python docs/make_scaling.py WORD       of those only entries with this word in their key
    python docs/make_scaling.py --page     write the page from docs/scaling.json alone
    python docs/make_scaling.py --all      every size and shape on every slice: 4 hours on one core

A change of the step or of the compiler invalidates docs/scaling.json: delete it and run again. The
extra `aot` is required.
"""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jinja2  # noqa: E402

from configs import scaling  # noqa: E402
from memjax.config import MESHES, Config, Mesh  # noqa: E402
from memjax.experiment.reproduce.run import commit  # noqa: E402
from memjax.objectives import load_config  # noqa: E402
from memjax.performance.aot.compiling import compile_program  # noqa: E402
from memjax.performance.aot.search import search  # noqa: E402
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
READING = ("350m-512x32", "350m-reading-512x32", "350m-reading-512x256")


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


def reading() -> list[Entry]:
    """Return decoders with the positions of the text, and before them one without."""
    return [Entry(variant, slices) for slices in ("v5e-256", "v5p-128") for variant in READING]


def searched() -> list[Entry]:
    """Return steps whose remat and microbatches the compiler's numbers choose."""
    return [
        Entry(f"{size}-512x8", slices, program="search")
        for slices in ("v5e-256", "v5p-128")
        for size in scaling.DECODERS
    ]


def entries(everything: bool = False) -> list[Entry]:
    """Return the entries of the page; `everything` adds every size and shape on every slice."""
    ones, pods = (
        ("v4-8", "v5e-8", "v5p-8", "v6e-8"),
        ("v4-512", "v5e-256", "v5p-512", "v6e-256", "2xv5e-256"),
    )
    wanted = [Entry(MAIN, name) for name in ("v5e-256", "v5p-128")]
    wanted += weak_scaling()
    wanted += [
        Entry(f"{size}-512x8", slices)
        for slices in ("v5e-256", "v5p-128")
        for size in scaling.DECODERS
    ]
    wanted += [Entry(MAIN, name) for name in ("2xv5e-256", "v6e-256", "v4-512")]
    wanted += reading()
    wanted += [Entry(variant, "v5e-256") for variant in scaling.SLOTS]
    wanted += [Entry(MAIN, name) for name in (*ones, "v5p-512")]
    wanted += [Entry(MAIN, "v5e-256", program=program) for program in ("evaluate", "generate")]
    wanted += [
        *(Entry(WEAK, v5e(chips)) for chips in (32, 256, 512, 2048)),
        *(Entry(WEAK, v5e(chips), f"data={chips // 32},fsdp=32") for chips in (256, 512)),
        Entry(MAIN, "v5e-256", "data=16,fsdp=16"),
        Entry(MAIN, "v5e-256", "fsdp_tp"),
    ]
    if everything:
        wanted += [
            Entry(variant, name) for name in (*pods, *ones, "v5p-128") for variant in scaling.SLOTS
        ]
    return list(dict.fromkeys(wanted))


def config_of(entry: Entry) -> Config:
    """Return the variant with a constant number of tokens per chip.

    Every shard of the batch has at least one sequence.
    """
    config = load_config(scaling.get_config(entry.variant))
    chips = topology(entry.topology).chips
    tensor = mesh_of(entry.mesh).tensor
    shards = chips // max(tensor, 1)
    rows = max(chips * TOKENS_PER_CHIP // config.data.sequence_length // shards, 1) * shards
    stages = {
        name: dataclasses.replace(stage, batch_size=rows) for name, stage in config.stages.items()
    }
    return dataclasses.replace(config, stages=stages)


def mesh_of(text: str) -> Mesh:
    """Parse a mesh, given by name or by axes."""
    pairs = dict(re.findall(r"(\w+)=(\d+)", text))
    return (
        Mesh(**{"data": 1} | {axis: int(size) for axis, size in pairs.items()})
        if pairs
        else MESHES[text]
    )


def compile_entry(entry: Entry) -> dict[str, Any]:
    """Compile an entry; return its report as plain values. `fsdp` stays within one slice."""
    mesh, slices = mesh_of(entry.mesh), topology(entry.topology).slices
    mesh = dataclasses.replace(mesh, data=slices) if slices > 1 and mesh.fsdp == -1 else mesh
    report = compile_program(config_of(entry), "combined", entry.topology, mesh, entry.program)
    return {**report.to_json(), "variant": entry.variant, "layout": entry.mesh}


def search_entry(entry: Entry) -> dict[str, Any]:
    """Return the report of the layout with the highest bound, the layout and its flags."""
    tried = search(config_of(entry), "combined", entry.topology, [mesh_of(entry.mesh)])
    layout, report = max(
        (one for one in tried if one[1].bound is not None), key=lambda one: one[1].bound.mfu
    )
    return {
        **report.to_json(),
        "variant": entry.variant,
        "remat": layout.remat,
        "microbatches": layout.microbatches,
        "flags": layout.flags("combined"),
    }


def write_page(found: dict[str, Any]) -> None:
    """Write the tables of the available entries."""
    there = [found[entry.key] for entry in entries(everything=True) if entry.key in found]
    plain = [one for one in there if one["program"] == "train" and one["layout"] == "fsdp"]
    order = {variant: place for place, variant in enumerate(scaling.VARIANTS)}
    tables = {
        "models": sorted(
            (
                one
                for one in plain
                if one["topology"] in ("v5e-256", "v5p-128") and one["variant"] in scaling.SLOTS
            ),
            key=lambda one: (one["topology"], order[one["variant"]]),
        ),
        "slices": sorted(
            (one for one in plain if one["variant"] == MAIN),
            key=lambda one: (one["topology"][:2], one["chips"]),
        ),
        "weak": [found[entry.key] for entry in weak_scaling() if entry.key in found],
        "weak_others": sorted(
            (
                one
                for one in there
                if one["variant"] == WEAK
                and one["program"] == "train"
                and one["chips"] > 8
                and one["mesh"]["fsdp"] > 8
            ),
            key=lambda one: (one["mesh"]["fsdp"] != 32 or one["mesh"]["data"] < 8, one["chips"]),
        ),
        "meshes": [
            one
            for one in there
            if one["variant"] == MAIN and one["topology"] == "v5e-256" and one["program"] == "train"
        ],
        "reading": [found[entry.key] for entry in reading() if entry.key in found],
        "programs": [one for one in there if one["program"] != "train"],
        "searched": [
            (found[entry.key], found.get(entry._replace(program="train").key))
            for entry in searched()
            if entry.key in found
        ],
    }
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        tables=tables,
        tokens_per_chip=TOKENS_PER_CHIP,
        commits=sorted({one["commit"] for one in found.values()}),
        main=MAIN,
        weak=WEAK,
        reading=READING,
    )
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Compile missing entries and write the page."""
    found: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    wanted = [*entries("--all" in sys.argv[1:]), *searched()]
    for entry in wanted if "--page" not in sys.argv[1:] else []:
        if entry.key in found or not all(word in entry.key for word in words):
            continue
        make = search_entry if entry.program == "search" else compile_entry
        found[entry.key] = make(entry) | {"commit": commit()}
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(
            entry.key,
            found[entry.key]["problem"] or f"{found[entry.key]['seconds']:.0f} s",
            flush=True,
        )
    write_page(found)


if __name__ == "__main__":
    main()
