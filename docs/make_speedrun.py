"""Make docs/speedrun.md: train the quickstart's decoder in many ways, on one autoencoder.

Every change is one from the settings that the speed run began with, START; the quickstart has
since taken the changes that were kept.

    python docs/make_speedrun.py FOLDER                  measure missing runs, write the page
    python docs/make_speedrun.py FOLDER --only=NAME,...  measure missing runs of these rows alone
    python docs/make_speedrun.py FOLDER --steps=2        try the command, in FOLDER/trial
    python docs/make_speedrun.py --list                  list all runs and their settings
    python docs/make_speedrun.py --page                  write the page from the stored runs

Workdirs, stored memories and the autoencoder are kept in FOLDER, outside the repository. Every
finished run is in docs/speedrun.json and is skipped by the next call, so the command can be stopped
at any time, and the run that it interrupts starts again. Delete a run from the file to measure it
again. All runs together take hours on two cores.
"""

import dataclasses
import functools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import quickstart  # noqa: E402
from docs.experiments import (  # noqa: E402
    about,
    arguments,
    fill,
    measure_all,
    read,
    run,
    train,
    write,
)
from memjax.cli.arguments import read_config  # noqa: E402

DATA, PAGE, TEMPLATE = (ROOT / "docs" / f"speedrun.{end}" for end in ("json", "md", "md.jinja"))
CONFIG = "configs/quickstart.py"
DECODER = f"{CONFIG}:decoder"
SIZES = ("16", "64", "1024", "4096")
"""Numbers of memories."""
READING = ("recall_blank_accuracy", "recall_accuracy", "recall_exact", "recall_blank_exact")
ADDRESS = "recall_accuracy_without_address"
BY_MEMORIES = "next_token_nats_by_memories"
CHUNKS = 512
"""Decoded chunks per number of memories."""
EXAMPLES = 32
"""Held-out sequences of the next-token loss."""
SEEDS = (1, 2, 3)
"""The autoencoder has seed 0, so that a decoder reads its sequences in another order."""
ABLATION_STEPS = 150
CONTROL = "causal_control"
KEPT = "quickstart"
"""The row of the speed run that configs/quickstart.py has: it runs with all seeds."""
FIRST = "start"
"""The row that the speed run began with."""
STEPS, BASE_STEPS = 500, 600
"""Steps of its decoder and control, and of the autoencoder of all rows."""
GOALS = {"recall_blank_accuracy": 0.99, "recall_exact": 0.90}
"""Least values among 64 memories of a change that may be kept."""
NATS = 1.02
"""Greatest next-token loss of a change that may be kept, relative to the best measured control of
as many steps."""
EXACT = "autoencoder_exact"
BASE = "autoencoder"
"""The key of the autoencoder in docs/speedrun.json."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: settings of the decoder's stage, and the seeds that it runs with."""

    name: str
    label: str
    steps: int
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Overrides of the config, by key."""
    seeds: tuple[int, ...] = SEEDS[:1]
    stage: str = "combined"

    def key(self, seed: int) -> str:
        """Return the key of a run in docs/speedrun.json."""
        return f"{self.name}/{seed}"


def rates(muon: float = 10.0, embeddings: float = 4.0, others: float = 1.0) -> dict[str, str]:
    """Return the setting of factors of the learning rate."""
    rules = [[quickstart.MATRICES, muon], [quickstart.TOKENS, embeddings], [".*", others]]
    return {"optimizer.rate_rules": json.dumps(rules)}


def schedule(stage: str, rate: str = "5e-3") -> dict[str, str]:
    """Return the settings of a learning rate that falls by a cosine."""
    return {f"stages.{stage}.lr_schedule": "cosine", f"stages.{stage}.learning_rate": rate}


START = rates() | schedule("combined")
"""Settings that the speed run began with, where they are not the quickstart's."""


def ablations() -> list[Row]:
    """Return the rows of the table of parts."""
    features = quickstart.get_config().model.decoder.features
    without_addresses = ",".join(x for x in features if x != "constant_addresses")
    labels = {
        "sigmoid_gate": "linear output gate in place of the sigmoid",
        "log_scale": "without the logarithm of the number of keys",
        "rotary_values": "without rotary values",
        "blind_memories": "memories attend to earlier memories",
        "zero_outputs": "last matrices begin at random, not at zero",
        "constant_addresses": "addresses hold what tokens and memories hold too",
    }
    rows = {
        "all_parts": ("all parts", {}),
        "no_place_heads": (
            "without place heads: positions of the text in all heads",
            # Without place heads there are no addresses.
            {"model.decoder.place_heads": "0", "model.decoder.features": without_addresses},
        ),
        **{
            f"no_{name}": (
                labels.get(name, f"without {name}"),
                {"model.decoder.features": ",".join(x for x in features if x != name)},
            )
            for name in features
        },
        "no_gaps": (
            "without random gaps between chunks",
            {"stages.combined.dials.place_range": "0"},
        ),
    }
    return [
        Row(name, label, ABLATION_STEPS, START | settings, SEEDS)
        for name, (label, settings) in rows.items()
    ]


