"""Scaled dot-product attention with two implementations: XLA's, and a TPU kernel (splash).

XLA's keeps the scores [B, H, T, T] in HBM for the backward pass. For sequences longer than
LONGEST_WHOLE it computes one block of queries at a time, [B, H, Q, T], and recomputes the scores in
the backward pass: memory grows linearly with T. Splash attention (block-wise softmax as in Dao et
al. 2022, arXiv 2205.14135) keeps one block of scores at a time in on-chip memory, forward and
backward, and stores one number per query and head: no array in HBM is [T, T]. Compiled for a v5e, a
sequence of 2048 positions with 8 heads of 128 in bfloat16 takes 128 MiB besides its inputs and
gradients with XLA's attention, and 0.9 MiB with splash.

Shapes: B batch, T position, S position of the keys, H query head, G key and value head, E head
width; N block, Q query of a block.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from memjax.config import ConfigError
from memjax.config.choices import ATTENTIONS
from memjax.sharding import batch_axes, batch_parts

LONGEST_WHOLE = 4096
"""Positions up to which XLA's attention is one product: scores of 8 heads are then 512 MiB in
float32."""
QUERY_BLOCK = 128
"""Queries per block of longer sequences."""
PREFIXES = 8
"""Number of key lengths where attention is causal: each eighth of the queries reads the keys up to
its own end, so that 9/16 of the square is computed."""
CACHE_BLOCK = 1024
"""Cached positions that one query reads at a time: their keys and values fit a CPU's cache."""
LANES = 128
"""Width of a TPU's vector register; blocks are multiples of it."""
LONGEST_BLOCK = 640
"""Largest block: 512 tokens and the memories before them are one block."""
SHORTEST_AUTO, WIDEST_AUTO = 256, 256
"""Positions from which, and head width up to which, `auto` takes the kernel. In shorter sequences
the scores are small and the blocks mostly padding; blocks of wider heads do not fit into the
on-chip memory of every TPU."""
OLD_TPUS = ("TPU v2", "TPU v3")
"""TPUs whose compiler rejects the kernel's bfloat16 products."""


class PrefixCache(NamedTuple):
    """Keys and values of prefixes, each read by several sequences."""

    key: Float[Array, "N A G T E"]
    value: Float[Array, "N A G T E"]
    readable: Bool[Array, "A T"]
    """True at positions that are attended to."""


