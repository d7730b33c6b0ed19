"""Cartridges: keys and values that are trained for a text, on the scores of a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Model, match_rules
from memjax.models.memory import VALID
from memjax.models.peers import PEERS
from memjax.models.peers.cartridge import Cartridges, Dials, mean_loss
from memjax.models.peers.kv_memory import KEY, VALUE

CHUNKS, LENGTH, VOCABULARY = 3, 4, 24
MODEL = Model(chunk_length=LENGTH, decoder=Backbone(width=16, layers=2, heads=2, mlp_ratio=1))
RNG = np.random.default_rng(2)
TOKENS = RNG.integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
TEXTS, REAL = TOKENS[:, 0], np.ones((2, LENGTH), bool)


def make(kind=Cartridges, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(**{"positions": 2, "steps": 2, **dials}))


def writer(module, variables, quick):
    return quick(lambda *args: module.apply(variables, *args, method="encode"))


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(steps=0), TOKENS)


@pytest.fixture(scope="module")
def write(variables, quick):
    """A write of two steps and one position that stays, compiled once."""
    return writer(make(frozen=1), variables, quick)


@pytest.mark.slow
def test_all_tokens_untrained_are_the_text_in_context(variables, quick):
    """B.21 (1), A.8; and (5): two chunks that were read alone stand one behind another."""
    module = make(positions=LENGTH, steps=0)

    def run(model):
        x = model.embed_tokens(TOKENS.reshape(2, -1), np.ones((2, 12), bool))
        chunk = jnp.arange(12) // LENGTH
        alone = (chunk[:, None] == chunk) | (chunk[:, None] == 2)
        readable = jnp.tri(12, dtype=bool) & alone
        positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
        plain = model.backbone(x[:, :8])[:, 4:]
        both = model.backbone(x, positions, readable[None])[:, 8:]
        leaves = model.fold(TOKENS[:, :2]).leaves
        one = {**leaves, VALID: leaves[VALID] & (jnp.arange(2) < 1)}
        return (
            model.read(one, x[:, 4:8], TOKENS[:, 1], REAL),
            plain,
            model.read(leaves, x[:, 8:], TOKENS[:, 2], REAL),
            both,
        )

    one, plain, two, both = quick(lambda v: module.apply(v, method=run))(variables)
    np.testing.assert_allclose(one, plain, atol=1e-5)
    np.testing.assert_allclose(two, both, atol=1e-5)


@pytest.mark.slow
def test_the_first_positions_stay(variables, write, quick):
    """B.21 (2): bit by bit, as they were before training; the others do not."""
    trained, first = write(TEXTS, REAL), writer(make(steps=0), variables, quick)(TEXTS, REAL)
    for name in (KEY, VALUE):
        np.testing.assert_allclose(trained[name][..., 0, :], first[name][..., 0, :], atol=1e-6)
        assert (trained[name][..., 1, :] != first[name][..., 1, :]).all()
    assert np.array_equal(trained[VALUE][..., 0, :], first[VALUE][..., 0, :])


@pytest.mark.slow
def test_a_student_like_its_teacher_has_the_least_loss():
    """B.21 (3): the entropy of the likely tokens; over all tokens, the gradient is 0."""
    logits = jnp.asarray(RNG.normal(size=(2, LENGTH, VOCABULARY)), jnp.float32)
    weights, ids = jax.lax.top_k(jax.nn.softmax(logits), 5)
    entropy = -jnp.sum(weights * jnp.log(weights), axis=2).mean(axis=1)
    np.testing.assert_allclose(mean_loss(logits, ids, weights, REAL), entropy, rtol=1e-6)
    weights, ids = jax.lax.top_k(jax.nn.softmax(logits), VOCABULARY)
    slope = jax.grad(lambda x: mean_loss(x, ids, weights, REAL).sum())(logits)
    np.testing.assert_allclose(slope, 0, atol=1e-7)


@pytest.mark.slow
def test_the_language_model_is_frozen(variables):
    """B.21 (4)."""
    rules = PEERS["cartridges"].trainable
    flat = flatten_dict(variables["params"], sep="/")
    assert {path for path in flat if match_rules(rules, path, "rules")} == {
        "chunk_position",
        "task_mark",
    }


@pytest.mark.slow
@pytest.mark.parametrize("distil", [True, False])
def test_training_lowers_the_loss_below_that_of_the_first_tokens(variables, quick, distil):
    """Without steps an entry is the truncated text in context."""
    module = make(steps=30, distil=distil)

    def run(model, rows):
        _, text = model.backbone.read(
            model.embed(TEXTS), jnp.broadcast_to(jnp.arange(LENGTH), TEXTS.shape), REAL
        )
        ids, weights = model.targets(text, TEXTS, REAL)
        leaves = {name: leaf[:, None] for name, leaf in rows.items()}
        states = model.read(
            {**leaves, VALID: jnp.ones((2, 1), bool)}, model.embed(TEXTS), TEXTS, REAL
        )
        return mean_loss(model.head(states), ids, weights, REAL)

    lost = quick(lambda rows: module.apply(variables, rows, method=run))
    first, last = (
        lost(writer(make(steps=steps, distil=distil), variables, quick)(TEXTS, REAL))
        for steps in (0, 30)
    )
    assert (last < first - 0.02).all()


@pytest.mark.slow
def test_padding_is_no_part_of_the_text(write):
    """Neither on the right nor on the left; a text of one token has positions to train."""
    for count in (3, 1):
        valid = np.broadcast_to(np.arange(LENGTH) < count, TEXTS.shape)
        right, other = write(TEXTS, valid), TEXTS.copy()
        other[:, count:] = 7
        jax.tree.map(np.testing.assert_array_equal, right, write(other, valid))
        left = write(np.roll(TEXTS, LENGTH - count, axis=1), valid[:, ::-1])
        # The first steps of Adam have the sign of the gradient, however small it is.
        close = [np.isclose(left[name], right[name], atol=1e-4).mean() for name in (KEY, VALUE)]
        assert min(close) > 0.95
    nothing = write(TEXTS, np.zeros_like(REAL))
    assert all(np.isfinite(leaf).all() for leaf in nothing.values())


@pytest.mark.slow
def test_no_gradient_passes_through_the_steps(variables, quick):
    module = make()

    def total(variables):
        return sum(x.sum() for x in module.apply(variables, TEXTS, REAL, method="encode").values())

    gradients = quick(jax.grad(total))(variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


class SharedLoss(Cartridges):
    """A fault: every chunk is trained on the loss of the first one of its batch."""

    def targets(self, text, tokens, valid):
        found = super().targets(text, tokens, valid)
        return tuple(jnp.broadcast_to(x[:1], x.shape) for x in found)


@pytest.mark.slow
def test_the_common_test_finds_shared_targets(variables, write, quick):
    """T9 would fail."""
    faulty, other = writer(make(SharedLoss), variables, quick), TEXTS.copy()
    other[0] = 7
    assert np.array_equal(write(TEXTS, REAL)[VALUE][1], write(other, REAL)[VALUE][1])
    assert not np.array_equal(faulty(TEXTS, REAL)[VALUE][1], faulty(other, REAL)[VALUE][1])
