"""Prompts to text, in one form for every family that predicts the next token.

Shapes: B row, W token of the window, M chunk before the window, L token of a chunk.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Int

from memjax.data import Tokenizer
from memjax.inference import given
from memjax.inference.causal import CausalReader
from memjax.inference.errors import GenerationError
from memjax.inference.memory import MemoryReader
from memjax.inference.programs import Programs, State, compiled
from memjax.inference.reader import Params, Prompt, Reader, bucket, require_causal
from memjax.inference.recurrent import RecurrentReader
from memjax.inference.sampling import Sampling
from memjax.instruments.system import special_ids
from memjax.loading import read_stage
from memjax.models import CausalLM, MemoryModel, RecurrentMemory
from memjax.objectives import SpecialIds
from memjax.store.header import Origin

BEYOND = ("evict", "error")
"""What happens where a text outgrows what the model keeps of it: the oldest part is lost, or nothing is generated."""
_GREEDY = Sampling()


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A trained model that writes on. Rows of a batch may have prompts of any lengths, and each is continued as it would be alone.

    - A memory model (memjax/inference/memory.py) keeps a chunk's tokens and, of each chunk before, its memory.
    - A causal language model (memjax/inference/causal.py) keeps all tokens of a row.
    - Recurrent memory (memjax/inference/recurrent.py) keeps a chunk's tokens and a state.

    Attributes:
      module: a model of one of these families.
      params: its parameters.
      ids: reserved ids of its tokenizer.
      compat: quirks it was trained under (STAGE_QUIRKS): they say what a chunk or row begins with.
      beyond: `evict` or `error`, what happens to a text of more tokens than the model keeps: it writes on without the oldest memory, or
        without the older half of a row; or `generate` refuses. Recurrent memory keeps texts of any length.
      mesh: the devices that parameters lie on, if several.
      mark: the checkpoint it is of, which says whose stores it reads; None where that is not known.

    Raises:
      GenerationError: the family has no next token, or this model of it was not trained to begin a chunk.
    """

    module: nn.Module
    params: Params
    ids: SpecialIds
    compat: tuple[str, ...] = ()
    beyond: str = "evict"
    mesh: jax.sharding.Mesh | None = None
    mark: given.Mark | None = None

    def __post_init__(self) -> None:
        if self.beyond not in BEYOND:
            raise GenerationError(f"beyond={self.beyond!r} is not one of {', '.join(BEYOND)}")
        _ = self.reader

    @functools.cached_property
    def reader(self) -> Reader:
        """How the model reads on."""
        return make_reader(self.module, self.ids, self.compat)

    @property
    def vocabulary(self) -> int:
        """V."""
        module: Any = self.module
        return module.vocabulary

    @functools.cached_property
    def origin(self) -> Origin | None:
        """The encoder and the tokenizer whose memories it reads, for `MemoryStore.load`; None where that is not known.

        Raises:
          GenerationError: it is of a family that reads none, or the control without memories.
        """
        given.require_memories(self.module)
        module: Any = self.module
        return None if self.mark is None else given.origin_of_model(module, self.params, self.mark)

    def prefill(self, prompts: Sequence[Any], first_row: int = 0, memories: Sequence[given.Memories] | None = None) -> State:
        """Reads the prompts: one call of the encoder for all whole chunks of all rows, one of the decoder for what is left.

        Compiled once for each number of rows and for lengths up to powers of two.

        Args:
          prompts: ids [tokens] of each row; may be empty where the model begins with a token of its own.
          first_row: number of the first row, which its chance depends on.
          memories: what each row goes on from, as of `generate`.

        Raises:
          GenerationError: a prompt is no row of ids, or there is none; or the memories cannot be read.
          StoreError: a store is of another encoder or tokenizer.
        """
        reader = self.reader
        cuts = [reader.cut(prompt) for prompt in self._checked(prompts)]
        before = None
        if memories is not None:
            room = [reader.kept(len(cut.chunks)) for cut in cuts]
            before = given.stack(self._remembered(memories, len(cuts)), room, reader.kept(0), self._shape)
        chunks, tokens = _stack(cuts, reader)
        place = np.array([len(cut.window) for cut in cuts], np.int32)
        count = np.array([len(cut.chunks) for cut in cuts], np.int32)
        span = bucket(int(place.max()), reader.window - 1) if reader.cached else reader.window - 1
        row = first_row + np.arange(len(cuts), dtype=np.int32)
        return self._programs.prefill(self.params, chunks, count, tokens, place, row, before, span)

    def step(self, state: State, key: jax.Array, sampling: Sampling = _GREEDY) -> tuple[Int[Array, " B"], State]:
        """The next token of every row and the state after it. Compiled once, wherever in their chunks the rows stand.

        Args:
          state: from `prefill` or the step before; it is used up, and its arrays are gone. `beyond="error"` is not looked at.
          key: of the whole generation, the same in every step: which token it is comes from the state.
          sampling: how to choose.
        """
        tokens = self._programs.draw(state, key, sampling)
        return tokens, self._programs.append(self.params, state, tokens)

    def generate(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int,
        sampling: Sampling = _GREEDY,
        seed: int = 0,
        stop: Collection[int] = (),
        on_token: Callable[[int, int], None] | None = None,
        first_row: int = 0,
        memories: Sequence[given.Memories] | None = None,
    ) -> list[np.ndarray]:
        """Int32 [tokens] for each prompt: what the model writes after it.

        Args:
          prompts: ids [tokens] of each row.
          max_new_tokens: tokens a row gets at most.
          sampling: how to choose; by default the most likely token.
          seed: what chance comes from. A row's tokens depend on it, on the prompt and on the row's number, not on the other rows.
          stop: ids that end a row; they are not part of the result.
          on_token: is called with a row's place in `prompts` and each of its tokens as they come; while it runs the next step is computed.
          first_row: number of the first row, so that rows that are generated apart are the same as together.
          memories: what each row goes on from, of a memory model: a store of its own encoder (or a slice of one, or one of its documents),
            of which the chunks that are full are read, an array [N, K, E], or None. They are what the encoder would have made of chunks
            before the prompt, the oldest first, and are evicted before the prompt's own.

        Raises:
          GenerationError: as `prefill`; or `beyond="error"` and a row could become longer than the model keeps.
          StoreError: as `prefill`.
        """
        checked = self._checked(prompts)
        if memories is not None:
            memories = self._remembered(memories, len(checked))
        if self.beyond == "error":
            self._require_room(checked, max_new_tokens, memories)
        key, made = jax.random.key(seed), [[] for _ in checked]
        going, stops = set(range(len(made))), frozenset(stop)
        if max_new_tokens <= 0:
            return [np.zeros(0, np.int32) for _ in checked]
        state = self.prefill(checked, first_row, memories)
        for left in reversed(range(max_new_tokens)):
            tokens = self._programs.draw(state, key, sampling)
            if left:
                # Sent off before the tokens are waited for.
                state = self._programs.append(self.params, state, tokens)
            found = np.asarray(tokens).tolist()
            for row in sorted(going):
                if found[row] in stops:
                    going.remove(row)
                    continue
                made[row].append(found[row])
                if on_token:
                    on_token(row, found[row])
            if not going:
                break
        return [np.array(row, np.int32) for row in made]

    @property
    def _programs(self) -> Programs:
        return compiled(self.reader, self.mesh)

    @property
    def _shape(self) -> tuple[int, int]:
        """(K, E) of a memory."""
        given.require_memories(self.module)
        model = self.reader.model
        return model.vectors, model.encoder.width

    def _remembered(self, memories: Sequence[given.Memories], rows: int) -> list[given.Memories]:
        """Memories that this model reads, one entry a row."""
        shape, stores = self._shape, any(isinstance(row, given.MemoryStore) for row in memories)
        return given.checked(memories, rows, self.origin if stores else None, shape)

    def _require_room(self, prompts: list[np.ndarray], new: int, memories: Sequence[given.Memories] | None) -> None:
        """Raises GenerationError if a row could outgrow what the model keeps."""
        limit = self.reader.limit
        if limit is None:
            return
        counts = [0] * len(prompts) if memories is None else [given.count(row) for row in memories]
        window = self.reader.window
        tokens, prompt, held = max((n * window + len(p), len(p), n) for n, p in zip(counts, prompts, strict=True))
        if tokens + new <= limit:
            return
        remembered = f"{held} memories of {window} tokens each, " if held else ""
        kept = f" ({self.reader.kept(0)} memories and the chunk it writes)" if held else ""
        raise GenerationError(
            f"{remembered}a prompt of {prompt} tokens and max_new_tokens={new} are more than the {limit} tokens of which the model"
            f" keeps everything{kept}; ask for fewer, or give beyond='evict'"
        )

    def _checked(self, prompts: Sequence[Any]) -> list[np.ndarray]:
        if not len(prompts):
            raise GenerationError("there is no prompt; give one row of ids or more")
        checked = []
        for number, prompt in enumerate(prompts):
            ids = np.asarray(prompt)
            if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
                raise GenerationError(f"prompt {number} must be one row of ids; it is of shape {ids.shape} and {ids.dtype}")
            if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
                raise GenerationError(
                    f"prompt {number} has ids from {ids.min()} to {ids.max()}; the model's go from 0 to {self.vocabulary - 1}"
                )
            if not ids.size and self.reader.start is None and isinstance(self.module, CausalLM):
                raise GenerationError(
                    f"prompt {number} is empty, and this model was trained without a start token: give a token or more"
                )
            checked.append(ids.astype(np.int32))
        return checked


