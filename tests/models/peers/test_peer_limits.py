"""The common test of eviction (T13), on states that are full: what leaves them leaves no trace but
in what has read it.

The oldest entry of a full state is replaced, and one more chunk is written. What is then in the
places of entries is the same, bit by bit. A bank and a pool write the same entry too; what is
written by a peer that reads the whole state has read what leaves. The entries behind it only move:
nothing is lost before it has to leave. (T13 of what a bank folds, and T10, are in test_peer.py; the
last test here is of the control that T10 compares with.)
"""

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.memory import VALID, VECTORS
from memjax.models.peers import PEERS
from memjax.models.peers.hmt import CACHE
from memjax.models.peers.memory_pool import POOL
from memjax.models.peers.mplus import STORE, STORE_KEY
from memjax.models.request import PREDICT

CHUNKS, LENGTH, VOCABULARY, FULL = 3, 4, 24, 5
"""FULL: chunks after which every state is full, the store of M+ too."""
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TEXT = np.random.default_rng(0).integers(6, VOCABULARY, (FULL + 1, LENGTH)).astype(np.int32)
# Sequence 1 is sequence 0, until its oldest entry is replaced.
TOKENS = np.stack([TEXT, TEXT])
PLACES = {
    "autocompressor": ((VECTORS,), 1, 1),
    "memo": ((VECTORS,), 1, 1),
    "hmt": ((CACHE,), 1, 1),
    "memoryllm": ((POOL,), 2, 2),
    # Its pool loses rows to the store, and the store for good.
    "mplus": ((STORE, STORE_KEY), 2, 1),
}
"""Of peers that are no bank: leaves of entries, their axis, and entries that a chunk writes."""
READS_ALL = frozenset(("autocompressor", "memo", "hmt"))
"""Peers whose writes read the whole state, so that a new entry has read what leaves."""
NOTHING_LEAVES = {
    **dict.fromkeys(("rmt", "scalingrmt", "r3mem"), "all vectors are written anew from all"),
    **dict.fromkeys(("lamemo", "transformerxl"), "rows of tokens: a chunk replaces all of them"),
    "memoria": "rows leave by the lives that they have left, not by their age",
    "attendre": "rows leave by the attention that they got, not by their age",
    "memformer": "every slot is written anew from itself",
    "memoryprompt": "a cell adds up all chunks, and the prompt is its output",
    "larimar": "sums of all chunks",
    "pmi": "slots and pages are changed in part by every chunk",
    **dict.fromkeys(("rmc", "lem", "lstm", "gru"), "a state changes in part with every token"),
}
"""Peers without entries, and why no part of a chunk is in one place."""
EVICTING = [name for name in PEERS if name not in NOTHING_LEAVES]


def module_of(name, **dials):
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
    dials = {**PEERS[name].tiny, **dials}
    return build(config, Stage(family=name, dials=dials, objectives={"next_token": 1.0}))


def replaced(leaf, axis, count):
    """A leaf whose first `count` entries are others in sequence 1."""
    at = jnp.arange(leaf.shape[axis]).reshape(-1, *(1,) * (leaf.ndim - axis - 1)) < count
    second = jnp.arange(2).reshape(-1, *(1,) * (leaf.ndim - 1)) == 1
    other = ~leaf if leaf.dtype == bool else leaf + 3
    return jnp.where(at & second, other, leaf)


def after_a_write(module, places):
    """A full state whose oldest entry differs between the sequences, and the state after."""

    def run(model):
        prefixes = model.fold(jnp.asarray(TOKENS[:, :FULL]))
        full = model.at(prefixes, jnp.full(2, FULL))
        names, axis, count = places or (set(full.leaves) - {VALID}, 1, 1)
        leaves = {
            name: replaced(leaf, axis, count) if name in names else leaf
            for name, leaf in full.leaves.items()
        }
        state = full.replace(leaves=leaves)
        return leaves, model.write(state, jnp.asarray(TOKENS[:, FULL])).leaves

    return lambda variables: module.apply(variables, method=run)


def along(leaf, axis):
    """A leaf by sequence and entry."""
    return np.moveaxis(leaf, axis, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVICTING)
def test_what_leaves_a_full_state_leaves_no_trace(name, draw, quick):
    module = module_of(name)
    places = None if module.KIND == "bank" else PLACES[name]
    before, after = quick(after_a_write(module, places))(draw(module, TOKENS[:, :CHUNKS]))
    names, axis, count = places or (set(after) - {VALID}, 1, 1)
    for leaf in names:
        old, new = along(before[leaf], axis), along(after[leaf], axis)
        assert not np.array_equal(old[0, :count], old[1, :count])
        assert np.array_equal(old[:, count:], new[:, :-count])
        assert np.array_equal(new[0, :-count], new[1, :-count])
        assert np.array_equal(new[0, -count:], new[1, -count:]) is (name not in READS_ALL)
    for leaf in set(after) - set(names):
        assert np.array_equal(after[leaf][0], after[leaf][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rmt", "larimar", "icae"])
def test_the_control_reads_the_state_before_any_text(name, draw, quick):
    """What T10 compares with, for a peer of every kind."""
    tokens, real = jnp.asarray(TOKENS[:, :CHUNKS]), jnp.ones((2, LENGTH), bool)
    module = module_of(name)
    control = module.clone(memory=False)

    def read_nothing(model):
        place = jnp.full(2, CHUNKS - 1)
        x = model.embed_inputs(tokens[:, -1], real, place, jnp.full(2, PREDICT))
        return model.head(model.read(model.empty(2).leaves, x, tokens[:, -1], real))

    def run(variables):
        return control.apply(variables, tokens), module.apply(variables, method=read_nothing)

    logits, wanted = quick(run)(draw(module, TOKENS[:, :CHUNKS]))
    np.testing.assert_allclose(logits[:, -1], wanted, atol=1e-6)
