"""Scaled dot-product attention behind one interface: XLA's, or a TPU kernel that never holds the scores.

XLA's keeps the scores [B, H, T, T] in HBM for the backward pass. Of rows longer than LONGEST_WHOLE it has those of one block of queries at
a time, [B, H, Q, T], and computes them again in the backward pass: memory grows with T, not with its square. Splash attention (softmax
block by block as in Dao et al. 2022, arXiv 2205.14135) has one block of them at a time in on-chip memory, forward and backward, and keeps
one number for each query and head: no array in HBM is [T, T]. Compiled for a v5e, a row of 2048 positions with 8 heads of 128 in bfloat16
takes 128 MiB besides its inputs and gradients with the one and 0.9 MiB with the other.

Shapes: B batch, T position, H query head, G key and value head, E head width; S is T padded to whole blocks; N block, Q query of a block.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from memjax.config.settings import ATTENTIONS
from memjax.sharding import batch_parts
from memjax.sharding.mesh import BATCH_AXES

LONGEST_WHOLE = 4096
"""Positions up to which XLA's attention is one product: scores of 8 heads are then 512 MiB in float32."""
QUERY_BLOCK = 128
"""Queries of a block of longer rows."""
PREFIXES = 8
"""Lengths that keys are cut to where attention is causal: each eighth of the queries reads the keys up to its own end, so that 9/16 of the
whole square is computed."""
CACHE_BLOCK = 1024
"""Kept positions that one query reads at a time: their keys and values stay in a CPU's cache."""
LANES = 128
"""Blocks are whole multiples of a TPU's vector register."""
LONGEST_BLOCK = 640
"""So that 512 tokens and the memories before them are one block."""
SHORTEST_AUTO, WIDEST_AUTO = 256, 256
"""Positions from which, and head width up to which, `auto` takes the kernel: of shorter rows the scores are small and the blocks mostly
padding; of wider heads the blocks do not fit into the on-chip memory of every TPU."""
OLD_TPUS = ("TPU v2", "TPU v3")
"""Their compiler refuses the kernel's bfloat16 products."""


