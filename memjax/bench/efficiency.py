"""What memories buy: a memory model, and its decoder alone with the whole context, at growing lengths of context.

Both have the same decoder weights, which are random, as speed does not depend on them. Both read the same prompt and write on by
`memjax.inference.Generator`, in one process and in turns. Neither loses anything: the memory model has a slot for every chunk of the
context and one for the chunk that is written, the decoder alone keys and values of the context, a start token and as many new tokens.

A round is a chunk that the memory model writes, so that the chunk's encoding and reading its memories anew are in the time of its tokens;
between these steps, evenly, come some of the decoder alone, whose steps are alike.

Shapes: B row, S slot, K vector of a memory, E encoder width, L token of a chunk.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from memjax.aot.flops import token_flops
from memjax.bench import timing
from memjax.bench.measure import devices
from memjax.bench.programs import flops
from memjax.config import Config, ConfigError, Model, Stage
from memjax.inference import Generator, State
from memjax.models import CausalLM, MemoryModel
from memjax.objectives import SpecialIds

DECODER = ("embed", "backbone", "head")
"""Parameters that both models have."""
STEPS_BETWEEN = 16
"""Steps of the decoder alone in a round, at most."""
PREFILL_SECONDS = 120.0
"""What prefills of the decoder alone may take in all, after the first. Where that is not enough for one, the first is what is reported,
with its compilation, and all rounds go on from it."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two models at one length of context."""

    decoder_parameters: int
    other_parameters: int
    """Encoder, bridge, positions and marks: what the decoder alone has none of."""
    cache_bytes: int
    """Kept between steps of the text so far: memories and the decoder's keys and values, over all rows. Ids of tokens and scores of the
    next token are not counted."""
    predicted_bytes: int
    """The same by formula (`cache_bytes`)."""
    read_bytes: int
    """The least that a step reads: the decoder's matrices, which are float32, and the cache, once each."""
    token_flops: float
    """Model FLOPs of a new token of a row, mean of a chunk; of the memory model with encoding the chunk and reading the slots anew."""
    prefill_seconds: tuple[float, ...]
    """Of every timed prefill."""
    first_prefill: bool
    """Whether that is the only one there was, so that its compilation is part of it."""
    token_seconds: tuple[float, ...]
    """Mean step of every round."""

    @property
    def token(self) -> float:
        """Seconds a step, median of the rounds."""
        return timing.spread(self.token_seconds)["median"]

    @property
    def prefill(self) -> float:
        """Seconds, median."""
        return timing.spread(self.prefill_seconds)["median"]


@dataclasses.dataclass(frozen=True)
class Point:
    """Both models at one length of context."""

    context: int
    """Tokens of each row's prompt."""
    rows: int
    memory: Side
    full: Side

    @property
    def smaller(self) -> float:
        """How many times as small the memory model's cache is."""
        return self.full.cache_bytes / self.memory.cache_bytes

    @property
    def faster(self) -> timing.Ratio:
        """How many times as many tokens a second it writes."""
        return timing.ratio(self.memory.token_seconds, self.full.token_seconds)

    def to_json(self) -> dict[str, Any]:
        """As plain values, with what follows from them."""
        told: dict[str, Any] = {"context": self.context, "rows": self.rows}
        for name, side in (("memory", self.memory), ("full", self.full)):
            told[name] = dataclasses.asdict(side) | {
                "prefill_spread": timing.spread(side.prefill_seconds),
                "token_spread": timing.spread(side.token_seconds),
                "tokens_per_second": self.rows / side.token,
            }
        return told | {
            "smaller": self.smaller,
            "faster": dataclasses.asdict(self.faster),
            "allowed": self.full.token_flops / self.memory.token_flops,
            "allowed_by_bytes": self.full.read_bytes / self.memory.read_bytes,
            "prefill_faster": self.full.prefill / self.memory.prefill,
        }


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """All that one call of the command measured."""

    devices: str
    points: list[Point]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"devices": self.devices, "points": [point.to_json() for point in self.points]}


