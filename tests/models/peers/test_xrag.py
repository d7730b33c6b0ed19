"""xRAG: a language model and a retriever that stay as they are, and a network between them. The
common tests are in test_peer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Config, Data, Model, Stage, match_rules
from memjax.models import Retriever, build
from memjax.models.memory import VECTORS
from memjax.models.peers import PEERS
from memjax.models.peers.xrag import Xrag, distillation

CHUNKS, LENGTH, VOCABULARY, WIDTH = 3, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
CONFIG = Config(
    data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH),
    model=Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK),
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
MODULE = build(CONFIG, Stage(family="xrag", objectives={"next_token": 1.0}))


def encoded(tokens):
    return lambda variables: MODULE.apply(
        variables, tokens, np.ones(tokens.shape, bool), method=Xrag.encode
    )[VECTORS]


@pytest.fixture(scope="module")
def variables(draw):
    return draw(MODULE, TOKENS)


@pytest.fixture(scope="module")
def scores(quick):
    program = quick(MODULE.apply)
    return lambda variables, tokens=TOKENS: program(variables, tokens)


@pytest.mark.slow
def test_what_is_stored_is_the_vector_of_a_retriever(variables, quick):
    """The encoder is a retriever's, part by part, so that a trained one can be named for it."""
    tokens = TOKENS[:, 0]
    retriever = Retriever(CONFIG.model, VOCABULARY)
    own = {"params": {"encoder": variables["params"]["encoder"]}}
    wanted = quick(lambda v: retriever.apply(v, tokens))(own)
    found = quick(encoded(tokens))(variables)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)


def test_the_network_is_all_that_is_trained(variables):
    """B.20 test 1: beside the marks of places and tasks, which the language model never had."""
    flat = flatten_dict(variables["params"], sep="/")
    rules = PEERS["xrag"].trainable
    trained = {path.split("/")[0] for path in flat if match_rules(rules, path, "rules")}
    assert trained == {"bridge_in", "bridge_out", "chunk_position", "task_mark"}


@pytest.mark.slow
def test_the_retriever_has_no_gradient(variables, quick):
    """No loss reaches it; the network has one."""
    loss = lambda variables: jnp.sum(MODULE.apply(variables, TOKENS) ** 2)  # noqa: E731
    slope = quick(jax.grad(loss))(variables)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope["encoder"]))
    assert np.any(slope["bridge_in"]["kernel"])


@pytest.mark.slow
def test_a_network_of_zeros_reads_a_constant(variables, scores):
    """B.20 test 3: scores do not depend on what was written."""
    other = TOKENS.copy()
    other[:, 0] = 7
    params = variables["params"]
    none = {
        name: jax.tree.map(jnp.zeros_like, params[name]) for name in ("bridge_in", "bridge_out")
    }
    for given, same in (({**params, **none}, True), (params, False)):
        one, two = (scores({"params": given}, tokens)[:, 1:] for tokens in (TOKENS, other))
        assert np.array_equal(one, two) == same


@pytest.mark.slow
def test_a_student_like_its_teacher_has_no_divergence():
    """B.20 test 2; and only the student has a gradient."""
    teacher, student = RNG.normal(size=(2, 3, VOCABULARY)).astype(np.float32)
    np.testing.assert_allclose(distillation(teacher, teacher + 2), 0, atol=1e-6)
    assert (distillation(teacher, student) > 0).all()
    of_teacher, of_student = jax.grad(lambda *x: distillation(*x).sum(), (0, 1))(teacher, student)
    assert not np.any(of_teacher)
    wanted = jax.nn.softmax(student) - jax.nn.softmax(teacher)
    np.testing.assert_allclose(of_student, wanted, atol=1e-6)


class SharedXrag(Xrag):
    """A faulty one, which reads what all sequences of a batch have written."""

    def bridge(self, e):
        return super().bridge(e + e.mean(axis=0, keepdims=True))


@pytest.mark.slow
def test_the_common_test_finds_shared_sequences(variables, scores, quick):
    """T9 would fail."""
    module, other = SharedXrag(MODULE.config, MODULE.chunks, VOCABULARY), TOKENS.copy()
    other[1] = 7
    shared = quick(module.apply)
    assert np.array_equal(scores(variables)[0], scores(variables, other)[0])
    assert not np.array_equal(shared(variables, TOKENS)[0], shared(variables, other)[0])