def make_reader(module: nn.Module, ids: SpecialIds, compat: Collection[str] = ()) -> Reader:
    """How `module`, trained under the quirks `compat`, reads on.

    Raises:
      GenerationError: it cannot.
    """
    unscored = "unscored_first_tokens" in compat
    if isinstance(module, CausalLM):
        require_causal(module.config)
        return CausalReader(module, None if unscored else ids.bos)
    if not isinstance(module, (MemoryModel, RecurrentMemory)):
        names = ", ".join(kind.__name__ for kind in (MemoryModel, CausalLM, RecurrentMemory))
        raise GenerationError(f"{type(module).__name__} does not say what comes next in a text; {names} do")
    require_causal(module.config)
    quirk = "unscored_first_tokens" if unscored else "overwritten_write_slot"
    if unscored or quirk in module.config.compat:
        raise GenerationError(
            f"trained under {quirk!r}, the model never learned the first token of a chunk and cannot begin one"
        )
    if isinstance(module, MemoryModel):
        return MemoryReader(module, ids.bos)
    return RecurrentReader(module, None)


def open_generator(workdir: str | os.PathLike, stage: str = "", beyond: str = "evict") -> tuple[Generator, Tokenizer | None]:
    """The generator of a stage of a run, and its tokenizer; None of imported weights.

    Args:
      workdir: as `memjax.load` takes it.
      stage: name of the stage; by default the last of the curriculum.
      beyond: see `Generator`.

    Raises:
      CheckpointError: as `memjax.load`.
      TokenizerError: as `memjax.load`.
      GenerationError: the stage's model cannot generate.
    """
    found = read_stage(workdir, stage)
    settings, tokenizer = found.config.stages[found.name], found.tokenizer
    mark = None if tokenizer is None else given.Mark(settings.family, found.name, found.step, tokenizer.fingerprint)
    try:
        generator = Generator(found.module(), found.params, special_ids(tokenizer), settings.compat, beyond, mark=mark)
    except GenerationError as error:
        raise GenerationError(f"{workdir}, stage {found.name}: {error}") from error
    return generator, tokenizer


def _stack(cuts: Sequence[Prompt], reader: Reader) -> tuple[Int[np.ndarray, "B M L"], Int[np.ndarray, "B W"]]:
    """Chunks and windows of all rows, filled up behind. M is a power of two or the most that any row keeps."""
    most = max(len(cut.chunks) for cut in cuts)
    kept = bucket(most, reader.kept(0) or most * 2)
    chunks = np.zeros((len(cuts), kept, cuts[0].chunks.shape[1]), np.int32)
    tokens = np.zeros((len(cuts), reader.window), np.int32)
    for row, cut in enumerate(cuts):
        chunks[row, : len(cut.chunks)] = cut.chunks
        tokens[row, : len(cut.window)] = cut.window
    return chunks, tokens
