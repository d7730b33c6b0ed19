"""The command `memjax bench`: the programs of a stage timed on random tokens."""

import dataclasses
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from memjax.cli.arguments import Arguments, UsageError, read_config, refuse, take
from memjax.cli.compile import gib, parse_mesh
from memjax.files import write_json
from memjax.progress import SILENT, Reporter

if TYPE_CHECKING:
    from memjax.config import Config
    from memjax.performance.bench import Comparison, Report, Result
    from memjax.performance.bench.borders import Borders
    from memjax.performance.bench.efficiency import Efficiency

TWO_PASSES = "two_passes"
PROGRAMS = ("train", "gradients", "evaluate", "encode", "decode", "generate", TWO_PASSES)
ONLY_PROGRAMS = ("program", "warmup", "profile", "mesh", "against")
"""Flags that cannot be given with --context_lengths or --border_entries."""
ARGUMENTS = Arguments(
    example="memjax bench --config=configs/benchmark.py:combined --against=two_passes",
    flags=take(
        config={"required": True},
        against={"what": f"another config, or {TWO_PASSES}"},
        stage={},
        program={"what": ", ".join(PROGRAMS), "choices": PROGRAMS, "default": ["train"]},
        steps={"default": 10},
        warmup={"default": 2},
        profile={"what": "N steps after the timed ones"},
        mesh={},
        context_lengths={},
        border_entries={},
        batch_size={"what": "Generated sequences", "default": 1},
        out={"what": "Write the figures to this file, as JSON", "metavar": "FILE"},
    ),
    configs=("config", "against"),
    notes="""
    Needs no data, no tokenizer and no checkpoint. With --against both sides are compiled and warmed
    up, then take turns, step by step; the ratio of their medians is printed beside the ratio that
    their model FLOPs allow. --against.KEY=VALUE alone compares with the same config with that
    setting. --profile=2 records two more steps and prints the time per kind of operation.

    --context_lengths=1024,4096 compares the stage's memory model with its decoder alone, which
    attends to the full context: seconds of prefill, time per token, and bytes of the cache.
    --border_entries=64,16384 times the step that fills a chunk, behind that many random memories.
    --batch_size is read only with one of these two.
    """,
)


def label(file: str, overrides: Iterable[tuple[str, str]]) -> str:
    """A config as the command line describes it: file, variant and changed settings."""
    return " ".join([file, *(f"{key}={value}" for key, value in overrides)])


def rival(given: Namespace) -> tuple[str, list[tuple[str, str]]] | None:
    """The file and overrides of the config to compare with; None without a comparison.

    --against.KEY=VALUE without --against changes a setting of --config, and --against=two_passes
    is --config itself.
    """
    own, other = given.overrides["config"], given.overrides["against"]
    if given.against in (None, TWO_PASSES):
        return (given.config, own + other) if given.against or other else None
    return given.against, other


def run(given: Namespace) -> None:
    """Times the programs of a stage and prints the figures."""
    config = read_config("config", given.config, given.overrides["config"])
    other = rival(given)
    if given.context_lengths is not None or given.border_entries is not None:
        run_contexts(config, given)
        return
    UsageError.require(
        given.batch_size == ARGUMENTS.flags["batch_size"].default,
        f"--batch_size: {given.batch_size}, expected none without --context_lengths or"
        " --border_entries. Set --config.stages.STAGE.batch_size.",
    )
    start, recorded = given.profile or (1, 0)
    UsageError.require(start == 1, f"--profile: {start}:{recorded}, expected a number of steps.")
    flag = "against" if given.against not in (None, TWO_PASSES) else "config"
    against_config = read_config(flag, *other) if other else None
    mesh = parse_mesh(given.mesh)
    # After the flags are checked: these import JAX.
    from memjax.performance.bench import BenchCase, measure
    from memjax.sharding import connect, first_process

    def subject(config: "Config", words: str, program: str = "") -> BenchCase:
        config = dataclasses.replace(config, mesh=mesh or config.mesh)
        return BenchCase(words, config, given.stage or config.curriculum[-1], program)

    against = None
    if against_config is not None and other is not None:
        against = (
            subject(against_config, "the same in two passes", TWO_PASSES)
            if given.against == TWO_PASSES
            else subject(against_config, label(*other))
        )
    connect()
    reporter = Reporter() if first_process() else SILENT
    with reporter.console.status("starting") as status:
        result = measure(
            subject(config, label(given.config, given.overrides["config"])),
            given.program,
            against,
            given.steps,
            given.warmup,
            recorded,
            status.update,
        )
    show(result, reporter)
    if given.out and first_process():
        write_json(given.out, result.to_json())


