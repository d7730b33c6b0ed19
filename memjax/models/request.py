"""The request of an objective to a model: one Request per objective, built once per step.

A memory model decodes chunks from memories of earlier chunks. The memories stand as entries of one
prefix per sequence, in reading order, and a decoded chunk sees the first `visible` of them. The
tables of slots, in which a decoder reads them under some quirks, are derived from that.

Shapes: B sequence, C chunk of the sequence, X decoded chunk, W written entry, S slot, E extra
chunk, M chunk to encode, L token.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from memjax.config import Stage
from memjax.models.cutting import chunked, drawn_cut

if TYPE_CHECKING:
    from memjax.data import Tokenizer

Variables = Mapping[str, Any]

PREDICT, RETAIN, RECALL = 0, 1, 2
"""Tasks, which the decoder's task embedding distinguishes."""
EMPTY = -1
"""Entry of a slot table that holds no memory."""
SHORTEST_CHUNK = "shortest_chunk"
"""The dial by which chunks of a row are shorter in training (`models/elastic.py`)."""

_NONE = np.zeros(0, np.int32)
_STATIC = ("written", "visible", "written_at", "place", "task")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Chunks to decode, and the memories that each of them sees.

    `written`, `visible`, `written_at`, `place` and `task` are static where they are NumPy arrays
    and traced where they are JAX arrays.
    """

    inputs: Int[Array, "B X L"]
    """The inputs of the decoder."""
    labels: Int[Array, "B X L"]
    weight: Float[Array, "B X L"]
    """1 where a label counts, 0 elsewhere."""
    extra: Int[Array, "B E L"] | None = None
    """Chunks that are encoded and are not the sequence's own."""
    written: Int[np.ndarray | Array, " W"] = dataclasses.field(default_factory=_NONE.copy)
    """The chunk whose memory is the i-th entry: c of the sequence, or C + e of the extra ones."""
    visible: Int[np.ndarray | Array, "*B X"] = dataclasses.field(default_factory=_NONE.copy)
    """Entries that each decoded chunk sees."""
    written_at: Int[np.ndarray | Array, "*B W"] = dataclasses.field(default_factory=_NONE.copy)
    """The position of each entry in the text, in chunks."""
    place: Int[np.ndarray | Array, "*B X"] = dataclasses.field(default_factory=_NONE.copy)
    """The position of each decoded chunk in the text, in chunks. For a causal language model it is
    the position of the first scored label, in tokens."""
    task: Int[np.ndarray | Array, " X"] = dataclasses.field(default_factory=_NONE.copy)
    """PREDICT, RETAIN or RECALL."""

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Leaves, and the static fields as hashable values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        static = tuple(
            (x.shape, *x.ravel().tolist())
            if name in _STATIC and isinstance(x, np.ndarray)
            else None
            for name, x in values.items()
        )
        kept = zip(values.values(), static, strict=True)
        return tuple(x for x, fixed in kept if fixed is None), static

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], leaves: Sequence[Any]) -> "Request":
        """The inverse of `tree_flatten`."""
        given = iter(leaves)
        fields: list[Any] = [
            next(given) if fixed is None else np.array(fixed[1:], np.int32).reshape(fixed[0])
            for fixed in static
        ]
        return cls(*fields)


def next_chunks(inputs: Int[Array, "B C L"], labels: Int[Array, "B C L"]) -> Request:
    """Return the request of every chunk of a text from the memories of those before it."""
    chunk = np.arange(inputs.shape[1])
    return Request(
        inputs,
        labels,
        jnp.ones(inputs.shape),
        written=chunk[:-1],
        visible=chunk,
        written_at=chunk[:-1],
        place=chunk,
        task=np.full_like(chunk, PREDICT),
    )


Requests = Mapping[str, Request]


@flax.struct.dataclass
class SpecialIds:
    """Reserved ids of the tokenizer; none of them stands for text."""

    pad: int = flax.struct.field(pytree_node=False, default=0)
    bos: int = flax.struct.field(pytree_node=False, default=2)
    blank: int = flax.struct.field(pytree_node=False, default=4)
    delimiter: int = flax.struct.field(pytree_node=False, default=5)
    content: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
    """Least id that stands for text and the one above the greatest; None is all above the reserved
    ones."""

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "SpecialIds":
        """Return the reserved ids of a tokenizer."""
        reserved = tokenizer.pad_id, tokenizer.bos_id, tokenizer.blank_id, tokenizer.delimiter_id
        return cls(*reserved, tokenizer.content)

    @property
    def first_content(self) -> int:
        """The least id that stands for text."""
        return (
            self.content[0]
            if self.content
            else max(self.pad, self.bos, self.blank, self.delimiter) + 1
        )

    def end_content(self, vocabulary: int) -> int:
        """One above the greatest id that stands for text."""
        return self.content[1] if self.content else vocabulary


