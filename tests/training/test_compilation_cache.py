"""The compilation cache of a run: a second run compiles nothing, and settings stay in the run."""

import collections
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from rich.console import Console

from memjax.experiment.run import run_experiment
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.training.compilation_cache import FOLDER, programs_kept

HITS, MISSES = (f"/jax/compilation_cache/cache_{what}" for what in ("hits", "misses"))
SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def counts() -> Iterator[collections.Counter[str]]:
    """Events of JAX by name."""
    counted: collections.Counter[str] = collections.Counter()

    def count(name: str, **_: object) -> None:
        counted[name] += 1

    jax.monitoring.register_event_listener(count)
    yield counted
    jax.monitoring.unregister_event_listener(count)


def settings() -> list[object]:
    return [getattr(jax.config, name) for name in SETTINGS]


@pytest.fixture(params=[True, False])
def enabled(request: pytest.FixtureRequest) -> Iterator[None]:
    """JAX's own switch, which JAX_ENABLE_COMPILATION_CACHE sets."""
    before = settings()[0]
    jax.config.update(SETTINGS[0], request.param)
    yield
    jax.config.update(SETTINGS[0], before)


@pytest.mark.usefixtures("enabled")
def test_programs_of_the_block_alone_are_kept(
    tmp_path: Path, counts: collections.Counter[str]
) -> None:
    before = settings()

    def compile_once() -> None:
        jax.clear_caches()
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()

    for expected in ({MISSES}, {HITS}):
        counts.clear()
        with programs_kept(epath.Path(tmp_path)):
            compile_once()
        assert counts.keys() & {HITS, MISSES} == expected
        assert settings() == before
    counts.clear()
    there = sorted((tmp_path / FOLDER).iterdir())
    compile_once()
    assert not counts.keys() & {HITS, MISSES}
    assert there == sorted((tmp_path / FOLDER).iterdir()) != []
    with pytest.raises(KeyError), programs_kept(epath.Path(tmp_path)):
        raise KeyError
    assert settings() == before


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path: Path, counts: collections.Counter[str]) -> None:
    before = settings()
    config = tiny_config(write_corpus(tmp_path / "corpus.jsonl"))
    stage = dataclasses.replace(config.stages["autoencoder"], steps=3)
    config = dataclasses.replace(
        config, stages={"autoencoder": stage}, curriculum=("autoencoder",), controls=()
    )
    workdir = tmp_path / "run"
    for misses in (True, False):
        jax.clear_caches()
        counts.clear()
        run_experiment(config, workdir, Reporter(Console(quiet=True)), compilation_cache=True)
        assert (counts[MISSES] > 0) == misses and (counts[HITS] > 0) != misses
        shutil.rmtree(workdir / "stages")
        (workdir / "results.json").unlink()
    assert settings() == before
