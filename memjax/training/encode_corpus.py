"""Memories on disk: a trained encoder writes those of all rows once, and stages that keep it frozen read them in place of running it.

Shapes: B row, N = C * L tokens of a row, C chunk, L token, K vector, E width of the vectors.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.identity import encoder_settings, fingerprint
from memjax.checkpoints.reading import absolute
from memjax.config import Config, ConfigError, from_json
from memjax.data import (
    Memories,
    Rows,
    RowsError,
    Tokenizer,
    evaluation_batches,
    open_memories,
    open_rows,
    write_memories,
)
from memjax.models import Encoder
from memjax.sharding import batch_sharding, batch_shards, make_mesh, replicated
from memjax.training.optimizer import Tree
from memjax.training.progress import Reporter
from memjax.training.start import Run
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
    """Writes the memories of all chunks of a split, and returns what their description on disk says (see `write_memories`).

    Args:
      checkpoint: folder of a stage of any family with an encoder, on disk or in a bucket.
      data: what `prepare` made, by the tokenizer the stage was trained with.
      out: folder to write into.
      split: `train` or `validation`.
      row_tokens: N; 0 is that of the stage.
      dtype: what is stored; the encoder computes as it was trained.
      batch_rows: B, rounded up to a multiple of this machine's devices, all of which are used.
      reporter: where progress is shown.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, or its model has no encoder.
      TokenizerError, RowsError: the data is absent, damaged, of another tokenizer, or no whole number of chunks.
      MemoriesError: `out` holds this split's memories already.
    """
    reporter = reporter or Reporter()
    checkpoint, data = absolute(checkpoint), Path(data)
    params, meta = load_params(checkpoint / "checkpoints")
    config = from_json(meta["config"])
    if "encoder" not in params:
        family = config.stages[meta["stage"]].family
        raise CheckpointError(f"{checkpoint}: a model of family {family} that has no encoder; give a stage that has one")
    tokenizer = Tokenizer.load(data)
    _check_tokenizer(tokenizer, config, meta, checkpoint, data)
    rows = _open_rows(data, split, row_tokens or config.data.row_tokens, config.model.chunk_length, tokenizer)
    mesh = make_mesh(devices=jax.local_devices())
    encode = _jit_encoder(config, params["encoder"], mesh, tokenizer.pad_id, dtype)
    batch_rows = -(-batch_rows // batch_shards(mesh)) * batch_shards(mesh)
    batches = evaluation_batches(rows, batch_rows, len(rows), tokenizer.pad_id)
    with reporter.bar(f"encode {split}", -(-len(rows) // batch_rows)) as bar, jax.set_mesh(mesh):
        # The last batch is filled up with rows that are none.
        memories = itertools.islice(_encoded(encode, batches, bar.advance), len(rows))
        info = write_memories(Path(out), split, rows, memories, origin(checkpoint, config, meta, params["encoder"]))
    stored = sum(file["bytes"] for file in info["files"].values())
    reporter.say(f"{out}: memories of {len(rows)} {split} rows, {info['shape']} {dtype} each, {stored / 1e6:.1f} MB in all")
    return info


def _check_tokenizer(tokenizer: Tokenizer, config: Config, meta: dict[str, Any], checkpoint: epath.Path, data: Path) -> None:
    # Imported weights do not say which tokenizer they were trained with.
    if meta["tokenizer"] and meta["tokenizer"] != tokenizer.fingerprint:
        raise RowsError(
            f"{data}: made by tokenizer {tokenizer.fingerprint}, while {checkpoint} was trained with {meta['tokenizer']}"
        )
    if tokenizer.vocabulary > config.data.vocabulary:
        raise RowsError(
            f"{data}: of a vocabulary of {tokenizer.vocabulary}, while {checkpoint} was trained with {config.data.vocabulary}"
        )


def _open_rows(data: Path, split: str, row_tokens: int, chunk_length: int, tokenizer: Tokenizer) -> Rows:
    if row_tokens % chunk_length:
        raise RowsError(f"rows of {row_tokens} tokens are no whole number of chunks, which are of {chunk_length} in this model")
    folder = data / f"rows-{row_tokens}"
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in data.glob("rows-*"))) or "none"
        raise RowsError(
            f"{folder}: there are no rows of {row_tokens} tokens here (there are: {there}); give --row_tokens or --data"
        )
    return open_rows(folder, split, tokenizer.fingerprint)


def _jit_encoder(config: Config, params: Tree, mesh: jax.sharding.Mesh, pad_id: int, dtype: str) -> Callable[[Any], jax.Array]:
    """Tokens [B, N] to memories [B, C, K, E], on all devices of the mesh, as one jitted function."""
    # An oracle's encoder may lack the map back from the bottleneck: its memories are as wide as that.
    module = Encoder(config.model, config.data.vocabulary, expand="up" in params)
    whole, by_rows = replicated(mesh), batch_sharding(mesh)

    @functools.partial(jax.jit, in_shardings=(whole, by_rows), out_shardings=by_rows)
    def encode(params: Tree, tokens_BN: jax.Array) -> jax.Array:
        chunks = tokens_BN.reshape(-1, config.model.chunk_length)
        memories: Any = module.apply({"params": params}, chunks, chunks != pad_id)
        return memories.reshape(tokens_BN.shape[0], -1, *memories.shape[1:]).astype(dtype)

    return functools.partial(encode, jax.device_put(params, whole))


def _encoded(
    encode: Callable[[Any], jax.Array], batches: Iterable[np.ndarray], advance: Callable[[], None]
) -> Iterator[np.ndarray]:
    """[C, K, E] of every row. A batch is written while the next one is computed."""
    computing = None
    for batch in itertools.chain(batches, [None]):
        computing, done = None if batch is None else encode(batch), computing
        if done is not None:
            rows = jax.device_get(done)
            advance()
            yield from rows


def origin(checkpoint: epath.Path, config: Config, meta: dict[str, Any], params: Tree) -> dict[str, Any]:
    """What memories say of the encoder that made them."""
    return {
        "checkpoint": str(checkpoint),
        "step": meta["step"],
        "settings": encoder_settings(config.model),
        "sha256": fingerprint(params),
    }


def check_frozen(config: Config, name: str, trainable: Tree) -> None:
    """Raises ConfigError if a stage trains an encoder whose memories are to come from disk; `trainable` are the parameters that move."""
    if config.data.memories and "encoder" in trainable:
        moved = ", ".join(sorted(flatten_dict({"encoder": trainable["encoder"]}, sep="/"))[:3])
        raise ConfigError(
            f"config.data.memories={config.data.memories!r} stands for an encoder that does not move, and"
            f" config.stages.{name}.trainable lets {moved} move; use (('^encoder/', False), ('.*', True)), or leave"
            " config.data.memories ''"
        )


def stored_memories(run: Run, name: str, state: TrainState) -> Memories | None:
    """The memories on disk that a stage reads in place of running its encoder; None where it reads none.

    Raises:
      MemoriesError: they are absent, damaged, or not those that this stage's encoder makes of this run's rows.
      ConfigError: the stage trains its encoder.
    """
    config, stage = run.config, run.config.stages[name]
    if not config.data.memories or stage.family != "memory_model" or not stage.memory:
        return None
    check_frozen(config, name, state.trainable)
    memories = open_memories(config.data.memories, "train")
    memories.check_rows(run.data.train)
    shape = (config.chunks, config.model.vectors, config.model.encoder.width)
    memories.check_encoder(encoder_settings(config.model), fingerprint(state.frozen["encoder"]), shape)
    return memories
