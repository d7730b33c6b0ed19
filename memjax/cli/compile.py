"""The command `memjax compile`: the steps of a stage compiled for a TPU slice."""

import re
from argparse import Namespace
from typing import TYPE_CHECKING

from memjax.cli.arguments import Arguments, UsageError, read_config, take
from memjax.files import write_json
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.config import Config, Mesh
    from memjax.performance.aot.compiling import Report

PROGRAMS = ("train", "evaluate", "generate")
ARGUMENTS = Arguments(
    example="memjax compile --config=configs/quickstart.py --topology=v5e-8",
    flags=take(
        config={"required": True},
        topology={"required": True},
        mesh={},
        stage={},
        program={"what": ", ".join(PROGRAMS), "choices": PROGRAMS, "default": ["train"]},
        search={},
        out={"what": "Write the reports to this file, as JSON", "metavar": "FILE"},
    ),
    configs=("config",),
    notes="""
    Prints per chip: memory against HBM, FLOPs, collectives with their bytes over ICI and DCN, and
    the roofline, which is the highest model FLOPs utilisation (MFU) that the slowest resource
    allows. --search compiles the training step with several meshes (or --mesh), policies of remat
    and numbers of microbatches, and prints the flags of the best. Needs the TPU compiler: pip
    install libtpu. The exit status is 1 if a program does not fit.
    """,
)


def parse_mesh(text: str | None) -> "Mesh | None":
    """A mesh by its name or its axes; None for no text.

    Raises:
      UsageError: the text is neither.
    """
    from memjax.config import MESHES, Mesh
    from memjax.config.checks import MESH_AXES

    if not text or text in MESHES:
        return MESHES.get(text or "")
    parts = [part.partition("=") for part in text.split(",")]
    UsageError.require(
        all(axis in MESH_AXES and re.fullmatch(r"-?\d+", size) for axis, _, size in parts),
        f"--mesh: {text!r}, expected {', '.join(MESHES)}, or axes such as data=2,fsdp=8,tensor=4.",
    )
    sizes = {axis: int(size) for axis, _, size in parts}
    return Mesh(sizes.get("data", 1), sizes.get("fsdp", 1), sizes.get("tensor", 1))


def run(given: Namespace) -> int:
    """Compiles and prints; the exit status is 1 if a program does not fit."""
    mesh = parse_mesh(given.mesh)
    config = read_config("config", given.config, given.overrides["config"])
    stage = given.stage or config.curriculum[-1]
    if given.search:
        return _search(given, config, stage, mesh)
    from memjax.performance.aot.compiling import compile_program

    reporter, reports = Reporter(), []
    for program in given.program:
        with reporter.console.status(f"compiling {program} of {stage} for {given.topology}"):
            reports.append(compile_program(config, stage, given.topology, mesh, program))
        show(reports[-1], reporter)
    if given.out:
        write_json(given.out, [report.to_json() for report in reports])
    return int(any(report.problem for report in reports))


def _search(given: Namespace, config: "Config", stage: str, mesh: "Mesh | None") -> int:
    """Prints every layout, the best one as a table, and its flags."""
    UsageError.require(
        given.program == ["train"],
        f"--program: {','.join(given.program)}, expected train. Leave it out, as --search compiles"
        " training steps",
    )
    from memjax.performance.aot.search import best, search, usual_meshes

    reporter, found = Reporter(), []
    meshes = [mesh] if mesh else usual_meshes(given.topology)
    with reporter.console.status(f"compiling {stage} for {given.topology}"):
        for layout, report in search(config, stage, given.topology, meshes):
            found.append((layout, report))
            bound = report.bound
            result = (
                report.problem.partition(";")[0]
                if bound is None
                else (
                    f"MFU at most {bound.mfu:.1%}, bound by {bound.binds}; {gib(report.peak)} of"
                    f" {gib(report.hbm)}"
                )
            )
            reporter.log(f"{layout}: {result}")
    if given.out:
        write_json(
            given.out,
            [report.to_json() | {"flags": layout.flags(stage)} for layout, report in found],
        )
    chosen = best(found)
    if chosen is None:
        reporter.log("no layout fits; use more chips or fewer rows")
        return 1
    layout, report = chosen
    show(report, reporter)
    reporter.log(f"memjax train --config={given.config} {layout.flags(stage)}")
    return 0


def show(report: "Report", reporter: Reporter) -> None:
    """Prints a report as a table."""
    if report.problem:
        reporter.log(f"{report.topology}: {report.problem}")
        return
    rows = [
        ("arguments (state and batch)", gib(report.arguments)),
        ("temporary", gib(report.temporary)),
        (
            "peak, of HBM",
            f"{gib(report.peak)} of {gib(report.hbm)} ({report.peak / report.hbm:.0%})",
        ),
        ("model FLOPs", f"{report.model_flops:.3e}"),
        ("FLOPs of the program", f"{report.hardware_flops:.3e}"),
        ("read from HBM and written to it", gib(report.hbm_moved)),
    ]
    rows += [
        (
            f"{kind} x {traffic.count}",
            f"{traffic.ici / 1e6:,.1f} MB ICI, {traffic.dcn / 1e6:,.1f} MB DCN",
        )
        for kind, traffic in report.collectives.items()
    ]
    bound = report.bound
    if bound is not None:
        times = ", ".join(
            f"{name} {1e3 * getattr(bound, name):.2f}" for name in ("compute", "hbm", "ici", "dcn")
        )
        rows += [
            (
                "arithmetic intensity, FLOPs per byte",
                f"{bound.intensity:.0f} (the chip's ridge: {bound.ridge:.0f})",
            ),
            ("least milliseconds", times),
            ("MFU, at most", f"{bound.mfu:.1%}, bound by {bound.binds}"),
            ("tokens/s, at most", f"{report.tokens / bound.seconds:,.0f}"),
        ]
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    reporter.table(
        f"{report.program} of {report.stage} on {report.topology}: {report.chips} chips ({mesh})",
        ("", ""),
        rows,
        f"{report.parameters / 1e6:,.1f} M parameters, {report.rows:,} rows of"
        f" {report.tokens // report.rows:,} tokens;"
        f" compiled in {report.seconds:.0f} s; amounts per chip and step",
    )


def gib(number: float) -> str:
    """A number of bytes in GiB."""
    return f"{number / 2**30:.2f} GiB"
