"""FLOPs of a training step: of its model by a formula, and of a program by counting.

A FLOP is a multiplication or an addition in a matrix product, so that [m, k] times [k, n] takes
2mkn; nothing else counts. Model FLOPs are those of FORMULA for every program. A program has more:
it computes logits and rematerialised blocks again in the backward pass, multiplies the half of
causal matrices that is zero, and Muon has products of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.interpreters.partial_eval import dce_jaxpr

from memjax.config import Backbone, Config, Stage
from memjax.layers import MIXERS
from memjax.models import Request, build, find
from memjax.models.uses import SIMILARITIES, Use
from memjax.objectives import SpecialIds, build_requests, score
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import merge, split

FORMULA = """\
forward: of every matrix, 2 * its entries * the positions it is applied to;
         of every attention layer, 4 * pairs * width of all heads;
         of every token mixer, 2 * pairs * width * taps;
         pairs are those of positions of which one reads the other: of a sequence all, halved where
         causal; of chunks that share a prefix, in each chunk half, and the entries that it sees;
         of chunks that are drawn, the mean of all; of recall all entries, of which training draws
         some; of memories that attend to themselves alone, none among them, and no queries.
backward: the forward again for each of a product's two factors that has a gradient: a matrix that
         is trained, and its input, where something trained stands before it. In a stack, which is
         computed block by block in a loop, that is all of its blocks or none."""


@dataclasses.dataclass(frozen=True)
class Part:
    """FLOPs of a part of a model, over a whole batch."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """The FLOPs of both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Part") -> "Part":
        return Part(self.forward + other.forward, self.backward + other.backward)


@dataclasses.dataclass(frozen=True)
class Flops(Part):
    """The model FLOPs of a step, over a whole batch.

    The forward pass is also an evaluation, of a stage that scores all chunks.
    """

    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    """`encoder`, `encoder_mixing` (attention scores, or mixing over positions), `bridge` (all
    between encoder and decoder), `decoder`, `decoder_mixing`, `head` (logits, or what scores in
    their place)."""


def model_flops(config: Config, stage: Stage, stored: bool = False) -> Flops:
    """Return the model FLOPs of one training step of a stage, by FORMULA.

    Args:
      config: the run.
      stage: objectives, trainable parameters and batch size.
      stored: memories are read from disk, so that the encoder, which is frozen, is not run.
    """
    module = build(config, stage)
    params = abstract_params(module, config, stage)
    shapes = flatten_dict(params, sep="/")
    trained = flatten_dict(split(params, stage.trainable, "trainable")[0], sep="/")
    count_uses = find(module).uses
    if count_uses is None:
        return _traced_flops(config, stage, module, params)
    uses = tuple(count_uses(config, stage, _requests(config, stage)))
    order = (*_ORDER, *(use.path for use in uses))
    earliest = min((_place(path, order) for path in trained), default=len(order))
    parts: dict[str, Part] = {}
    for use in uses:
        if stored and use.path.startswith("encoder/"):
            continue
        # Whether what goes in has a gradient. A loop over blocks has one for all of them or none.
        at = _place(use.at or use.path, order)
        moves = earliest < at or (use.stack is not None and earliest == at)
        products = [
            (*product, moves + (path in trained))
            for path, leaf in shapes.items()
            for product in _of(use, path, leaf)
        ]
        products += [(*product, 2 * moves) for product in _of_activations(use)]
        for part, forward, gradients in products:
            parts[part] = parts.get(part, Part()) + Part(forward, forward * gradients)
    whole = sum(parts.values(), Part())
    return Flops(whole.forward, whole.backward, parts)


def token_flops(config: Config, stage: Stage, context: int) -> float:
    """Return the FLOPs of generating one token with a KV cache.

    Encoding memories is not counted.

    Args:
      config: the run.
      stage: the stage.
      context: positions that the token attends to, memories, earlier tokens and itself.
    """
    shapes = flatten_dict(abstract_params(build(config, stage), config), sep="/")
    stack = config.model.decoder
    head = "embed/embedding" if stack.tie_embeddings else "head/kernel"
    matrices = sum(
        leaf.size
        for path, leaf in shapes.items()
        if path == head or (path.startswith("backbone/") and path.endswith("/kernel"))
    )
    # Attention has scores and a weighted sum, a mixer its kernel; a repeat mixer carries a state.
    products = MIXERS[stack.kind].products(stack)
    width = stack.attention_dim if stack.kind == "transformer" else stack.width
    return 2.0 * (matrices + products * stack.layers * context * width)


# Where a model computes what


