"""Arithmetic of a training step: what its model needs, by a formula, and what a program has, by counting.

A FLOP is a multiplication or an addition in a matrix product, so that [m, k] times [k, n] takes 2mkn; nothing else counts. Model FLOPs are
those of FORMULA, whatever a program does to save memory or because it is simpler. A program has more: it computes logits, and blocks
under remat, again in the backward pass, multiplies the half of causal matrices that is zero, and Muon has products of its own.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.interpreters.partial_eval import dce_jaxpr

from memjax.config import Backbone, Config, Stage
from memjax.models import Encoder, MemoryModel, Oracle, RecurrentMemory, build
from memjax.objectives import SpecialIds, join
from memjax.objectives.requests import make_request, to_encode
from memjax.training.optimizer import split
from memjax.training.start import abstract_params

FORMULA = """\
forward: of every matrix, 2 * its entries * the positions it is applied to;
         of every attention layer, 4 * sequences * positions^2 * width of all heads, halved where causal;
         of every token mixer, 2 * sequences * entries * width / heads, halved where causal.
backward: the forward again for each of a product's two factors that has a gradient: a matrix that is trained, and what it is applied
         to, where something trained stands before it. In a stack, which is computed block by block in a loop, that is all of its
         blocks or none."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Matrix products of a part of a model, over a whole batch."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward

    def __add__(self, other: "Part") -> "Part":
        return Part(self.forward + other.forward, self.backward + other.backward)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Model FLOPs of a step, over a whole batch."""

    parts: Mapping[str, Part]
    """`encoder`, `encoder_mixing` (attention scores, or mixing over positions), `bridge` (all between encoder and decoder), `decoder`,
    `decoder_mixing`, `head` (logits, or what scores in their place)."""

    @property
    def forward(self) -> float:
        """Of the forward pass, which is an evaluation's."""
        return sum(part.forward for part in self.parts.values())

    @property
    def backward(self) -> float:
        """Of the backward pass."""
        return sum(part.backward for part in self.parts.values())

    @property
    def total(self) -> float:
        """Of a training step."""
        return self.forward + self.backward


def model_flops(config: Config, stage: Stage, stored: bool = False) -> Flops:
    """Of one training step of a stage, over all its rows, by FORMULA.

    Args:
      config: the run.
      stage: what is computed, what is trained and how many rows a batch has.
      stored: memories are read from disk, so that the encoder, which is frozen, is not run.
    """
    module = build(config, stage)
    shapes = flatten_dict(abstract_params(module, config, stage), sep="/")
    trained = set(flatten_dict(split(unflatten_dict(shapes, sep="/"), stage.trainable, "trainable")[0], sep="/"))
    earliest = min((_place(path) for path in trained), default=len(_ORDER))
    parts: dict[str, Part] = {}
    for use in _uses(config, stage, module):
        if stored and use.path.startswith("encoder/"):
            continue
        # Whether what goes in has a gradient. A loop over blocks has one for all of them or none.
        at = _place(use.at or use.path)
        moves = earliest < at or (use.stack is not None and earliest == at)
        products = [(*product, moves + (path in trained)) for path, leaf in shapes.items() for product in _of(use, path, leaf)]
        products += [(*product, 2 * moves) for product in _of_activations(use)]
        for part, forward, gradients in products:
            parts[part] = parts.get(part, Part()) + Part(forward, forward * gradients)
    return Flops(parts)


def token_flops(config: Config, stage: Stage, context: int) -> float:
    """Of generating one token, where keys and values of the `context` positions it reads, its own included, are kept.

    Memories and earlier tokens alike are positions. Encoding memories is not counted.
    """
    shapes, stack = flatten_dict(abstract_params(build(config, stage), config), sep="/"), config.model.decoder
    head = "embed/embedding" if stack.tied_head else "head/kernel"
    matrices = sum(
        leaf.size
        for path, leaf in shapes.items()
        if path == head or (path.startswith("backbone/") and path.endswith("/kernel"))
    )
    # Scores and their sum, or the taps of a kernel; a repeat mixer carries a state.
    products = {"transformer": 2, "mixer": stack.kernel}.get(stack.kind, 0)
    width = stack.attended_width if stack.kind == "transformer" else stack.width
    return 2.0 * (matrices + products * stack.layers * context * width)


