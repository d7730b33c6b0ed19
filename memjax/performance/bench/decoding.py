"""Generation as it is timed: the two models, the bytes and FLOPs of a step, and timed calls.

Shapes: B row, S slot, K vector of a memory, E encoder width, L token of a chunk.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from memjax.config import Config, Stage
from memjax.inference import DecodeState, Generator
from memjax.models import CausalLM, MemoryModel, build
from memjax.performance.bench.programs import flops
from memjax.training.flops import token_flops

DECODER = ("embed", "backbone", "head")
"""Parameters that both models have."""


def modules(config: Config, stage: Stage, context: int) -> tuple[MemoryModel, CausalLM]:
    """Return the memory model with room for the context and one more chunk, and its decoder.

    The decoder alone has room for as many tokens. With `config.model.layout="text"` no table and no
    slots of the memory model depend on the context.
    """
    length, in_text = config.model.chunk_length, config.model.layout == "text"
    chunks = 2 if in_text else context // length + 2
    data = dataclasses.replace(config.data, sequence_length=chunks * length)
    ours: Any = build(dataclasses.replace(config, data=data), stage)
    start = "unscored_first_tokens" not in stage.compat
    return ours, CausalLM(config.model, context + length + start, config.data.vocab_size)


def draw_params(module: MemoryModel, seed: int) -> Any:
    """Return random parameters of all parts of a memory model."""
    # Parameters depend on the tokens' shape alone, and not on the number of chunks.
    chunk = jax.numpy.zeros((1, 1, module.config.chunk_length), jax.numpy.int32)
    init = jax.jit(lambda key: module.init(key, chunk, method=all_parts)["params"])
    return init(jax.random.key(seed))


def all_parts(module: MemoryModel, chunk: jax.Array) -> jax.Array:
    """Call every part of the model, so that all parameters are initialised."""
    return module.decode(chunk, module.encode(chunk))


def held_bytes(state: DecodeState) -> int:
    """Return the bytes of a state's `context` and `cache`, with those of spare room."""
    leaves = jax.tree.leaves((state.context, state.cache))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def spare_bytes(strategy: Any, state: DecodeState) -> int:
    """Return the bytes of `held_bytes` that are room for entries which a text does not have yet.

    It is 0 for a strategy whose cache does not grow. Room beyond that of the longest text counts.
    """
    if not strategy.grows:
        return 0
    room = strategy.room(state.context)
    spare = room - int(np.max(state.context.count))
    entries = sum(leaf.nbytes // room * spare for leaf in state.context.leaves.values())
    vectors = strategy.module.config.memory_vectors
    cached = (x.nbytes // x.shape[3] * vectors * spare for x in state.cache)
    return entries + sum(cached)


def abstract_cache_bytes(generator: Generator, shape: tuple[int, int]) -> int:
    """Return `held_bytes` after prompts of a shape [rows, tokens], without reading them."""
    prompts = list(np.full(shape, generator.ids.first_content, np.int32))

    def read(params: Any) -> DecodeState:
        return dataclasses.replace(generator, params=params).prefill(prompts)

    return held_bytes(jax.eval_shape(read, generator.params))


def flops_per_token(config: Config, stage: Stage, context: int) -> tuple[float, float]:
    """Return model FLOPs per new token of one row, with memories and with the whole context.

    They are means over the chunk that follows the context. With memories a token reads their
    vectors, the start token and its chunk so far; once per chunk it is encoded, and its memory and
    earlier ones pass through the decoder, or with `config.model.layout="text"` its memory alone.
    """
    model = config.model
    length = model.chunk_length
    alone = token_flops(config, stage, 0)
    more = token_flops(config, stage, 1) - alone
    # Mean positions read within a chunk: the start token and the tokens up to each.
    own = 1 + (length + 1) / 2
    vectors = context // length * model.memory_vectors
    encoding = flops(config, stage, "encode") / (stage.batch_size * config.data.sequence_length)
    slots = vectors + model.memory_vectors
    without_head = alone - 2 * model.decoder.width * config.data.vocab_size
    in_text, widths = model.layout == "text", (model.encoder.width, model.decoder.width)
    bridge = widths[0] * widths[1] if in_text or widths[0] != widths[1] else 0
    new = model.memory_vectors if in_text else slots
    # Pairs of vectors of which one reads the other.
    pairs = new if in_text and model.decoder.blind_memories else slots * (slots + 1) / 2
    if in_text and not model.decoder.blind_memories:
        pairs -= vectors * (vectors + 1) / 2
    opening = (new * (without_head + 2 * bridge) + more * pairs) / length
    return alone + more * (vectors + own) + encoding + opening, alone + more * (context + own)


def decoder_of(params: Any) -> dict[str, Any]:
    """Return the parameters that both models have."""
    return {name: params[name] for name in DECODER if name in params}


def parameters(params: Any) -> tuple[int, int]:
    """Return the number of the decoder's parameters, and of the others."""
    whole, decoder = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, decoder_of(params))
    )
    return decoder, whole - decoder


@dataclasses.dataclass
class Writer:
    """A model that reads the prompts and generates, with timing."""

    generator: Generator
    prompts: list[np.ndarray]
    state: Any = None
    """The `DecodeState` after the last call."""
    key: jax.Array = dataclasses.field(default_factory=lambda: jax.random.key(0))

    def prefill(self) -> float:
        """Read the prompts and return the seconds."""
        self.state = None
        began = time.perf_counter()
        self.state = jax.block_until_ready(self.generator.prefill(self.prompts))
        return time.perf_counter() - began

    def make_room(self) -> float:
        """Make room for one more entry, where the cache grows, and return the seconds."""
        generator, state = self.generator, self.state
        entries = int(np.max(state.context.count)) + 1 if generator.strategy.grows else 0
        began = time.perf_counter()
        self.state = jax.block_until_ready(generator.with_room(state, entries))
        return time.perf_counter() - began

    def stand_at(self, position: int) -> None:
        """Let every text stand at a position of its chunk; the tokens before it are arbitrary."""
        at = jax.numpy.full_like(self.state.position, position)
        self.state = dataclasses.replace(self.state, position=at)

    def step(self) -> float:
        """Generate a token per row and return the seconds."""
        began = time.perf_counter()
        self.state = jax.block_until_ready(self.generator.step(self.state, self.key)[1])
        return time.perf_counter() - began
