"""Recurrent cells over tokens: LSTM, GRU and LEM.

A cell's state goes from token to token. A chunk is written by its tokens in turn, and decoded by
the same cell, which continues over the inputs from the state; a linear map of what it puts out is
the decoder's state. There is no transformer, and padding leaves the state as it was.

LSTM, long short-term memory (Hochreiter and Schmidhuber 1997, no arXiv number), with the forget
gate of 2000: i, f, o are sigmoids and g a tanh of linear maps of the input u and the last output h;
c' = f c + i g and h' = o tanh(c'). The forget gate begins open, with a bias of 1.

GRU, gated recurrent unit (Cho et al. 2014, arXiv 1406.1078): r and z are sigmoids, and
h' = z h + (1 - z) tanh(W u + r (U h)).

LEM, long expressive memory (Rusch et al. 2021, arXiv 2110.04744): two parts with steps that depend
on the input, d_y and d_z = dt times a sigmoid of linear maps of u and y. First
z' = (1 - d_z) z + d_z tanh(W_z u + V_z y + b_z), then
y' = (1 - d_y) y + d_y tanh(W_y u + V_y z' + b_y), in which the new z stands.

Not claimed: published perplexities, and the scores of LEM on dynamical systems and keywords.

Shapes: N sequence, L token, D width, n unit, G gates of all units together.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear
from memjax.models.memory import number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import ChainPeer, Leaves

OUTPUT, CELL, SLOW = "output", "cell", "slow"
"""Leaves: h or y, the c of an LSTM, and the z of LEM."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a recurrent cell."""

    units: int = 256
    """n: numbers of each part of the state; weights grow with their square, so that `memjax
    compare` leaves a part of its budget unused."""


@dataclasses.dataclass(frozen=True)
class LEMDials(Dials):
    """Settings of long expressive memory."""

    step: float = 1.0
    """dt: the longest step; small ones suit long sequences."""