def attend(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    valid: Bool[Array, "B T"],
    causal: bool,
    implementation: str = "auto",
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """softmax(query . key / sqrt(E)) . value over valid keys, earlier ones only where `causal`; softmax in float32.

    Implementations agree at valid positions. At the others the output is finite and means nothing: with `splash` they read one
    another.

    Args:
      query: H is a multiple of G; query head h reads key head h // (H / G).
      key: not repeated for the query heads that share it.
      value: as `key`.
      valid: False where a position is padding.
      causal: whether a position reads earlier ones only.
      implementation: `xla`, `splash`, or `auto` for the one that fits (`choose`).
      interpret: emulates the kernel without a TPU, slowly.

    Raises:
      ValueError: there is no such implementation, or `splash` is compiled for something other than a TPU.
    """
    if choose(implementation, query.shape[1], query.shape[3]) == "xla":
        if query.shape[1] > LONGEST_WHOLE:
            return _by_blocks(query, key, value, valid, causal)
        return jax.nn.dot_product_attention(query, key, value, mask=valid[:, None, None, :], is_causal=causal)
    kernel = functools.partial(_splash, causal=causal, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(query, key, value, valid)
    # The compiler cannot partition a kernel: it is told what each device computes.
    rows = BATCH_AXES if batch_parts(query.shape[0]) > 1 else None
    heads, kv_heads = query.shape[2], key.shape[2]
    # Where there are fewer key heads than devices, each device gets the one its query heads read.
    shared = math.lcm(kv_heads, mesh.shape["tensor"])
    split = heads % shared == 0
    if split:
        key, value = (jnp.repeat(x, shared // kv_heads, axis=2) for x in (key, value))
    by_head = PartitionSpec(rows, None, "tensor" if split else None)

    specs = (by_head, by_head, by_head, PartitionSpec(rows))
    # Unchecked: what a kernel returns does not say over which axes it varies.
    return jax.shard_map(kernel, in_specs=specs, out_specs=by_head, check_vma=False)(query, key, value, valid)


def attend_cached(
    query: Float[Array, "B H E"],
    key: Float[Array, "B G E"],
    value: Float[Array, "B G E"],
    keys: Float[Array, "N B G T E"],
    values: Float[Array, "N B G T E"],
    layer: Int[Array, ""],
    readable: Bool[Array, "B T"],
    end: Int[Array, ""],
) -> Float[Array, "B H E"]:
    """`attend` for one position of each row, which reads itself and what is kept of others; softmax in float32.

    The cache is read where it lies, a block after another with a running softmax (Milakov & Gimelshein 2018, arXiv 1805.02867), and only
    as far as it is filled.

    Args:
      query: of the position; H is a multiple of G.
      key: its own.
      value: its own.
      keys: kept ones of all layers.
      values: as `keys`.
      layer: whose are read.
      readable: kept positions that are.
      end: no position from here on is.
    """
    (batch, heads, width), (_, _, kv_heads, length, _) = query.shape, keys.shape
    block = min(CACHE_BLOCK, length)
    query_BGRE = query.reshape(batch, kv_heads, heads // kv_heads, width)
    scale = 1 / math.sqrt(width)

    def product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)

    def cut(cache: jax.Array, start: jax.Array) -> Float[Array, "B G S E"]:
        return jax.lax.dynamic_slice(cache, (layer, 0, 0, start, 0), (1, batch, kv_heads, block, width))[0]

    def read(number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        most, total, mixed = state
        # The last block may begin before the end of the one before it.
        start = jnp.minimum(number * block, length - block)
        fresh = start + jnp.arange(block) >= number * block
        seen = jax.lax.dynamic_slice(readable, (0, start), (batch, block)) & fresh
        score = scale * product("bgre,bgse->bgrs", query_BGRE, cut(keys, start))
        score = jnp.where(seen[:, None, None], score, -jnp.inf)
        new_most = jnp.maximum(most, jnp.max(score, axis=-1))
        kept, weight = jnp.exp(most - new_most), jnp.exp(score - new_most[..., None])
        added = product("bgrs,bgse->bgre", weight.astype(values.dtype), cut(values, start))
        return new_most, kept * total + jnp.sum(weight, axis=-1), kept[..., None] * mixed + added

    own = scale * product("bgre,bge->bgr", query_BGRE, key)
    first = own, jnp.ones_like(own), jnp.broadcast_to(value.astype(jnp.float32)[:, :, None], query_BGRE.shape)
    _, total, mixed = jax.lax.fori_loop(0, (end + block - 1) // block, read, first)
    return (mixed / total[..., None]).reshape(query.shape).astype(query.dtype)


def choose(implementation: str, length: int, width: int) -> str:
    """`implementation`, or for `auto` what suits the shapes and the devices: those of the mesh in context, else the default ones.

    Under a mesh of a TPU topology that is `splash` on any host, so that a step can be compiled for TPUs without one. Without a mesh
    the kernel could not be split over devices, so several get `xla`.

    Raises:
      ValueError: there is no such implementation.
    """
    if implementation not in ATTENTIONS:
        raise ValueError(f"attention={implementation!r} is not one of {', '.join(ATTENTIONS)}")
    if implementation != "auto":
        return implementation
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None and jax.device_count() == 1:
        device = jax.devices()[0]
    fits = length >= SHORTEST_AUTO and width <= WIDEST_AUTO
    able = device is not None and device.platform == "tpu" and device.device_kind not in OLD_TPUS
    return "splash" if fits and able else "xla"


def block_length(length: int) -> int:
    """Positions of a block: `length` in as few equal blocks as LONGEST_BLOCK allows, rounded up to whole LANES."""
    blocks = math.ceil(length / LONGEST_BLOCK)
    return LANES * math.ceil(length / (blocks * LANES))


def _by_blocks(query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, causal: bool) -> jax.Array:
    """XLA's attention, a block of queries after another. Where a query reads no valid key the result is another than of the whole."""
    batch, length, heads, width = query.shape
    count = math.ceil(length / QUERY_BLOCK)
    query = jnp.pad(query, ((0, 0), (0, count * QUERY_BLOCK - length), (0, 0), (0, 0)))
    blocks_NBQHE = jnp.moveaxis(query.reshape(batch, count, QUERY_BLOCK, heads, width), 1, 0)

    # A backward pass that kept the scores of every block would hold them all.
    @jax.checkpoint
    def mix(number: jax.Array, block_BQHE: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array) -> jax.Array:
        read_BHQT = valid[:, None, None, :]
        if causal:
            at_Q = number * QUERY_BLOCK + jnp.arange(QUERY_BLOCK)
            read_BHQT = read_BHQT & (jnp.arange(key.shape[1]) <= at_Q[:, None])
        key, value = key.astype(block_BQHE.dtype), value.astype(block_BQHE.dtype)
        return jax.nn.dot_product_attention(block_BQHE, key, value, mask=read_BHQT)

    # So that their gradients, which are sums over all blocks, are added up in float32.
    key, value = key.astype(jnp.float32), value.astype(jnp.float32)
    parts = min(PREFIXES, count) if causal else 1
    mixed_NBQHE = []
    for first, end in itertools.pairwise(count * part // parts for part in range(parts + 1)):
        shown = [x[:, : end * QUERY_BLOCK] for x in (key, value, valid)] if causal else [key, value, valid]
        part = (jnp.arange(first, end), blocks_NBQHE[first:end])
        mixed_NBQHE.append(jax.lax.map(lambda args, shown=shown: mix(*args, *shown), part))
    mixed = jnp.moveaxis(jnp.concatenate(mixed_NBQHE), 0, 1)
    return mixed.reshape(batch, -1, heads, width)[:, :length]


def _splash(query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, causal: bool, interpret: bool) -> jax.Array:
    """The kernel on one device's rows and heads."""
    length, heads, width = query.shape[1:]
    block = block_length(length)
    padded = block * math.ceil(length / block)
    # The kernel does not scale.
    query = (query.astype(jnp.float32) / math.sqrt(width)).astype(query.dtype)

    def lay_out(x_BTHE: jax.Array) -> Float[Array, "B H S E"]:
        return jnp.pad(jnp.swapaxes(x_BTHE, 1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    # A position reads those of its own segment. What is not valid is a segment too, so that no query is without a key.
    segment_BS = jnp.pad(valid, ((0, 0), (0, padded - length))).astype(jnp.int32)
    mask = (splash_attention.CausalMask if causal else splash_attention.FullMask)((padded, padded))
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        interpret=interpret,
    )
    segments = splash_attention.SegmentIds(segment_BS, segment_BS)
    mixed_BHSE: Any = jax.vmap(kernel)(lay_out(query), lay_out(key), lay_out(value), segments)
    return jnp.swapaxes(mixed_BHSE[:, :, :length], 1, 2)