def run_contexts(config: "Config", given: Namespace) -> None:
    """Times a memory model and its decoder alone at several context lengths, or borders."""
    flag, usual = (
        ("context_lengths", "1024,4096")
        if given.context_lengths is not None
        else ("border_entries", "64,16384")
    )
    others = ONLY_PROGRAMS + ("border_entries",) * (flag == "context_lengths")
    refuse(ARGUMENTS, given, others, f"with --{flag}")
    numbers = getattr(given, flag)
    UsageError.require(numbers, f"--{flag}: no value, expected numbers such as {usual}.")
    from memjax.performance.bench.borders import measure_borders
    from memjax.performance.bench.efficiency import measure_efficiency

    reporter = Reporter()
    stage = given.stage or config.curriculum[-1]
    arguments = config, stage, numbers, given.batch_size, given.steps
    status = reporter.console.status("starting")
    if flag == "context_lengths":
        with status:
            points = measure_efficiency(*arguments, status.update)
        show_contexts(points, reporter)
        figures = points.to_json()
    else:
        with status:
            borders = measure_borders(*arguments, status.update)
        show_borders(borders, reporter)
        figures = borders.to_json()
    if given.out:
        write_json(given.out, figures)


def show_contexts(found: "Efficiency", reporter: Reporter) -> None:
    """Prints a line per model and context length, and their ratios."""
    figures = [point.to_json() for point in found.points]
    reporter.table(
        f"memories against full context, on {found.devices}",
        (
            "context",
            "model",
            "prefill s",
            "ms per token",
            "tokens/s",
            "ms at a border",
            "cache MiB",
            "MFLOPs",
        ),
        [
            row
            for point in figures
            for row in (
                (f"{point['context']:,}", "memories", *_side(point["memory"])),
                ("", "full context", *_side(point["full"])),
            )
        ],
        "medians of rounds; a cache is memories, keys and values; FLOPs are the model's, per token",
        left=2,
    )
    for point in figures:
        faster = point["faster"]
        smaller = f"with memories the cache is {point['smaller']:.1f} times smaller"
        if not faster:
            reporter.log(f"{point['context']:,} tokens: {smaller}; full context is not timed")
            continue
        reporter.log(
            f"{point['context']:,} tokens: {smaller}, tokens per"
            f" second are {faster['value']:.2f} times as many"
            f" (95 % interval {faster['low']:.2f} to {faster['high']:.2f}; model FLOPs"
            f" allow {point['allowed']:.2f}), and the prompt is read {point['prefill_faster']:.1f}"
            " times as fast"
        )
    first = found.points[0]
    reporter.log(
        f"both have the same {first.full.decoder_parameters / 1e6:,.1f} M decoder parameters;"
        f" encoder, bridge and positions are {first.memory.other_parameters / 1e6:,.1f} M more"
    )


def _side(figures: dict[str, Any]) -> list[str]:
    prefill, token, border = (figures[f"{name}_spread"] for name in ("prefill", "token", "border"))
    return [
        f"{prefill['median']:.3g}" if prefill else "–",
        f"{1e3 * token['median']:.4g}" if token else "–",
        f"{figures['tokens_per_second']:,.1f}" if token else "–",
        f"{1e3 * border['median']:.4g}" if border else "–",
        f"{figures['cache_bytes'] / 2**20:,.2f}",
        f"{figures['token_flops'] / 1e6:,.1f}",
    ]


