"""MEMO, a memory of facts whose items are kept apart (Banino et al. 2020, arXiv 2001.10913).

The paper was not read; this is after MEMO. A fact is some tokens in a row, its items. A memory is
the map of every item, one behind the other, so that attention can find a fact by one item and
return the others: inference over pairs that share an item. Heads have keys and values that are
linear in all items of a fact and in its age (the facts behind it). A hop reads all facts by
attention, a = LN(q + W o), and q' = LN(a + MLP(a)) is the next question. The first one is the
decoder's causal state.

The number of hops is learned: after each hop a small network reads the Bhattacharyya distance of
its attention from that of the hop before, and the hop's number, and returns the probability to
halt. Here the answer is the mixture of what all hops give by these probabilities, which has a
gradient. The paper draws one hop by REINFORCE, whose loss is `reinforce_loss`; it needs a reward
for an answer, which next tokens do not give, and nothing else uses it.

Not claimed: bAbI, paired associates from images, and shortest paths.

Shapes: N sequence, M entry, F fact of a chunk, P = M * F facts, S item, W width of an item, L
token, D width, H head, E head width, T hop.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Stage
from memjax.layers import MLP, Linear
from memjax.models.memory import VALID, number_bits
from memjax.models.peers.adapters import peer
from memjax.models.peers.memory_network import FACTS, TABLE_INIT, ages_of, in_facts, weights_of
from memjax.models.peers.peer import GENERATOR, BankPeer, Leaves

FILLED = "filled"
"""The leaf that marks facts with a real token."""
SMALLEST = 1e-12
"""Least probability of which a root or a logarithm is taken."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of MEMO."""

    items: int = 4
    """S: tokens of a fact."""
    item_width: int = 32
    """W."""
    hops: int = 3
    """Hops at most."""
    halting: bool = True
    """Learn when to halt; False always takes the last hop."""
    policy: int = 16
    """Hidden width of the network that decides when to halt."""
    dropout: float = 0.1
    """Share of what a hop reads that is dropped, in training with a generator."""
    kept: bool = True
    """Keep the items of a fact apart; False adds them up."""


class Memo(BankPeer):
    """A bank of facts, S mapped items each."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_decoder()
        stack, dials, dtype = self.config.decoder, self.dials, jnp.dtype(self.config.dtype)
        self.item = Linear(dials.item_width, dtype=dtype)
        shape = max(1, self.slots * self.facts), self.fact_width
        self.ages = self.param("ages", TABLE_INIT, shape)
        self.query, self.key, self.value = (
            Linear(stack.attention_dim, dtype=dtype) for _ in range(3)
        )
        self.out = Linear(stack.width, dtype=dtype)
        self.mlp = MLP(stack, dtype)
        self.read_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.hop_norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype)
        self.drop = nn.Dropout(dials.dropout, rng_collection=GENERATOR)
        self.policy = Linear(dials.policy, use_bias=True)
        self.halt = Linear(1, use_bias=True)

    @property
    def facts(self) -> int:
        """F."""
        return -(-self.config.chunk_length // self.dials.items)

    @property
    def fact_width(self) -> int:
        """S * W, or W where items are added up."""
        return self.dials.item_width * (self.dials.items if self.dials.kept else 1)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        real = in_facts(valid.astype(jnp.int32), self.dials.items) > 0
        items = self.item(self.embed(in_facts(tokens, self.dials.items)))
        items = jnp.where(real[..., None], items, 0)
        facts = items.reshape(*items.shape[:2], -1) if self.dials.kept else items.sum(axis=2)
        return {FACTS: facts, FILLED: real.any(axis=-1)}

    def seen_facts(self, leaves: Leaves) -> tuple[Float[Array, "N P SW"], Bool[Array, "N P"]]:
        """Return the facts that are read, with their ages, and where there is one."""
        filled = (leaves[FILLED] & leaves[VALID][..., None]).reshape(len(leaves[VALID]), -1)
        facts = leaves[FACTS].reshape(*filled.shape, -1)
        facts = jnp.where(filled[..., None], facts, 0)
        age = ages_of(filled, jnp.zeros_like(filled), len(self.ages))
        return facts + self.ages.astype(facts.dtype)[age], filled

    def hops(
        self,
        question: Float[Array, "N L D"],
        facts: Float[Array, "N P SW"],
        filled: Bool[Array, "N P"],
    ) -> tuple[Float[Array, "T N L D"], Float[Array, "T N L"]]:
        """Return the question after each hop, and the probability to halt there."""
        heads, count = self.config.decoder.heads, filled.sum(axis=-1)[:, None, None, None]
        key, value = (
            maps(facts).reshape(*filled.shape, heads, -1) for maps in (self.key, self.value)
        )
        seen = filled[:, None, None]
        before = jnp.where(seen, 1 / jnp.maximum(count, 1), 0)
        before = jnp.broadcast_to(before, (len(question), heads, question.shape[1], len(filled[0])))
        questions, halts = [], []
        for hop in range(self.dials.hops):
            query = self.query(question).reshape(*question.shape[:2], heads, -1)
            scores = jnp.einsum("nlhe,nphe->nhlp", query, key) / query.shape[-1] ** 0.5
            chosen = weights_of(scores, seen)
            found = jnp.einsum("nhlp,nphe->nlhe", chosen.astype(value.dtype), value)
            found = self.out(found.reshape(*question.shape[:2], -1))
            found = self.drop(found, deterministic=not self.has_rng(GENERATOR))
            read = self.read_norm(question + found)
            question = self.hop_norm(read + self.mlp(read))
            questions.append(question)
            halts.append(self.halting(chosen, before, hop))
            before = chosen
        return jnp.stack(questions), jnp.stack(halts)

    def halting(
        self, chosen: Float[Array, "N H L P"], before: Float[Array, "N H L P"], hop: int
    ) -> Float[Array, "N L"]:
        """Return the probability to halt after a hop, from its attention and that before it.

        The policy observes: attention has no gradient from it.
        """
        apart = distance(*jax.lax.stop_gradient((chosen, before))).mean(axis=1)
        place = jnp.broadcast_to(
            jax.nn.one_hot(hop, self.dials.hops), (*apart.shape, self.dials.hops)
        )
        hidden = nn.relu(self.policy(jnp.concatenate([apart[..., None], place], axis=-1)))
        return nn.sigmoid(self.halt(hidden)[..., 0])

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        question = self.backbone(x, valid=valid)
        questions, halts = self.hops(question, *self.seen_facts(leaves))
        if not self.dials.halting:
            return questions[-1]
        shares = shares_of(halts).astype(questions.dtype)
        return jnp.einsum("tnl,tnld->nld", shares, questions)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`."""
        facts = chunks * self.facts
        return {FACTS: (facts * self.fact_width, number_bits(self.config)), FILLED: (facts, 1)}


