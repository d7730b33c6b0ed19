"""Networks that look facts up in hops: end-to-end memory networks and memory networks.

A fact is some tokens in a row, one by default. A memory is the ids of a chunk's tokens, and shared
tables turn them into vectors where they are read: a fact's vector is the sum of its tokens' rows
and of the row of its age, the number of facts behind it. The question at a position is made of the
inputs up to it.

End-to-end memory networks (MemN2N; Sukhbaatar et al. 2015, arXiv 1503.08895). A hop: keys and
values of all facts by two tables, a = softmax(u keys), and u' = u + sum of a values. Tables of
`adjacent` hops are shared, the values of one hop with the keys of the next; without it all hops
share two tables and u' = H u + sum of a values, the last half of it through a ReLU. In a fact of J
tokens, the row of token j (from 1) counts 1 + 4 (k - (d + 1) / 2) (j - (J + 1) / 2) / (d J) in its
number k of d. In training with a generator, empty memories make ages random (an empty one has no
vector here). `linear` is the start of training without softmax. The question u is the decoder's
causal state, where the paper has a sum of words or a constant.

Memory networks (Weston et al. 2014, arXiv 1410.3916), after their description in later work: the
paper was not read. Hop 1 takes the one fact m1 with the highest s(question, fact), hop 2 the one
with the highest s([question, m1], fact), and s(x, y) is the product of a map of x and a map of y,
with a matrix for each role. Both sides are bags of words, the question's of all inputs so far. The
answer is scored from maps of the question and of all facts taken. No gradient passes the choice:
the maps of the choice learn from `margin_loss` alone, which needs the right facts. They begin as
the identity, so that a choice begins as the overlap of words.

Not claimed: scores on bAbI, Penn Treebank and Text8.

Shapes: N sequence, M entry, F fact of a chunk, P = M * F facts, J token of a fact, L token, H hop,
D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers import Embed, Linear
from memjax.models.memory import VALID
from memjax.models.peers.adapters import peer
from memjax.models.peers.peer import GENERATOR, MASKED, BankPeer, Leaves

FACTS = "facts"
"""The leaf of facts."""
TABLE_INIT = nn.initializers.normal(0.1)
"""Scale of tables of words and ages."""
EMPTY_RATE = 0.1
"""Empty memories for each fact, in training."""


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of memory networks."""

    hops: int = 2
    """Facts that are taken in turn."""
    words: int = 1
    """J: tokens of a fact."""


@dataclasses.dataclass(frozen=True)
class HopDials:
    """Settings of end-to-end memory networks."""

    hops: int = 3
    """Times that all facts are read."""
    words: int = 1
    """J: tokens of a fact."""
    adjacent: bool = True
    """Share tables between adjacent hops; False shares two tables among all of them."""
    linear: bool = False
    """Leave out the softmax over facts."""


