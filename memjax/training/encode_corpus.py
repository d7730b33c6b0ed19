"""Memories of a prepared corpus: a trained encoder writes them once, for stages that freeze it.

Such stages read the memories in place of running the encoder. Processes that divide work
(`memjax.sharding.sharing`) write shards of their own.

Shapes: B sequence, N = C * L tokens of a sequence, C chunk, L token, K vector, E width.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from memjax.checkpoints.identity import encoder_settings, fingerprint
from memjax.checkpoints.reading import absolute
from memjax.config import Config, ConfigError, Stage
from memjax.data import (
    MemoryShards,
    RowMemories,
    Rows,
    RowsError,
    Tokenizer,
    load_tokenizer,
    open_memories,
    open_rows,
)
from memjax.interop.stage import StoredStage, check_tokenizer, encoder_of, open_stage
from memjax.models import Encoder, can
from memjax.progress import Reporter, track
from memjax.sharding import (
    barrier,
    batch_sharding,
    batch_shards,
    divide,
    first_process,
    leads,
    make_mesh,
    own,
    replicated,
    wait,
)
from memjax.training.init_state import Run
from memjax.training.optimizer import Tree
from memjax.training.step import TrainState


def encode_corpus(
    checkpoint: str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike,
    split: str = "train",
    row_tokens: int = 0,
    dtype: str = "bfloat16",
    batch_rows: int = 64,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write the memories of all chunks of a split, and return their manifest.

    A call that was stopped leaves shards, and a second one writes those that are missing.

    Args:
      checkpoint: folder of a stage of any family with an encoder, on disk or in a bucket.
      data: the prepared data, made with the stage's tokenizer.
      out: the folder to write.
      split: `train` or `validation`.
      row_tokens: N; 0 is the sequence length of the stage.
      dtype: of the stored memories; the encoder computes in its own.
      batch_rows: B, rounded up to a multiple of this machine's devices, all of which are used.
      reporter: shows progress.

    Returns:
      The contents of `{split}.json`: `of` (see `memjax.data.memories.identity`), `shape` [C, K, E],
      `dtype`, `encoder`, `files` (from a name to `bytes` and `sha256`) and `format`.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, or its model has no encoder.
      TokenizerError, RowsError: the data is absent, damaged, of another tokenizer, padded on the
        other side, or no whole number of chunks.
      MemoriesError: `out` holds this split's memories already, or others that are unfinished.
    """
    reporter = reporter or Reporter()
    found, data = open_stage(checkpoint), Path(data)
    config, params = found.config, found.read(None)
    module = encoder_of(config, found.name, params, found.path)
    tokenizer = load_tokenizer(data)
    check_tokenizer(tokenizer, found.fingerprint, config.data.vocab_size, found.path, data)
    rows = _open_rows(
        data, split, row_tokens or config.data.sequence_length, config.model.chunk_length, tokenizer
    )
    rows.check_side(config.data.packing)
    mesh, encoder = make_mesh(devices=jax.local_devices()), params["encoder"]
    encode = _jit_encoder(module, encoder, mesh, tokenizer.pad_id, dtype)
    batch_rows = -(-batch_rows // batch_shards(mesh)) * batch_shards(mesh)
    with jax.set_mesh(mesh):
        tokens = jax.ShapeDtypeStruct((batch_rows, rows.row_tokens), np.int32)
        shape = jax.eval_shape(encode, tokens).shape[1:]
    if not leads():
        wait("the memories are begun")
    how = (rows, shape, dtype, origin(found, encoder))
    shards = MemoryShards.begin(Path(out), split, *how)
    if leads():
        wait("the memories are begun")
    todo = own(shards.todo())
    wait("no shard is written yet")
    starts = [range(part.start, part.stop, batch_rows) for part in map(shards.rows, todo)]
    batches = _batches(rows, batch_rows, tokenizer.pad_id, map(shards.rows, todo))
    with reporter.active(), jax.set_mesh(mesh):
        memories = _encoded(encode, track(batches, f"encode {split}", sum(map(len, starts))))
        for number in todo:
            shards.write(number, itertools.islice(memories, len(shards.rows(number))))
    wait("all shards are written")
    entries = divide([functools.partial(shards.entry, n) for n in range(shards.count)])
    if leads():
        shards.finish({name: entry for part in entries for name, entry in part.items()})
    wait("the memories are whole")
    info = open_memories(out, split).info
    stored = sum(file["bytes"] for file in info["files"].values())
    reporter.log(
        f"{out}: memories of {len(rows)} {split} rows, {info['shape']} {dtype} each,"
        f" {stored / 1e6:.1f} MB in all"
    )
    return info


def _open_rows(
    data: Path, split: str, row_tokens: int, chunk_length: int, tokenizer: Tokenizer
) -> Rows:
    RowsError.require(
        row_tokens % chunk_length == 0,
        f"rows of {row_tokens} tokens are no whole number of chunks, which are of"
        f" {chunk_length} in this model",
    )
    folder = data / f"rows-{row_tokens}"
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in data.glob("rows-*"))) or "none"
        raise RowsError(
            f"{folder}: there are no rows of {row_tokens} tokens here (there are: {there}); give"
            " --sequence_length, or the data of another run"
        )
    return open_rows(folder, split, tokenizer.fingerprint)


