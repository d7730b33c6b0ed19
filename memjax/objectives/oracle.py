"""Next tokens of an oracle: every token of a block from the tokens before it and a memory of the whole block.

Shapes: B row, N = C * L tokens of a row, C block, L token of a block.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from memjax.config import Stage
from memjax.models import Oracle
from memjax.models.encoder import fold, unfold
from memjax.objectives.requests import SpecialIds, make_request
from memjax.objectives.terms import Batch, Scores, chunked


def score(
    module: Oracle,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Nats of every token; blocks do not see each other. One call of the encoder and one of the decoder for all blocks."""
    blocks_BCL = chunked(batch.tokens, module.config.chunk_length)
    # What is shown and asked is as in reading on; slots and places have no meaning here.
    request = make_request("next_token", blocks_BCL, ids, stage.compat)
    encoded, inputs = fold(blocks_BCL), fold(request.inputs)
    rngs = None if key is None else {"noise": key}
    memory = module.apply(variables, encoded, encoded != ids.pad, method="encode", rngs=rngs)
    scored: Any = module.apply(variables, inputs, fold(request.labels), memory, inputs != ids.pad, method="score")
    nats, correct = (unfold(x, blocks_BCL.shape[0]) for x in scored)
    return dict.fromkeys(names, Scores(nats, correct, request.weight, request.labels))


def weights(module: Oracle, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    blocks_BCL = chunked(batch.tokens, module.config.chunk_length)
    return dict.fromkeys(names, make_request("next_token", blocks_BCL, ids, stage.compat).weight)
