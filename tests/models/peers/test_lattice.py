"""The lattice of peers: a setting of one is a setting of another, with the same weights.

Equalities that a file of one peer has are not repeated here:

- RMT on one chunk is prompt tuning (test_rmt.py). It holds for one vector: several see one another
  in RMT, and in a causal language model the first sees no other.
- HMT that recalls the last vector, with nothing before a chunk, is RMT of one vector (test_hmt.py).
- AutoCompressor without earlier summaries is a memory model, and with the newest alone RMT with
  learned queries; the latter with one vector, for the reason above (test_auto_compressor.py).
- MBC with a code for every vector is MAC (test_quantiser.py), and reading a bank CMT without a
  match is MAC (test_amortised_bank.py). The two further losses of CMT are functions that no
  objective adds, as if their weights were 0.
- Cartridges of all tokens, untrained, are the text in context (test_cartridge.py).
- Cramming with one vector and plain steps is Memory Tokens (test_per_text.py).
- Larimar reads back what it wrote, with fewer items than slots (test_larimar.py).
- RMC with one head, no gate and no MLP is one attention layer over slots (test_relational.py).
- Memo without a generator is AutoCompressor (test_auto_compressor.py); with one, it is here. Its
  agent and its reinforcement learning are left out, so that nothing else differs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.memory import VALID, VECTORS
from memjax.models.memory_model import MemoryModel
from memjax.models.peers.amortised_bank import Cmt, CmtDials, Mac
from memjax.models.peers.auto_compressor import AutoCompressor, Dials, Memo, MemoDials, cut_segments
from memjax.models.peers.icae import InContextAutoencoder
from memjax.models.peers.memory_pool import POOL, WRITTEN, MemoryLLM
from memjax.models.peers.memory_pool import Dials as PoolDials
from memjax.models.peers.mplus import STORE_AGE, MPlus, StoreDials
from memjax.models.peers.rmt import STATE, RecurrentMemoryTransformer
from memjax.models.peers.rmt import Dials as RMTDials

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 4, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def make(kind, dials, model=MODEL):
    return kind(model, CHUNKS, VOCABULARY, dials=dials)


def logits(quick, module, params):
    return quick(lambda p: module.apply({"params": p}, TOKENS))(params)


@pytest.mark.slow
def test_icae_with_trained_matrices_is_the_memory_model(draw, quick):
    """With `memory_tokens`, a writer of its own, and without marks of places."""
    module = make(InContextAutoencoder, InContextAutoencoder.dials)
    params = dict(draw(module, TOKENS)["params"])
    for name in ("chunk_position", "task_mark"):
        params[name] = jnp.zeros_like(params[name])
    config = dataclasses.replace(
        MODEL,
        memory_vectors=module.dials.vectors,
        readout="memory_tokens",
        layout="variable",
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
    )
    encoder = {
        "embed": params["embed"],
        "backbone": params["writer_backbone"],
        "memory_tokens": params["memory_tokens"],
    }
    theirs = {name: params[name] for name in ("embed", "backbone", "head")} | {"encoder": encoder}
    other = logits(quick, MemoryModel(config, CHUNKS, VOCABULARY), theirs)
    np.testing.assert_allclose(logits(quick, module, params), other, atol=1e-5)


class MacByIcae(Mac):
    """MAC with the writer of ICAE."""

    setup = Cmt.setup
    encode = InContextAutoencoder.encode


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [0, CHUNKS])
def test_cmt_that_reads_its_whole_bank_is_mac_with_the_writer_of_icae(chosen, draw, quick):
    dials = CmtDials(vectors=2, blocks=1, chosen=chosen, key_width=8)
    cmt, mac = make(Cmt, dials), make(MacByIcae, dials)
    params = dict(draw(cmt, TOKENS)["params"])
    wanted = logits(quick, mac, params)
    assert np.abs(logits(quick, cmt, params) - wanted).max() > 1e-3
    # No entry matches a question better than the others.
    params["match_query"] = {"kernel": np.zeros((WIDTH, 8), np.float32)}
    np.testing.assert_allclose(logits(quick, cmt, params), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sink", [True, False])
def test_mplus_with_an_empty_store_is_memoryllm(sink, draw, quick):
    """Until the third write drops the first row that is no copy.

    What is written is the same bit by bit, also behind a store. What is read is so up to the order
    of sums, which have a term of 0 for every place of a row that is not there.
    """
    dials = StoreDials(rows=2, vectors=1, stored=3, retrieved=2, key_width=4, sink=sink)
    mplus, pool = make(MPlus, dials), make(MemoryLLM, PoolDials(2, 1, sink))
    params = draw(mplus, TOKENS)["params"]
    own = {name: leaf for name, leaf in params.items() if name not in ("asks", "holds")}

    def run(module):
        def show(params):
            variables = {"params": params}
            leaves = module.apply(variables, TOKENS, method="fold").leaves
            return leaves, module.apply(variables, TOKENS)

        return quick(show)

    (leaves, found), (wanted, plain) = run(mplus)(params), run(pool)(own)
    assert (leaves[STORE_AGE][0] >= 0).sum(axis=1).tolist() == [0, 0, 0, 1, 2]
    assert np.array_equal(leaves[POOL], wanted[POOL])
    np.testing.assert_allclose(found[:, :3], plain[:, :3], atol=1e-6)
    assert np.abs(found[:, 3] - plain[:, 3]).max() > 1e-3


class WritesAtLastTokens(RecurrentMemoryTransformer):
    """RMT whose write slots are the last K tokens, with a mark."""

    def setup(self):
        super().setup()
        self.new_mark = self.param("new_mark", jax.nn.initializers.zeros, (WIDTH,))

    def update(self, leaves, tokens, valid):
        vectors = self.dials.vectors
        x = self.embed_tokens(tokens, valid)
        x = x.at[:, -vectors:].add(self.new_mark)
        rows = jnp.concatenate([leaves[STATE], x], axis=1)
        return {STATE: self.backbone(rows)[:, -vectors:]}


@pytest.mark.slow
def test_memoryllm_of_one_layer_and_one_write_is_rmt(draw, quick):
    """A pool of K rows in one layer, without a norm behind it, is a state before the tokens.

    With more layers it is a state for each of them, which RMT does not have.
    """
    stack = dataclasses.replace(STACK, layers=1, final_norm=False)
    model = dataclasses.replace(MODEL, decoder=stack)
    pool, rmt = (
        make(MemoryLLM, PoolDials(2, 2, False), model),
        make(WritesAtLastTokens, RMTDials(2), model),
    )
    params = dict(draw(rmt, TOKENS)["params"])
    first = jnp.broadcast_to(params["first"], (BATCH, 2, WIDTH))
    own = {name: leaf for name, leaf in params.items() if name != "first"}

    def run(model, leaves):
        for chunk in range(2):
            leaves = model.update(leaves, jnp.asarray(TOKENS[:, chunk]), REAL)
        x = model.embed_tokens(TOKENS[:, 2], REAL)
        return next(iter(leaves.values())), model.read(leaves, x, TOKENS[:, 2], REAL)

    def both(params, own):
        rows = {POOL: first[:, None], WRITTEN: jnp.ones(BATCH, bool)}
        return (
            rmt.apply({"params": params}, {STATE: first}, method=run),
            pool.apply({"params": own}, rows, method=run),
        )

    (state, read), (rows, same) = quick(both)(params, own)
    np.testing.assert_allclose(rows[:, 0], state, atol=1e-5)
    np.testing.assert_allclose(same, read, atol=1e-5)


@pytest.mark.slow
def test_memo_is_an_auto_compressor_of_segments_of_drawn_lengths(draw, quick):
    """Segments that are cut by the same draws, and then read without a generator."""
    memo, plain = make(Memo, MemoDials(2, jitter=0.5)), make(AutoCompressor, Dials(2))
    variables, rngs = draw(plain, TOKENS), {"memory": jax.random.key(1)}
    tokens, real = jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool)

    def drawn(model):
        return jax.random.randint(model.make_rng("memory"), TOKENS.shape[:2], 0, 3)

    def run(variables):
        back = memo.apply(variables, method=drawn, rngs=rngs).at[:, -1].set(0)
        cut = cut_segments(tokens, real, back, 2)
        one = memo.apply(variables, tokens, method="fold", rngs=rngs)
        return back, one.leaves, plain.apply(variables, *cut, method="fold").leaves

    back, found, wanted = quick(run)(variables)
    assert np.unique(back).size == 3
    assert np.array_equal(found[VALID], wanted[VALID])
    np.testing.assert_array_equal(found[VECTORS], wanted[VECTORS])