_ORDER = (
    "encoder/embed encoder/memory_tokens encoder/backbone/blocks encoder/backbone/norm"
    " encoder/down encoder/up bridge"
    " unroll_projection embed token_position chunk_position task_mark start query_mark"
    " backbone/blocks backbone/norm norm head"
    f" score value {SIMILARITIES}"
).split()
"""Parameters of our families, in the order of their use in a forward pass. Those that another
family uses come after them, in the order of its uses."""


def _place(path: str, order: Sequence[str]) -> int:
    """Return the place of a parameter; one that no use names is read before all others."""
    parts = enumerate(order)
    return next((i for i, part in parts if path == part or path.startswith(f"{part}/")), -1)


def _of(use: Use, path: str, leaf: Any) -> Iterator[tuple[str, float]]:
    """Yield (part, FLOPs of the forward pass) of a parameter that is a factor of products."""
    if path != use.path and not path.startswith(f"{use.path}/"):
        return
    # A token table is a factor only as a head; as an embedding it is looked up.
    if path.endswith(("/kernel", "/lora_in", "/lora_out")) or path == "embed/embedding":
        queries = use.queries if "/mix/query/" in path else 0.0
        yield use.part, 2.0 * leaf.size * (queries or use.positions)
    elif path.endswith("/mix/mixing") and use.stack:
        # One entry per pair of positions, layer, head and tap.
        entries = leaf.size / leaf.shape[-1] ** 2
        head_width = use.stack.width / max(use.stack.heads, 1)
        yield f"{use.part}_mixing", 2.0 * _pairs(use, use.stack) * entries * head_width


def _of_activations(use: Use) -> Iterator[tuple[str, float]]:
    """Yield (part, FLOPs) of products without a parameter: attention, similarities of vectors."""
    if use.path == SIMILARITIES:
        yield use.part, 2.0 * use.positions * use.length
    elif use.stack and use.stack.kind == "transformer":
        scores = 4.0 * use.stack.attention_dim * use.stack.layers
        yield f"{use.part}_mixing", _pairs(use, use.stack) * scores


def _pairs(use: Use, stack: Backbone) -> float:
    return use.pairs or use.positions * use.length * (0.5 if stack.causal else 1.0)


def _requests(config: Config, stage: Stage) -> dict[str, Request]:
    """Return the abstract requests of a step, for one sequence."""
    module, names = build(config, stage), tuple(stage.objectives)
    tokens = jax.ShapeDtypeStruct((1, config.data.sequence_length), jnp.int32)
    ask = functools.partial(
        build_requests, module, names=names, ids=SpecialIds(), stage=stage, key=None
    )
    return jax.eval_shape(ask, tokens)


# Counting


def _traced_flops(config: Config, stage: Stage, module: nn.Module, params: Any) -> Flops:
    """Return the FLOPs of a family whose parts have no formula, as its program has them.

    Where blocks are computed again in the backward pass, they count twice.
    """
    names, ids = tuple(stage.objectives), SpecialIds()
    tokens = jax.ShapeDtypeStruct((stage.batch_size, config.data.sequence_length), jnp.int32)
    trained, frozen = split(params, stage.trainable, "trainable")

    def loss(trained: Any, frozen: Any, tokens: jax.Array) -> jax.Array:
        variables = {"params": merge(trained, frozen)}
        scored = score(module, variables, tokens, names, ids, stage, jax.random.key(0))
        return sum((jnp.sum(x.nats) for x in scored.values()), jnp.float32(0))

    forward, both = (
        float(counted_flops(jax.jit(f).trace(trained, frozen, tokens).jaxpr))
        for f in (loss, jax.grad(loss))
    )
    return Flops(forward, both - forward, {"decoder": Part(forward, both - forward)})


def counted_flops(program: jex.ClosedJaxpr) -> int:
    """Return the FLOPs of all matrix products of a traced program, on all devices together.

    Loops count all rounds, a conditional its most expensive branch, a Pallas kernel every cell of
    its grid. Dead code is not counted.

    Args:
      program: `jax.jit(f).trace(...).jaxpr`.

    Raises:
      ValueError: products are in a loop of unknown length, in a kernel with a grid of unknown size,
        or are convolutions.
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
        raise ValueError(
            "the program has matrix products in a loop whose rounds are not known before it runs"
        )
    if name == "shard_map":
        # The body is the program of one device.
        return sum(inner) * math.prod(
            params["mesh"].shape[axis] for axis in params["newly_manual_axes"]
        )
    if name == "pallas_call" and any(inner):
        grid = params["grid_mapping"].grid
        if not all(isinstance(size, int) for size in grid):
            raise ValueError(f"a kernel's grid {grid} is not known before it runs")
        return sum(inner) * math.prod(grid)
    return sum(inner)