class FactBank(BankPeer):
    """A bank of token ids; 0 marks padding, and every id is one higher than the token's."""

    dials: Any = Dials()

    @property
    def facts(self) -> int:
        """F."""
        return -(-self.config.chunk_length // self.dials.words)

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        return {FACTS: in_facts(jnp.where(valid, tokens + 1, 0), self.dials.words)}

    def seen_facts(self, leaves: Leaves) -> tuple[Int[Array, "N P J"], Bool[Array, "N P"]]:
        """Return the ids of the facts that are read, and where there is one."""
        ids = jnp.where(leaves[VALID][..., None, None], leaves[FACTS], 0)
        ids = ids.reshape(len(ids), -1, self.dials.words)
        return ids, (ids > 0).any(axis=-1)

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; an id has as many bits as the vocabulary and a mark need."""
        return {FACTS: (chunks * self.facts * self.dials.words, self.vocab_size.bit_length())}


class EndToEndMemoryNetwork(FactBank):
    """A bank of token ids that is read by hops of soft attention."""

    dials: Any = HopDials()

    def setup(self) -> None:
        self.setup_decoder()
        config, dials = self.config, self.dials
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        count = dials.hops + 1 if dials.adjacent else 2
        tables = count if dials.hops else 0
        self.tables = [Embed(self.vocab_size, width, dtype, TABLE_INIT) for _ in range(tables)]
        shape = tables, max(1, self.slots * self.facts), width
        self.ages = self.param("ages", TABLE_INIT, shape)
        if tables and not dials.adjacent:
            self.carry = Linear(width, dtype=dtype)

    def vectors(
        self, table: int, ids: Int[Array, "N P J"], age: Int[Array, "N P"]
    ) -> Float[Array, "N P D"]:
        """Return the facts by one of the tables."""
        rows = self.tables[table](jnp.maximum(ids - 1, 0))
        shares = position_shares(ids.shape[-1], rows.shape[-1]).astype(rows.dtype)
        words = jnp.where(ids[..., None] > 0, rows * shares, 0).sum(axis=-2)
        return words + self.ages[table].astype(rows.dtype)[age]

    def hop(
        self,
        question: Float[Array, "N L D"],
        keys: Float[Array, "N P D"],
        values: Float[Array, "N P D"],
        filled: Bool[Array, "N P"],
    ) -> Float[Array, "N L D"]:
        """Return the question after one reading of all facts."""
        scores = jnp.einsum("nld,npd->nlp", question, keys)
        if self.dials.linear:
            chosen = jnp.where(filled[:, None], scores, 0)
        else:
            chosen = weights_of(scores, filled[:, None])
        found = jnp.einsum("nlp,npd->nld", chosen.astype(values.dtype), values)
        if self.dials.adjacent:
            return question + found
        straight, bent = jnp.split(self.carry(question) + found, 2, axis=-1)
        return jnp.concatenate([straight, nn.relu(bent)], axis=-1)

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        question = self.question(x, valid)
        ids, filled = self.seen_facts(leaves)
        empty = jnp.zeros(filled.shape, bool)
        if self.has_rng(GENERATOR):
            empty = jax.random.bernoulli(self.make_rng(GENERATOR), EMPTY_RATE, filled.shape)
        age = ages_of(filled, empty, self.ages.shape[1])
        facts = [self.vectors(table, ids, age) for table in range(len(self.tables))]
        for hop in range(self.dials.hops):
            first = hop if self.dials.adjacent else 0
            question = self.hop(question, facts[first], facts[first + 1], filled)
        return question

    def question(
        self, x: Float[Array, "N L D"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L D"]:
        """Return the question at each input, made of the inputs up to it."""
        return self.backbone(x, valid=valid)


class MemoryNetwork(FactBank):
    """A bank of token ids of which a question takes one fact after another."""

    def setup(self) -> None:
        self.setup_decoder()
        config, hops = self.config, self.dials.hops
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        self.table = Embed(self.vocab_size, width, dtype, TABLE_INIT)
        shape = max(1, self.slots * self.facts), width
        self.ages = self.param("ages", TABLE_INIT, shape)

        def identity(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return jnp.eye(*shape, dtype=dtype)

        # One matrix for each role: the question and the facts before a choice, and what is chosen.
        self.sought = [Linear(width, dtype=dtype, kernel_init=identity) for _ in range(hops)]
        self.offered = Linear(width, dtype=dtype, kernel_init=identity)
        self.answers = [Linear(width, dtype=dtype) for _ in range(hops)]

    def bag(self, ids: Int[Array, "*any J"]) -> Float[Array, "*any J D"]:
        """Return the rows of words, 0 at padding; ids are as in the bank."""
        return jnp.where(ids[..., None] > 0, self.table(jnp.maximum(ids - 1, 0)), 0)

    def hops(
        self,
        question: Float[Array, "N L D"],
        facts: Float[Array, "N P D"],
        filled: Bool[Array, "N P"],
        gold: Int[Array, "N L H"] | None = None,
    ) -> tuple[list[Float[Array, "N L P"]], list[Float[Array, "N L D"]]]:
        """Return the scores of each of H hops, and the facts that they took.

        Args:
          question: sums of words.
          facts: sums of words.
          filled: False where there is no fact.
          gold: the right facts, from which the next hop then begins; None takes the best ones.
        """
        offered, some = self.offered(facts), filled.any(axis=-1)[:, None, None]
        seeks, last = jnp.zeros_like(question), question
        scores, taken = [], []
        for hop, sought in enumerate(self.sought):
            seeks += sought(last)
            scores.append(jnp.einsum("nld,npd->nlp", seeks, offered))
            best = jnp.argmax(jnp.where(filled[:, None], scores[-1], MASKED), axis=-1)
            best = best if gold is None else gold[..., hop]
            last = jnp.where(some, jax.vmap(lambda x, at: x[at])(facts, best), 0)
            taken.append(last)
        return scores, taken

    def read(
        self,
        leaves: Leaves,
        x: Float[Array, "N L D"],
        tokens: Int[Array, "N L"],
        valid: Bool[Array, "N L"],
    ) -> Float[Array, "N L D"]:
        """See `Peer.read`."""
        words, facts, filled = self.question(tokens, valid), *self.seen_vectors(leaves)
        answer = self.backbone(x, valid=valid)
        for fact, answers in zip(self.hops(words, facts, filled)[1], self.answers, strict=True):
            answer += answers(fact)
        return answer

    def question(
        self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> Float[Array, "N L D"]:
        """Return the sum of all inputs up to each one."""
        return jnp.cumsum(self.bag(jnp.where(valid, tokens + 1, 0)[..., None])[..., 0, :], axis=1)

    def seen_vectors(self, leaves: Leaves) -> tuple[Float[Array, "N P D"], Bool[Array, "N P"]]:
        """Return the vectors of the facts that are read, and where there is one."""
        ids, filled = self.seen_facts(leaves)
        words = self.bag(ids).sum(axis=-2)
        age = ages_of(filled, jnp.zeros_like(filled), len(self.ages))
        return words + self.ages.astype(words.dtype)[age], filled


def in_facts(x: Int[Array, "N L"], words: int) -> Int[Array, "N F J"]:
    """Cut rows into facts; the last one is filled up with 0."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % words)))
    return x.reshape(len(x), -1, words)


def ages_of(filled: Bool[Array, "N P"], empty: Bool[Array, "N P"], most: int) -> Int[Array, "N P"]:
    """Return the facts behind each fact, `most` - 1 at most.

    Args:
      filled: False where there is no fact.
      empty: facts behind which an empty memory stands too.
      most: ages that a table has.
    """
    steps = filled.astype(jnp.int32) * (1 + empty)
    behind = jnp.cumsum(steps[:, ::-1], axis=1)[:, ::-1] - filled
    return jnp.clip(behind, 0, most - 1)


def position_shares(words: int, width: int) -> Float[Array, "J D"]:
    """Return what each word of a fact counts, 1 where a fact is one word."""
    word = jnp.arange(1, words + 1)[:, None] - (words + 1) / 2
    number = jnp.arange(1, width + 1) - (width + 1) / 2
    return 1 + 4 * number * word / (width * words)


def weights_of(scores: Float[Array, "*any P"], filled: Bool[Array, "*any P"]) -> jax.Array:
    """Return the softmax of scores over what is filled, 0 everywhere where nothing is."""
    masked = jnp.where(filled, scores.astype(jnp.float32), MASKED)
    return jnp.where(filled, nn.softmax(masked, axis=-1), 0)


def margin_loss(
    scores: Float[Array, "N L P"],
    gold: Int[Array, "N L"],
    filled: Bool[Array, "N P"],
    margin: float = 0.1,
) -> Float[Array, "N L"]:
    """Return by how much other facts come within `margin` of the right one, added up.

    It trains the choices of memory networks, from data with the right facts; the objectives of
    this package have none.
    """
    right = jnp.take_along_axis(scores, gold[..., None], axis=-1)
    other = filled[:, None] & (jnp.arange(scores.shape[-1]) != gold[..., None])
    return jnp.where(other, nn.relu(margin - right + scores), 0).sum(axis=-1)


END_TO_END = peer(
    "memn2n",
    EndToEndMemoryNetwork,
    "Facts are token ids; a question reads all of them by soft attention, several times.",
    published="End-To-End Memory Networks, arXiv 1503.08895",
    dials=HopDials,
    sized="",
    tiny={"hops": 2, "words": 2},
    unclaimed="scores on bAbI, Penn Treebank and Text8",
)
SUPERVISED = peer(
    "memorynetworks",
    MemoryNetwork,
    "Facts are token ids; a question takes the best one, and with it the next one.",
    published="Memory Networks, arXiv 1410.3916",
    dials=Dials,
    sized="",
    tiny={"words": 2},
    unclaimed="scores on bAbI",
)
