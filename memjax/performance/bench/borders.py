"""The border of a chunk behind few entries and behind many.

The step that fills a chunk encodes it, appends its entry to the cache, and reads all entries once,
for the first token of the next chunk. Beyond that reading it should take the same time behind any
number of entries. What reading more entries takes is measured with the steps within a chunk, which
differ in nothing else.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memjax.config import Config, ConfigError
from memjax.inference import Generator
from memjax.objectives import SpecialIds
from memjax.performance.bench import decoding, timing
from memjax.performance.bench.decoding import Writer
from memjax.performance.bench.efficiency import check_decoder
from memjax.performance.bench.measure import devices

STEPS_WITHIN = 4
"""Timed steps of a round before the border; their median counts."""


@dataclasses.dataclass(frozen=True)
class Border:
    """The border of a chunk behind a number of entries."""

    entries: int
    """Memories before the first round; each round appends one."""
    token_seconds: tuple[float, ...]
    """Median seconds of a step within a chunk, one value per round."""
    border_seconds: tuple[float, ...]
    """Seconds of the step that fills the chunk, one value per round."""
    grow_seconds: float
    """Seconds of doubling the cache, compilation included, once for so many entries; 0 where
    there was room."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, with derived ones."""
        spreads = {
            "token_spread": timing.quartiles(self.token_seconds),
            "border_spread": timing.quartiles(self.border_seconds),
        }
        return dataclasses.asdict(self) | spreads


@dataclasses.dataclass(frozen=True)
class Borders:
    """Borders behind several numbers of entries, timed in turns."""

    devices: str
    borders: list[Border]

    def dearer(self, beyond: bool = True) -> timing.Ratio:
        """Return how many times as long the last border takes as the first.

        Args:
          beyond: without the attention to the entries that the last one has more, which is the
            difference of the steps within a chunk.
        """
        first, last = self.borders[0], self.borders[-1]
        more = beyond * (np.asarray(last.token_seconds) - np.asarray(first.token_seconds))
        beyond_more = np.asarray(last.border_seconds) - more
        return timing.ratio(first.border_seconds, beyond_more.tolist())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, with derived ones."""
        return {
            "devices": self.devices,
            "borders": [border.to_json() for border in self.borders],
            "dearer": dataclasses.asdict(self.dearer(beyond=False)),
            "dearer_beyond_attention": dataclasses.asdict(self.dearer()),
        }


def measure_borders(
    config: Config,
    stage_name: str,
    entries: Sequence[int],
    rows: int = 1,
    rounds: int = 10,
    log: Callable[[str], None] = lambda _: None,
) -> Borders:
    """Time the border of a chunk behind so many entries, which are given as random memories.

    Rounds take turns: in each, every text writes the last tokens of a chunk. Its earlier positions
    are those of the round before.

    Args:
      config: the run; its rows may have any length.
      stage_name: a stage that trains a memory model with `config.model.layout="text"`.
      entries: numbers of memories, each at least 1.
      rows: texts generated at once.
      rounds: borders timed of each number, after one that is not.
      log: called with the current activity.

    Raises:
      ConfigError: the stage trains no such model, or a number is invalid.
      GenerationError: the memories are more than `config.model.max_memories`.
    """
    check_decoder(config, stage_name, "border_entries")
    ConfigError.require(rounds >= 1, f"--steps: got {rounds}, expected 1 or more")
    model, stage = config.model, config.stages[stage_name]
    ConfigError.require(
        model.layout == "text",
        f"config.model.layout: got {model.layout!r}, expected 'text', as --border_entries times"
        " a cache that grows",
    )
    ConfigError.require(
        model.chunk_length > STEPS_WITHIN + 1,
        f"config.model.chunk_length: got {model.chunk_length}, expected more than"
        f" {STEPS_WITHIN + 1}, the steps that --border_entries times",
    )
    module, _ = decoding.modules(config, stage, model.chunk_length)
    ids, draw = SpecialIds(), np.random.default_rng(config.seed)
    generator = Generator(module, decoding.draw_params(module, config.seed), ids, stage.compat)
    prompts = [np.full(1, ids.first_content, np.int32)] * rows
    writers, grown = [], []
    for number in entries:
        log(f"compiling behind {number:,} entries")
        shape = number, model.memory_vectors, model.encoder.width
        memories = [draw.standard_normal(shape, np.float32)] * rows
        writer = Writer(generator, prompts, generator.prefill(prompts, memories=memories))
        grown.append(writer.make_room())
        writers.append(writer)
    log("timing borders")
    within: list[list[float]] = [[] for _ in writers]
    borders: list[list[float]] = [[] for _ in writers]
    for turn in range(rounds + 1):
        for writer, steps, kept in zip(writers, within, borders, strict=True):
            writer.make_room()
            writer.stand_at(model.chunk_length - STEPS_WITHIN - 1)
            seconds = [writer.step() for _ in range(STEPS_WITHIN + 1)]
            if turn:
                steps.append(float(np.median(seconds[:-1])))
                kept.append(seconds[-1])
    measured = zip(entries, map(tuple, within), map(tuple, borders), grown, strict=True)
    return Borders(devices(), [Border(*each) for each in measured])
