"""Chunks of a sequence that read a leading part of one prefix, which is computed once.

Positions of a prefix read earlier positions of it and never a chunk, so that their states are the
same for every chunk that reads them. A sequence may have several groups, each with a prefix and the
chunks that read it; groups share all matrix products but those of mixing. Its positions are laid
out as the prefixes of all groups and then the chunks of all groups.

Shapes: B batch, T position, P position of a prefix, X chunk, L position of a chunk, H query head, G
key and value head, E head width.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers.attend import LONGEST_WHOLE, attend, choose

LONG, PIECE = 512, 2**18
"""Entries of a long prefix, and scores of a head that are computed at once with one: a CPU's cache
holds them."""


class Group(NamedTuple):
    """One group's part of an array [B, T, ...]."""

    prefix: Any
    """[B, P, ...]."""
    chunks: Any
    """[B, X, L, ...]."""


@flax.struct.dataclass
class SharedPrefix:
    """The layout of a sequence, and which positions are read. It takes the place of `valid`."""

    valid: Bool[Array, "B T"]
    """False at padding and at entries without text."""
    visible: tuple[Int[Array, "B X"], ...]
    """Leading positions of its prefix that each chunk of each group reads."""
    lengths: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """P of each group."""
    chunk_length: int = flax.struct.field(pytree_node=False)
    """L."""
    blind: bool = flax.struct.field(pytree_node=False, default=False)
    """True where a position of a prefix reads itself alone."""

    def groups(self, x: Array) -> list[Group]:
        """Part an array [B, T, ...] by group."""
        found, first, chunk = [], 0, sum(self.lengths)
        for length, visible in zip(self.lengths, self.visible, strict=True):
            end = chunk + visible.shape[1] * self.chunk_length
            shape = (x.shape[0], visible.shape[1], self.chunk_length, *x.shape[2:])
            found.append(Group(x[:, first : first + length], x[:, chunk:end].reshape(shape)))
            first, chunk = first + length, end
        return found

    def seen(self) -> list[Bool[Array, "B X P"]]:
        """Return which positions of its prefix each chunk of each group reads."""
        return [
            (jnp.arange(length) < visible[..., None]) & valid.prefix[:, None]
            for length, visible, valid in zip(
                self.lengths, self.visible, self.groups(self.valid), strict=True
            )
        ]

    def keys_read(self) -> Int[Array, "B T"]:
        """Return how many positions each position reads, itself included."""
        return join_groups(
            [
                Group(
                    jnp.ones_like(valid.prefix, jnp.int32)
                    if self.blind
                    else jnp.cumsum(valid.prefix, axis=1),
                    seen.sum(axis=-1)[..., None] + jnp.cumsum(valid.chunks, axis=-1),
                )
                for valid, seen in zip(self.groups(self.valid), self.seen(), strict=True)
            ]
        )

    def chunks(self, x: Array) -> Float[Array, "B X L ..."]:
        """Return the chunks of all groups of an array [B, T, ...]."""
        return x[:, sum(self.lengths) :].reshape(x.shape[0], -1, self.chunk_length, *x.shape[2:])


def join_groups(groups: Sequence[Group]) -> Array:
    """Invert `SharedPrefix.groups`."""
    prefixes = [group.prefix for group in groups]
    chunks = [x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (group.chunks for group in groups)]
    return jnp.concatenate([*prefixes, *chunks], axis=1)


