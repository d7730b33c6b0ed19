"""The quantiser and MBC: codes are read as they are, gradients pass to the vectors and not to the
book, and a book of all vectors makes MBC to MAC. The common tests are in test_peer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.memory import VECTORS
from memjax.models.peers import PEERS
from memjax.models.peers.quantiser import INDEX, Mbc, Quantiser, reset, usage, with_loss

CHUNKS, LENGTH, VOCABULARY, WIDTH, CODES = 3, 4, 24, 16, 8
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
CONFIG = Config(
    data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH),
    model=Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK),
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
REAL, NUMBER = np.ones(TOKENS.shape, bool), np.arange(CHUNKS)
VECTORS_READ = RNG.normal(size=(5, WIDTH)).astype(np.float32)
BOOK = RNG.normal(size=(CODES, WIDTH)).astype(np.float32)


def module_of(name="mbc", **dials):
    dials = {**PEERS[name].tiny, **dials}
    return build(CONFIG, Stage(family=name, dials=dials, objectives={"next_token": 1.0}))


def quantised(book, vectors):
    return Quantiser(CODES, WIDTH).apply({"params": {"book": book}}, vectors)


def written(module, variables, rngs=None):
    return module.apply(variables, TOKENS, REAL, NUMBER, method=module.written, rngs=rngs).leaves


def test_the_nearest_code_is_read_bit_by_bit(quick):
    """B.5 test 1."""
    index, codes = quick(quantised)(BOOK, VECTORS_READ)
    far = np.linalg.norm(VECTORS_READ[:, None] - BOOK, axis=-1)
    assert index.tolist() == far.argmin(axis=1).tolist()
    assert np.array_equal(codes, BOOK[index])


def test_gradients_pass_the_quantiser(quick):
    """B.5 tests 2 and 3: all of it reaches the vectors, and nothing the book."""
    aim = RNG.normal(size=VECTORS_READ.shape).astype(np.float32)
    loss = lambda book, vectors: jnp.sum(quantised(book, vectors)[1] * aim)  # noqa: E731
    book, vectors = quick(jax.grad(loss, (0, 1)))(BOOK, VECTORS_READ)
    assert not np.any(book)
    assert np.array_equal(vectors, aim)


def test_the_own_loss_moves_codes_to_vectors(quick):
    """Codes by its first part, vectors by its second."""

    def loss(book, vectors):
        module, params = Quantiser(CODES, WIDTH), {"params": {"book": book}}
        index = module.apply(params, vectors, method=Quantiser.index)
        return module.apply(params, vectors, index, method=Quantiser.loss).sum(), index

    (book, vectors), index = quick(jax.grad(loss, (0, 1), has_aux=True))(BOOK, VECTORS_READ)
    difference = (BOOK[index] - VECTORS_READ) / WIDTH
    np.testing.assert_allclose(vectors, -0.5 * difference, rtol=1e-5)
    wanted = np.zeros_like(BOOK)
    np.add.at(wanted, index, 2 * difference)
    np.testing.assert_allclose(book, wanted, rtol=1e-5, atol=1e-6)


def test_a_loss_joins_a_gradient():
    """What is passed on stays the same."""
    slope = jax.grad(lambda x: 3 * with_loss(x, x**2))(2.0)
    assert (with_loss(2.0, 9.0), slope) == (2.0, 3.0 + 4.0)


@pytest.mark.slow
def test_a_reset_replaces_unused_codes():
    """B.5 test 5."""
    index = jnp.array([[0, 0], [1, 0]])
    share = usage(jnp.zeros(CODES), index)
    np.testing.assert_allclose(share[:3], [0.0075, 0.0025, 0], rtol=1e-5)
    book, after = reset(BOOK, share, VECTORS_READ, jax.random.key(0))
    assert np.array_equal(book[:2], BOOK[:2])
    assert all(any(np.array_equal(code, v) for v in VECTORS_READ) for code in book[2:])
    np.testing.assert_allclose(after[2:], share.mean(), rtol=1e-6)


def test_numbers_take_the_bits_of_the_book():
    """B.5 test 6: 12 numbers of 512 codes are 108 bits."""
    for codes, bits in ((1, 1), (2, 1), (16, 4), (17, 5), (512, 9)):
        module = module_of(vectors=12, codes=codes)
        assert module.ledger(1) == {INDEX: (12, bits)}


@pytest.fixture(scope="module")
def pair(draw, quick):
    """Scores and entries of MBC with 16 codes and of MAC, and MBC's variables."""
    mbc, mac = module_of(), module_of("mac")
    variables = jax.tree.map(np.array, draw(mbc, TOKENS))

    def run(module):
        def both(variables):
            return module.apply(variables, TOKENS), written(module, variables)

        return quick(both)

    return run(mbc), run(mac), variables


@pytest.mark.slow
def test_a_book_of_all_vectors_is_mac(pair):
    """A.8: a code for every vector is as no quantiser."""
    mbc, mac, variables = pair
    scores, leaves = mac(variables)
    assert np.abs(mbc(variables)[0] - scores).max() > 1e-3
    vectors = leaves[VECTORS].reshape(-1, WIDTH)
    book = np.concatenate([vectors, np.full((16 - len(vectors), WIDTH), 1e3, np.float32)])
    params = {**variables["params"], "quantiser": {"book": book}}
    found, leaves = mbc({"params": params})
    np.testing.assert_allclose(found, scores, atol=1e-5)
    assert len(set(leaves[INDEX].ravel().tolist())) == len(vectors)


@pytest.mark.slow
def test_a_book_of_equal_codes_holds_nothing(pair):
    """B.5 test 4: as with one code, later scores do not depend on what was written."""
    mbc, _, variables = pair
    book = np.full((16, WIDTH), 0.5, np.float32)
    params = {**variables["params"], "quantiser": {"book": book}}
    other = {**params, "writer_vectors": params["writer_vectors"] + 1}
    assert np.array_equal(mbc({"params": params})[0], mbc({"params": other})[0])
    assert not np.array_equal(
        mbc(variables)[0],
        mbc({"params": {**variables["params"], "writer_vectors": params["writer_vectors"] + 1}})[0],
    )


@pytest.mark.slow
def test_in_training_the_book_learns(draw, quick):
    """With a generator the book has the gradient of its own loss, and the scores are the same."""
    module = module_of()
    variables = draw(module, TOKENS)

    def loss(variables, rngs=None):
        return module.apply(variables, TOKENS, rngs=rngs).mean()

    quiet = quick(jax.value_and_grad(loss))(variables)
    rngs = {"memory": jax.random.key(0)}
    taught = quick(jax.value_and_grad(lambda v: loss(v, rngs)))(variables)
    assert quiet[0] == taught[0]
    assert not np.any(quiet[1]["params"]["quantiser"]["book"])
    assert np.any(quiet[1]["params"]["writer_vectors"])
    assert np.any(taught[1]["params"]["quantiser"]["book"])


@pytest.mark.slow
def test_a_state_holds_numbers_alone():
    """Also after a fold whose codes stood beside them."""
    module = module_of()
    variables = jax.eval_shape(module.init, jax.random.key(0), TOKENS)

    def kept(model):
        prefixes = model.written(TOKENS, jnp.asarray(REAL), NUMBER)
        return model.at(prefixes, jnp.full(2, 2)).leaves

    leaves = jax.eval_shape(lambda v: module.apply(v, method=kept), variables)
    assert leaves[INDEX].dtype == jnp.int32
    assert VECTORS not in leaves
    assert isinstance(module, Mbc)