def show_borders(found: "Borders", reporter: Reporter) -> None:
    """Prints a line per number of entries, and the ratio of the last to the first."""
    figures = found.to_json()
    reporter.table(
        f"the border of a chunk, on {found.devices}",
        ("entries", "ms per token within a chunk", "ms at the border", "s to double the cache"),
        [
            (
                f"{border['entries']:,}",
                f"{1e3 * border['token_spread']['median']:.4g}",
                f"{1e3 * border['border_spread']['median']:.4g}",
                f"{border['grow_seconds']:.3g}",
            )
            for border in figures["borders"]
        ],
        "medians of rounds; a border encodes a chunk, appends its entry and scores the next token",
    )
    whole, beyond = figures["dearer"], figures["dearer_beyond_attention"]
    reporter.log(
        f"the last border takes {whole['value']:.2f} times as long as the first, and"
        f" {beyond['value']:.2f} times beyond attention over the entries (95 % interval"
        f" {beyond['low']:.2f} to {beyond['high']:.2f})"
    )


def show(result: "Result", reporter: Reporter) -> None:
    """Prints all tables of a result."""
    labels = dict.fromkeys(report.label for report in result.reports)
    columns = [_column(report) for report in result.reports]
    reporter.table(
        f"{' against '.join(labels)}, random tokens on {result.devices}",
        ("program", *(report.program for report in result.reports)),
        [(name, *(column[name] for column in columns)) for name in columns[0]],
        "FLOPs are the model's, by formula; a step is one run of the program; memory is per device",
    )
    for comparison in result.comparisons:
        reporter.log(_sentence(comparison))
    for program, profile in result.profiles.items():
        reporter.table(
            f"{program}, by kind of operation",
            ("operations", "seconds per step", "share", "runs"),
            [
                (kind.name, f"{kind.seconds:.4f}", f"{kind.share:.1%}", f"{kind.runs:,.0f}")
                for kind in profile.kinds
            ],
            f"mean of {profile.steps} recorded steps",
        )
    memory = [f"{name} {gib(peak)}" for name, peak in result.memory.items() if peak is not None]
    reporter.log(f"peak memory since the process began, compiling included: {', '.join(memory)}")


def _column(report: "Report") -> dict[str, str]:
    figures = report.to_json()
    spread = figures["spread"]
    return {
        "stage": report.stage,
        "parameters": f"{report.parameters / 1e6:,.1f} M",
        "rows": f"{report.rows:,}",
        "tokens": f"{report.tokens:,}",
        "seconds per step, median": f"{spread['median']:.4g}",
        "lower quartile": f"{spread['lower_quartile']:.4g}",
        "upper quartile": f"{spread['upper_quartile']:.4g}",
        "tokens/s": f"{figures['tokens_per_second']:,.0f}",
        "model GFLOPs per step": f"{report.model_flops / 1e9:,.2f}",
        "model GFLOP/s": f"{figures['model_flops_per_second'] / 1e9:,.1f}",
        "MFU": "–" if figures["mfu"] is None else f"{figures['mfu']:.1%}",
        "memory, as compiled": gib(report.planned_bytes),
        "compiled in": f"{report.compile_seconds:.1f} s",
    }


def _sentence(comparison: "Comparison") -> str:
    ratio, figures = comparison.ratio, comparison.to_json()
    return (
        f"{comparison.program}: {comparison.ours} is {ratio.value:.3f} times as fast as"
        f" {comparison.theirs} (95 % interval"
        f" {ratio.low:.3f} to {ratio.high:.3f}); model FLOPs allow {comparison.allowed:.3f}, of"
        f" which that is {figures['reached']:.1%}"
    )