@flax.struct.dataclass
class Batch:
    """Inputs of one update."""

    tokens: Int[Array, "B N"]
    attribution: Float[Array, "B N"] | None = None
    """Attribution of every token, for objectives that weight losses by it."""
    memories: Float[Array, "B C K E"] | None = None
    """Memories of every chunk, if read from disk: a memory model's encoder is then not run."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """Everything that a request is built from, and that scoring may read."""

    module: Any
    """A model of `memjax.models`."""
    batch: Batch
    ids: SpecialIds
    stage: Stage
    """Where `dials` and `compat` come from."""
    key: jax.Array | None = None
    """The source of noise and of random requests; None in evaluation, which has no noise, plain
    losses, and draws from a fixed key."""

    @property
    def chunks(self) -> Int[Array, "B C L"]:
        """The chunks of the batch (`cut`)."""
        return self.cut(self.batch.tokens)

    def cut(self, tokens: Int[Array, "B N"]) -> Int[Array, "B C L"]:
        """Return the chunks of rows with the padding of the batch's.

        In training with `shortest_chunk`, a dial of the stage, their length is drawn for each row,
        and their last positions are padding. All requests of a step have the same draws. In
        evaluation chunks have all L tokens.

        Args:
          tokens: the batch's, or others in their places.
        """
        length = self.module.config.chunk_length
        shortest = self.stage.dials.get(SHORTEST_CHUNK, 0) or length
        if self.key is None or shortest == length:
            return chunked(tokens, length)
        real_B = jnp.sum(self.batch.tokens != self.ids.pad, axis=1)
        key = self.key_of("lengths")
        return drawn_cut(tokens, real_B, length, shortest, key, self.ids.pad)

    @property
    def draw_key(self) -> jax.Array:
        """The key, or the fixed one of an evaluation."""
        return jax.random.key(0) if self.key is None else self.key

    def key_of(self, *names: str) -> jax.Array:
        """Return the key of a draw: a function of the batch's key and of the draw's name."""
        return jax.random.fold_in(self.draw_key, zlib.crc32("/".join(names).encode()))

    @property
    def rngs(self) -> dict[str, jax.Array] | None:
        """Generators for the module; None in evaluation."""
        if self.key is None:
            return None
        return {"noise": self.key, "memory": self.key_of("memory")}

    def apply(self, variables: Variables, method: str, *args: Any, **kwargs: Any) -> Any:
        """Apply a method of the model to arguments, with noise in training."""
        return self.module.apply(variables, *args, method=method, rngs=self.rngs, **kwargs)


class Prefix(NamedTuple):
    """Entries that the requests of one group share."""

    entries: Int[np.ndarray, " P"]
    """The number of the memory that is the i-th."""
    at: Int[np.ndarray | Array, "*B P"]
    """The position of each entry in the text, in chunks."""
    visible: Int[np.ndarray | Array, "*B X"]
    """Entries that each of the group's chunks sees."""

    @property
    def slots(self) -> Int[np.ndarray, "X P"]:
        """The number of the memory in each slot of each chunk, or `EMPTY`."""
        number = np.arange(len(self.entries))
        return np.where(number < np.asarray(self.visible)[:, None], self.entries, EMPTY)