def measure_efficiency(
    config: Config,
    stage_name: str,
    contexts: Sequence[int],
    rows: int = 1,
    rounds: int = 10,
    say: Callable[[str], None] = lambda _: None,
) -> Efficiency:
    """Times the stage's memory model and its decoder alone, at each length of context.

    Args:
      config: the run; its rows may be of any length.
      stage_name: a stage that trains a memory model.
      contexts: tokens of the prompt, whole chunks.
      rows: texts that are written at once.
      rounds: chunks that the memory model writes at each length.
      say: told what is being done.

    Raises:
      ConfigError: the stage trains no memory model, its decoder keeps nothing to step with, or a number is impossible.
      GenerationError: as `Generator`.
    """
    check(config, stage_name, contexts, rows, rounds)
    points = []
    for context in contexts:
        say(f"compiling for {context:,} tokens")
        points.append(_measure(config, stage_name, context, rows, rounds, say))
    return Efficiency(devices(), points)


def check(config: Config, stage_name: str, contexts: Sequence[int], rows: int, rounds: int) -> None:
    """Raises ConfigError where `measure_efficiency` does, before anything is compiled."""
    if stage_name not in config.stages:
        raise ConfigError(
            f"--stage={stage_name!r} is no stage of this config; its stages are {', '.join(sorted(config.stages))}"
        )
    stage, length = config.stages[stage_name], config.model.chunk_length
    if stage.family != "memory_model" or not stage.memory:
        raise ConfigError(f"--contexts needs memories, and config.stages.{stage_name} has none: it trains no memory model")
    if config.model.decoder.kind != "transformer":
        raise ConfigError(
            f"--contexts compares caches of keys and values; config.model.decoder.kind={config.model.decoder.kind!r} has"
            " none, a transformer has"
        )
    for context in contexts:
        if context < 1 or context % length:
            raise ConfigError(f"--contexts={context} must be a whole number of chunks of {length} tokens, at least one")
    if rows < 1:
        raise ConfigError(f"--rows={rows} must be 1 or more")
    if not 1 <= rounds < length:
        raise ConfigError(f"--steps={rounds} must be 1 or more and fewer than the {length} tokens of a chunk")


def modules(config: Config, stage: Stage, context: int) -> tuple[MemoryModel, CausalLM]:
    """The memory model with slots for the context and one chunk more, and its decoder alone with room for as much."""
    length = config.model.chunk_length
    ours = MemoryModel(config.model, context // length + 2, config.data.vocabulary)
    start = "unscored_first_tokens" not in stage.compat
    return ours, CausalLM(config.model, context + length + start, config.data.vocabulary)


def cache_bytes(model: Model, positions: int, memories: int = 0, rows: int = 1) -> int:
    """Bytes of keys and values of `positions`, and of memories of which a row has `memories`, each of K vectors, and their number.

    Without memories there is no number of them.
    """
    stack, size = model.decoder, jax.numpy.dtype(model.dtype).itemsize
    kv_width = (stack.kv_heads or stack.heads) * stack.head_width
    held = memories * model.vectors * model.encoder.width * size + 4 if memories else 0
    return rows * (2 * stack.layers * positions * kv_width * size + held)


def held_bytes(state: State) -> int:
    """Bytes of what a state keeps of the text so far: `held` and `cache`."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((state.held, state.cache)))


def flops_a_token(config: Config, stage: Stage, context: int) -> tuple[float, float]:
    """Model FLOPs of a new token of one row, with memories and with the whole context: mean of the chunk that follows the context.

    With memories a token reads their vectors, the start token and its chunk so far; once a chunk it is encoded, and its memory and
    those before go through the decoder.
    """
    model = config.model
    length = model.chunk_length
    alone = token_flops(config, stage, 0)
    more = token_flops(config, stage, 1) - alone
    # Of a chunk, the start token and the tokens up to each.
    own = 1 + (length + 1) / 2
    vectors = context // length * model.vectors
    encoding = flops(config, stage, "encode") / (stage.rows * config.data.row_tokens)
    slots = vectors + model.vectors
    bridge = 0 if model.encoder.width == model.decoder.width else model.encoder.width * model.decoder.width
    without_head = alone - 2 * model.decoder.width * config.data.vocabulary
    opening = (slots * (without_head + 2 * bridge) + more * slots * (slots + 1) / 2) / length
    return alone + more * (vectors + own) + encoding + opening, alone + more * (context + own)


def decoder_of(params: Any) -> dict[str, Any]:
    """The parameters that both models have."""
    return {name: params[name] for name in DECODER if name in params}


def parameters(params: Any) -> tuple[int, int]:
    """How many are the decoder's, and how many others there are."""
    whole, decoder = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, decoder_of(params)))
    return decoder, whole - decoder


