"""The command `memjax bench --config=FILE`: a stage's programs timed on the devices that are here, on random tokens.

    memjax bench --config=configs/benchmark.py:combined --program=train,evaluate
    memjax bench --config=configs/benchmark.py:frozen_stored --against=configs/benchmark.py:frozen
    memjax bench --config=configs/benchmark.py:combined --against=two_passes
    memjax bench --config=configs/quickstart.py --against.model.remat=nothing_saveable --out=report.json
    memjax bench --config=configs/benchmark.py:combined --contexts=1024,4096,16384

Needs no data, no vocabulary and no checkpoint. With --against both sides are compiled and warmed up first and then take turns, step by
step; the ratio of their medians is printed beside the one that their model FLOPs allow. --against.KEY=VALUE alone is the same config with
that setting. --profile=2 records two more steps and shows what kinds of operations they were spent on.

With --contexts the stage's memory model and its decoder alone read prompts of so many tokens and write on, in turns: seconds to read, time
a token, and bytes kept between steps (memjax/bench/efficiency.py).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.console import Console
from rich.table import Table

from memjax.cli.allocator import keep_freed_memory
from memjax.cli.arguments import read_flags
from memjax.cli.compile import parse_mesh
from memjax.config import Config

if TYPE_CHECKING:
    from memjax.bench import Comparison, Profile, Report, Result
    from memjax.bench.efficiency import Efficiency

EXAMPLE = "memjax bench --config=configs/benchmark.py:combined --against=two_passes"
TWO_PASSES = "--against=two_passes"
NOT_WITH_CONTEXTS = ("program", "warmup", "profile", "mesh")


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; --config and --config.KEY are as in `memjax train`, --against and --against.KEY like them."""
    flags.DEFINE_string("stage", "", "The stage; by default the last of each curriculum.", flag_values=values)
    flags.DEFINE_list(
        "program", ["train"], "Which of train, evaluate, encode, decode, generate, two_passes.", flag_values=values
    )
    flags.DEFINE_list(
        "contexts", [], "Tokens of context, to compare caches at, in place of programs: 1024,4096.", flag_values=values
    )
    flags.DEFINE_integer("rows", 1, "Texts that are written at once, with --contexts.", flag_values=values)
    flags.DEFINE_integer(
        "steps", 10, "Timed steps of each program; with --contexts chunks written at each.", flag_values=values
    )
    flags.DEFINE_integer("warmup", 2, "Steps before those.", flag_values=values)
    flags.DEFINE_integer("profile", 0, "Steps to record after those.", flag_values=values)
    flags.DEFINE_string("mesh", "", "ddp, fsdp, fsdp_tp, or data=2,fsdp=8,tensor=4; else config.mesh.", flag_values=values)
    flags.DEFINE_string("out", "", "File for the numbers, as JSON.", flag_values=values)


