"""Scaling RMT (Bulatov et al. 2023, arXiv 2304.11062): RMT in encoder form, with a curriculum.

The memory stands once before the tokens of a chunk, `[K state; L tokens]`; every position reads
every other one, and what leaves at the state's own positions is the next state. A chunk is decoded
causally behind its state, by the same stack.

The curriculum raises the number of chunks that a state lives for: `curriculum` returns one stage
for each number, which begins with the weights of the stage before it. Within a stage a row restarts
from the learned state after n chunks, with n drawn between 1 and `reach` each time: shorter texts
are still trained on. In evaluation a state never restarts.

The truncation of the published code has no effect, and is not reproduced: `bptt_chunks` has one.
Its special tokens around a chunk are left out.

Not claimed: the answers of a pretrained BERT over two million tokens.

Shapes: B sequence, L token, K vector, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from memjax.config import Stage
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import GENERATOR, Leaves
from memjax.models.peers.rmt import STATE, RecurrentMemoryTransformer
from memjax.models.peers.rmt import Dials as RMTDials

LEFT = "left"
"""Chunks until a state restarts: a leaf in training alone, which no ledger counts."""


@dataclasses.dataclass(frozen=True)
class Dials(RMTDials):
    """Settings of a recurrent memory transformer that is trained with a curriculum."""

    reach: int = 0
    """Chunks after which a state restarts in training, at most; 0 is never."""


class ScalingRMT(RecurrentMemoryTransformer):
    """The state is K vectors, written by a pass in which every position reads every other one."""

    dials: Any = Dials()

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        leaves = dict(super().start(batch))
        if self.dials.reach and self.has_rng(GENERATOR):
            leaves[LEFT] = self._draw(batch)
        return leaves

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        state, vectors = leaves[STATE], self.dials.vectors
        x = jnp.concatenate([state, self.embed_tokens(tokens, valid)], axis=1)
        seen = jnp.pad(valid, ((0, 0), (vectors, 0)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
        every = jnp.broadcast_to(seen[:, None], (*seen.shape, seen.shape[1]))
        new = self.backbone(x, positions, every)[:, :vectors].astype(state.dtype)
        if LEFT not in leaves:
            return {STATE: new}
        left = leaves[LEFT] - 1
        again, first = left == 0, super().start(len(state))[STATE]
        return {
            STATE: jnp.where(again[:, None, None], first, new),
            LEFT: jnp.where(again, self._draw(len(state)), left),
        }

    def _draw(self, batch: int) -> Int[Array, " B"]:
        """Return for how many chunks each state lives."""
        key = self.make_rng(GENERATOR)
        return jax.random.randint(key, (batch,), 1, self.dials.reach + 1, jnp.int32)


def curriculum(stage: Stage, chunks: int, name: str = "reach") -> dict[str, Stage]:
    """Return stages that reach 1, 2, ... chunks and at last all, each from the one before it.

    Args:
      stage: their common settings; the first one starts as it does.
      chunks: C.
      name: the stages are called `name_1` to `name_C`.
    """
    stages: dict[str, Stage] = {}
    for reach in range(1, chunks + 1):
        dials = {**stage.dials, "reach": reach % chunks}
        begin: dict[str, Any] = {} if reach == 1 else {"init_from": f"{name}_{reach - 1}"}
        begin |= {"init_part": "", "init_parts": {}} if begin else {}
        stages[f"{name}_{reach}"] = dataclasses.replace(stage, dials=dials, **begin)
    return stages


ADAPTER = peer(
    "scalingrmt",
    ScalingRMT,
    "A recurrent memory transformer that writes in both directions and is trained on more and more"
    " chunks.",
    published="Scaling Transformer to 1M tokens and beyond with RMT, arXiv 2304.11062",
    dials=Dials,
    tiny={"vectors": 2, "reach": 2},
    unclaimed="answers of a pretrained BERT over two million tokens",
)