def _jit_encoder(
    module: Encoder, params: Tree, mesh: jax.sharding.Mesh, pad_id: int, dtype: str
) -> Callable[[Any], jax.Array]:
    """Return a jitted function of tokens [B, N] to memories [B, C, K, E], on all devices."""
    whole, by_rows = replicated(mesh), batch_sharding(mesh)

    @functools.partial(jax.jit, in_shardings=(whole, by_rows), out_shardings=by_rows)
    def encode(params: Tree, tokens_BN: jax.Array) -> jax.Array:
        chunks = tokens_BN.reshape(-1, module.config.chunk_length)
        memories: Any = module.apply({"params": params}, chunks, chunks != pad_id)
        return memories.reshape(tokens_BN.shape[0], -1, *memories.shape[1:]).astype(dtype)

    return functools.partial(encode, jax.device_put(params, whole))


def _batches(
    rows: Rows, size: int, pad_id: int, parts: Iterable[range]
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield batches of `size` of some rows, and how many of each are rows; others are padding."""
    for part in parts:
        for start in range(part.start, part.stop, size):
            found = rows.read(range(start, min(start + size, part.stop)))
            batch = np.full((size, rows.row_tokens), pad_id, np.int32)
            batch[: len(found)] = found
            yield batch, len(found)


def _encoded(
    encode: Callable[[Any], jax.Array], batches: Iterable[tuple[np.ndarray, int]]
) -> Iterator[np.ndarray]:
    """Yield the memories [C, K, E] of every sequence, and compute the next batch meanwhile."""
    computing = ((encode(batch), count) for batch, count in batches)
    ending: Iterable[Any] = itertools.chain(computing, [None])
    for (memories, count), _ in itertools.pairwise(ending):
        yield from jax.device_get(memories)[:count]


def origin(found: StoredStage, params: Tree) -> dict[str, Any]:
    """Return the provenance of memories: the encoder that made them."""
    return {
        "checkpoint": str(absolute(found.path)),
        "step": found.step,
        "settings": encoder_settings(found.config.model),
        "sha256": fingerprint(params),
    }


def check_frozen(config: Config, name: str, trainable: Tree) -> None:
    """Check that a stage with stored memories does not train its encoder.

    Args:
      config: the run.
      name: the stage.
      trainable: the parameters that it trains.

    Raises:
      ConfigError: it trains its encoder.
    """
    if reads_memories(config, config.stages[name], trainable) and "encoder" in trainable:
        moved = ", ".join(sorted(flatten_dict({"encoder": trainable["encoder"]}, sep="/"))[:3])
        raise ConfigError(
            f"config.data.memories={config.data.memories!r} stands for an encoder that does not"
            " move, and"
            f" config.stages.{name}.trainable lets {moved} move; use (('^encoder/', False), ('.*',"
            " True)), or leave"
            " config.data.memories ''"
        )


def reads_memories(config: Config, stage: Stage, trainable: Tree) -> bool:
    """Return whether a training step reads stored memories instead of running its encoder.

    Memories of a stage of the run are read by those stages that freeze their encoder, memories of a
    folder by all.
    """
    stored, moves = config.data.memories, "encoder" in trainable
    able = can(stage.family, "reads_memories") and stage.memory
    return bool(stored) and able and not (stored in config.stages and moves)


def stored_memories(run: Run, name: str, state: TrainState) -> RowMemories | None:
    """Open the stored memories that a stage reads; None where it runs its encoder.

    Raises:
      MemoriesError: they are absent or damaged, or belong to another encoder or other sequences.
      ConfigError: the stage trains its encoder.
    """
    config, stage = run.config, run.config.stages[name]
    if not reads_memories(config, stage, state.trainable):
        return None
    check_frozen(config, name, state.trainable)
    folder = Path(config.data.memories)
    if config.data.memories in config.stages:
        folder = run.workdir / "memories"
        _write_once(run, folder)
    memories = open_memories(folder, "train")
    memories.check_rows(run.data.train)
    shape = (config.chunks, config.model.memory_vectors, config.model.encoder.width)
    memories.check_encoder(
        encoder_settings(config.model), fingerprint(state.frozen["encoder"]), shape
    )
    return memories


def _write_once(run: Run, folder: Path) -> None:
    """Write the memories that a stage of the run has of its training rows, if they are absent.

    The first process does, or each where they do not share the folder.
    """
    if not first_process():
        barrier("memories")
    if not (folder / "train.json").exists():
        stage = f"{run.remote or run.workdir}/stages/{run.config.data.memories}"
        dtype = run.config.model.dtype
        encode_corpus(stage, run.workdir / "data", folder, dtype=dtype, reporter=run.reporter)
    if first_process():
        barrier("memories")