def split_against(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that describe what is timed, and those of what it is compared with, as if that were it: --config for --against.

    Without a comparison there are none of the second kind. With --against=two_passes they are the first ones.

    Raises:
      flags.Error: --against has no value.
    """
    own = [arg for arg in args if not arg.startswith("--against")]
    other = [arg.replace("--against", "--config", 1) for arg in args if arg.startswith("--against")]
    if "--config" in other:
        raise flags.IllegalFlagValueError(
            f"--against is followed by = and a config file, or two_passes; for example: {EXAMPLE}"
        )
    if not other or TWO_PASSES in args:
        return own, own if other else []
    if not any(arg.startswith("--config=") for arg in other):
        other = [arg for arg in own if arg.startswith("--config")] + other
    return own, [own[0], *other]


def label(args: Sequence[str]) -> str:
    """A config as the command line describes it: file, variant and changed settings."""
    return " ".join(arg.removeprefix("--config").lstrip("=.") for arg in args if arg.startswith("--config"))


def run(args: Sequence[str]) -> int:
    """Times, and prints what came of it."""
    own, other = split_against(args)
    config, values = read_flags(own, EXAMPLE, define_flags)
    given: dict[str, Any] = {name: values[name].value for name in values}
    if values["contexts"].present:
        return run_contexts(config, values, other)
    if values["rows"].present:
        raise flags.IllegalFlagValueError("--rows goes with --contexts; without, rows are those of the stage")
    rival = read_flags(other, EXAMPLE, define_flags)[0] if other else None
    mesh = parse_mesh(given["mesh"])
    keep_freed_memory()
    # These import JAX: after the allocator is set and the flags are known to be right.
    from memjax.bench import Subject, measure
    from memjax.sharding import connect, first_process

    def subject(config: Config, words: str, program: str = "") -> Subject:
        config = dataclasses.replace(config, mesh=mesh or config.mesh)
        return Subject(words, config, given["stage"] or config.curriculum[-1], program)

    against = None
    if rival is not None:
        against = subject(rival, "the same in two passes", "two_passes") if TWO_PASSES in args else subject(rival, label(other))
    connect()
    console = Console(quiet=not first_process())
    with console.status("starting") as status:
        result = measure(
            subject(config, label(own)),
            given["program"],
            against,
            given["steps"],
            given["warmup"],
            given["profile"],
            status.update,
        )
    show(result, console)
    if given["out"] and first_process():
        Path(given["out"]).write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    return 0


def run_contexts(config: Config, values: flags.FlagValues, against: Sequence[str]) -> int:
    """Times a memory model and its decoder alone, and prints what came of it."""
    wrong = [f"--{name}" for name in NOT_WITH_CONTEXTS if values[name].present] + ["--against"] * bool(against)
    if wrong:
        raise flags.IllegalFlagValueError(f"{', '.join(wrong)} cannot be given with --contexts")
    texts: list[str] = values["contexts"].value or []
    if not texts or not all(text.isascii() and text.isdigit() for text in texts):
        raise flags.IllegalFlagValueError(
            f"--contexts={','.join(texts)} must be numbers of tokens with commas between them, for example 1024,4096"
        )
    keep_freed_memory()
    from memjax.bench.efficiency import measure_efficiency

    given: dict[str, Any] = {name: values[name].value for name in ("stage", "rows", "steps", "out")}
    console = Console()
    stage = given["stage"] or config.curriculum[-1]
    with console.status("starting") as status:
        found = measure_efficiency(config, stage, list(map(int, texts)), given["rows"], given["steps"], status.update)
    show_contexts(found, console)
    if given["out"]:
        Path(given["out"]).write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    return 0


def show_contexts(found: "Efficiency", console: Console) -> None:
    """A line for each model at each length of context, and their ratios."""
    table = Table(
        title=f"memories against the whole context, on {found.devices}",
        caption="medians of rounds; a cache is memories, keys and values; FLOPs are the model's, of a token",
    )
    for column in ("context", "model", "prefill s", "ms a token", "tokens/s", "cache MiB", "MFLOPs"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    told = [point.to_json() for point in found.points]
    for point in told:
        table.add_row(f"{point['context']:,}", "memories", *_side(point["memory"]))
        table.add_row("", "full context", *_side(point["full"]))
    console.print(table)
    for point in told:
        faster = point["faster"]
        console.print(
            f"{point['context']:,} tokens: with memories the cache is [bold]{point['smaller']:.1f}[/] times smaller, tokens a second"
            f" are [bold]{faster['value']:.2f}[/] times as many (95 % interval {faster['low']:.2f} to {faster['high']:.2f}; model FLOPs"
            f" allow {point['allowed']:.2f}), and the prompt is read {point['prefill_faster']:.1f} times as fast",
            highlight=False,
            soft_wrap=True,
        )
    first = found.points[0]
    console.print(
        f"both have the same {first.full.decoder_parameters / 1e6:,.1f} M decoder parameters; encoder, bridge and positions are"
        f" {first.memory.other_parameters / 1e6:,.1f} M more",
        highlight=False,
        soft_wrap=True,
    )


def _side(told: dict[str, Any]) -> list[str]:
    return [
        f"{told['prefill_spread']['median']:.3g}",
        f"{1e3 * told['token_spread']['median']:.4g}",
        f"{told['tokens_per_second']:,.1f}",
        f"{told['cache_bytes'] / 2**20:,.2f}",
        f"{told['token_flops'] / 1e6:,.1f}",
    ]


def show(result: "Result", console: Console) -> None:
    """All tables of a result."""
    labels = dict.fromkeys(report.label for report in result.reports)
    table = Table(
        title=f"{' against '.join(labels)}, random tokens on {result.devices}",
        caption="FLOPs are the model's, by formula; a step is one run of the program; memory is of a device",
    )
    table.add_column("program", no_wrap=True)
    for report in result.reports:
        table.add_column(report.program, justify="right")
    for row in zip(*(_column(report) for report in result.reports), strict=True):
        table.add_row(row[0][0], *(text for _, text in row))
    console.print(table)
    for comparison in result.comparisons:
        console.print(_sentence(comparison), highlight=False, soft_wrap=True)
    for name, profile in result.profiles.items():
        console.print(_profile(profile, name))
    memory = ", ".join(f"{name} {_gib(peak)}" for name, peak in result.memory.items() if peak is not None)
    console.print(f"peak memory since the process began, compiling included: {memory}", highlight=False, soft_wrap=True)


def _column(report: "Report") -> list[tuple[str, str]]:
    told = report.to_json()
    spread = told["spread"]
    return [
        ("stage", report.stage),
        ("parameters", f"{report.parameters / 1e6:,.1f} M"),
        ("rows", f"{report.rows:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("seconds a step, median", f"{spread['median']:.4g}"),
        ("lower quartile", f"{spread['lower_quartile']:.4g}"),
        ("upper quartile", f"{spread['upper_quartile']:.4g}"),
        ("tokens/s", f"{told['tokens_per_second']:,.0f}"),
        ("model GFLOPs a step", f"{report.model_flops / 1e9:,.2f}"),
        ("model GFLOP/s", f"{told['model_flops_per_second'] / 1e9:,.1f}"),
        ("MFU", "–" if told["mfu"] is None else f"{told['mfu']:.1%}"),
        ("memory, as compiled", _gib(report.planned_bytes)),
        ("compiled in", f"{report.compile_seconds:.1f} s"),
    ]


def _sentence(comparison: "Comparison") -> str:
    ratio, told = comparison.ratio, comparison.to_json()
    return (
        f"{comparison.program}: {comparison.ours} is [bold]{ratio.value:.3f}[/] times as fast as {comparison.theirs} (95 % interval"
        f" {ratio.low:.3f} to {ratio.high:.3f}); model FLOPs allow {comparison.allowed:.3f}, of which that is {told['reached']:.1%}"
    )


def _profile(profile: "Profile", program: str) -> Table:
    table = Table(title=f"{program}, by kind of operation", caption=f"mean of {profile.steps} recorded steps")
    for column in ("operations", "seconds a step", "share", "runs"):
        table.add_column(column, justify="left" if column == "operations" else "right")
    for kind in profile.kinds:
        table.add_row(kind.name, f"{kind.seconds:.4f}", f"{kind.share:.1%}", f"{kind.runs:,.0f}")
    return table


def _gib(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"
