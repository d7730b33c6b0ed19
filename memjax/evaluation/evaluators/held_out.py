"""Held-out sequences for evaluators, and the language model inside a pretrained stage."""

from collections.abc import Iterator

import flax.linen as nn
import jax

from memjax.config import Stage
from memjax.data import evaluation_batches
from memjax.interop.huggingface.settings import folder_of
from memjax.models import can
from memjax.sharding import batch_shards, local_rows, put_batch
from memjax.training.init_state import Run

BASE = "next_token_empty"
"""Next tokens of held-out sequences, predicted without memories."""
COPY_BASE = "copy_empty"
"""Recalled chunks of held-out sequences, without memories."""
BATCH = 32
"""Sequences in a batch of an evaluation."""


def held_out(run: Run, examples: int, batch: int = BATCH) -> Iterator[jax.Array]:
    """Yield batches of up to `examples` held-out sequences, int [B, N], over all devices.

    Args:
      run: the run.
      examples: sequences, evenly spaced over the held-out text.
      batch: B, rounded up to a multiple of the parts that the mesh splits a batch into. The last
        batch is filled up with padding.
    """
    shards = batch_shards(run.mesh)
    batch = -(-batch // shards) * shards
    part = local_rows(run.mesh, batch)
    for rows in evaluation_batches(run.data.validation, batch, examples, run.ids.pad, part):
        yield put_batch(rows, run.mesh, batch)


def without_memory(module: nn.Module, stage: Stage) -> nn.Module | None:
    """Return the decoder of a stage's model with no memory in view, on the same parameters.

    Where the stage starts from a pretrained language model, that is this model. None where the
    stage has neither.
    """
    if can(module, "reads_memories"):
        return module.clone(memory=False)
    pretrained = folder_of(stage.init_from) and can(module, "keeps_tokens")
    return module if pretrained else None
