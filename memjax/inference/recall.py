"""Recall: any chunk of a store again by the decoder, found by its place.

All named chunks read one prefix, the memories of the whole store, whose keys and values are
computed once.

Shapes: B prefix, X chunk that reads it, P entry, K vector of a memory, E its width, L token, N
chunk of a store, n named chunk.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import StoreError
from memjax.config import Config
from memjax.inference.phrases import rank
from memjax.inference.prefix import require_memories
from memjax.inference.sampling import GenerationError
from memjax.inference.strategy import Params
from memjax.inference.texts import over_batches
from memjax.layers.attend import PrefixCache
from memjax.layers.attention import KeyValues
from memjax.models.memory import VECTORS, Memories
from memjax.objectives import SpecialIds
from memjax.objectives.recall import RECALLS


def chosen_recall(config: Config, stage: str, objective: str = "") -> str:
    """Return the objective by which a stage recalls.

    Args:
      config: the config of its run.
      stage: its name.
      objective: one of RECALLS; by default the first that it was trained on.

    Raises:
      GenerationError: it was not trained on it.
    """
    wanted = [objective] if objective else list(RECALLS)
    able = {
        name: [each for each in wanted if settings.objectives.get(each)]
        for name, settings in config.stages.items()
    }
    others = [name for name, found in able.items() if found]
    remedy = f"Use stage {' or '.join(others)}." if others else "Train a stage on it."
    GenerationError.require(
        able[stage],
        f"trained on {', '.join(config.stages[stage].objectives)}, expected"
        f" {' or '.join(wanted)}. {remedy}",
    )
    return able[stage][0]


def recall_tokens(
    module: Any,
    params: Params,
    ids: SpecialIds,
    blank: bool,
    store: MemoryStore,
    chunks: Sequence[int],
    batch: int,
    alone: bool = False,
) -> Int[np.ndarray, "n L"]:
    """Return the most likely tokens of chunks of a store, with padding behind them.

    Args:
      module: a memory model of layout `text`.
      params: its parameters.
      ids: reserved ids.
      blank: whether every token comes from memories alone; others also read those before them.
      store: of the model's encoder.
      chunks: their numbers in the store, counted from 0.
      batch: chunks per batch.
      alone: whether a chunk reads its own memory and no other.

    Raises:
      GenerationError: there are more memories than the model reads.
      StoreError: a number is outside the store, or a memory is not finite.
    """
    numbers = _checked(store, chunks)
    GenerationError.require(
        alone or len(store) <= module.budget,
        f"the store: {len(store)} memories, expected at most the {module.budget} of"
        f" config.model.max_memories. Select fewer, such as store[-{module.budget}:].",
    )
    length = store.provenance.chunk_length
    if not len(numbers):
        return np.zeros((0, length), np.int32)
    whole = None if alone else _read(module, params, _vectors(store, slice(None))[None])

    def recall(picked: Int[np.ndarray, " B"]) -> Int[Array, "B L"]:
        prefix, place = whole, picked[None]
        if prefix is None:
            prefix = _read(module, params, _vectors(store, picked)[:, None])
            place = np.zeros((len(picked), 1), np.int32)
        found = _recall(module, ids, blank, length, params, prefix, place)
        return found.reshape(len(picked), length)

    found = over_batches(recall, numbers, batch, "recall")
    real = np.arange(length) < store.spans[numbers, 2][:, None]
    return np.where(real, found, ids.pad).astype(np.int32)


def _checked(store: MemoryStore, chunks: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Return numbers of chunks, all of which are whole numbers and in the store."""
    found = np.asarray(chunks)
    StoreError.require(
        found.ndim == 1 and (not found.size or np.issubdtype(found.dtype, np.integer)),
        f"chunks: {chunks!r}, expected whole numbers. Pass a list, such as [0].",
    )
    outside = found[(found < 0) | (found >= len(store))]
    StoreError.require(
        not outside.size,
        f"chunk {outside[0] if outside.size else ''}: not in the store, expected one of its"
        f" {len(store)} chunks. Count them from 0.",
    )
    return found.astype(np.int32)


