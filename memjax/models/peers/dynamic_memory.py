"""Dynamic memory network (DMN; Kumar et al. 2015, arXiv 1506.07285).

The paper was not read; this is after DMN. A GRU runs over a chunk's tokens, and its states at the
ends of facts, some tokens in a row, are the facts f. The question q is the decoder's causal state
at an input (the paper has another GRU). An episode goes through all facts in order: the gate of
fact t is g = sigmoid(W2 tanh(W1 z + b1) + b2) with
z = [f, m, q, f q, f m, |f - q|, |f - m|, f W q, f W m], and h' = g GRU(f, h) + (1 - g) h, from
h = 0. The memory begins as m = q, and after an episode it is m' = GRU(h, m). The answer is one step
of a GRU from m, whose input is the token that was read and q.

A question stands at every input, so that all facts are gone through once for each of them. The
facts of a chunk do not depend on other chunks: that GRU begins at 0 in each. Supervised gates are
`gate_loss`, which needs the facts that count; the objectives of this package have none.

Not claimed: bAbI, sentiment and tagging.

Shapes: N sequence, M entry, F fact of a chunk, P = M * F facts, L token, D width, A hidden width of
the gate.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Linear
from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.cells import GatedUnit
from memjax.models.peers.memory_network import FACTS, in_facts
from memjax.models.peers.peer import BankPeer, Leaves

FILLED = "filled"
"""The leaf that marks facts with a real token."""
ALONE = 3
"""Vectors of z that are no product or difference: fact, memory and question."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of a dynamic memory network."""

    words: int = 8
    """Tokens of a fact."""
    episodes: int = 2
    """Times that all facts are gone through."""
    hidden: int = 64
    """A."""


