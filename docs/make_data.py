"""Make docs/data.md: measure the throughput of preparation and of reading on this machine.

    python docs/make_data.py                 run all (5 minutes on two idle cores), write the page
    python docs/make_data.py NAME ...        run only these names of RUNS, keep the other numbers
    python docs/make_data.py --page          write the page from docs/data.json alone

    --corpus=PATH       text to prepare, 100 MB or more; default: Python's own prose, repeated
    --megabytes=N       size of that prose (600)
    --vocabulary=N      entries (8000)

Run it on an idle machine. The page shows the load of the machine when a run started.
"""

import argparse
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.make_benchmarks import commit, processor  # noqa: E402
from memjax.cli.arguments import read_config  # noqa: E402
from memjax.config import Data  # noqa: E402
from memjax.data import (  # noqa: E402
    TrainBatches,
    is_validation,
    load_tokenizer,
    open_source,
    prepare,
    train_tokenizer,
)

DATA, PAGE, TEMPLATE = ROOT / "docs/data.json", ROOT / "docs/data.md", ROOT / "docs/data.md.jinja"
ENCODED_CHARACTERS = 1_000_000
"""Characters per call of the tokenizer, the same as in preparation."""
RAW_BYTES = 60_000_000
"""Bytes of text encoded to measure the speed of the tokenizer alone."""
BATCH_TOKENS = 65_536
READ_SECONDS = 10.0
ROW_TOKENS = 1024
STEPS = 60


def write_prose(folder: Path, size: int) -> str:
    """Write Python's own prose as JSON lines, repeated to `size` bytes; return the folder."""
    lines = [json.dumps({"text": document.text}) + "\n" for document in open_source("python-docs")]
    folder.mkdir(parents=True)
    written = number = 0
    while written < size:
        with open(folder / f"{number:03d}.jsonl", "w", encoding="utf-8") as file:
            while file.tell() < 100_000_000 and written < size:
                file.writelines(lines)
                written += sum(map(len, lines))
        number += 1
    return str(folder)


def batches(corpus: str, size: int) -> Iterator[list[str]]:
    """Yield the first `size` bytes of text in batches for the tokenizer."""
    batch: list[str] = []
    taken = characters = 0
    for document in open_source(corpus):
        batch.append(document.text)
        characters += len(document.text)
        taken += len(document.text.encode())
        if characters >= ENCODED_CHARACTERS or taken >= size:
            yield batch
            batch, characters = [], 0
        if taken >= size:
            return


def raw_speed(corpus: str, tokenizer: str, size: int, start: Any = None) -> tuple[float, float]:
    """Measure bytes and tokens per second of the tokenizer alone, in one process on one thread.

    Reading is not counted. The measurement begins at the barrier `start`, if one is given.
    """
    own = load_tokenizer(tokenizer)
    waiting = list(batches(corpus, size))
    if start is not None:
        start.wait()
    began = time.perf_counter()
    tokens = sum(len(ids) for batch in waiting for ids in own.encode_batch(batch, 1))
    seconds = time.perf_counter() - began
    return sum(
        len(text.encode()) for batch in waiting for text in batch
    ) / seconds, tokens / seconds


def raw_speed_together(corpus: str, tokenizer: str, size: int, processes: int) -> float:
    """Measure bytes per second of several processes that encode at once."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        start = manager.Barrier(processes)
        found = pool.starmap(raw_speed, [(corpus, tokenizer, size, start)] * processes, chunksize=1)
    return sum(speed for speed, _ in found)


def run_prepare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure preparation with one process per core, and the tokenizer alone."""
    cores = os.cpu_count() or 1
    corpus = options.corpus or write_prose(folder / "prose", int(options.megabytes * 1e6))
    began = time.perf_counter()
    texts = (document.text for document in open_source(options.corpus or "python-docs"))
    tokenizer = train_tokenizer(
        (text for text in texts if not is_validation(text, 0.05)), options.vocabulary
    )
    trained = time.perf_counter() - began
    given = folder / tokenizer.file_name
    tokenizer.save(given)
    size = min(RAW_BYTES, int(options.megabytes * 1e6))
    alone, alone_tokens = raw_speed(corpus, str(given), size)
    together = raw_speed_together(corpus, str(given), size, cores)
    data = Data(
        corpus,
        vocab_size=options.vocabulary,
        tokenizer=str(given),
        sequence_length=ROW_TOKENS,
        validation_share=0.05,
    )
    began = time.perf_counter()
    prepared = prepare(data, folder / "data", print, workers=cores)
    seconds = time.perf_counter() - began
    # The last tokens of a block are encoded, although no row contains them.
    tokens = sum(
        prepared.info[split]["tokens"] + prepared.info[split]["dropped_tokens"]
        for split in ("train", "validation")
    )
    bytes_per_token = prepared.info["bytes_per_token"]
    speed = tokens * bytes_per_token / seconds
    return {
        "corpus": options.corpus or "the prose that comes with Python, many times over",
        "bytes": tokens * bytes_per_token,
        "documents": prepared.info["documents"],
        "blocks": prepared.info["blocks"],
        "cores": cores,
        "vocabulary": options.vocabulary,
        "vocabulary_seconds": trained,
        "alone_bytes_per_second": alone,
        "alone_tokens_per_second": alone_tokens,
        "together_bytes_per_second": together,
        "seconds": seconds,
        "bytes_per_second": speed,
        "tokens_per_second": tokens / seconds,
        "share": speed / (cores * alone),
        "share_of_together": speed / together,
    }


