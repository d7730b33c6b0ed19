"""The blocked cross entropy against optax, and what it holds in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memjax.layers import Head, cross_entropy
from memjax.layers.head import BLOCK_TOKENS, block_length

BATCH, LENGTH, WIDTH, VOCABULARY = 3, 12, 8, 23
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
# Every other label is the most likely token.
LABELS = np.where(
    np.arange(LENGTH) % 2,
    RNG.integers(0, VOCABULARY, (BATCH, LENGTH)),
    np.argmax(HIDDEN @ KERNEL, -1),
)
WEIGHT = RNG.uniform(size=(BATCH, LENGTH)).astype(np.float32)


def with_gradients(nats_and_correct):
    """(hidden, kernel) to nats, correct, and the gradients of a weighted sum of the nats."""

    def run(hidden, kernel):
        def loss(hidden, kernel):
            nats, correct = nats_and_correct(hidden, kernel)
            return jnp.sum(nats * WEIGHT), (nats, correct)

        gradients, (nats, correct) = jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, kernel)
        return nats, correct, *gradients

    return run


def reference(hidden, kernel):
    logits = jnp.einsum("btd,dv->btv", hidden, kernel)
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS), jnp.argmax(
        logits, -1
    ) == LABELS


@pytest.fixture(scope="module")
def expected(quick):
    return quick(with_gradients(reference))(HIDDEN, KERNEL)


@pytest.mark.parametrize("block", [1, 4, 5, 12])
def test_values_and_gradients_are_those_of_optax(quick, expected, block):
    found = quick(with_gradients(lambda h, k: cross_entropy(h, k, LABELS, block)))(HIDDEN, KERNEL)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert LABELS.size // 2 <= found[1].sum() < LABELS.size


def test_bfloat16_hidden_states_lose_their_own_precision_and_no_more(quick):
    """Against optax in float32 on the rounded inputs: sums are in float32, only d_logits and
    d_hidden are rounded."""
    narrow = HIDDEN.astype(jnp.bfloat16)
    found = quick(with_gradients(lambda h, k: cross_entropy(h, k, LABELS, 4)))(narrow, KERNEL)
    exact = quick(with_gradients(reference))(
        narrow.astype(np.float32), KERNEL.astype(jnp.bfloat16).astype(np.float32)
    )
    assert [a.dtype.name for a in found] == ["float32", "bool", "bfloat16", "float32"]
    np.testing.assert_allclose(found[0], exact[0], atol=1e-4)
    assert np.array_equal(found[1], exact[1])
    np.testing.assert_allclose(found[2].astype(np.float32), exact[2], atol=0.03)
    np.testing.assert_allclose(found[3], exact[3], atol=0.03)


@pytest.mark.parametrize("block", [64, 32])
def test_the_gradient_of_a_tied_table_exists_in_bfloat16(block):
    table = RNG.normal(size=(512, 64)).astype(np.float32)
    hidden = RNG.normal(size=(8, 64, 64)).astype(jnp.bfloat16)
    labels = RNG.integers(0, 512, (8, 64))

    def loss(table, hidden):
        return cross_entropy(hidden, table.T, labels, block)[0].mean()

    found = jax.block_until_ready(jax.jit(jax.grad(loss))(table, hidden))
    wanted = jax.grad(loss)(table, hidden.astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-2 * np.abs(wanted).max())


def test_score_is_the_cross_entropy_of_the_logits(quick, draw):
    head = Head(WIDTH, VOCABULARY)
    variables = draw(head, HIDDEN)
    logits, (nats, correct) = quick(
        lambda v: (head.apply(v, HIDDEN), head.apply(v, HIDDEN, LABELS, method="token_losses"))
    )(variables)
    at_label = np.take_along_axis(logits, LABELS[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, np.log(np.exp(logits).sum(-1)) - at_label, atol=1e-5)
    assert np.array_equal(correct, np.argmax(logits, -1) == LABELS)
    assert logits.dtype == np.float32
    assert list(variables["params"]) == ["kernel"]


def test_head_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(quick):
    nats, correct = quick(lambda k: cross_entropy(HIDDEN, k, LABELS, 4))(
        np.zeros((WIDTH, VOCABULARY), np.float32)
    )
    np.testing.assert_allclose(nats, np.log(VOCABULARY), rtol=1e-6)
    assert np.array_equal(correct, LABELS == 0)


def test_huge_logits_stay_finite(quick):
    found = quick(with_gradients(lambda h, k: cross_entropy(h, k, LABELS, 4)))(HIDDEN * 1e4, KERNEL)
    assert all(np.all(np.isfinite(a)) for a in found)


def test_full_logits_never_exist_in_forward_or_backward(largest):
    batch, length, vocabulary = 8, 4 * BLOCK_TOKENS // 8, 50
    head = Head(WIDTH, vocabulary)
    hidden, labels = (
        np.zeros((batch, length, WIDTH), np.float32),
        np.zeros((batch, length), np.int32),
    )
    variables = {"params": {"kernel": np.zeros((WIDTH, vocabulary), np.float32)}}

    def blocked(variables, hidden):
        return head.apply(variables, hidden, labels, method="token_losses")[0].mean()

    def plain(variables, hidden):
        return optax.softmax_cross_entropy_with_integer_labels(
            head.apply(variables, hidden), labels
        ).mean()

    held = {
        f.__name__: largest(jax.value_and_grad(f, argnums=(0, 1)), variables, hidden)
        for f in (blocked, plain)
    }
    assert held == {"blocked": BLOCK_TOKENS * vocabulary, "plain": batch * length * vocabulary}


@given(batch=st.integers(1, 4000), length=st.integers(1, 600), tokens=st.integers(1, 2000))
def test_block_length_is_a_large_divisor_or_leaves_few_blocks(batch, length, tokens):
    block = block_length(batch, length, tokens)
    fits = max(1, min(length, tokens // batch))
    assert 1 <= block <= fits
    largest = max(t for t in range(1, fits + 1) if length % t == 0)
    if 2 * largest >= fits:
        assert block == largest
    else:
        assert -(-length // block) == -(-length // fits), "no more blocks than are needed"


@pytest.mark.parametrize(
    ("batch", "length", "block"),
    [(32, 128, 32), (1, 1000, 1000), (1024, 7, 1), (3, 700, 175), (8, 509, 128)],
)
def test_block_length_by_hand(batch, length, block):
    assert block_length(batch, length) == block