@dataclasses.dataclass
class _Writer:
    """A model that reads the prompts and writes on, and how long it took."""

    generator: Generator
    prompts: list[np.ndarray]
    state: State | None = None

    def prefill(self) -> float:
        """Seconds that it took to read the prompts."""
        self.state = None
        began = time.perf_counter()
        self.state = jax.block_until_ready(self.generator.prefill(self.prompts))
        return time.perf_counter() - began

    def step(self) -> float:
        """Seconds that a token of each row took."""
        assert self.state is not None
        began = time.perf_counter()
        self.state = jax.block_until_ready(self.generator.step(self.state, _key())[1])
        return time.perf_counter() - began


@functools.cache
def _key() -> jax.Array:
    return jax.random.key(0)


def _measure(config: Config, stage_name: str, context: int, rows: int, rounds: int, say: Callable[[str], None]) -> Point:
    stage, length = config.stages[stage_name], config.model.chunk_length
    module, alone = modules(config, stage, context)
    # Only shapes depend on the tokens, and no shape on how many chunks they are.
    chunk = jax.numpy.zeros((1, 1, length), jax.numpy.int32)
    params = jax.jit(lambda key: module.init(key, chunk, method=_all_parts))(jax.random.key(config.seed))["params"]
    ids = SpecialIds()
    shape = (rows, context)
    prompts = list(np.random.default_rng(config.seed).integers(ids.first_content, config.data.vocabulary, shape, np.int32))
    ours = _Writer(Generator(module, params, ids, stage.compat), prompts)
    shared = decoder_of(params)
    theirs = _Writer(Generator(alone, shared, ids, stage.compat), prompts)
    first = theirs.prefill()
    ours.prefill()
    sizes = [held_bytes(writer.state) for writer in (ours, theirs) if writer.state is not None]
    theirs.step()
    ours.step()
    again = min(rounds, int(PREFILL_SECONDS / first))
    say(f"timing at {context:,} tokens")
    ours_prefill, theirs_prefill, ours_token, theirs_token = [], [], [], []
    # What a state of the decoder alone has room for, less the step above.
    between = min(STEPS_BETWEEN, (length - 1) // rounds)
    for turn in range(rounds):
        if turn < again:
            theirs_prefill.append(theirs.prefill())
        ours_prefill.append(ours.prefill())
        seconds: tuple[list[float], list[float]] = ([], [])
        for at in range(length):
            seconds[0].append(ours.step())
            if at * between // length != (at + 1) * between // length:
                seconds[1].append(theirs.step())
        ours_token.append(float(np.mean(seconds[0])))
        theirs_token.append(float(np.mean(seconds[1])))
    predicted = (
        cache_bytes(config.model, module.slots * config.model.vectors + length, module.slots, rows),
        cache_bytes(config.model, alone.length, rows=rows),
    )
    needed = flops_a_token(config, stage, context)
    matrices = 4 * round(token_flops(config, stage, 0) / 2)
    trees, tokens = (params, shared), (ours_token, theirs_token)
    prefills = (tuple(ours_prefill), tuple(theirs_prefill) or (first,))
    counts = [parameters(tree) for tree in trees]
    ours_side, theirs_side = (
        Side(
            decoder_parameters=counts[at][0],
            other_parameters=counts[at][1],
            cache_bytes=sizes[at],
            predicted_bytes=predicted[at],
            read_bytes=matrices + sizes[at],
            token_flops=needed[at],
            prefill_seconds=prefills[at],
            first_prefill=at == 1 and not theirs_prefill,
            token_seconds=tuple(tokens[at]),
        )
        for at in range(2)
    )
    return Point(context, rows, ours_side, theirs_side)


def _all_parts(module: MemoryModel, chunk: jax.Array) -> jax.Array:
    """A call that reaches every parameter."""
    return module.decode(chunk, module.encode(chunk))
