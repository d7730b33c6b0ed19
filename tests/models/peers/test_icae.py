"""The in-context autoencoder: a writer with adapters, and the frozen model that reads its states.
The common tests are in test_peer.py, the equality with the memory model in test_lattice.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Model, match_rules
from memjax.models.memory import VALID, VECTORS
from memjax.models.peers import PEERS
from memjax.models.peers.icae import RANK, Dials, InContextAutoencoder
from memjax.models.request import PREDICT, RETAIN

BATCH, CHUNKS, LENGTH, VOCABULARY, ROWS = 2, 3, 4, 24, 2
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(3).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
TEXT, REAL = TOKENS[:, -1], np.ones((BATCH, LENGTH), bool)
MODULE = InContextAutoencoder(MODEL, CHUNKS, VOCABULARY, dials=Dials(vectors=ROWS))


def read(model, vectors, task):
    """States of the last chunk behind the vectors of one chunk."""
    place = jnp.full(BATCH, CHUNKS - 1)
    x = model.embed_inputs(TEXT, REAL, place, jnp.full(BATCH, task))
    leaves = {VECTORS: vectors[:, None], VALID: jnp.ones((BATCH, 1), bool)}
    return model.read(leaves, x, TEXT, REAL)


@pytest.mark.slow
def test_a_writer_without_adapters_is_the_language_model(draw, quick):
    """Its rows stand behind the text."""

    def run(model):
        asked = jnp.broadcast_to(model.memory_tokens, (BATCH, ROWS, STACK.width))
        rows = jnp.concatenate([model.embed_tokens(TEXT, REAL), asked], axis=1)
        states = model.backbone(rows, valid=jnp.ones(rows.shape[:2], bool))
        return model.encode(TEXT, REAL)[VECTORS], states[:, LENGTH:]

    params = dict(draw(MODULE, TOKENS)["params"])
    params["writer_backbone"] = params["backbone"]
    vectors, states = quick(lambda p: MODULE.apply({"params": p}, method=run))(params)
    assert np.array_equal(vectors, states)


@pytest.mark.slow
def test_vectors_stand_before_the_text_that_is_decoded(draw, quick):
    def run(model):
        vectors = model.encode(TOKENS[:, 0], REAL)[VECTORS]
        place = jnp.full(BATCH, CHUNKS - 1)
        x = model.embed_inputs(TEXT, REAL, place, jnp.full(BATCH, PREDICT))
        rows = jnp.concatenate([vectors, x], axis=1)
        whole = model.backbone(rows, valid=jnp.ones(rows.shape[:2], bool))
        return read(model, vectors, PREDICT), whole[:, ROWS:]

    found, whole = quick(lambda v: MODULE.apply(v, method=run))(draw(MODULE, TOKENS))
    np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.slow
def test_the_mark_of_a_task_changes_that_task_alone(draw, quick):
    def run(model):
        vectors = model.encode(TOKENS[:, 0], REAL)[VECTORS]
        return read(model, vectors, PREDICT), read(model, vectors, RETAIN)

    program = quick(lambda v: MODULE.apply(v, method=run))
    variables = draw(MODULE, TOKENS)
    marks = np.array(variables["params"]["task_mark"])
    marks[RETAIN] += 1
    other = program({"params": {**variables["params"], "task_mark": marks}})
    predicted, retained = program(variables)
    assert np.array_equal(other[0], predicted)
    assert not np.array_equal(other[1][:, 0], retained[:, 0])


def test_adapters_memory_tokens_and_marks_alone_are_trained(draw):
    rules = PEERS["icae"].trainable
    paths = flatten_dict(draw(MODULE, TOKENS)["params"], sep="/")
    found = {path: match_rules(rules, path, "trainable") for path in paths}
    assert {path for path, how in found.items() if how is True} == {
        "memory_tokens",
        "chunk_position",
        "task_mark",
    }
    assert {path for path, how in found.items() if how == RANK and how is not True} == {
        "writer_backbone/blocks/mix/query/kernel",
        "writer_backbone/blocks/mix/value/kernel",
    }
