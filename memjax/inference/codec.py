"""A trained encoder with the decoder that reads its memories, in one form for every family.

An instrument uses two pure functions: from a text to its memory, and from a memory to the nats of
the text's tokens. The memory may be another text's, a quantised or an optimised one.

Shapes: B text, T token of a text, C chunk, L token of a chunk, H chunk of a text, K vector of a
chunk, M = H * K vectors of a text, E width of a vector, V vocabulary.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.config import Config, Stage
from memjax.inference.regenerate import greedy
from memjax.models import families_that, find
from memjax.models.request import alone
from memjax.objectives import Request, Scores, SpecialIds, make_request
from memjax.objectives.recall import RECALLS, asks_to_recall, recall_request

Params = Mapping[str, Any]
COPY_OBJECTIVES = ("blank_copy", "copy", "plain_copy")
"""Objectives that can prompt a memory model for its memories, besides RECALLS of a decoder with the
positions of the text."""
BLANK = ("blank_copy", "blank_recall")
"""Objectives that show no token: everything comes from memories."""
LOGITS = 2**24
"""Logits in memory at a time."""


@dataclasses.dataclass(frozen=True)
class MemoryCodec(abc.ABC):
    """Encoder and decoder of one model; `make_codec` makes it.

    Hashable, so that it can be closed over or be a static argument of jit; parameters are always an
    argument.
    """

    module: Any
    ids: SpecialIds
    recall_objective: str = ""
    """The prompt of a memory model: one of COPY_OBJECTIVES or RECALLS."""
    compat: tuple[str, ...] = ()
    """Quirks of the stage (STAGE_QUIRKS)."""
    vectors: int = 0
    """Vectors of a chunk that `encode` keeps, the first ones; 0 is all."""

    @property
    def vocabulary(self) -> int:
        """Return V."""
        return self.module.vocab_size

    @property
    def held(self) -> int:
        """Return H: chunks of a text."""
        return 1

    @property
    def length(self) -> int:
        """Return T: tokens of a text."""
        return self.held * self.module.config.chunk_length

    @property
    def shape(self) -> tuple[int, int]:
        """Return (M, E) of a text's memory."""
        config = self.module.config
        return self.held * (self.vectors or config.memory_vectors), config.encoder.width

    @property
    def shift(self) -> int:
        """Return the distance from a position to the token that it predicts: 0 with a start token,
        1 in the published form, which never predicts the first token of a chunk.
        """
        return int("unscored_first_tokens" in self.compat)

    def encode(self, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B M E"]:
        """Return the memory of each text."""
        chunks = self._encoder_input(tokens.reshape(tokens.shape[0] * self.held, -1))
        memory = self.apply(params, chunks, chunks != self.ids.pad, method="encode")
        kept = memory[..., : self.vectors or None, :]
        return kept.reshape(tokens.shape[0], *self.shape)

    def _encoder_input(self, chunks: jax.Array) -> jax.Array:
        return chunks

    def score(
        self, params: Params, memory: Float[Array, "B M E"] | None, tokens: Int[Array, "B T"]
    ) -> Scores:
        """Return the nats of each token with a given memory, all [B, 1, T], without computing all
        logits.

        An autoencoder reads the memory alone; an oracle, and a memory model with a prompt that is
        not BLANK, also read the tokens before.
        """
        request, rest = self._arguments(jnp.asarray(tokens), memory)
        nats, correct = self._losses(params, request, rest)
        shape = (tokens.shape[0], 1, self.length)
        return Scores(*(x.reshape(shape) for x in (nats, correct, request.weight, request.labels)))

    def score_without_memory(
        self, params: Params, memory: Float[Array, "B M E"], tokens: Int[Array, "B T"]
    ) -> Scores:
        """Return `score` without the memory; a decoder that always reads a vector reads zeros."""
        return self.score(params, jnp.zeros_like(memory), tokens)

    def _losses(self, params: Params, request: Request, rest: tuple[Any, ...]) -> Any:
        """Return the nats of the labels of a request, and whether each is the most likely."""
        return self.apply(params, request.inputs, request.labels, *rest, method="score")

    def _logits(self, params: Params, request: Request, rest: tuple[Any, ...]) -> jax.Array:
        """Return the logits at all positions of a request."""
        return self.apply(params, request.inputs, *rest, method="decode")

    @abc.abstractmethod
    def _arguments(self, tokens: jax.Array, memory: Any) -> tuple[Request, tuple[Any, ...]]:
        """Return the request for texts, whose inputs the decoder reads, and its other arguments."""

    def logits(
        self, params: Params, memory: Float[Array, "B M E"], tokens: Int[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Return the logits of all tokens at every position of `score`; they are large, so use few
        texts at a time.
        """
        request, rest = self._arguments(jnp.asarray(tokens), memory)
        return self._logits(params, request, rest).reshape(*tokens.shape, self.vocabulary)

    def reconstruct(
        self, params: Params, memory: Float[Array, "B M E"], tokens: Int[Array, "B T"]
    ) -> Int[Array, "B T"]:
        """Reconstruct texts from their memories: every token is the most likely one after those
        before it.

        Of `tokens`, only those that are no targets are read: padding, and under
        `unscored_first_tokens` the first of each chunk.
        """
        # A few texts at a time, so that not all logits are in memory.
        fitting = max(1, LOGITS // (self.length * self.vocabulary))
        texts = max(n for n in range(1, min(fitting, len(tokens)) + 1) if len(tokens) % n == 0)
        parts = [x.reshape(-1, texts, *x.shape[1:]) for x in (memory, tokens)]
        found = jax.lax.map(
            lambda part: jnp.argmax(self.logits(params, *part), axis=-1), tuple(parts)
        )
        return found.reshape(tokens.shape)

    def apply(self, params: Params, *args: Any, method: Any) -> Any:
        """Apply a method of the module, or a function of it."""
        return self.module.apply({"params": params}, *args, method=method)


class AutoencoderCodec(MemoryCodec):
    """The codec of a family that decodes every position from the memory alone."""

    def _losses(self, params: Params, request: Request, rest: tuple[Any, ...]) -> Any:
        def score(module: Any, memory: jax.Array, labels: jax.Array) -> Any:
            return module.head.token_losses(module.hidden(memory), labels)

        return self.apply(params, request.inputs, request.labels, method=score)

    def _arguments(self, tokens: jax.Array, memory: Any) -> tuple[Request, tuple[Any, ...]]:
        """Return the memory as the inputs of the decoder: it reads nothing else."""
        weight: Any = (tokens != self.ids.pad).astype(jnp.float32)
        return Request(memory, tokens, weight), ()


class OracleCodec(MemoryCodec):
    """The codec of a family whose decoder reads the text's own memory and the tokens before."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (M, E) of a text's memory; at the bottleneck's width if it is not expanded."""
        vectors, width = super().shape
        config = self.module.config
        narrow = config.memory_injection == "embedding" and config.bottleneck
        return vectors, narrow or width

    def _arguments(self, tokens: jax.Array, memory: Any) -> tuple[Request, tuple[Any, ...]]:
        request = make_request("next_token", tokens[:, None], self.ids, self.compat)
        inputs, labels, weight = (x[:, 0] for x in (request.inputs, request.labels, request.weight))
        return Request(inputs, labels, weight), (memory, inputs != self.ids.pad)

    def score_without_memory(self, params: Params, memory: jax.Array, tokens: jax.Array) -> Scores:
        """See `MemoryCodec.score_without_memory`; positions of the memory are masked."""

        def mask(next_fun: Any, args: tuple, kwargs: dict, context: Any) -> Any:
            if (context.module.path, context.method_name) == (("backbone",), "__call__"):
                x, positions, valid = args
                args = x, positions, valid.at[:, : self.module.memory_positions].set(False)
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(mask):
            return super().score_without_memory(params, memory, tokens)

    def reconstruct(self, params: Params, memory: jax.Array, tokens: jax.Array) -> jax.Array:
        """See `MemoryCodec.reconstruct`; token by token, each read by the next ones."""
        request, rest = self._arguments(jnp.asarray(tokens), memory)

        def logits(inputs: jax.Array, position: jax.Array) -> jax.Array:
            hidden = self.apply(params, inputs, *rest, method="hidden")
            return self.apply(params, hidden[:, position], method=lambda m, h: m.head(h))

        return greedy(logits, request, tokens, self.ids, self.shift)


@dataclasses.dataclass(frozen=True)
class RecallCodec(MemoryCodec):
    """The codec of a memory model, prompted to copy or recall the first half of a sequence, which
    is one text.
    """

    def __post_init__(self) -> None:
        able = COPY_OBJECTIVES + RECALLS * (self.module.config.layout == "text")
        if self.recall_objective not in able:
            raise ValueError(
                f"recall_objective={self.recall_objective!r}: a memory model is prompted by"
                f" {', '.join(COPY_OBJECTIVES)}, and with config.model.layout='text' by"
                f" {', '.join(RECALLS)}"
            )
        if not self.module.memory:
            raise ValueError("this model was built with memory=False: it holds nothing")
        if self.shift:
            raise ValueError(
                "trained under 'unscored_first_tokens' it encodes its own output as well: measure"
                " it by its objectives"
            )

    @property
    def held(self) -> int:
        """Return H: half of the chunks of a sequence."""
        return self.module.chunks // 2

    def _encoder_input(self, chunks: jax.Array) -> jax.Array:
        return chunks[:, None]

    def _arguments(self, tokens: jax.Array, memory: Any) -> tuple[Request, tuple[Any, ...]]:
        """Return the request for texts as first halves, and the other inputs of the decoder."""
        length, chunks = self.module.config.chunk_length, self.module.chunks
        half = tokens.reshape(tokens.shape[0], self.held, length)
        if self.recall_objective in RECALLS:
            place = np.arange(self.held)
            request = recall_request(self.recall_objective, half, place, self.held, self.ids)
        else:
            # The other half is neither an input nor a target.
            after = ((0, 0), (0, chunks - self.held), (0, 0))
            row = jnp.pad(half, after, constant_values=self.ids.pad)
            request = make_request(self.recall_objective, row, self.ids, self.compat)
        if memory is not None:
            memory = memory.reshape(memory.shape[0], self.held, -1, memory.shape[-1])
        valid = (half != self.ids.pad).any(axis=-1)
        return request, (memory, valid, request.inputs != self.ids.pad)

    def _losses(self, params: Params, request: Request, rest: tuple[Any, ...]) -> Any:
        def score(module: Any) -> Any:
            states = module.joined_states(alone(request), *rest)
            return module.token_losses(states, request.labels)

        return self.apply(params, method=score)

    def _logits(self, params: Params, request: Request, rest: tuple[Any, ...]) -> jax.Array:
        def decode(module: Any) -> jax.Array:
            return module.head(module.joined_states(alone(request), *rest))

        return self.apply(params, method=decode)

    def score_without_memory(self, params: Params, memory: jax.Array, tokens: jax.Array) -> Scores:
        """See `MemoryCodec.score_without_memory`; slots are empty."""
        return self.score(params, None, tokens)

    def reconstruct(self, params: Params, memory: jax.Array, tokens: jax.Array) -> jax.Array:
        """See `MemoryCodec.reconstruct`; token by token, unless none is shown."""
        if self.recall_objective in BLANK:
            return super().reconstruct(params, memory, tokens)
        request, rest = self._arguments(jnp.asarray(tokens), memory)

        def logits(inputs: jax.Array, position: jax.Array) -> jax.Array:
            shown = alone(dataclasses.replace(request, inputs=inputs))
            hidden = self.apply(params, shown, *rest, method="joined_states")
            return self.apply(params, hidden[:, :, position], method=lambda m, h: m.head(h))

        half = jnp.asarray(tokens).reshape(request.inputs.shape)
        return greedy(logits, request, half, self.ids, self.shift).reshape(tokens.shape)


CODECS: Mapping[str, type[MemoryCodec]] = {
    "reconstructs": AutoencoderCodec,
    "reads_own_memory": OracleCodec,
    "reads_memories": RecallCodec,
}
"""Codecs by the capability that a family needs."""


def own_objective(config: Config, stage: Stage) -> str:
    """Return the objective by which a memory model reconstructs.

    It is the blank one, unless the stage was trained to recall with its tokens shown alone.
    """
    if not asks_to_recall(config, stage):
        return "blank_copy"
    shown, blank = (stage.objectives.get(name) for name in RECALLS)
    return "recall" if shown and not blank else "blank_recall"


def make_codec(
    module: nn.Module, ids: SpecialIds, recall_objective: str = "", compat: tuple[str, ...] = ()
) -> MemoryCodec:
    """Return the codec of a model.

    Args:
      module: an autoencoder, an oracle or a memory model.
      ids: reserved ids.
      recall_objective: of a memory model, one of COPY_OBJECTIVES or RECALLS; others do not read
        it.
      compat: quirks that the stage was trained under (STAGE_QUIRKS).

    Raises:
      ValueError: the family has no decoder that reads a memory of a text, or this model cannot be
        prompted so.
    """
    family = find(module)
    for capability, codec in CODECS.items():
        if capability in family.capabilities:
            prompt = recall_objective if codec is RecallCodec else ""
            return codec(module, ids, prompt, compat)
    able = [name for capability in CODECS for name in families_that(capability)]
    raise ValueError(
        f"a model of family {family.name} has no decoder that reads a memory of a text;"
        f" {', '.join(able)} have"
    )


def scores_of(codec: MemoryCodec, params: Params, tokens: jax.Array) -> Scores:
    """Return nats of texts given their own memories."""
    return codec.score(params, codec.encode(params, tokens), tokens)


class TextSums(NamedTuple):
    """Sums over the scored tokens of each text, of one shape."""

    nats: Any
    correct: Any
    """Tokens that are the argmax."""
    tokens: Any


def text_sums(scores: Scores) -> TextSums:
    """Return the sums of each text, [B] each."""
    parts = scores.nats, scores.is_argmax, jnp.ones_like(scores.weight)
    return TextSums(*(jnp.sum(x * scores.weight, axis=(1, 2)) for x in parts))
