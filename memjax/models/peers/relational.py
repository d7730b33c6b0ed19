"""Relational memory core (RMC; Santoro et al. 2018, arXiv 1806.01822).

S slots attend to one another and to the token, and a gate decides how much of each is replaced. A
step: u is a linear map of the input; M~ = LN(M + MHA(M, [M; u], [M; u])), where one map followed by
a norm makes queries, keys and values; M~ = LN(M~ + MLP(M~)), two layers; the gates are
i, f = u W + tanh(M) U, and M' = sigmoid(i) tanh(M~) + sigmoid(f + 1) M. The row of the input is
never kept. The output is all slots. The slots begin as rows of the identity matrix, without which
they would be the same. As in `cells.py`, a write runs over a chunk's tokens and a read over the
inputs.

Not claimed: WikiText-103, and the program and game experiments of the paper.

Shapes: N sequence, L token, D width, S slot, H head, E head width, F = H * E, G gate.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from memjax.config import Config, ConfigError, Stage
from memjax.layers import Linear
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.cells import TokenChain
from memjax.models.peers.peer import Leaves

STATE = "state"
"""The one leaf of a state."""
KINDS = ("unit", "memory", "none")
"""Gates: a number for each of the F units, one for a whole slot, or no gate."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a relational memory core."""

    slots: int = 8
    """S."""
    heads: int = 4
    """H."""
    head_width: int = 32
    """E."""
    mlp_layers: int = 2
    """Layers of the MLP behind attention; 0 leaves it out."""
    gate: str = "unit"
    """One of KINDS."""


class Gate(nn.Module):
    """Replaces slots in part, by what is in them and by the input.

    Attributes:
      kind: one of KINDS.
      width: F.
      dtype: dtype of matrix products.
    """

    kind: str
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        gates = 2 * (self.width if self.kind == "unit" else 1)
        if self.kind != "none":
            self.given = Linear(gates, use_bias=True, dtype=self.dtype)
            self.kept = Linear(gates, dtype=self.dtype)

    def __call__(
        self, old: Float[Array, "N S F"], new: Float[Array, "N S F"], given: Float[Array, "N D"]
    ) -> Float[Array, "N S F"]:
        if self.kind == "none":
            return new
        gates = self.given(given)[:, None] + self.kept(jnp.tanh(old))
        write, keep = jnp.split(gates, 2, axis=-1)
        return nn.sigmoid(write) * jnp.tanh(new) + nn.sigmoid(keep + 1) * old


class RelationalMemoryCore(TokenChain):
    """The state is S slots of F numbers."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_chain()
        dials, dtype = self.dials, jnp.dtype(self.config.dtype)
        width = dials.heads * dials.head_width
        self.into = Linear(width, use_bias=True, dtype=dtype)
        self.maps = Linear(3 * width, use_bias=True, dtype=dtype)
        self.maps_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.mixed_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.mlp = [Linear(width, use_bias=True, dtype=dtype) for _ in range(dials.mlp_layers)]
        if dials.mlp_layers:
            self.mlp_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.gate = Gate(dials.gate, width, dtype)

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        dials = self.dials
        first = jnp.eye(dials.slots, dials.heads * dials.head_width, dtype=self.config.dtype)
        return {STATE: jnp.broadcast_to(first, (batch, *first.shape))}

    def given(self, x: Float[Array, "N L D"]) -> Float[Array, "N L G"]:
        """See `TokenChain.given`."""
        return self.into(x)

    def attend(self, state: Float[Array, "N S F"], given: Float[Array, "N F"]) -> jax.Array:
        """Return what the slots read from one another and from the input, [N, S, F]."""
        batch, slots, width = state.shape
        rows = jnp.concatenate([state, given[:, None]], axis=1)
        maps = self.maps_norm(self.maps(rows)).reshape(batch, slots + 1, self.dials.heads, -1)
        query, key, value = jnp.split(maps, 3, axis=-1)
        mixed = jax.nn.dot_product_attention(query[:, :slots], key, value)
        return mixed.reshape(batch, slots, width)

    def step(self, leaves: Leaves, given: Float[Array, "N F"]) -> tuple[Leaves, jax.Array]:
        """See `TokenChain.step`."""
        state = leaves[STATE]
        new = self.mixed_norm(state + self.attend(state, given))
        if self.mlp:
            h = self.mlp[0](new)
            for layer in self.mlp[1:]:
                h = layer(nn.relu(h))
            new = self.mlp_norm(new + h)
        state = self.gate(state, new.astype(state.dtype), given)
        return {STATE: state}, state.reshape(len(state), -1)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        numbers = self.dials.slots * self.dials.heads * self.dials.head_width
        return {STATE: (numbers, number_bits(self.config))}


def _check(config: Config, stage: Stage, key: str) -> None:
    gate = ADAPTER.dials_of(stage, key).gate
    ConfigError.require(
        gate in KINDS, f"{key}.dials.gate: {gate!r}, expected one of {', '.join(KINDS)}. Change it"
    )


ADAPTER = peer(
    "rmc",
    RelationalMemoryCore,
    "Slots that attend to one another at every token, with a gate on what replaces them.",
    published="Relational recurrent neural networks, arXiv 1806.01822",
    dials=Dials,
    # Every token costs a pass over all slots: a whole budget of them would take an hour.
    sized="",
    tiny={"slots": 3, "heads": 2, "head_width": 4},
    check=_check,
    unclaimed="WikiText-103, and the program and game experiments",
)