class TokenChain(ChainPeer):
    """A peer whose state changes with every token, in writes and in reads."""

    KIND = "chain"

    def setup_chain(self) -> None:
        """Make the decoder's parts; subclasses add those of the cell."""
        self.setup_decoder(stack=False)
        dtype = jnp.dtype(self.config.dtype)
        self.out = Linear(self.config.decoder.width, use_bias=True, dtype=dtype)

    @abc.abstractmethod
    def given(self, x: Float[Array, "N L D"]) -> Float[Array, "N L G"]:
        """Return what the inputs contribute to the gates, for all tokens at once."""

    @abc.abstractmethod
    def step(self, leaves: Leaves, given: Float[Array, "N G"]) -> tuple[Leaves, jax.Array]:
        """Return the state after one more token, and what leaves the cell [N, n]."""

    def run(
        self, leaves: Leaves, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> tuple[Leaves, Float[Array, "N L n"]]:
        """Return the state after all tokens, and what leaves the cell at each of them.

        The state is float32 between tokens, whatever it is between chunks: small steps would be
        lost in shorter numbers.
        """

        def one(
            module: "TokenChain", old: Leaves, given: jax.Array, real: jax.Array
        ) -> tuple[Leaves, jax.Array]:
            new, out = module.step(old, given)
            kept = {
                name: jnp.where(real.reshape(-1, *(1,) * (leaf.ndim - 1)), new[name], leaf)
                for name, leaf in old.items()
            }
            return kept, out

        scan = nn.scan(
            one,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            check_constancy_invariants=self.is_initializing(),
        )
        first = {name: leaf.astype(jnp.float32) for name, leaf in leaves.items()}
        last, out = scan(self, first, self.given(x).astype(jnp.float32), valid)
        return {name: leaf.astype(leaves[name].dtype) for name, leaf in last.items()}, out

    def update(
        self, leaves: Leaves, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"]
    ) -> Leaves:
        """See `Peer.update`."""
        return self.run(leaves, self.embed_tokens(tokens, valid), valid)[0]

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        return self.out(self.run(leaves, x, valid)[1])


class Gates(nn.Module):
    """The maps of a cell's gates: of inputs with a bias, and of its last output without one.

    Attributes:
      units: n.
      inputs: gates that the inputs have part in.
      outputs: gates that the last output has part in.
      dtype: dtype of matrix products.
      init: first values of all matrices and the bias; None is the usual scale and no bias.
    """

    units: int
    inputs: int
    outputs: int
    dtype: jnp.dtype
    init: Any = None

    def setup(self) -> None:
        init = {} if self.init is None else {"kernel_init": self.init}
        self.into = Linear(self.inputs * self.units, dtype=self.dtype, **init)
        self.back = Linear(self.outputs * self.units, dtype=self.dtype, **init)
        bias = self.init or nn.initializers.zeros
        self.bias = self.param("bias", bias, (self.inputs * self.units,))

    def given(self, x: Float[Array, "*any D"]) -> Float[Array, "*any G"]:
        """Return the inputs' part."""
        y = self.into(x)
        return y + self.bias.astype(y.dtype)

    def recurrent(self, h: Float[Array, "*any n"]) -> Float[Array, "*any G"]:
        """Return the part of the last output."""
        return self.back(h)


class GatedUnit(nn.Module):
    """The step of a GRU, from `given` of `gates` and the last output."""

    units: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.gates = Gates(self.units, 3, 3, self.dtype)

    def given(self, x: Float[Array, "*any D"]) -> Float[Array, "*any G"]:
        """Return what inputs contribute."""
        return self.gates.given(x)

    def __call__(
        self, h: Float[Array, "*any n"], given: Float[Array, "*any G"]
    ) -> Float[Array, "*any n"]:
        reset, keep, new = jnp.split(given, 3, axis=-1)
        reset_h, keep_h, new_h = jnp.split(self.gates.recurrent(h), 3, axis=-1)
        new = jnp.tanh(new + nn.sigmoid(reset + reset_h) * new_h)
        keep = nn.sigmoid(keep + keep_h)
        return keep * h + (1 - keep) * new


class Cell(TokenChain):
    """A token chain whose state is some vectors of n numbers, which begin at 0."""

    LEAVES: ClassVar[tuple[str, ...]] = (OUTPUT,)

    dials: Any = Dials()

    def start(self, batch: int) -> Leaves:
        """See `Peer.start`."""
        zeros = jnp.zeros((batch, self.dials.units), jnp.dtype(self.config.dtype))
        return dict.fromkeys(self.LEAVES, zeros)

    def given(self, x: Float[Array, "N L D"]) -> Float[Array, "N L G"]:
        """See `TokenChain.given`."""
        return self.cell.given(x)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        return dict.fromkeys(self.LEAVES, (self.dials.units, number_bits(self.config)))


class LongShortTermMemory(Cell):
    """The state is the output h and the cell c."""

    LEAVES = (OUTPUT, CELL)

    def setup(self) -> None:
        self.setup_chain()
        self.cell = Gates(self.dials.units, 4, 4, jnp.dtype(self.config.dtype))

    def step(self, leaves: Leaves, given: Float[Array, "N G"]) -> tuple[Leaves, jax.Array]:
        """See `TokenChain.step`."""
        gates = jnp.split(given + self.cell.recurrent(leaves[OUTPUT]), 4, axis=-1)
        write, forget, show, new = gates
        cell = nn.sigmoid(forget + 1) * leaves[CELL] + nn.sigmoid(write) * jnp.tanh(new)
        h = nn.sigmoid(show) * jnp.tanh(cell)
        return {OUTPUT: h, CELL: cell}, h


class GatedRecurrentUnit(Cell):
    """The state is the output h."""

    def setup(self) -> None:
        self.setup_chain()
        self.cell = GatedUnit(self.dials.units, jnp.dtype(self.config.dtype))

    def step(self, leaves: Leaves, given: Float[Array, "N G"]) -> tuple[Leaves, jax.Array]:
        """See `TokenChain.step`."""
        h = self.cell(leaves[OUTPUT], given)
        return {OUTPUT: h}, h


class LongExpressiveMemory(Cell):
    """The state is y, from which the output comes, and z."""

    LEAVES = (OUTPUT, SLOW)

    dials: LEMDials = LEMDials()

    def setup(self) -> None:
        self.setup_chain()
        dtype, bound = jnp.dtype(self.config.dtype), self.dials.units**-0.5

        def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        self.cell = Gates(self.dials.units, 4, 3, dtype, init)
        self.slow = Linear(self.dials.units, dtype=dtype, kernel_init=init)

    def step(self, leaves: Leaves, given: Float[Array, "N G"]) -> tuple[Leaves, jax.Array]:
        """See `TokenChain.step`."""
        y, z, longest = leaves[OUTPUT], leaves[SLOW], self.dials.step
        step_y, step_z, new_z, new_y = jnp.split(given, 4, axis=-1)
        back_y, back_z, back_new = jnp.split(self.cell.recurrent(y), 3, axis=-1)
        step_y, step_z = (longest * nn.sigmoid(gate) for gate in (step_y + back_y, step_z + back_z))
        z = (1 - step_z) * z + step_z * jnp.tanh(new_z + back_new)
        y = (1 - step_y) * y + step_y * jnp.tanh(new_y + self.slow(z))
        return {OUTPUT: y, SLOW: z}, y


LSTM = peer(
    "lstm",
    LongShortTermMemory,
    "A long short-term memory, which continues from chunk to chunk and reads without a"
    " transformer.",
    published="Long Short-Term Memory, Neural Computation 9 (8), 1997",
    dials=Dials,
    sized="",
    tiny={"units": 8},
    unclaimed="published perplexities",
)
GRU = peer(
    "gru",
    GatedRecurrentUnit,
    "A gated recurrent unit, which continues from chunk to chunk and reads without a transformer.",
    published="Learning Phrase Representations using RNN Encoder-Decoder, arXiv 1406.1078",
    dials=Dials,
    sized="",
    tiny={"units": 8},
    unclaimed="published translations",
)
LEM = peer(
    "lem",
    LongExpressiveMemory,
    "Long expressive memory: a cell of two parts whose steps depend on the input.",
    published="Long Expressive Memory for Sequence Modeling, arXiv 2110.04744",
    dials=LEMDials,
    sized="",
    tiny={"units": 8},
    unclaimed="scores on dynamical systems and keywords",
)