class DynamicMemoryNetwork(BankPeer):
    """A bank of facts, the states of a GRU."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        width, hidden = self.config.decoder.width, self.dials.hidden
        dtype = jnp.dtype(self.config.dtype)
        self.reader, self.episode, self.memory_step, self.answer = (
            GatedUnit(width, dtype) for _ in range(4)
        )
        self.alone = [Linear(hidden, dtype=dtype) for _ in range(ALONE)]
        self.pairs = Linear(hidden, use_bias=True, dtype=dtype)
        self.bilinear = Linear(width, dtype=dtype)
        self.last = Linear(1, use_bias=True, dtype=dtype)

    @property
    def facts(self) -> int:
        """F."""
        return -(-self.config.chunk_length // self.dials.words)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        words = self.dials.words
        given = self.reader.given(self.embed_tokens(tokens, valid))
        first = jnp.zeros((len(tokens), self.config.decoder.width), given.dtype)
        states = self.scan(self.reader, first, given, valid.astype(given.dtype)[..., None])
        short = -states.shape[1] % words
        states = jnp.pad(states, ((0, 0), (0, short), (0, 0)), mode="edge")
        filled = in_facts(valid.astype(jnp.int32), words).any(axis=-1)
        return {FACTS: states[:, words - 1 :: words], FILLED: filled}

    def scan(
        self,
        unit: GatedUnit,
        first: Float[Array, "N *any D"],
        given: Float[Array, "N T *#any G"],
        gates: Float[Array, "N T *any 1"],
    ) -> Float[Array, "N T *any D"]:
        """Return the states of a GRU after each step, of which a gate lets a part pass."""

        def one(
            unit: GatedUnit, h: jax.Array, given: jax.Array, gate: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            h = gate * unit(h, given) + (1 - gate) * h
            return h, h

        # The parts of a step are computed again in the backward pass: there are as many as
        # questions times facts.
        scan = nn.scan(
            nn.remat(one, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            check_constancy_invariants=self.is_initializing(),
        )
        return scan(unit, first, given, gates)[1]

    def gates(
        self,
        facts: Float[Array, "N P D"],
        filled: Bool[Array, "N P"],
        question: Float[Array, "N L D"],
        memory: Float[Array, "N L D"],
    ) -> Float[Array, "N P L 1"]:
        """Return how far each fact enters the episode of each question, 0 where there is none."""
        of_fact, of_memory, of_question = self.alone
        common = of_memory(memory) + of_question(question)
        products = [self.bilinear(question), self.bilinear(memory)]

        def gate(
            module: "DynamicMemoryNetwork", carry: None, fact: jax.Array, own: jax.Array
        ) -> tuple[None, jax.Array]:
            fact = fact[:, None]
            pairs = [fact * question, fact * memory, abs(fact - question), abs(fact - memory)]
            pairs += [(fact * product).sum(axis=-1, keepdims=True) for product in products]
            hidden = module.pairs(jnp.concatenate(pairs, axis=-1)) + common + own[:, None]
            return carry, nn.sigmoid(module.last(jnp.tanh(hidden)))

        scan = nn.scan(
            nn.remat(gate, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            check_constancy_invariants=self.is_initializing(),
        )
        gates = scan(self, None, facts, of_fact(facts))[1]
        return jnp.where(filled[..., None, None], gates, 0)

    def go_through(
        self, facts: Float[Array, "N P D"], gates: Float[Array, "N P L 1"]
    ) -> Float[Array, "N L D"]:
        """Return the state after the last fact of an episode."""
        given = self.episode.given(facts)[:, :, None]
        first = jnp.zeros((len(facts), gates.shape[2], facts.shape[-1]), given.dtype)
        return self.scan(self.episode, first, given, gates.astype(given.dtype))[:, -1]

    def remember(
        self,
        facts: Float[Array, "N P D"],
        filled: Bool[Array, "N P"],
        question: Float[Array, "N L D"],
    ) -> Float[Array, "N L D"]:
        """Return the memory of each question after all episodes."""
        memory = question
        for _ in range(self.dials.episodes):
            gates = self.gates(facts, filled, question, memory)
            found = self.go_through(facts, gates)
            memory = self.memory_step(memory, self.memory_step.given(found))
        return memory

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        question = self.backbone(x, valid=valid)
        memory = self.remember(*self.seen_facts(leaves), question)
        given = jnp.concatenate([x.astype(question.dtype), question], axis=-1)
        return self.answer(memory, self.answer.given(given))

    def seen_facts(self, leaves: Leaves) -> tuple[Float[Array, "N P D"], Bool[Array, "N P"]]:
        """Return the facts that are read, and where there is one."""
        filled = (leaves[FILLED] & leaves[VALID][..., None]).reshape(len(leaves[VALID]), -1)
        facts = leaves[FACTS].reshape(*filled.shape, -1)
        return jnp.where(filled[..., None], facts, 0), filled

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        facts = chunks * self.facts
        numbers = facts * self.config.decoder.width
        return {FACTS: (numbers, number_bits(self.config)), FILLED: (facts, 1)}


def gate_loss(
    gates: Float[Array, "N P L 1"], gold: Int[Array, "N L"], filled: Bool[Array, "N P"]
) -> Float[Array, "N L"]:
    """Return the cross entropy of an episode's gates with the one fact that counts."""
    wanted = jnp.arange(gates.shape[1])[:, None] == gold[:, None]
    gates = jnp.clip(gates[..., 0], 1e-6, 1 - 1e-6)
    nats = -jnp.where(wanted, jnp.log(gates), jnp.log1p(-gates))
    return jnp.where(filled[..., None], nats, 0).sum(axis=1)


ADAPTER = peer(
    "dmn",
    DynamicMemoryNetwork,
    "Facts are states of a GRU; a second one goes through them with gates, once for each episode.",
    published="Ask Me Anything: Dynamic Memory Networks, arXiv 1506.07285",
    dials=Dials,
    sized="",
    tiny={"words": 2, "hidden": 8},
    unclaimed="bAbI, sentiment and tagging",
)