def distance(one: Float[Array, "*any P"], other: Float[Array, "*any P"]) -> Float[Array, "*any"]:
    """Return the Bhattacharyya distance of two distributions; 0 where both are empty."""
    overlap = jnp.sqrt(one * other).sum(axis=-1)
    some = one.any(axis=-1) & other.any(axis=-1)
    return jnp.where(some, -jnp.log(jnp.maximum(overlap, SMALLEST)), 0)


def shares_of(halts: Float[Array, "T *any"]) -> Float[Array, "T *any"]:
    """Return the probability that each hop is the last one; that of the last hop is what remains.

    Args:
      halts: the probability to halt after each hop, of those that reach it.
    """
    reached = jnp.cumprod(1 - halts[:-1], axis=0)
    reached = jnp.concatenate([jnp.ones_like(halts[:1]), reached])
    return reached * jnp.concatenate([halts[:-1], jnp.ones_like(halts[:1])])


def expected_hops(halts: Float[Array, "T *any"]) -> Float[Array, "*any"]:
    """Return the mean number of hops, from 1 to T."""
    return jnp.tensordot(jnp.arange(1.0, len(halts) + 1), shares_of(halts), 1)


def reinforce_loss(
    halts: Float[Array, "T *any"],
    last: Int[Array, "*any"],
    reward: Float[Array, "*any"],
    baseline: Float[Array, "*any"],
    cost: float,
) -> Float[Array, "*any"]:
    """Return the loss whose gradient is the policy gradient, and `cost` for each expected hop.

    Args:
      halts: the probability to halt after each hop.
      last: the hop, from 0, after which the answer was drawn.
      reward: of the answer; no gradient passes it.
      baseline: the expected reward, which learns by itself.
      cost: the penalty on hops.
    """
    drawn = jnp.take_along_axis(shares_of(halts), last[None], axis=0)[0]
    advantage = jax.lax.stop_gradient(reward - baseline)
    loss = -advantage * jnp.log(jnp.maximum(drawn, SMALLEST)) + cost * expected_hops(halts)
    return loss + (jax.lax.stop_gradient(reward) - baseline) ** 2


def _check(config: Config, stage: Stage, key: str) -> None:
    hops = ADAPTER.dials_of(stage, key).hops
    ConfigError.require(
        hops > 0, f"{key}.dials.hops: {hops}, expected a positive number. Change it"
    )


ADAPTER = peer(
    "memo_inference",
    Memo,
    "Facts whose items are kept apart; a question reads them in hops, whose number is learned.",
    published="MEMO: A Deep Network for Flexible Combination of Episodic Memories, arXiv"
    " 2001.10913",
    dials=Dials,
    sized="item_width",
    tiny={"items": 2, "item_width": 4, "hops": 2},
    check=_check,
    unclaimed="bAbI, paired associates from images, and shortest paths",
)
