"""PMI: the competition for slots, what is written into pages, and what is read of them. (The common
tests are in test_peer.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, ConfigError, Data, Model, Stage
from memjax.models import build
from memjax.models.checks import check
from memjax.models.peers.dual_memory import PAGES, WORKING, Attend, DualMemory

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH, SLOTS, COUNT = 2, 3, 4, 16, 8, 2, 3
STACK = Backbone(width=WIDTH, layers=1, heads=1, mlp_ratio=1)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
ROWS, OTHERS, X = (
    RNG.normal(size=(BATCH, rows, WIDTH)).astype(np.float32) for rows in (SLOTS, 5, LENGTH)
)
LEAVES = {
    WORKING: jnp.asarray(ROWS),
    PAGES: jnp.asarray(RNG.normal(size=(BATCH, COUNT, SLOTS, WIDTH)), jnp.float32),
}
MEAN, REAL = X[:, 0], np.ones((BATCH, LENGTH), bool)


def config_of(**dials):
    stage = Stage(
        family="pmi",
        dials={"slots": SLOTS, "pages": COUNT, "top": 2, **dials},
        objectives={"next_token": 1.0},
    )
    model = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
    data = Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH)
    return Config(data=data, model=model, stages={"peer": stage}), stage


def module_of(**dials):
    return build(*config_of(**dials))


def attended(draw, top, filled=None, others=OTHERS):
    module = Attend(WIDTH, jnp.float32, top)
    variables = draw(module, ROWS, OTHERS)
    return np.asarray(module.apply(variables, ROWS, others, filled)), variables["params"]


def scores_of(params):
    return np.asarray(
        np.einsum(
            "nrd,nod->nro", ROWS @ params["query"]["kernel"], OTHERS @ params["key"]["kernel"]
        )
    )


@pytest.mark.slow
def test_a_top_of_all_is_plain_attention(draw):
    found, params = attended(draw, len(OTHERS[0]))
    chosen = np.exp(scores_of(params) / WIDTH**0.5)
    chosen /= chosen.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, chosen @ (OTHERS @ params["value"]["kernel"]), atol=1e-5)
    np.testing.assert_array_equal(found, attended(draw, 0)[0])
    assert not np.allclose(found, attended(draw, 2)[0], atol=1e-2)


def test_what_is_not_chosen_has_no_effect(draw):
    """A row that no slot chooses, or that is padding, changes nothing, bit by bit."""
    found, params = attended(draw, 2)
    order = np.argsort(scores_of(params), axis=-1)
    others = OTHERS.copy()
    for row in range(BATCH):
        lost = set(range(5)) - set(order[row, :, -2:].ravel().tolist())
        for at in lost:
            others[row, at] += 1e-3
    assert (others != OTHERS).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(attended(draw, 2, others=others)[0], found)
    best = np.ones((BATCH, 5), bool)
    best[np.arange(BATCH), order[:, 0, -1]] = False
    others = np.where(best[..., None], OTHERS, 9)
    one, two = (attended(draw, 2, best, x)[0] for x in (OTHERS, others))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, found)


@pytest.mark.slow
def test_a_page_without_a_share_stays(draw):
    module = module_of()
    variables = draw(module, TOKENS)
    kernel = np.zeros((WIDTH, COUNT), np.float32)
    kernel[:, 1] = 1000 * MEAN[0]
    params = {**variables["params"], "share": {"kernel": jnp.asarray(kernel)}}
    found = module.apply({"params": params}, LEAVES, MEAN, method="consolidate")
    pages, old = found[PAGES][0], LEAVES[PAGES][0]
    np.testing.assert_array_equal(pages[::2], old[::2])
    new = old[1] + ROWS[0]
    new = (new - new.mean(-1, keepdims=True)) / np.sqrt(new.var(-1, keepdims=True) + 1e-5)
    new = new * params["pages_norm"]["scale"] + params["pages_norm"]["bias"]
    np.testing.assert_allclose(pages[1], new, atol=1e-5)
    np.testing.assert_array_equal(found[WORKING], LEAVES[WORKING])


@pytest.mark.slow
def test_alpha_shares_the_two_memories(draw, quick):
    """With alpha = 1 the pages are not read and have no gradient."""
    module = module_of()
    variables = draw(module, TOKENS)

    def reads(alpha):
        module = module_of(alpha=alpha)

        def loss(leaves):
            found = module.apply(variables, leaves, X, method="find")
            return found.sum(), found

        return quick(jax.grad(loss, has_aux=True))(LEAVES)

    (working, first), (both, found), (_, second) = reads(1.0), reads(0.25), reads(0.0)
    assert not working[PAGES].any()
    assert working[WORKING].any()
    assert both[PAGES].any()
    np.testing.assert_allclose(found, 0.25 * first + 0.75 * second, atol=1e-5)


@pytest.mark.slow
def test_a_closed_gate_keeps_the_working_memory(draw):
    module = module_of()
    variables = draw(module, TOKENS)
    gate = variables["params"]["gate"]
    bias = jnp.repeat(jnp.array([-30.0, 30.0]), WIDTH)
    shut = {
        "given": {"kernel": gate["given"]["kernel"] * 0, "bias": bias},
        "kept": {"kernel": gate["kept"]["kernel"] * 0},
    }
    closed = {"params": {**variables["params"], "gate": shut}}
    found, mean = module.apply(closed, LEAVES, X, REAL, method="rewrite")
    np.testing.assert_allclose(found[WORKING], LEAVES[WORKING], atol=1e-6)
    np.testing.assert_allclose(mean, X.mean(1), atol=1e-6)
    found, _ = module.apply(variables, LEAVES, X, REAL, method="rewrite")
    assert not np.allclose(found[WORKING], LEAVES[WORKING], atol=1e-2)


def test_padding_in_a_chunk_writes_nothing(draw):
    module = module_of()
    variables, valid = draw(module, TOKENS), REAL.copy()
    valid[:, 2] = False
    other = np.where(valid[..., None], X, 7)
    one, two = (module.apply(variables, LEAVES, x, valid, method="rewrite") for x in (X, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_a_share_of_the_whole_batch_mixes_sequences(draw):
    """T9: a mean over the batch too would pass from one sequence to another."""

    class Shared(DualMemory):
        def rewrite(self, leaves, states, valid):
            leaves, mean = super().rewrite(leaves, states, valid)
            return leaves, jnp.broadcast_to(mean.mean(axis=0), mean.shape)

    module = module_of()
    shared = Shared(module.config, module.chunks, module.vocab_size, module.dials)
    variables, other = draw(module, TOKENS), TOKENS.copy()
    other[1] = 7

    def written(model, tokens):
        states = model.apply(variables, tokens[:, :1], method="fold")
        return np.asarray(states.leaves[PAGES][0])

    for model, same in ((module, True), (shared, False)):
        assert np.array_equal(written(model, TOKENS), written(model, other)) == same


@pytest.mark.slow
def test_gradients_are_finite_and_reach_both_memories(draw, quick):
    """Also from empty pages."""
    module = module_of()
    variables = draw(module, TOKENS)
    grads = quick(jax.grad(lambda v: (module.apply(v, TOKENS) ** 2).sum()))(variables)["params"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    for name in ("compete", "recall", "recall_pages"):
        assert np.abs(grads[name]["value"]["kernel"]).max() > 0
    assert np.abs(grads["share"]["kernel"]).max() > 0


@pytest.mark.parametrize("dial", [{"alpha": 1.5}, {"gate": "half"}])
def test_dials_out_of_range_are_errors(dial):
    (name,) = dial
    with pytest.raises(ConfigError, match=name):
        check(config_of(**dial)[0])