def speed_run() -> list[Row]:
    """Return the rows of the table of changes: the first settings first, what is kept last."""
    stage = quickstart.get_config().stages.combined
    scored, objectives = stage.scored_chunks.to_dict(), stage.objectives.to_dict()

    def without(group: Mapping[str, Any], name: str) -> str:
        return json.dumps({key: value for key, value in group.items() if key != name})

    rate = "stages.combined.learning_rate"
    changes = {
        FIRST: (f"{STEPS} steps, Muon's rate 10 times AdamW's", STEPS, {}),
        "steps_300": ("300 steps", 300, {}),
        "half_batch": (
            "400 steps of 4 sequences, twice the scored chunks of each",
            400,
            {
                "stages.combined.batch_size": "4",
                "stages.combined.scored_chunks": json.dumps({k: 2 * v for k, v in scored.items()}),
            },
        ),
        "rate_3e-3": ("learning rate 0.003", STEPS, {rate: "3e-3"}),
        "rate_8e-3": ("learning rate 0.008", STEPS, {rate: "8e-3"}),
        "linear": (
            "a learning rate that falls linearly",
            STEPS,
            {"stages.combined.lr_schedule": "linear"},
        ),
        "embeddings_8": ("the embeddings' rate 8 times AdamW's", STEPS, rates(embeddings=8.0)),
        "others_2": (
            "twice the rate of what is neither a matrix nor an embedding",
            STEPS,
            rates(others=2.0),
        ),
        "muon_6": ("Muon's rate 6 times AdamW's", STEPS, rates(6.0)),
        "muon_8": ("Muon's rate 8 times AdamW's", STEPS, rates(8.0)),
        "muon_16": ("Muon's rate 16 times AdamW's", STEPS, rates(16.0)),
        "blank_only": (
            "recall of blank chunks alone",
            STEPS,
            {
                "stages.combined.objectives": without(objectives, "recall"),
                "stages.combined.scored_chunks": without(scored, "recall"),
            },
        ),
        "next_token_1": (
            "weight 1.0 of next tokens",
            STEPS,
            {"stages.combined.objectives.next_token": "1.0"},
        ),
        "encoder": (
            "the encoder at every step, no stored memories",
            STEPS,
            {"data.memories": ""},
        ),
        "steps_420_muon_8": ("420 steps, Muon's rate 8 times AdamW's", 420, rates(8.0)),
    }
    rows = [
        Row(name, *label_and_steps, START | new)
        for name, (*label_and_steps, new) in changes.items()
    ]
    kept = "the quickstart as it is: a linear fall, higher rates of all but Muon"
    return [*rows, Row(KEPT, kept, stage.steps, {}, SEEDS)]


def controls() -> list[Row]:
    """Return the rows of the control's learning rates: the quickstart's, and others."""
    steps = quickstart.get_config().stages[CONTROL].steps
    rate, falls = f"stages.{CONTROL}.learning_rate", schedule(CONTROL)
    ten, eight = (f"learning rate 0.005, Muon's rate {n} times AdamW's" for n in (10, 8))
    return [
        Row("control_start", ten, STEPS, rates() | falls, stage=CONTROL),
        Row("control_muon_10", ten, 420, rates() | falls, stage=CONTROL),
        Row("control_muon_8", eight, STEPS, rates(8.0) | falls, stage=CONTROL),
        *(
            Row(
                f"control_{value}",
                f"the quickstart's, learning rate {value}",
                steps,
                {rate: value},
                stage=CONTROL,
            )
            for value in ("0.01", "0.007", "0.014")
        ),
    ]


ONE_STEP = Row("one_step", "one step", 1, START | {"stages.combined.warmup_steps": "0"})
"""A run whose CPU-seconds are those of start, compilation and evaluation."""


WHOLE = Row(
    "whole", "the whole quickstart", quickstart.get_config().stages.combined.steps, seeds=(0, 1, 2)
)
"""The quickstart without its control. It trains an autoencoder of its own."""


def every_row() -> list[Row]:
    """Return all rows in the order in which they run."""
    return [ONE_STEP, *ablations(), *speed_run(), *controls(), WHOLE]


def evaluators(chunks: int, examples: int) -> str:
    """Return the evaluators of a row: the next-token loss, and reading."""
    return json.dumps(
        {
            "accuracy": {"kind": "accuracy", "examples": examples},
            "reading": {"kind": "reading", "examples": chunks},
        }
    )