# Where a model computes what


@dataclasses.dataclass(frozen=True)
class _Use:
    """A part of the parameters and what it is applied to."""

    path: str
    part: str
    positions: float
    """Over the whole batch."""
    length: int = 0
    """T of a stack."""
    stack: Backbone | None = None
    at: str = ""
    """Where in _ORDER, if not at `path`."""


_SIMILARITIES = "similarities"
_ORDER = (
    "encoder/embed encoder/memory_tokens encoder/backbone/blocks encoder/backbone/norm encoder/down encoder/up bridge"
    " unroll_projection embed token_position chunk_position task_mark start query_mark backbone/blocks backbone/norm norm head"
    f" score value {_SIMILARITIES}"
).split()
"""Parameters of all families in the order a model computes with them."""


def _place(path: str) -> int:
    for place, part in enumerate(_ORDER):
        if path == part or path.startswith(f"{part}/"):
            return place
    raise ValueError(f"it is not known where a model computes with parameter {path!r}; _ORDER has no place for it")


def _of(use: _Use, path: str, leaf: Any) -> Iterator[tuple[str, float]]:
    """(part, FLOPs of the forward pass) of a parameter, if it is a factor of products there."""
    if path != use.path and not path.startswith(f"{use.path}/"):
        return
    # A token table is a factor where it is a head: elsewhere it is looked up.
    if path.endswith(("/kernel", "/lora_in", "/lora_out")) or path == "embed/embedding":
        yield use.part, 2.0 * leaf.size * use.positions
    elif path.endswith("/mix/mixing") and use.stack:
        sequences, head_width = use.positions / use.length, use.stack.width / max(use.stack.heads, 1)
        yield f"{use.part}_mixing", _half(use.stack) * 2.0 * sequences * leaf.size * head_width


def _of_activations(use: _Use) -> Iterator[tuple[str, float]]:
    """The same of products without a parameter: attention, and similarities of vectors."""
    if use.path == _SIMILARITIES:
        yield use.part, 2.0 * use.positions * use.length
    elif use.stack and use.stack.kind == "transformer":
        scores = 4.0 * use.positions * use.length * use.stack.attended_width * use.stack.layers
        yield f"{use.part}_mixing", _half(use.stack) * scores


def _half(stack: Backbone) -> float:
    return 0.5 if stack.causal else 1.0


def _uses(config: Config, stage: Stage, module: nn.Module) -> Iterator[_Use]:
    """Where a step applies each part of a model; it follows the objectives of each family."""
    model, rows, names = config.model, stage.rows, tuple(stage.objectives)
    length, chunks, vectors = model.chunk_length, config.chunks, model.vectors
    if isinstance(module, MemoryModel):
        decoded, encoded = _requested(config, stage)
        yield from _encoder(config, rows * encoded)
        yield _Use("bridge", "bridge", rows * encoded * vectors)
        yield from _decoder(model.decoder, rows * decoded, module.slots * vectors + length, length)
    elif stage.family == "autoencoder":
        count = rows * chunks * len(names)
        yield from _encoder(config, count)
        yield _Use("bridge", "bridge", count * vectors)
        yield _Use("unroll_projection", "bridge", count * length)
        yield from _decoder(model.reconstructor, count, length, length)
    elif isinstance(module, Oracle):
        yield from _encoder(config, rows * chunks)
        yield _Use("bridge", "bridge", rows * chunks * (vectors if model.combine == "token" else 1))
        yield from _decoder(model.decoder, rows * chunks, module.memory_positions + length, length)
    elif isinstance(module, RecurrentMemory):
        yield from _decoder(model.decoder, rows * chunks, module.length, length)
    elif stage.family == "causal_lm":
        tokens = config.data.row_tokens
        for scored in _causal_calls(names, tokens):
            yield from _decoder(model.decoder, rows, tokens, scored)
    elif stage.family == "entropy_regressor":
        tokens = config.data.row_tokens
        yield from _decoder(model.decoder, rows * len(names), tokens, tokens, "value")
    elif stage.family == "retriever":
        yield from _retriever(config, stage)
    else:
        yield from _encoder(config, rows * (chunks + len(names)))
        yield _Use("bridge", "bridge", rows * len(names) * (1 + chunks))
        everyone = dataclasses.replace(model.decoder, causal=False)
        yield from _decoder(everyone, rows * len(names), 1 + chunks, chunks, "score")


