"""A stage of a run as an export: weights, settings, tokenizer and a model card."""

import os

from memjax.checkpoints.export_manifest import Manifest, read_manifest
from memjax.checkpoints.export_writing import SHARD_BYTES, check_out
from memjax.experiment.card import LICENSE, card_text
from memjax.files import local
from memjax.inference.trained_model import load


def export(
    path: str | os.PathLike,
    out: str | os.PathLike,
    stage: str = "",
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    license_id: str = LICENSE,
) -> Manifest:
    """Write a trained stage as a folder that `memjax.load` reads anywhere, or nothing at all.

    Args:
      path: the trained stage, as `memjax.load` takes it.
      out: a new or empty folder on this machine.
      stage: the stage of a workdir; by default the last of its curriculum.
      dtype: `float32`, which keeps every bit, or `bfloat16`, half as large.
      shard_bytes: bytes of a file of weights, at most, unless one tensor is larger.
      license_id: of the weights, as the Hugging Face Hub names licenses.

    Raises:
      ExportError: `out` is taken or in a bucket, or a setting cannot be.
      CheckpointError, TokenizerError: as `memjax.load`.
    """
    check_out(out, dtype, shard_bytes)
    model, folder = load(path, stage), local(out).absolute()
    card = card_text(model, folder.name, dtype, license_id)
    model.save(folder, card, dtype=dtype, shard_bytes=shard_bytes)
    return read_manifest(folder)