def overrides(row: Row, seed: int | str, folder: str, steps: int = 0) -> dict[str, str]:
    """Return the overrides of a run by key; `steps` above 0 makes it a trial of as many."""
    if row == WHOLE:
        stages = (BASE, row.stage) if steps else ()
        fewer = {f"stages.{name}.steps": str(steps) for name in stages}
        fewer |= {f"stages.{name}.warmup_steps": "0" for name in stages}
        return {"seed": str(seed), "controls": "", **fewer}
    trial = {f"stages.{row.stage}.warmup_steps": "0"} if steps else {}
    of_stage = (
        {"curriculum": CONTROL, "controls": "", "data.memories": ""}
        if row.stage == CONTROL
        else {
            "data.memories": f"{folder}/memories",
            "stages.combined.init_from": f"{folder}/base/stages/{BASE}",
        }
    )
    return {
        "seed": str(seed),
        "evaluators": evaluators(*((16, 2) if steps else (CHUNKS, EXAMPLES))),
        **of_stage,
        f"stages.{row.stage}.steps": str(steps or row.steps),
        **row.settings,
        **trial,
    }


def config_of(row: Row) -> str:
    """Return the config of a row."""
    return CONFIG if row.stage == CONTROL or row == WHOLE else DECODER


def make_base(folder: Path, steps: int) -> dict[str, Any] | None:
    """Train the autoencoder and store its memories, unless both are there.

    Returns:
      The autoencoder's numbers, or None where it was there.
    """
    base, memories, load = folder / "base", folder / "memories", os.getloadavg()[0]
    settings = {"curriculum": BASE, "controls": "", "data.memories": ""}
    settings |= rates() | schedule(BASE, "3e-3")
    settings[f"stages.{BASE}.steps"] = str(steps or BASE_STEPS)
    if steps:
        settings[f"stages.{BASE}.warmup_steps"] = "0"
    found = None
    if not (base / "results.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(memories, ignore_errors=True)
        seconds = run(train(CONFIG, str(base), settings))
        results = json.loads((base / "results.json").read_text(encoding="utf-8"))
        numbers = {key: results[key] for key in ("autoencoder_accuracy", EXACT)}
        found = about(load) | {
            "command": ["memjax", *train(CONFIG, "FOLDER/base", settings)],
            "steps": results["stages"][BASE]["steps"],
            "cpu_seconds": seconds,
            "numbers": numbers,
        }
    if not (memories / "train.json").exists():
        shutil.rmtree(memories, ignore_errors=True)
        run(compress(str(folder)))
    return found


def compress(folder: str) -> list[str]:
    """Return the arguments of `memjax` that store the memories."""
    stage = f"{folder}/base/stages/{BASE}"
    return ["compress", stage, f"{folder}/base", f"--out={folder}/memories", "--dtype=float32"]


def measure(row: Row, seed: int, folder: Path, steps: int) -> dict[str, Any]:
    """Train and evaluate one run from its start; return its numbers and how they were made."""
    workdir, load = folder / row.name / str(seed), os.getloadavg()[0]
    # What a stopped run has left would take its CPU-seconds out of the count.
    shutil.rmtree(workdir, ignore_errors=True)
    if row != WHOLE:
        shutil.copytree(folder / "base" / "data", workdir / "data")
    seconds = run(train(config_of(row), str(workdir), overrides(row, seed, str(folder), steps)))
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    settings = overrides(row, seed, "FOLDER", steps)
    shown = train(config_of(row), f"FOLDER/{row.name}/{seed}", settings)
    return about(load) | {
        "command": ["memjax", *shown],
        "seed": seed,
        "steps": steps or row.steps,
        "cpu_seconds": seconds,
        "seconds_training": results["seconds_training"],
        "numbers": numbers_of(results, row.stage),
    }


def numbers_of(results: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return the numbers of a run from its results.json."""
    model = results["models"][stage]
    return {
        "next_token_nats": results["next_token_nats"],
        **({EXACT: results[EXACT]} if results.get(EXACT) is not None else {}),
        **{
            key: {size: model[key][size] for size in SIZES if size in model[key]}
            for key in (*READING, ADDRESS, BY_MEMORIES)
            if key in model
        },
    }


def spread(runs: Iterable[Mapping[str, Any]], *path: str) -> dict[str, float] | None:
    """Return mean and range of a number over the runs that have it; None where none has."""
    values = []
    for found in runs:
        value: Any = found
        for key in path:
            value = value.get(key) if value is not None else None
        if value is not None:
            values.append(value)
    if not values:
        return None
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def runs_of(row: Row, found: Mapping[str, Any]) -> list[Any]:
    """Return the measured runs of a row, in the order of its seeds."""
    return [found[row.key(seed)] for seed in row.seeds if row.key(seed) in found]


def may_be_kept(row: Row, found: Mapping[str, Any]) -> bool | None:
    """Return whether a change reaches GOALS and NATS with fewer CPU-seconds, at one seed.

    None where it, the first row, or every control of as many steps is not measured.
    """
    seed = SEEDS[0]
    ours, theirs = (found.get(f"{name}/{seed}") for name in (row.name, FIRST))
    measured = [found.get(other.key(seed)) for other in controls() if other.steps == row.steps]
    nats = [run["numbers"]["next_token_nats"] for run in measured if run is not None]
    if ours is None or theirs is None or not nats:
        return None
    numbers = ours["numbers"]
    return (
        ours["cpu_seconds"] < theirs["cpu_seconds"]
        and numbers["next_token_nats"] <= NATS * min(nats)
        and all(numbers[key]["64"] >= least for key, least in GOALS.items())
    )


def render(found: Mapping[str, Any]) -> str:
    """Return the page of the available runs."""
    tables = {
        name: [(row, runs) for row in members if (runs := runs_of(row, found))]
        for name, members in (
            ("parts", ablations()),
            ("changes", speed_run()),
            ("controls", controls()),
            ("whole", [WHOLE]),
        )
    }
    rows = every_row()
    known = [run for row in rows for run in runs_of(row, found)]
    changes = [row for row in speed_run() if row.name != FIRST]
    return fill(
        TEMPLATE,
        **tables,
        base=found.get(BASE),
        one_step=next(iter(runs_of(ONE_STEP, found)), None),
        measured=known,
        missing=sum(len(row.seeds) for row in rows) - len(known),
        verdicts={row.name: may_be_kept(row, found) for row in changes},
        spread=spread,
        sizes=SIZES,
        address=ADDRESS,
        by_memories=BY_MEMORIES,
        ablation_steps=ABLATION_STEPS,
        seeds=SEEDS,
        chunks=CHUNKS,
        goals=GOALS,
        nats_limit=NATS,
        compress=["memjax", *compress("FOLDER")],
        command=command(),
        settings={row.name: own_words(row) for row in rows if runs_of(row, found)},
    )


def command() -> str:
    """Return the command of a run, without the settings that a row changes."""
    words = overrides(Row("NAME", "", 0), "SEED", "FOLDER") | {"stages.combined.steps": "STEPS"}
    return shlex.join(["memjax", *train(DECODER, "FOLDER/NAME/SEED", words)])


def own_words(row: Row) -> str:
    """Return the words that a row's settings add to the command."""
    return shlex.join(f"--config.{key}={value}" for key, value in row.settings.items())


def write_page(found: Mapping[str, Any], page: Path = PAGE) -> None:
    """Write the page of the available runs."""
    page.write_text(render(found), encoding="utf-8")


def check(rows: Iterable[Row], steps: int = 0) -> None:
    """Check the settings of all runs, before the first one starts.

    Raises:
      ConfigError: a setting is unknown or wrong.
    """
    for row in rows:
        for seed in row.seeds:
            settings = overrides(row, seed, "some/folder", steps)
            read_config("config", str(ROOT / config_of(row)), list(settings.items()))


def main() -> None:
    """Measure missing runs and write the page."""
    rows = {row.name: row for row in every_row()}
    given = arguments(__doc__, rows, DATA, PAGE)
    found, wanted = read(given.data), [rows[name] for name in given.names]
    if given.listing:
        check(wanted)
        for row in wanted:
            done = f"{len(runs_of(row, found))} of {len(row.seeds)} runs"
            print(f"{row.name}: {row.steps} steps, {done} {dict(row.settings)}")
        return
    if given.page_alone:
        write_page(found)
        return
    if given.steps:
        wanted = [dataclasses.replace(row, seeds=SEEDS[:1]) for row in wanted]
    check(wanted, given.steps)

    def keep(found: Mapping[str, Any]) -> None:
        write(found, given.data)
        write_page(found, given.page)

    # All rows with one seed first, so that a stopped command leaves whole tables.
    seeds = sorted({seed for row in wanted for seed in row.seeds})
    runs = {row.key(seed): (row, seed) for seed in seeds for row in wanted if seed in row.seeds}
    missing = {key: row.label for key, (row, _) in runs.items() if key not in found}
    if missing and (base := make_base(given.folder, given.steps)):
        found[BASE] = base
        write(found, given.data)
    measured = functools.partial(measure, folder=given.folder, steps=given.steps)
    failed = measure_all(missing.items(), found, lambda key: measured(*runs[key]), keep)
    write_page(found, given.page)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}. The next call runs them again.")


if __name__ == "__main__":
    main()