class Joined(NamedTuple):
    """Several requests as one call of the encoder and one of the decoder.

    Chunks stand in the order of the prefixes that they read.
    """

    inputs: Int[Array, "B X L"]
    labels: Int[Array, "B X L"]
    place: Int[np.ndarray | Array, "*B X"]
    task: Int[np.ndarray | Array, "*B X"]
    prefixes: tuple[Prefix, ...]
    order: tuple[int, ...]
    """The number of each request, in the order of its chunks."""
    counts: tuple[int, ...]
    """The number of chunks of each request, in that order."""

    @property
    def slots(self) -> Int[np.ndarray, "X S"]:
        """The number of the memory in each slot of each chunk, or `EMPTY`."""
        tables = [prefix.slots for prefix in self.prefixes]
        most = max(table.shape[1] for table in tables)
        padding = [((0, 0), (0, most - table.shape[1])) for table in tables]
        return np.concatenate(
            [np.pad(x, pad, constant_values=EMPTY) for x, pad in zip(tables, padding, strict=True)]
        )

    def split(self, x: Shaped[Array, "B X ..."]) -> list[Shaped[Array, "B X ..."]]:
        """Part an array of all chunks by request, in the order of the requests."""
        parts = jnp.split(x, np.cumsum(self.counts)[:-1].tolist(), axis=1)
        found = dict(zip(self.order, parts, strict=True))
        return [found[number] for number in sorted(found)]


class Encoded(NamedTuple):
    """The chunks whose memories joined requests read."""

    tokens: Int[Array, "B M L"]
    """The chunks of the sequence up to the last that some entry holds, and then the extra ones."""
    has_extra: bool


def join(requests: Sequence[Request], tokens: Int[Array, "B C L"]) -> tuple[Joined, Encoded]:
    """Concatenate the requests for one batch.

    Requests whose entries are the same share one prefix, and its places in the text.

    Args:
      requests: the requests.
      tokens: the chunks of the sequences.

    Returns:
      The requests, and the chunks that their entries are numbers of.
    """
    chunks = tokens.shape[1]
    extras = [r.extra for r in requests if r.extra is not None]
    numbered, shift = [], 0
    for request in requests:
        written = np.asarray(request.written)
        numbered.append(
            dataclasses.replace(
                request, written=np.where(written < chunks, written, written + shift)
            )
        )
        shift += 0 if request.extra is None else request.extra.shape[1]
    joined = _group(numbered)
    entries = np.concatenate([prefix.entries for prefix in joined.prefixes])
    own = int(np.where(entries < chunks, entries, EMPTY).max(initial=EMPTY)) + 1
    prefixes = tuple(
        x._replace(entries=np.where(x.entries < chunks, x.entries, x.entries - chunks + own))
        for x in joined.prefixes
    )
    encoded = jnp.concatenate([tokens[:, :own], *extras], axis=1) if extras else tokens[:, :own]
    return joined._replace(prefixes=prefixes), Encoded(encoded, bool(extras))


def alone(*requests: Request) -> Joined:
    """Return requests whose entries are numbers of all chunks and then of the extra ones."""
    return _group(requests)


def shared_entries(
    requests: Sequence[Request],
) -> list[tuple[Int[np.ndarray, " P"], list[int]]]:
    """Return the entries of every prefix, and the numbers of the requests that read it.

    An entry that no chunk sees is left out.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(tuple(np.asarray(request.written).tolist()), []).append(number)
    found = []
    for written, numbers in groups.items():
        seen = [requests[number].visible for number in numbers]
        static = all(isinstance(visible, np.ndarray) for visible in seen)
        most = max(int(visible.max(initial=0)) for visible in seen) if static else len(written)
        found.append((np.array(written[:most], int), numbers))
    return found


def _group(requests: Sequence[Request]) -> Joined:
    groups = shared_entries(requests)
    order = [number for _, numbers in groups for number in numbers]
    found = [requests[number] for number in order]
    prefixes = (
        Prefix(
            entries,
            requests[numbers[0]].written_at[..., : len(entries)],
            _concatenate([requests[number].visible for number in numbers]),
        )
        for entries, numbers in groups
    )
    return Joined(
        inputs=jnp.concatenate([r.inputs for r in found], axis=1),
        labels=jnp.concatenate([r.labels for r in found], axis=1),
        place=_concatenate([r.place for r in found]),
        task=np.concatenate([r.task for r in found]),
        prefixes=tuple(prefixes),
        order=tuple(order),
        counts=tuple(r.inputs.shape[1] for r in found),
    )


def _concatenate(parts: Sequence[Any]) -> Any:
    """[*B, X] arrays side by side, static if all of them are."""
    if all(isinstance(x, np.ndarray) for x in parts):
        return np.concatenate(parts, axis=-1)
    batch = next(x.shape[0] for x in parts if x.ndim == 2)
    return jnp.concatenate([jnp.broadcast_to(x, (batch, x.shape[-1])) for x in parts], axis=-1)