def attend(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B S G E"],
    value: Float[Array, "B S G E"],
    valid: Bool[Array, "B S"] | Bool[Array, "#B T S"],
    causal: bool,
    implementation: str = "auto",
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """Compute softmax(query . key / sqrt(E)) . value over valid keys; softmax in float32.

    Implementations agree at valid positions. At the others the output is finite and meaningless:
    `splash` lets invalid positions attend to each other.

    Args:
      query: H is a multiple of G; query head h reads key head h // (H / G). The queries are at the
        last T of the S positions.
      key: not repeated for the query heads that share it.
      value: as `key`.
      valid: False at padding; or the keys that each query reads, and then all that it reads.
      causal: whether a position attends to earlier positions only.
      implementation: `xla`, `splash`, or `auto` (see `choose`).
      interpret: emulate the kernel without a TPU, slowly.

    Raises:
      ConfigError: the implementation is unknown.
      ValueError: `splash` is compiled for something other than a TPU.
    """
    if valid.ndim == 3:
        return jax.nn.dot_product_attention(query, key, value, mask=valid[:, None])
    if choose(implementation, query.shape[1], query.shape[3]) == "xla":
        if query.shape[1] > LONGEST_WHOLE:
            return _by_blocks(query, key, value, valid, causal)
        readable, before = valid[:, None, None, :], key.shape[1] - query.shape[1]
        if causal and before:
            # XLA's own mask begins with the first key.
            readable &= jnp.tri(query.shape[1], key.shape[1], before, bool)
            causal = False
        return jax.nn.dot_product_attention(query, key, value, mask=readable, is_causal=causal)
    kernel = functools.partial(_splash, causal=causal, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(query, key, value, valid)
    # The compiler cannot partition a kernel, so each device's part is given explicitly.
    rows = batch_axes() if batch_parts(query.shape[0]) > 1 else None
    heads, kv_heads = query.shape[2], key.shape[2]
    # With fewer key heads than devices, each device gets the one that its query heads read.
    shared = math.lcm(kv_heads, mesh.shape["tensor"])
    split = heads % shared == 0
    if split:
        key, value = (jnp.repeat(x, shared // kv_heads, axis=2) for x in (key, value))
    by_head = PartitionSpec(rows, None, "tensor" if split else None)

    specs = (by_head, by_head, by_head, PartitionSpec(rows))
    # Unchecked: a kernel's output does not declare the axes that it varies over.
    return jax.shard_map(
        kernel,
        in_specs=specs,
        out_specs=by_head,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )(query, key, value, valid)


def attend_cached(
    query: Float[Array, "B H E"],
    key: Float[Array, "B G E"],
    value: Float[Array, "B G E"],
    keys: Float[Array, "N B G T E"],
    values: Float[Array, "N B G T E"],
    layer: Int[Array, ""],
    readable: Bool[Array, "B T"],
    end: Int[Array, ""],
    prefix: PrefixCache | None = None,
) -> Float[Array, "B H E"]:
    """Compute `attend` for one query per sequence over its own key and a cache; softmax in float32.

    The cache is read in place, block by block with a running softmax (Milakov & Gimelshein 2018,
    arXiv 1805.02867), and only up to `end`.

    Args:
      query: the query of the current position; H is a multiple of G.
      key: the key of the current position.
      value: the value of the current position.
      keys: cached keys of all layers.
      values: cached values of all layers.
      layer: index of the layer to read.
      readable: True at cached positions to attend to.
      end: cached positions from here on are skipped.
      prefix: read as well; each of its A rows is that of B / A successive sequences.
    """
    (batch, heads, width), kv_heads = query.shape, keys.shape[2]
    query_BGRE = query.reshape(batch, kv_heads, heads // kv_heads, width)
    own = _product("bgre,bge->bgr", query_BGRE, key) / math.sqrt(width)
    value_BGRE = jnp.broadcast_to(value.astype(jnp.float32)[:, :, None], query_BGRE.shape)
    state = own, jnp.ones_like(own), value_BGRE
    state = _read_cache(query_BGRE, state, keys, values, layer, readable, end)
    if prefix is not None:
        # Sequences of one row are queries of one product: its keys and values are read once.
        rows = len(prefix.readable)

        def together(x: jax.Array) -> jax.Array:
            parts = jnp.swapaxes(x.reshape(rows, -1, *x.shape[1:]), 1, 2)
            return parts.reshape(rows, kv_heads, -1, *x.shape[3:])

        def apart(x: jax.Array) -> jax.Array:
            parts = x.reshape(rows, kv_heads, batch // rows, -1, *x.shape[3:])
            return jnp.swapaxes(parts, 1, 2).reshape(batch, kv_heads, -1, *x.shape[3:])

        whole = jnp.asarray(prefix.readable.shape[1])
        parts = together(query_BGRE), tuple(map(together, state))
        read = _read_cache(*parts, prefix.key, prefix.value, layer, prefix.readable, whole)
        state = tuple(map(apart, read))
    _, total, mixed = state
    return (mixed / total[..., None]).reshape(query.shape).astype(query.dtype)


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _read_cache(
    query_BGRE: jax.Array,
    state: tuple[jax.Array, ...],
    keys: Float[Array, "N B G T E"],
    values: Float[Array, "N B G T E"],
    layer: Int[Array, ""],
    readable: Bool[Array, "B T"],
    end: Int[Array, ""],
) -> tuple[jax.Array, ...]:
    """Return a running softmax after cached positions, from that before them.

    It is the highest score and the sum of weights [B, G, R], and the weighted sum of values [B, G,
    R, E]. Other arguments are as in `attend_cached`.
    """
    (batch, kv_heads, _, width), length = query_BGRE.shape, keys.shape[3]
    block, scale = min(CACHE_BLOCK, length), 1 / math.sqrt(width)

    def cache_block(cache: jax.Array, start: jax.Array) -> Float[Array, "B G S E"]:
        # Indices of one type: 0 alone is 64 bits wide under JAX_ENABLE_X64.
        at = (layer.astype(start.dtype), *jnp.zeros_like(start, shape=2), start, 0 * start)
        return jax.lax.dynamic_slice(cache, at, (1, batch, kv_heads, block, width))[0]

    def read(number: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mixed = state
        # The last block may begin before the end of the one before it.
        start = jnp.minimum(number * block, length - block)
        fresh = start + jnp.arange(block) >= number * block
        seen = jax.lax.dynamic_slice_in_dim(readable, start, block, axis=1) & fresh
        score = scale * _product("bgre,bgse->bgrs", query_BGRE, cache_block(keys, start))
        score = jnp.where(seen[:, None, None], score, -jnp.inf)
        new_most = jnp.maximum(most, jnp.max(score, axis=-1))
        kept, weight = jnp.exp(most - new_most), jnp.exp(score - new_most[..., None])
        added = _product("bgrs,bgse->bgre", weight.astype(values.dtype), cache_block(values, start))
        return new_most, kept * total + jnp.sum(weight, axis=-1), kept[..., None] * mixed + added

    return jax.lax.fori_loop(0, (end + block - 1) // block, read, state)


def choose(implementation: str, length: int, width: int) -> str:
    """Return `implementation`; for `auto`, the one that suits the shapes and the devices.

    The devices are those of the mesh in context, else the default ones. Under a mesh of a TPU
    topology that is `splash` on any host, so that a step can be compiled for TPUs without one.
    Without a mesh the kernel could not be split over devices, so several devices get `xla`.

    Raises:
      ConfigError: the implementation is unknown.
    """
    ConfigError.require(
        implementation in ATTENTIONS,
        f"attention: got {implementation!r}, expected one of {', '.join(ATTENTIONS)}",
    )
    if implementation != "auto":
        return implementation
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None and jax.device_count() == 1:
        device = jax.devices()[0]
    fits = length >= SHORTEST_AUTO and width <= WIDEST_AUTO
    able = device is not None and device.platform == "tpu" and device.device_kind not in OLD_TPUS
    return "splash" if fits and able else "xla"


def block_length(length: int) -> int:
    """Return the positions per block, a multiple of LANES.

    `length` is split into as few equal blocks as LONGEST_BLOCK allows.
    """
    blocks = math.ceil(length / LONGEST_BLOCK)
    return LANES * math.ceil(length / (blocks * LANES))


def _by_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, causal: bool
) -> jax.Array:
    """Compute XLA's attention one block of queries at a time.

    Queries without a valid key get another result than from the whole product.
    """
    (batch, length, heads, width), before = query.shape, key.shape[1] - query.shape[1]
    count = math.ceil(length / QUERY_BLOCK)
    query = jnp.pad(query, ((0, 0), (0, count * QUERY_BLOCK - length), (0, 0), (0, 0)))
    blocks_NBQHE = jnp.moveaxis(query.reshape(batch, count, QUERY_BLOCK, heads, width), 1, 0)

    # Without it the backward pass would keep the scores of all blocks.
    @jax.checkpoint
    def mix(
        number: jax.Array, block_BQHE: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array
    ) -> jax.Array:
        read_BHQT = valid[:, None, None, :]
        if causal:
            at_Q = before + number * QUERY_BLOCK + jnp.arange(QUERY_BLOCK)
            read_BHQT = read_BHQT & (jnp.arange(key.shape[1]) <= at_Q[:, None])
        key, value = key.astype(block_BQHE.dtype), value.astype(block_BQHE.dtype)
        return jax.nn.dot_product_attention(block_BQHE, key, value, mask=read_BHQT)

    # Gradients of keys and values are sums over all blocks: accumulate them in float32.
    key, value = key.astype(jnp.float32), value.astype(jnp.float32)
    parts = min(PREFIXES, count) if causal else 1
    mixed_NBQHE = []
    for first, end in itertools.pairwise(count * part // parts for part in range(parts + 1)):
        shown = (
            [x[:, : before + end * QUERY_BLOCK] for x in (key, value, valid)]
            if causal
            else [key, value, valid]
        )
        part = (jnp.arange(first, end), blocks_NBQHE[first:end])
        mixed_NBQHE.append(jax.lax.map(lambda args, shown=shown: mix(*args, *shown), part))
    mixed = jnp.moveaxis(jnp.concatenate(mixed_NBQHE), 0, 1)
    return mixed.reshape(batch, -1, heads, width)[:, :length]


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    valid: jax.Array,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """Run the kernel on one device's share of the batch and heads."""
    (_, length, heads, width), before = query.shape, key.shape[1] - query.shape[1]
    block, key_block = block_length(length), block_length(key.shape[1])
    padded = block * math.ceil(length / block)
    # Positions before the queries are padded so that whole blocks of keys end with them.
    ahead = key_block * math.ceil((before + padded) / key_block) - padded
    # The kernel does not scale.
    query = (query.astype(jnp.float32) / math.sqrt(width)).astype(query.dtype)

    def pad(x: jax.Array, start: int, axis: int) -> jax.Array:
        """Positions at `start`, and those of the queries at `ahead` behind it."""
        amounts = [(0, 0)] * x.ndim
        amounts[axis] = (start, padded - length)
        return jnp.pad(x, amounts)

    def lay_out(x: jax.Array, start: int = 0) -> Float[Array, "B H S E"]:
        return pad(jnp.swapaxes(x, 1, 2), start, 2)

    # A position attends to its own segment. Invalid positions form a segment too, so that every
    # query has a key.
    key_segment = pad(valid, ahead - before, 1).astype(jnp.int32)
    shape = padded, ahead + padded
    mask = (
        splash_attention.CausalMask(shape, offset=ahead)
        if causal
        else splash_attention.FullMask(shape)
    )
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=key_block,
            block_q_dkv=block,
            block_kv_dkv=key_block,
            block_q_dq=block,
            block_kv_dq=key_block,
        ),
        interpret=interpret,
    )
    segments = splash_attention.SegmentIds(key_segment[:, ahead:], key_segment)
    mixed_BHSE: Any = jax.vmap(kernel)(
        lay_out(query), lay_out(key, ahead - before), lay_out(value, ahead - before), segments
    )
    return jnp.swapaxes(mixed_BHSE[:, :, :length], 1, 2)