def _encoder(config: Config, chunks: float) -> Iterator[_Use]:
    model = config.model
    length = Encoder(model, config.data.vocabulary).length
    yield _Use("encoder/backbone/blocks", "encoder", chunks * length, length, model.encoder)
    yield _Use("encoder/down", "bridge", chunks * model.vectors)
    yield _Use("encoder/up", "bridge", chunks * model.vectors)


def _decoder(stack: Backbone, sequences: float, length: int, scored: int, head: str = "head") -> Iterator[_Use]:
    """A stack over `length` positions and a head on `scored` of them."""
    yield _Use("backbone/blocks", "decoder", sequences * length, length, stack)
    tied = head == "head" and stack.tied_head
    yield _Use("embed" if tied else head, "head", sequences * scored, at=head)


def _requested(config: Config, stage: Stage) -> tuple[int, int]:
    """Chunks of a row that a memory model decodes and encodes for all objectives together."""

    def joined(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        request = join([make_request(name, tokens, SpecialIds(), stage.compat) for name in stage.objectives], config.chunks)
        return request.inputs, to_encode(request, tokens)[0]

    row = jax.ShapeDtypeStruct((1, config.chunks, config.model.chunk_length), jnp.int32)
    inputs, encoded = jax.eval_shape(joined, row)
    return inputs.shape[1], encoded.shape[1]


def _causal_calls(names: Sequence[str], tokens: int) -> list[int]:
    """Positions scored in each call of a causal language model."""
    copies = ("plain_copy" in names) + any(name.endswith("corrupted_copy") for name in names)
    reads = any(not name.endswith("copy") for name in names)
    return [tokens] * reads + [tokens // 2] * copies


def _retriever(config: Config, stage: Stage) -> Iterator[_Use]:
    passages = stage.rows * config.chunks
    drawn = [name for name in stage.objectives if name != "pair_retrieval"]
    yield from _encoder(config, passages * (1 + len(drawn)))
    for name in stage.objectives:
        pairs = passages // 2 if name == "pair_retrieval" else passages
        # Every query against the passages of its microbatch.
        width = config.model.vectors * config.model.encoder.width
        yield _Use(_SIMILARITIES, "head", pairs * pairs / stage.microbatches, width)


# Counting


def counted_flops(program: jex.ClosedJaxpr) -> int:
    """FLOPs of the matrix products of a traced program, `jax.jit(f).trace(...).jaxpr`, on all devices together.

    Loops count their rounds, a conditional its dearest branch, a Pallas kernel every cell of its grid. What nothing depends on is
    left out, as compilers do.

    Raises:
      ValueError: products are in a loop of unknown length, in a kernel with a grid of unknown size, or are convolutions.
    """
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: jex.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: jex.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left: Any = equation.invars[0].aval
        result: Any = equation.outvars[0].aval
        return 2 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        raise ValueError("the program has convolutions, whose FLOPs are not counted here")
    inner = [_count(jaxpr) for jaxpr in jex.jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("the program has matrix products in a loop whose rounds are not known before it runs")
    if name == "shard_map":
        # What stands in it is one device's.
        return sum(inner) * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call" and any(inner):
        grid = params["grid_mapping"].grid
        if not all(isinstance(size, int) for size in grid):
            raise ValueError(f"a kernel's grid {grid} is not known before it runs")
        return sum(inner) * math.prod(grid)
    return sum(inner)