def attend_shared(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    reading: SharedPrefix,
    implementation: str = "auto",
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """Compute causal `attend` of every chunk over what it reads of its prefix and over itself.

    Arguments are as in `attend`.
    """
    parts = (reading.groups(x) for x in (query, key, value, reading.valid))
    mixed = []
    for q, k, v, valid, seen in zip(*parts, reading.seen(), strict=True):
        prefix = q.prefix
        if reading.blind:
            prefix = jnp.repeat(v.prefix, query.shape[2] // value.shape[2], axis=2)
        elif prefix.shape[1]:
            own = (q.prefix, k.prefix, v.prefix, valid.prefix)
            prefix = attend(*own, True, implementation, interpret)
        if choose(implementation, reading.chunk_length, query.shape[3]) == "xla":
            chunks = _two_blocks(q.chunks, k, v, seen, valid.chunks)
        else:
            chunks = _one_row_per_chunk(
                q.chunks, k, v, seen, valid.chunks, implementation, interpret
            )
        mixed.append(Group(prefix, chunks))
    return join_groups(mixed)


def _one_row_per_chunk(
    query: Float[Array, "B X L H E"],
    key: Group,
    value: Group,
    seen: Bool[Array, "B X P"],
    valid: Bool[Array, "B X L"],
    implementation: str,
    interpret: bool,
) -> Float[Array, "B X L H E"]:
    """Compute each chunk as a sequence of its own, whose keys are prefix and chunk."""

    def rows(group: Group) -> jax.Array:
        prefix, own = group
        copies = jnp.broadcast_to(prefix[:, None], (*own.shape[:2], *prefix.shape[1:]))
        return _fold(jnp.concatenate([copies, own], axis=2))

    readable = _fold(jnp.concatenate([seen, valid], axis=2))
    mixed = attend(_fold(query), rows(key), rows(value), readable, True, implementation, interpret)
    return mixed.reshape(query.shape)


def _fold(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _two_blocks(
    query: Float[Array, "B X L H E"],
    key: Group,
    value: Group,
    seen: Bool[Array, "B X P"],
    valid: Bool[Array, "B X L"],
) -> Float[Array, "B X L H E"]:
    """Compute scores with the prefix and with the chunk apart, and one softmax over both.

    The products with the prefix are of all chunks at once. Large scores, and those of a long
    prefix, are computed in pieces of some chunks each, and again in the backward pass.
    """
    (chunks, length), entries = query.shape[1:3], key.prefix.shape[1]
    scores = length * (entries + length)
    if chunks * scores <= (LONGEST_WHOLE**2 if entries <= LONG else PIECE):
        return _mix(query, key, value, seen, valid)
    most = max(1, PIECE // scores)
    size = max(part for part in range(1, min(most, chunks) + 1) if chunks % part == 0)

    # Gradients of the prefix are sums over all chunks: accumulate them in float32.
    prefixes = key.prefix.astype(jnp.float32), value.prefix.astype(jnp.float32)

    @jax.checkpoint
    def mix(prefixes: tuple[jax.Array, jax.Array], piece: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, read, own = piece
        keys, values = (Group(p.astype(q.dtype), x) for p, x in zip(prefixes, (k, v), strict=True))
        return _mix(q, keys, values, read, own)

    parts = (query, key.chunks, value.chunks, seen, valid)
    pieces = tuple(jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0) for x in parts)
    mixed = jax.lax.map(functools.partial(mix, prefixes), pieces)
    return jnp.moveaxis(mixed, 0, 1).reshape(query.shape)


def _mix(
    query: jax.Array, key: Group, value: Group, seen: jax.Array, valid: jax.Array
) -> Float[Array, "B X L H E"]:
    batch, chunks, length, heads, width = query.shape
    kv_heads, entries = key.chunks.shape[3], key.prefix.shape[1]
    query = query.reshape(batch, chunks, length, kv_heads, heads // kv_heads, width)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.concatenate(
        [
            product("bxlgre,bpge->bgrxlp", query, key.prefix),
            product("bxlgre,bxmge->bgrxlm", query, key.chunks),
        ],
        axis=-1,
    ) / jnp.sqrt(jnp.float32(width))
    causal = jnp.tril(jnp.ones((length, length), bool))
    own = valid[:, :, None] & causal
    before = jnp.broadcast_to(seen[:, :, None], (*own.shape[:3], entries))
    readable = jnp.concatenate([before, own], axis=-1)[:, None, None]
    # Finite, so that a query that reads nothing has a finite output and finite gradients.
    scores = jnp.where(readable, scores, jnp.finfo(jnp.float32).min / 2)
    weight = jax.nn.softmax(scores, axis=-1).astype(value.chunks.dtype)
    mixed = jnp.einsum("bgrxlp,bpge->bxlgre", weight[..., :entries], value.prefix)
    mixed += jnp.einsum("bgrxlm,bxmge->bxlgre", weight[..., entries:], value.chunks)
    return mixed.reshape(batch, chunks, length, heads, width)
