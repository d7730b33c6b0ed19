"""Run a comparison: what is missing is trained, and the page is written after every run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from memjax.errors import MemjaxError
from memjax.experiment.compare.page import write_page
from memjax.experiment.compare.plan import SCALES, Scale, names, setting, stored_bits
from memjax.experiment.compare.train import Trial, begin, measure, train
from memjax.files import atomic_file, read_json, write_json
from memjax.models.peers import PEERS
from memjax.progress import Reporter


class CompareError(MemjaxError):
    """A comparison's folder holds something else, or a name is unknown."""


def compare(
    folder: str | os.PathLike, scale: str, rows: Sequence[str], seeds: Sequence[int]
) -> Path:
    """Train every named architecture with every seed, and write compare.html.

    Args:
      folder: of this comparison; runs that it holds are not repeated.
      scale: one of SCALES.
      rows: names of `memjax compare --list`; empty for all.
      seeds: of weights and batches.

    Returns:
      The page.

    Raises:
      ConfigError: a name is unknown, or an architecture cannot meet the budget.
      CompareError: the folder is of another scale.
    """
    sizes, rows = SCALES[scale], tuple(rows) or names()
    plans = {name: setting(name, sizes) for name in rows}
    folder, reporter = Path(folder), Reporter()
    _claim(folder, scale)
    with reporter.active():
        # All rows with one seed first, so that a stopped command leaves a whole table.
        for seed in seeds:
            for name, (config, stage) in plans.items():
                out = folder / "runs" / f"{name}-{seed}.json"
                if out.is_file():
                    continue
                lm = _language_model(folder, sizes, seed) if _needs_lm(name) else None
                trial = Trial(name, config, stage)
                found: dict[str, Any] = dict(
                    measure(trial, sizes.task, seed, lm, sizes.lengths, sizes.batches)
                )
                found = {**found, "bits": stored_bits(config, stage)}
                share = found["curve"][str(sizes.task.written)]["recalled"]
                out.parent.mkdir(parents=True, exist_ok=True)
                write_json(out, found)
                reporter.log(f"{name}, seed {seed}: {share:.1%} of values recalled")
                write_page(folder, sizes)
    return write_page(folder, sizes)


def _claim(folder: Path, scale: str) -> None:
    path, settings = folder / "compare.json", {"scale": scale}
    if path.is_file():
        found = read_json(path, CompareError)
        CompareError.require(
            found == settings,
            f"{path}: of --scale={found.get('scale')}, expected {scale}. Use another folder",
        )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _needs_lm(name: str) -> bool:
    return name in PEERS and bool(PEERS[name].lm_parts)


def _language_model(folder: Path, sizes: Scale, seed: int) -> Any:
    """Return a language model that was trained on the same sequences, whole in its context."""
    path = folder / "runs" / f"lm-{seed}.safetensors"
    if not path.is_file():
        config, stage = setting("causal_lm", sizes)
        params = train(config, stage, sizes.task, seed, begin(config, stage, seed, None, ""))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            flat = flatten_dict(params, sep="/")
            save_file({name: np.asarray(x) for name, x in flat.items()}, file)
    return unflatten_dict(load_file(path), sep="/")
