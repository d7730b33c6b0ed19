"""A trained encoder together with the decoder that reads its memories, in one form for every family.

What an instrument asks of a system is two pure functions: a text to its memory, and the nats of the text's tokens given a memory. The
memory may come from elsewhere: another text's, a quantised or an optimised one.

Shapes: B text, T token of a text, C chunk, L token of a chunk, H chunk that is held, K vector of a chunk, M = H * K vectors of a text,
E width of a vector, V vocabulary.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.reading import absolute
from memjax.config import Config, from_json
from memjax.data import Tokenizer
from memjax.models import Autoencoder, MemoryModel, Oracle, build
from memjax.objectives import SpecialIds
from memjax.objectives.requests import make_request
from memjax.objectives.terms import Scores

Params = Mapping[str, Any]
ASKS = ("blank_copy", "copy", "plain_copy")
"""How a memory model is asked for what it holds."""


@dataclasses.dataclass(frozen=True)
class System:
    """Encoder and decoder of an autoencoder, an oracle, or a memory model that is asked to copy.

    Hashable, so that it can be closed over or given to jit as a static argument; parameters are always an argument.
    """

    module: nn.Module
    ids: SpecialIds
    ask: str = ""
    """Of a memory model: `blank_copy` (everything from memories), `copy` or `plain_copy`."""
    compat: tuple[str, ...] = ()
    """Quirks the stage was trained under (STAGE_QUIRKS)."""

    def __post_init__(self) -> None:
        kinds = (Autoencoder, Oracle, MemoryModel)
        if not isinstance(self.module, kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{type(self.module).__name__} has no decoder that reads a memory of a text; {names} have")
        if isinstance(self.module, MemoryModel):
            if self.ask not in ASKS:
                raise ValueError(f"ask={self.ask!r}: a memory model is asked by {', '.join(ASKS)}")
            if not self.module.memory:
                raise ValueError("this model was built with memory=False: it holds nothing")
            if "unscored_first_tokens" in self.compat:
                raise ValueError(
                    "trained under 'unscored_first_tokens' it encodes what it says as well: measure it by its objectives"
                )

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.module.vocabulary

    @property
    def held(self) -> int:
        """H: chunks of a text. A memory model is trained to copy the first half of a row, which is one text here."""
        return self.module.chunks // 2 if isinstance(self.module, MemoryModel) else 1

    @property
    def length(self) -> int:
        """T: tokens of a text."""
        return self.held * self.module.config.chunk_length

    @property
    def shape(self) -> tuple[int, int]:
        """(M, E) of a text's memory."""
        config = self.module.config
        beside = isinstance(self.module, Oracle) and config.combine == "embedding"
        return self.held * config.vectors, (beside and config.bottleneck) or config.encoder.width

    def encode(self, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B M E"]:
        """The memory of each text."""
        chunks = tokens.reshape(tokens.shape[0] * self.held, -1)
        variables = {"params": params}
        if isinstance(self.module, MemoryModel):
            chunks = chunks[:, None]
        memory: Any = self.module.apply(variables, chunks, chunks != self.ids.pad, method="encode")
        return memory.reshape(tokens.shape[0], *self.shape)

    def score(self, params: Params, memory: Float[Array, "B M E"], tokens: Int[Array, "B T"]) -> Scores:
        """Nats of each token given a memory, all [B, 1, T]; never holds the logits.

        An autoencoder is shown nothing but the memory; an oracle, and a memory model asked to `copy`, also the tokens before.
        """
        tokens = jnp.asarray(tokens)
        apply: Any = functools.partial(self.module.apply, {"params": params})
        labels: Any
        if isinstance(self.module, Autoencoder):
            hidden = apply(memory, method="hidden")
            nats, correct = apply(hidden, tokens, method=lambda module, h, t: module.head.score(h, t))
            labels, weight = tokens, (tokens != self.ids.pad).astype(jnp.float32)
        elif isinstance(self.module, Oracle):
            request = make_request("next_token", tokens[:, None], self.ids, self.compat)
            inputs, labels, weight = request.inputs[:, 0], request.labels[:, 0], request.weight[:, 0]
            nats, correct = apply(inputs, labels, memory, inputs != self.ids.pad, method="score")
        else:
            arguments, labels, weight = self._request(tokens, memory)
            nats, correct = apply(arguments[0], labels, *arguments[1:], method="score")
        shape = (tokens.shape[0], 1, self.length)
        return Scores(nats.reshape(shape), correct.reshape(shape), weight.reshape(shape), labels.reshape(shape))

    def logits(self, params: Params, memory: Float[Array, "B M E"], tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Scores of all tokens at every position of `score`; large: for a few texts at a time."""
        tokens = jnp.asarray(tokens)
        apply: Any = functools.partial(self.module.apply, {"params": params}, method="decode")
        if isinstance(self.module, Autoencoder):
            found = apply(memory)
        elif isinstance(self.module, Oracle):
            inputs = make_request("next_token", tokens[:, None], self.ids, self.compat).inputs[:, 0]
            found = apply(inputs, memory, inputs != self.ids.pad)
        else:
            found = apply(*self._request(tokens, memory)[0])
        return found.reshape(*tokens.shape, self.vocabulary)

    def _request(self, tokens: jax.Array, memory: jax.Array) -> tuple[tuple[Any, ...], jax.Array, jax.Array]:
        """What a memory model's `decode` is given where `tokens` are a row's first half, and the labels and weights."""
        length, chunks = self.module.config.chunk_length, self.module.chunks
        half = tokens.reshape(tokens.shape[0], self.held, length)
        # What stands in the other half is neither shown nor asked for.
        row = jnp.concatenate([half, jnp.full_like(half, self.ids.pad)], axis=1)
        row = jnp.pad(row, ((0, 0), (0, chunks - row.shape[1]), (0, 0)), constant_values=self.ids.pad)
        request = make_request(self.ask, row, self.ids, self.compat)
        memories = memory.reshape(memory.shape[0], self.held, -1, memory.shape[-1])
        valid = (half != self.ids.pad).any(axis=-1)
        return (request.inputs, memories, request.slots, request.chunk, request.task, valid), request.labels, request.weight


@dataclasses.dataclass(frozen=True)
class Trained:
    """A system from a checkpoint."""

    system: System
    params: Params
    config: Config
    stage: str
    folder: Path
    """Of the stage."""
    step: int
    tokenizer: Tokenizer | None
    """None of imported weights."""

    @property
    def data(self) -> Path:
        """Where the run that trained it keeps its rows."""
        return self.folder.parent.parent / "data"


def special_ids(tokenizer: Tokenizer | None) -> SpecialIds:
    """Reserved ids of a tokenizer; memjax's own order where there is none."""
    if tokenizer is None:
        return SpecialIds()
    return SpecialIds.of(tokenizer)


def open_system(checkpoint: str | os.PathLike, ask: str = "blank_copy") -> Trained:
    """The system that a stage left.

    Args:
      checkpoint: folder of the stage, as in runs/quickstart/stages/autoencoder.
      ask: how a memory model is asked; of other families not read.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, its model has no decoder of memories, or the tokenizer beside it is another.
      TokenizerError: the tokenizer cannot be read.
    """
    folder = absolute(checkpoint)
    params, meta = load_params(folder / "checkpoints")
    config = from_json(meta["config"])
    stage = config.stages[meta["stage"]]
    tokenizer = stage_tokenizer(folder, meta)
    module = build(config, stage)
    try:
        system = System(module, special_ids(tokenizer), ask if isinstance(module, MemoryModel) else "", stage.compat)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Trained(system, params, config, meta["stage"], Path(folder), int(meta["step"]), tokenizer)


def stage_tokenizer(folder: Any, meta: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a stage's run holds; None of imported weights, whose tokenizer is not known.

    Raises:
      CheckpointError: it is not the one that the checkpoint was trained with.
      TokenizerError: it cannot be read.
    """
    if not meta["tokenizer"]:
        return None
    path = Path(folder).parent.parent / "data"
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != meta["tokenizer"]:
        raise CheckpointError(f"{folder}: trained with tokenizer {meta['tokenizer']}, but {path} is {tokenizer.fingerprint}")
    return tokenizer


def scores_of(system: System, params: Params, tokens: jax.Array) -> Scores:
    """Nats of texts given their own memories."""
    return system.score(params, system.encode(params, tokens), tokens)


def text_sums(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats, correct tokens, tokens) of each text, [B] each, in float64 on the host."""
    weight = scores.weight
    sums = (jnp.sum(x * weight, axis=(1, 2)) for x in (scores.nats, scores.correct, jnp.ones_like(weight)))
    nats, correct, count = (np.asarray(x, np.float64) for x in jax.device_get(tuple(sums)))
    return nats, correct, count


__all__ = ["ASKS", "System", "Trained", "open_system", "scores_of", "special_ids", "stage_tokenizer", "text_sums"]
