"""Generation from prompts, in one form for every family that predicts the next token.

Shapes: B sequence, W token of the window, M chunk before the window, L token of a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from memjax.checkpoints.store_records import EncoderProvenance
from memjax.data import Tokenizer
from memjax.inference import prefix
from memjax.inference.causal import CausalStrategy
from memjax.inference.memory import MemoryStrategy, PeerStrategy, RecurrentStrategy
from memjax.inference.programs import DecodeState, Programs, compiled
from memjax.inference.reading import ReadingStrategy
from memjax.inference.room import evicts_nothing, require_room
from memjax.inference.sampling import GenerationError, Sampling
from memjax.inference.strategy import DecodingStrategy, Params, bucket
from memjax.models import families_that, find
from memjax.models.elastic import reads_fewer
from memjax.objectives import SpecialIds

OVERFLOWS = ("evict", "error")
"""Behaviours for a text that outgrows the context: the oldest part is dropped, or nothing is
generated."""
_GREEDY = Sampling()
INCOMPLETE = "\ufffd"
"""The text of bytes that are no whole character."""
LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A trained model that generates text. Prompts of a batch may have any lengths, and each is
    continued as it would be alone.

    - A memory model (memjax/inference/memory.py) keeps the tokens of the current chunk, and the
      memory of each chunk before.
    - A causal language model (memjax/inference/causal.py) keeps all tokens of a sequence.
    - Recurrent memory (memjax/inference/memory.py) keeps the tokens of the current chunk and a
      state.

    Attributes:
      module: a model of one of these families.
      params: its parameters.
      ids: reserved ids of its tokenizer.
      compat: quirks of its training (STAGE_QUIRKS), which determine the first token of a chunk or
        sequence.
      overflow: `evict` or `error`, for a text of more tokens than the context. The model continues
        without the oldest memory, or without the older half of a sequence; or `generate` raises an
        error. Recurrent memory keeps texts of any length.
      mesh: the devices of the parameters, if several.
      encoder: returns the provenance of its encoder and its tokenizer, which determines the stores
        that it reads; None if it is unknown.
      chunk_length: tokens per chunk, for memories of shorter ones; None for
        `config.model.chunk_length`.

    Raises:
      GenerationError: the family does not predict the next token, this model was not trained to
        begin a chunk, or it has no such chunks.
    """

    module: Any
    params: Params
    ids: SpecialIds
    compat: tuple[str, ...] = ()
    overflow: str = "evict"
    mesh: jax.sharding.Mesh | None = None
    encoder: prefix.Provenance | None = None
    chunk_length: int | None = None

    def __post_init__(self) -> None:
        GenerationError.require_one_of("overflow", self.overflow, OVERFLOWS)
        _ = self.strategy

    @functools.cached_property
    def strategy(self) -> DecodingStrategy:
        """Return the decoding strategy of the model."""
        return make_strategy(self.module, self.ids, self.compat, self.chunk_length)

    @property
    def provenance(self) -> EncoderProvenance | None:
        """Return the encoder and the tokenizer of readable memories, for `open_store`; None if they
        are unknown.

        Raises:
          GenerationError: the family reads no memories, or the model is the control without
            memories.
        """
        prefix.require_memories(self.module)
        return self.encoder() if self.encoder else None

    def prefill(
        self,
        prompts: Sequence[Any],
        first_row: int = 0,
        memories: Sequence[prefix.Memories] | None = None,
    ) -> DecodeState:
        """Read the prompts: one call of the encoder for all whole chunks, one of the decoder for
        the rest.

        Compiled once per batch size and for lengths up to powers of two.

        Args:
          prompts: ids [tokens] of each sequence; may be empty if the model has a start token.
          first_row: number of the first sequence, which its random numbers depend on.
          memories: memories before each prompt, as in `generate`.

        Raises:
          GenerationError: a prompt is not a sequence of ids, or there is none; or the memories
            cannot be read, or with a prompt are more than the model keeps of any text.
          StoreError: a store belongs to another encoder or tokenizer.
        """
        strategy, checked = self.strategy, self._checked(prompts)
        if evicts_nothing(strategy):
            self._require_room(checked, 0, memories)
        cuts = [strategy.cut(prompt) for prompt in checked]
        before = None
        if memories is not None:
            room = [strategy.kept(len(cut.chunks)) for cut in cuts]
            before = prefix.stack(self._last(memories, len(cuts)), room, strategy.kept(0))
        position = np.array([len(cut.window) for cut in cuts], np.int32)
        count = np.array([len(cut.chunks) for cut in cuts], np.int32)
        # Chunks and windows are filled up at the end.
        most = bucket(int(count.max()), strategy.kept(0) or 2 * int(count.max()))
        window = strategy.window
        chunks = np.stack([np.pad(x.chunks, ((0, most - len(x.chunks)), (0, 0))) for x in cuts])
        tokens = np.stack([np.pad(x.window, (0, window - len(x.window))) for x in cuts])
        span = bucket(int(position.max()), window - 1) if strategy.cached else window - 1
        row = first_row + np.arange(len(cuts), dtype=np.int32)
        return self._programs.prefill(
            self.params, chunks, count, tokens, position, row, before, span
        )

    def step(
        self, state: DecodeState, key: jax.Array, sampling: Sampling = _GREEDY
    ) -> tuple[Int[Array, " B"], DecodeState]:
        """Return the next token of every sequence and the state after it. Compiled once, for any
        positions in their chunks.

        Args:
          state: from `prefill` or the step before. It is donated: its arrays are invalid
            afterwards. `overflow="error"` is not checked.
          key: of the whole generation, the same in every step; the state makes the tokens differ.
          sampling: the settings of sampling.
        """
        tokens = self._draw(state, key, sampling)
        entries = self.strategy.grows and int(np.max(state.context.count)) + 1
        return tokens, self._programs.append(self.params, self.with_room(state, entries), tokens)

    def generate(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int,
        sampling: Sampling = _GREEDY,
        seed: int = 0,
        stop: Collection[int] = (),
        first_row: int = 0,
        memories: Sequence[prefix.Memories] | None = None,
    ) -> list[np.ndarray]:
        """Return the generated tokens after each prompt, int32 [tokens].

        Args:
          prompts: ids [tokens] of each sequence.
          max_new_tokens: generated tokens per sequence, at most.
          sampling: the settings of sampling; by default greedy decoding.
          seed: random seed. The tokens of a sequence depend on it, on the prompt and on the number
            of the sequence, but not on other sequences.
          stop: ids that end a sequence; they are not part of the result.
          first_row: number of the first sequence, so that sequences generated apart equal those
            generated together.
          memories: memories before each prompt, for a memory model: a store of its own encoder (or
            a slice of one, or one of its documents), of which full chunks are read, an array [N, K,
            E], or None. They replace chunks before the prompt, the oldest first, and are evicted
            before the prompt's own. A model that keeps all (`config.model.layout="text"`) evicts
            none.

        Raises:
          GenerationError: as `prefill`; or a sequence could outgrow the context and `overflow` is
            `error`, or the model evicts nothing.
          StoreError: as `prefill`.
        """
        made: list[list[int]] = [[] for _ in prompts]
        for step in self.stream(prompts, max_new_tokens, sampling, seed, stop, first_row, memories):
            for row, token in step:
                made[row].append(token)
        return [np.array(row, np.int32) for row in made]

    def stream(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int,
        sampling: Sampling = _GREEDY,
        seed: int = 0,
        stop: Collection[int] = (),
        first_row: int = 0,
        memories: Sequence[prefix.Memories] | None = None,
    ) -> Iterator[list[tuple[int, int]]]:
        """Generate as `generate`, and yield each step's tokens as (index, token) while the next
        step is computed. The prompts are checked and read before this returns.

        Raises:
          GenerationError, StoreError: as `generate`.
        """
        checked = self._checked(prompts)
        if self.overflow == "error" or evicts_nothing(self.strategy):
            self._require_room(checked, max_new_tokens, memories)
        read = None if memories is None else self._last(memories, len(checked))
        if max_new_tokens <= 0:
            return iter(())
        state = self.prefill(checked, first_row, read)
        return self._steps(state, len(checked), max_new_tokens, sampling, seed, frozenset(stop))

    def _steps(
        self,
        state: DecodeState,
        rows: int,
        steps: int,
        sampling: Sampling,
        seed: int,
        stop: frozenset,
    ) -> Iterator[list[tuple[int, int]]]:
        key, going = jax.random.key(seed), set(range(rows))
        count, read = 0, 0
        if self.strategy.grows:
            count, read = (np.asarray(x) for x in (state.context.count, state.position))
        for left in reversed(range(steps)):
            tokens = self._draw(state, key, sampling)
            if left:
                read = read + 1
                entries = self.strategy.grows and int(np.max(count + read // self.strategy.window))
                # Dispatched before the host waits for the tokens.
                state = self.with_room(state, entries)
                state = self._programs.append(self.params, state, tokens)
            found = np.asarray(tokens).tolist()
            going -= {row for row in going if found[row] in stop}
            yield [(row, found[row]) for row in sorted(going)]
            if not going:
                break

    def with_room(self, state: DecodeState, entries: int) -> DecodeState:
        """Return the state with room for so many entries, where its cache grows."""
        strategy: Any = self.strategy
        while strategy.grows and entries > strategy.room(state.context):
            state = self._programs.grow(state)
        return state

    def _draw(self, state: DecodeState, key: jax.Array, sampling: Sampling) -> Int[Array, " B"]:
        return self._programs.draw(state.logits, key, state.row, state.made, sampling)

    @property
    def _programs(self) -> Programs:
        return compiled(self.strategy, self.mesh)

    def _last(self, memories: Sequence[prefix.Memories], rows: int) -> list[np.ndarray]:
        """Return the last memories of each sequence, checked."""
        self._check_memories(memories, rows)
        model = self.module.config
        shape = model.memory_vectors, model.encoder.width
        most, fewer = self.strategy.kept(0), reads_fewer(self.module)
        length = self.strategy.window
        return prefix.last_memories(memories, most, shape, self.encoder, fewer, length)

    def _require_room(
        self, prompts: list[np.ndarray], new: int, memories: Sequence[prefix.Memories] | None
    ) -> None:
        """Raise GenerationError if a sequence could outgrow the context; of memories none is read.

        Arguments are as in `require_room`.
        """
        if memories is not None:
            self._check_memories(memories, len(prompts))
        held = [0] * len(prompts) if memories is None else list(map(prefix.count, memories))
        require_room(self.strategy, [len(prompt) for prompt in prompts], new, held)

    def _check_memories(self, memories: Sequence[prefix.Memories], rows: int) -> None:
        """Raise GenerationError if the model reads none, or they are not of so many rows."""
        prefix.require_memories(self.module)
        if len(memories) != rows:
            raise GenerationError(
                f"memories are given for {len(memories)} rows, and there are {rows} prompts; give"
                " one entry each"
            )

    def _checked(self, prompts: Sequence[Any]) -> list[np.ndarray]:
        if not len(prompts):
            raise GenerationError("there is no prompt; give one row of ids or more")
        checked = []
        for number, prompt in enumerate(prompts):
            ids = np.asarray(prompt)
            if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
                raise GenerationError(
                    f"prompt {number} must be one row of ids; it is of shape {ids.shape} and"
                    f" {ids.dtype}"
                )
            if ids.size and not 0 <= ids.min() <= ids.max() < self.module.vocab_size:
                raise GenerationError(
                    f"prompt {number} has ids from {ids.min()} to {ids.max()}; the model's go from"
                    f" 0 to {self.module.vocab_size - 1}"
                )
            if not ids.size and self.strategy.needs_token:
                raise GenerationError(
                    f"prompt {number} is empty, and this model was trained without a start token:"
                    " give a token or more"
                )
            checked.append(ids.astype(np.int32))
        return checked


def memory_strategy(module: Any, start: Any) -> DecodingStrategy:
    """Return the strategy of a memory model: by slots, or by positions of the text."""
    kind = ReadingStrategy if module.config.layout == "text" else MemoryStrategy
    return kind(module, start)


STRATEGIES: Mapping[str, Callable[[Any, Any], DecodingStrategy]] = {
    "keeps_memories": memory_strategy,
    "keeps_tokens": CausalStrategy,
    "keeps_state": RecurrentStrategy,
    "keeps_written": PeerStrategy,
}
"""Strategies by the kind of context that a family keeps."""


def make_strategy(
    module: Any,
    ids: SpecialIds,
    compat: Collection[str] = (),
    chunk_length: int | None = None,
) -> DecodingStrategy:
    """Return the decoding strategy of a model.

    Args:
      module: the model.
      ids: reserved ids.
      compat: quirks of its training (STAGE_QUIRKS).
      chunk_length: tokens per chunk; None for `config.model.chunk_length`.

    Raises:
      GenerationError: the model has none, or no such chunks.
    """
    family, unscored = find(module), "unscored_first_tokens" in compat
    kept = next((keeps for keeps in STRATEGIES if keeps in family.capabilities), None)
    if kept is None:
        able = [name for capability in STRATEGIES for name in families_that(capability)]
        raise GenerationError(
            f"a model of family {family.name} does not generate or score text token by token;"
            f" {', '.join(able)} do"
        )
    if not module.config.decoder.causal:
        raise GenerationError(
            "config.model.decoder.causal=False: the decoder reads the tokens that it is to predict"
            " and cannot write text"
        )
    if "reads_chunks" in family.capabilities:
        quirk = "unscored_first_tokens" if unscored else "overwritten_write_slot"
        if unscored or quirk in module.config.compat:
            raise GenerationError(
                f"trained under {quirk!r}, the model never learned the first token of a chunk and"
                " cannot begin one"
            )
    begins = not unscored and "starts_from_state" not in family.capabilities
    strategy = STRATEGIES[kept](module, ids.bos if begins else None)
    own = module.config.chunk_length
    if chunk_length is None or chunk_length == own:
        return strategy
    if isinstance(strategy, ReadingStrategy) and 1 <= chunk_length <= own:
        return dataclasses.replace(strategy, chunk_length=chunk_length)
    raise GenerationError(
        f"chunk_length: {chunk_length}, expected the {own} of config.model.chunk_length, or fewer"
        " for a memory model of layout 'text'. Leave it out"
    )


def text_pieces(tokenizer: Tokenizer, tokens: Iterable[int], start: bool = False) -> Iterator[str]:
    """Decode tokens as they come, into pieces of whole characters.

    `start` is whether they are the start of a document.
    """
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode(waiting, start)
        # Bytes of a character that may still be completed wait.
        if text.endswith(INCOMPLETE) and len(waiting) < LONGEST_CHARACTER:
            continue
        waiting.clear()
        start = False
        if text:
            yield text
    if waiting:
        yield tokenizer.decode(waiting, start)