def run_read(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the reading of shuffled batches, as in training."""
    corpus = options.corpus or write_prose(folder / "prose", int(min(options.megabytes, 60) * 1e6))
    found = []
    for row_tokens in (1024, 128):
        data = Data(corpus, vocab_size=1024, sequence_length=row_tokens, validation_share=0.05)
        rows = prepare(data, folder / "data", print).train
        batch_rows = BATCH_TOKENS // row_tokens
        stream = TrainBatches(rows, batch_rows, seed=0).from_step(0)
        for _ in range(30):
            next(stream)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < READ_SECONDS:
            next(stream)
            count += 1
        seconds = time.perf_counter() - began
        found.append(
            {
                "row_tokens": row_tokens,
                "rows": len(rows),
                "batch_rows": batch_rows,
                "seconds": seconds,
            }
        )
        found[-1]["tokens_per_second"] = count * BATCH_TOKENS / seconds
    return {"cores": os.cpu_count(), "lengths": found}


def run_wait(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the waiting time of the smallest quickstart, which has the shortest steps."""
    config = "configs/quickstart.py:small"
    settings = read_config("config", config, ())
    names = settings.stages
    own = [f"--config.stages.{name}.steps={STEPS}" for name in names]
    arguments = [
        "train",
        f"--config={config}",
        f"--workdir={folder / 'run'}",
        *own,
    ]
    subprocess.run([sys.executable, "-m", "memjax.cli.main", *arguments], cwd=ROOT, check=True)
    stages = []
    for name in names:
        lines = [
            json.loads(line)
            for line in (folder / f"run/stages/{name}/metrics.jsonl").read_text().splitlines()
            if line
        ]
        train = [line for line in lines if line["split"] == "train"]
        # The first line includes compilation, and its batches were not read ahead.
        pairs = [(b["step"] - a["step"], b) for a, b in itertools.pairwise(train)]
        steps, waited = (
            sum(count for count, _ in pairs),
            sum(line["loader_seconds"] for _, line in pairs),
        )
        tokens = settings.stages[name].batch_size * settings.data.sequence_length
        step = statistics.median(tokens / line["tokens_per_second"] for _, line in pairs)
        stages.append(
            {"stage": name, "steps": steps, "step_seconds": step, "share": waited / (steps * step)}
        )
    return {"stages": stages, "share": max(stage["share"] for stage in stages)}


RUNS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "prepare": run_prepare,
    "read": run_read,
    "wait": run_wait,
}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a run with its date, commit and machine."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        result = RUNS[name](options, Path(folder))
    return {
        "command": " ".join(
            [
                "python docs/make_data.py",
                name,
                *(each for each in sys.argv[1:] if each.startswith("--")),
            ]
        ),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "load": load,
        "processor": processor(),
        "python": platform.python_version(),
        "result": result,
    }


def write_page(found: dict[str, Any]) -> None:
    """Write the page: measured figures beside their targets."""
    missing = [name for name in RUNS if name not in found]
    if missing:
        sys.exit(
            f"{DATA.name} lacks {', '.join(missing)}. Run: python docs/make_data.py"
            f" {' '.join(missing)}"
        )
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    PAGE.write_text(
        environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(runs=found),
        encoding="utf-8",
    )


def main() -> None:
    """Run the named measurements and write the page."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--corpus", default="")
    parser.add_argument("--megabytes", type=float, default=600.0)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(RUNS)
    if unknown:
        sys.exit(f"unknown run {', '.join(sorted(unknown))}; choose from {', '.join(RUNS)}")
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name in [] if options.page else options.names or list(RUNS):
        found[name] = run(name, options)
        DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
