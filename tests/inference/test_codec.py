"""Encoder and decoder in one form: a system's nats are those of its family's objective."""

import dataclasses

import jax
import numpy as np
import pytest

from memjax import objectives
from memjax.config import Stage
from memjax.inference.codec import make_codec, own_objective, scores_of
from memjax.models import build, example
from memjax.objectives import SpecialIds
from memjax.testing import tiny_config

CONFIG = tiny_config("unused")
IDS = SpecialIds()
OBJECTIVE = {"autoencoder": "reconstruction", "oracle": "next_token", "memory_model": "blank_copy"}


@pytest.fixture(scope="module")
def make(draw):
    def drawn(family, ask="", **changes):
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **changes))
        module = build(config, Stage(family=family))
        system = make_codec(module, IDS, ask)
        return system, draw(module, example(module, config))["params"]

    return drawn


def texts(system, count=5):
    tokens = np.random.default_rng(0).integers(6, 320, (count, system.length)).astype(np.int32)
    tokens[0, -3:] = IDS.pad
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "ask", "changes", "shape"),
    [
        ("autoencoder", "", {}, (1, 16)),
        ("autoencoder", "", {"memory_vectors": 2, "readout": "memory_tokens"}, (2, 16)),
        ("oracle", "", {}, (1, 16)),
        ("oracle", "", {"memory_injection": "embedding", "bottleneck": 4}, (1, 4)),
        ("memory_model", "blank_copy", {}, (2, 16)),
        ("memory_model", "copy", {"memory_vectors": 2, "readout": "memory_tokens"}, (4, 16)),
        ("memory_model", "plain_copy", {}, (2, 16)),
    ],
)
def test_nats_are_those_of_the_objective(make, quick, family, ask, changes, shape):
    system, params = make(family, ask, **changes)
    tokens = texts(system)
    assert system.shape == shape
    memory = quick(system.encode)(params, tokens)
    assert memory.shape == (5, *shape)
    scores = quick(lambda p, x: scores_of(system, p, x))(params, tokens)
    # A memory model's text is the first half of a row; what the other half holds is not asked for.
    row = (
        np.concatenate([tokens, np.full_like(tokens, 9)], axis=1)
        if family == "memory_model"
        else tokens
    )
    name = ask or OBJECTIVE[family]
    expected = quick(
        lambda p, x: objectives.score(system.module, {"params": p}, x, (name,), IDS)[name]
    )(params, row.astype(np.int32))
    nats, correct, count = (
        np.sum(x * scores.weight, axis=(1, 2)) for x in (scores.nats, scores.is_argmax, 1)
    )
    np.testing.assert_allclose(
        nats, np.sum(expected.nats * expected.weight, axis=(1, 2)), rtol=1e-5
    )
    np.testing.assert_array_equal(
        correct, np.sum(expected.is_argmax * expected.weight, axis=(1, 2))
    )
    np.testing.assert_array_equal(count, (tokens != IDS.pad).sum(1))
    logits = quick(system.logits)(params, memory, tokens)
    by_hand = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), np.asarray(scores.labels)[:, 0, :, None], -1
    )[..., 0]
    real = np.asarray(scores.weight)[:, 0] > 0
    np.testing.assert_allclose(
        by_hand[real], np.asarray(scores.nats)[:, 0][real], rtol=1e-4, atol=1e-5
    )


READER = {
    "layout": "text",
    "chunk_positions": False,
    "decoder": dataclasses.replace(CONFIG.model.decoder, place_heads=1, qk_norm=True),
}


@pytest.mark.quick_cases("recall")
@pytest.mark.parametrize("ask", ["blank_recall", "recall"])
def test_recall_reads_the_first_half_by_its_places(make, ask, quick):
    """The nats of the objective on a sequence of these chunks and one more, and greedy decoding
    from a memory that is given."""
    system, params = make("memory_model", ask, **READER)
    # Padding that is predicted would be masked where it is shown.
    shown = np.arange(system.vocabulary) >= IDS.first_content
    params = params | {"head": {"kernel": params["head"]["kernel"] * shown}}
    tokens = texts(system)
    row = np.concatenate([tokens, np.full((5, CONFIG.model.chunk_length), 9)], axis=1)
    scores = quick(lambda p, x: scores_of(system, p, x))(params, tokens)
    wanted = quick(
        lambda p, x: objectives.score(system.module, {"params": p}, x, (ask,), IDS)[ask]
    )(params, row.astype(np.int32))
    for one, other in ((scores.nats, wanted.nats), (scores.is_argmax, wanted.is_argmax)):
        sums = (
            np.sum(x * w, axis=(1, 2)) for x, w in ((one, scores.weight), (other, wanted.weight))
        )
        np.testing.assert_allclose(*sums, rtol=1e-4)
    memory = quick(system.encode)(params, tokens)
    speak = quick(system.reconstruct)
    said = np.asarray(speak(params, memory, tokens))
    # Shown what it reconstructed, with the same memory, the model is right everywhere.
    own = quick(system.score)(params, memory, said)
    assert np.asarray(own.is_argmax)[np.asarray(own.weight) > 0].all()
    other = np.where(tokens == IDS.pad, tokens, 7)
    np.testing.assert_array_equal(speak(params, memory, other), said)
    assert (np.asarray(speak(params, memory[::-1], tokens)) != said).any()


@pytest.mark.parametrize(
    ("trained", "own"),
    [
        ({"recall": 1.0, "blank_recall": 0.5}, "blank_recall"),
        ({"recall": 1.0, "next_token": 1.0}, "recall"),
        ({"next_token": 1.0}, "blank_recall"),
        ({"recall": 1.0, "copy": 1.0}, "blank_copy"),
    ],
)
def test_a_stage_reconstructs_as_it_was_trained(trained, own):
    stage, model = Stage(objectives=trained), dataclasses.replace(CONFIG.model, **READER)
    assert own_objective(dataclasses.replace(CONFIG, model=model), stage) == own
    assert own_objective(CONFIG, stage) == "blank_copy", "its decoder finds no places"


def test_recall_needs_the_positions_of_the_text():
    with pytest.raises(ValueError, match=r"and with config\.model\.layout='text' by recall, blank"):
        make_codec(build(CONFIG, Stage()), IDS, "recall")


@pytest.mark.slow
def test_nats_depend_on_the_memory_that_is_given(make, quick):
    system, params = make("autoencoder")
    tokens = texts(system)
    memory = quick(system.encode)(params, tokens)
    score = quick(system.score)
    own, other = (score(params, m, tokens).nats for m in (memory, memory[::-1]))
    assert (own[0] != other[0]).any() and (own[2] == other[2]).all(), (
        "the middle text keeps its own"
    )


@pytest.mark.slow
def test_what_has_no_decoder_of_memories_is_refused(make):
    with pytest.raises(ValueError, match="a model of family causal_lm has no decoder"):
        make("causal_lm")
    with pytest.raises(ValueError, match="'': a memory model is prompted by blank_copy"):
        make("memory_model")
    module = build(CONFIG, Stage(memory=False))
    with pytest.raises(ValueError, match="it holds nothing"):
        make_codec(module, IDS, "copy")
