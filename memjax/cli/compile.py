"""The command `memjax compile --config=FILE --topology=NAME`: a stage's steps compiled for a TPU slice, from a machine without TPUs.

    memjax compile --config=configs/scaling.py:1.3b --topology=v5e-256 --mesh=fsdp
    memjax compile --config=configs/quickstart.py --topology=v5e-8 --stage=combined --program=train,evaluate --out=report.json

Prints, for one chip, memory against HBM, FLOPs, collectives with their bytes over ICI and DCN, and the roofline: the highest model FLOPs
utilisation (MFU) that the slowest resource allows. Needs the TPU compiler, `pip install 'memjax[aot]'`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.console import Console
from rich.table import Table

from memjax.cli.arguments import read_flags
from memjax.config import MESHES, ConfigError, Mesh

if TYPE_CHECKING:
    from memjax.aot.compiling import Report

EXAMPLE = "memjax compile --config=configs/quickstart.py --topology=v5e-8"


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; --config and --config.KEY are as in `memjax train`."""
    flags.DEFINE_string("topology", None, "TPU slices: v5e-256, 2xv5e-256, v5p-128, ...", flag_values=values)
    flags.DEFINE_string("mesh", "", "ddp, fsdp, fsdp_tp, or data=2,fsdp=8,tensor=4; else config.mesh.", flag_values=values)
    flags.DEFINE_string("stage", "", "The stage; by default the last of the curriculum.", flag_values=values)
    flags.DEFINE_list("program", ["train"], "Which of train, evaluate, decode.", flag_values=values)
    flags.DEFINE_string("out", "", "File for the reports, as JSON.", flag_values=values)


def parse_mesh(text: str) -> Mesh | None:
    """A mesh by name (MESHES) or by its axes; None of nothing.

    Raises:
      ConfigError: it is neither.
    """
    if text in MESHES or not text:
        return MESHES.get(text)
    pairs = re.findall(r"(\w+)=(-?\d+)(?:,|$)", text)
    if ",".join(f"{axis}={size}" for axis, size in pairs) != text or {axis for axis, _ in pairs} - {"data", "fsdp", "tensor"}:
        raise ConfigError(f"--mesh={text!r} is not a mesh; use {', '.join(MESHES)}, or axes such as data=2,fsdp=8,tensor=4")
    sizes = {axis: int(size) for axis, size in pairs}
    return Mesh(sizes.get("data", 1), sizes.get("fsdp", 1), sizes.get("tensor", 1))


def run(args: Sequence[str]) -> int:
    """Compiles and prints; the exit status is 1 if a program does not fit."""
    config, values = read_flags(args, EXAMPLE, define_flags, ("topology",))
    given: dict[str, Any] = {name: values[name].value for name in ("topology", "mesh", "stage", "program", "out")}
    mesh, stage = parse_mesh(given["mesh"]), given["stage"] or config.curriculum[-1]
    from memjax.aot.compiling import compile_program

    console = Console()
    reports = []
    for program in given["program"]:
        with console.status(f"compiling {program} of {stage} for {given['topology']}"):
            reports.append(compile_program(config, stage, given["topology"], mesh, program))
        show(reports[-1], console)
    if given["out"]:
        Path(given["out"]).write_text(json.dumps([report.to_json() for report in reports], indent=2) + "\n", encoding="utf-8")
    return int(any(report.problem for report in reports))


def show(report: "Report", console: Console) -> None:
    """A report as a table."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    table = Table(
        title=f"{report.program} of {report.stage} on {report.topology}: {report.chips} chips ({mesh})",
        caption=f"{report.parameters / 1e6:,.1f} M parameters, {report.rows:,} rows of {report.tokens // report.rows:,} tokens;"
        f" compiled in {report.seconds:.0f} s; amounts are of one chip and one step",
        show_header=False,
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    if report.problem:
        console.print(f"[bold red]{report.topology}:[/] {report.problem}", highlight=False, soft_wrap=True)
        return
    rows = [
        ("arguments (state and batch)", f"{_gib(report.arguments)}"),
        ("temporary", f"{_gib(report.temporary)}"),
        ("peak, of HBM", f"{_gib(report.peak)} of {_gib(report.hbm)} ({report.peak / report.hbm:.0%})"),
        ("model FLOPs", f"{report.model_flops:.3e}"),
        ("FLOPs of the program", f"{report.hardware_flops:.3e}"),
        ("read from HBM and written to it", f"{_gib(report.hbm_moved)}"),
    ]
    rows += [
        (f"{kind} x {traffic.count}", f"{traffic.ici / 1e6:,.1f} MB ICI, {traffic.dcn / 1e6:,.1f} MB DCN")
        for kind, traffic in report.collectives.items()
    ]
    bound = report.bound
    if bound is not None:
        times = ", ".join(f"{name} {1e3 * getattr(bound, name):.2f}" for name in ("compute", "hbm", "ici", "dcn"))
        rows += [
            ("arithmetic intensity, FLOPs a byte", f"{bound.intensity:.0f} (the chip's ridge: {bound.ridge:.0f})"),
            ("least milliseconds", times),
            ("MFU, at most", f"{bound.mfu:.1%}, bound by {bound.binds}"),
            ("tokens/s, at most", f"{report.tokens / bound.seconds:,.0f}"),
        ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _gib(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"
