"""Vectors of texts by every family are those that its own modules give, read where they should
be."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.config import Stage, to_json
from memjax.evaluation.instruments.encoders import encode_texts, vector_reader, vectors_of
from memjax.inference import load
from memjax.inference.texts import TextsError
from memjax.models import build, example
from memjax.testing import tiny_config
from memjax.testing.families import FAMILY_OBJECTIVES

CONFIG = tiny_config("unused")
PAD = 0
MEMORY_TOKENS = {"memory_vectors": 2, "readout": "memory_tokens"}


def save(folder, family, params, config, stage=None, tokenizer=""):
    """A checkpoint of one stage; its tokenizer is not known unless given."""
    stage = dataclasses.replace(
        stage or Stage(family=family), objectives={FAMILY_OBJECTIVES[family][0]: 1.0}, steps=100
    )
    config = dataclasses.replace(config, stages={"it": stage}, curriculum=("it",), controls=())
    meta = {
        "stage": "it",
        "config": to_json(config),
        "tokenizer": tokenizer,
        "next_row": 0,
        "seconds": 0.0,
    }
    with Checkpoints(folder / "stages" / "it" / "checkpoints") as checkpoints:
        checkpoints.save(3, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(3)}, meta)
    return folder / "stages" / "it"


@pytest.fixture
def stage_of(tmp_path, draw):
    """(folder, module, params) of a stage of drawn weights."""

    def make(family, stage=None, **changes):
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **changes))
        module = build(config, stage or Stage(family=family))
        params = draw(module, example(module, config))["params"]
        return save(tmp_path, family, params, config, stage), module, params

    return make


def some_texts(count=5, length=8):
    texts = np.random.default_rng(3).integers(6, 320, (count, length)).astype(np.int32)
    texts[0, -3:] = PAD
    return texts


@pytest.fixture
def applied(quick):
    return lambda module, params, *args, **kwargs: quick(
        lambda p: module.apply({"params": p}, *args, **kwargs)
    )(params)


@pytest.mark.quick_cases(
    "autoencoder-changes1-shape1", "memory_model-changes2-shape2", "oracle-changes3-shape3"
)
@pytest.mark.parametrize(
    ("family", "changes", "shape"),
    [
        ("autoencoder", {}, (1, 16)),
        ("autoencoder", MEMORY_TOKENS, (2, 16)),
        ("memory_model", {"bottleneck": 4}, (1, 16)),
        ("oracle", {"bottleneck": 4, "memory_injection": "embedding"}, (1, 4)),
        ("ranker", {}, (1, 16)),
    ],
)
def test_an_encoder_gives_the_memories_of_its_model(stage_of, applied, family, changes, shape):
    folder, module, params = stage_of(family, **changes)
    encoder = vector_reader(load(folder))
    assert (
        encoder.shape,
        encoder.length,
        encoder.model.vocab_size,
        encoder.model.family,
        encoder.info.tokenizer,
    ) == (
        shape,
        8,
        320,
        family,
        "",
    )
    texts = some_texts()
    folded = family in ("memory_model", "ranker")
    chunks = texts[:, None] if folded else texts
    expected = applied(module, params, chunks, chunks != PAD, method="encode").reshape(5, *shape)
    # The last batch is not full.
    found = encode_texts(encoder, texts, batch=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32


def test_a_retriever_gives_what_it_would_normalise(stage_of, applied):
    folder, module, params = stage_of("retriever")
    found = encode_texts(vector_reader(load(folder)), some_texts())[:, 0]
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(
        unit, applied(module, params, some_texts(), some_texts() != PAD), rtol=1e-5, atol=1e-6
    )


def test_an_encoder_is_read_where_it_is_asked_to_be(stage_of, applied):
    folder, module, params = stage_of("autoencoder", readout="second_to_last")
    texts = some_texts()
    valid = texts != PAD

    def states(module):
        return module.encoder.backbone(module.encoder.embed(texts), None, valid)

    hidden = applied(module, params, method=states)
    for readout, of_padded, of_whole in ((-1, 4, 7), (-2, 3, 6), (None, 3, 6)):
        found = encode_texts(vector_reader(load(folder), readout=readout), texts)[:, 0]
        np.testing.assert_allclose(found[0], hidden[0, of_padded], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1:], hidden[1:, of_whole], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "mixer"])
def test_a_language_model_is_read_at_the_end_of_the_text(stage_of, applied, kind):
    decoder = dataclasses.replace(CONFIG.model.decoder, kind=kind)
    folder, module, params = stage_of("causal_lm", decoder=decoder)
    # Rows are of 32 tokens: what follows a text in its row changes nothing.
    texts = some_texts(length=12)
    rows = np.concatenate([texts, np.full((5, 20), 77)], axis=1)
    hidden = applied(module, params, rows, rows != PAD, method="hidden")
    for readout, of_padded, of_whole in ((-1, 8, 11), (-2, 7, 10)):
        encoder = vector_reader(load(folder), readout=readout, length=12)
        assert encoder.shape == (1, 16) and encoder.length == 12
        found = encode_texts(encoder, texts)[:, 0]
        np.testing.assert_allclose(found[0], hidden[0, of_padded], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1:], hidden[1:, of_whole], rtol=1e-4, atol=1e-5)
    assert vector_reader(load(folder)).length == 8


def test_a_recurrent_memory_is_read_at_its_write_slots(stage_of, applied):
    folder, module, params = stage_of("recurrent_memory", memory_vectors=2)
    texts = some_texts()
    chunks = np.stack([texts, texts], axis=1)
    states = applied(module, params, chunks, chunks != PAD, method="states")
    np.testing.assert_allclose(
        encode_texts(vector_reader(load(folder)), texts), states[:, 0, -2:], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(CheckpointError, match="readout=-2, expected none for a recurrent memory"):
        vector_reader(load(folder), readout=-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["autoencoder", "causal_lm"])
def test_untrained_weights_are_those_that_training_starts_from(stage_of, quick, family):
    folder, module, _ = stage_of(family)
    trained, fresh = vector_reader(load(folder)), vector_reader(load(folder)).untrained(5)
    key = jax.random.fold_in(jax.random.key(5), zlib.crc32(b"it"))
    expected = quick(lambda key: module.init(key, example(module, CONFIG))["params"])(key)
    expected = expected["encoder"] if family == "autoencoder" else expected
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6),
        fresh.params,
        expected,
    )
    assert trained.untrained(5).encode is trained.encode, "nothing is compiled again"
    assert (
        encode_texts(trained.untrained(5), some_texts()) != encode_texts(trained, some_texts())
    ).all()
    assert vectors_of(fresh, some_texts()).info.encoder == f"{folder} untrained"


def test_what_has_no_vectors_of_a_text_is_refused(stage_of):
    with pytest.raises(CheckpointError, match=r"stage it .family memory_model. has no encoder"):
        vector_reader(load(stage_of("memory_model", Stage(memory=False))[0]))
    folder, *_ = stage_of("autoencoder")
    with pytest.raises(ValueError, match=r"readout=1: expected -1, a text's last token"):
        vector_reader(load(folder), readout=1)


def test_learned_read_outs_have_no_last_token(stage_of):
    folder, *_ = stage_of("autoencoder", **MEMORY_TOKENS)
    assert vector_reader(load(folder), readout=-1).shape == (2, 16)
    with pytest.raises(
        CheckpointError, match="readout=-2, expected none for vectors of learned memory_tokens"
    ):
        vector_reader(load(folder), readout=-2)


def test_texts_that_do_not_fit_are_refused(stage_of):
    folder, *_ = stage_of("causal_lm")
    with pytest.raises(
        CheckpointError, match="length=33, expected at most 32, the model's sequence length"
    ):
        vector_reader(load(folder), length=33)
    encoder = vector_reader(load(folder))
    with pytest.raises(TextsError, match=r"texts of shape \[2, 9\], expected \[T, 8\]"):
        encode_texts(encoder, some_texts(2, 9))
    with pytest.raises(TextsError, match="no texts, expected at least one"):
        encode_texts(encoder, some_texts()[:0])
    with pytest.raises(TextsError, match=r"ids 0 to 3\d\d, expected ids of its vocabulary of 320"):
        encode_texts(encoder, some_texts() + (some_texts() > 0) * 60)