def _vectors(store: MemoryStore, index: Any) -> Float[np.ndarray, "n K E"]:
    found = store.read(index).leaves[VECTORS]
    StoreError.require(
        np.isfinite(found).all(),
        "the store: memories that hold NaN or infinity. Compress the text again.",
    )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _read(module: Any, params: Params, vectors: Float[Array, "B P K E"]) -> PrefixCache:
    count = jnp.full(len(vectors), vectors.shape[1], jnp.int32)
    state = module.given(vectors, count)
    return module.apply({"params": params}, state, method="read_entries")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _recall(
    module: Any,
    ids: SpecialIds,
    blank: bool,
    length: int,
    params: Params,
    prefix: PrefixCache,
    place: Int[Array, "B X"],
) -> Int[Array, "B X L"]:
    layers, _, heads, _, width = prefix.key.shape
    shape = layers, place.size, heads, module.config.chunk_length, width
    own = KeyValues(jnp.zeros(shape, prefix.key.dtype), jnp.zeros(shape, prefix.value.dtype))

    def step(carry: tuple[KeyValues, jax.Array], position: jax.Array) -> Any:
        def read(module: Any, cache: KeyValues, shown: jax.Array) -> tuple[jax.Array, KeyValues]:
            hidden, cache = module.recall_step(prefix, cache, shown, position, place)
            return module.head(hidden), cache

        logits, cache = module.apply({"params": params}, *carry, method=read)
        found = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return (cache, jnp.full_like(found, ids.blank) if blank else found), found

    start = own, jnp.full(place.shape, ids.delimiter, jnp.int32)
    _, found = jax.lax.scan(step, start, jnp.arange(length))
    return jnp.moveaxis(found, 0, -1)


class Recalling:
    """The methods of a trained model that recall chunks."""

    @property
    def recalls(self: Any) -> bool:
        """True where the stage was trained to recall."""
        return any(map(self.settings.objectives.get, RECALLS))

    @property
    def untrained_objective(self: Any) -> str:
        """The objective by which the model reconstructs if it was not trained on it, else empty.

        Raises:
          CheckpointError: no decoder reads memories of a text.
        """
        objective = self.codec().recall_objective
        return "" if self.settings.objectives.get(objective) else objective

    def recall(
        self: Any,
        memories: MemoryStore | Memories,
        chunks: Sequence[int],
        *,
        batch: int = 32,
    ) -> list[str]:
        """Recall chunks of a text by their numbers, from all of its memories, greedily.

        All chunks read one prefix, which is computed once per call.

        Args:
          memories: of this model's encoder; `Memories` are taken for full chunks of one document.
          chunks: numbers of chunks in the store, counted from 0.
          batch: chunks per batch.

        Returns:
          One text per number.

        Raises:
          CheckpointError: the weights came without a tokenizer.
          GenerationError: the stage was not trained on recall, or there are more memories than
            `config.model.max_memories`.
          StoreError: a number is outside the store, or the memories are of another encoder, not
            finite or not opened.
        """
        store = self.as_store(memories)
        self.required_tokenizer  # noqa: B018
        return self.chunk_texts(store, chunks, self.recall_tokens(store, chunks, batch=batch))

    def chunk_texts(
        self: Any, store: MemoryStore, chunks: Sequence[int], tokens: Int[np.ndarray, "n L"]
    ) -> list[str]:
        """Return the text of each of some chunks of a store from its tokens."""
        first = store.spans[np.asarray(chunks, int), 1] == 0
        return list(map(self.required_tokenizer.decode, tokens, first.tolist()))

    def recall_tokens(
        self: Any,
        memories: MemoryStore,
        chunks: Sequence[int],
        *,
        objective: str = "",
        batch: int = 32,
        alone: bool = False,
    ) -> Int[np.ndarray, "n L"]:
        """Recall the tokens of chunks, as `recall`, with padding behind them.

        Args:
          memories: as in `recall`.
          chunks: as in `recall`.
          objective: `recall`, where a token also reads those before it, or `blank_recall`; by
            default the first of them that the stage was trained on.
          batch: chunks per batch.
          alone: whether a chunk reads its own memory and no other.
        """
        arguments = (self.config, self.stage, objective)
        blank = self._make(chosen_recall, arguments, GenerationError) == "blank_recall"
        self._make(require_memories, (self.module,), GenerationError)
        self._check_side()
        memories.provenance.require_same(self.provenance, "the store", fewer=True)
        model = self.module, self.params, self.ids
        return recall_tokens(*model, blank, memories, chunks, batch, alone)

    def find(
        self: Any,
        memories: MemoryStore | Memories,
        phrase: str,
        top: int = 10,
        *,
        batch: int = 256,
    ) -> list[tuple[int, float]]:
        """Find the chunks in which a phrase begins, by what is recalled of each memory alone.

        A stage that was not trained on recall reconstructs the memories.

        Args:
          memories: of this model's encoder; `Memories` are taken for full chunks of one document.
          phrase: the text to find; it may span several chunks.
          top: chunks, at most.
          batch: chunks per batch.

        Returns:
          Numbers of chunks and the share of the phrase's n-grams that are found there, the greatest
          first; without those that share nothing.

        Raises:
          CheckpointError: the weights came without a tokenizer, or no decoder reads memories.
          StoreError: the phrase is empty, or the memories are of another encoder, not finite or not
            opened.
        """
        store, tokenizer = self.as_store(memories), self.required_tokenizer
        found = (
            self.recall_tokens(store, range(len(store)), batch=batch, alone=True)
            if self.recalls
            else self.reconstruct_tokens(store, batch=batch)
        )
        return rank(tokenizer, store, found, phrase, top)
