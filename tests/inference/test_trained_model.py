"""A trained model: text to memories and back, generation and scores, saving; and one clear error
where a family cannot.

Shapes: N chunk, L token, T token of a text.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import memjax
from memjax.checkpoints import CheckpointError
from memjax.checkpoints.store_records import StoreError
from memjax.data import TokenizerError, load_tokenizer
from memjax.inference import GenerationError, Sampling, TrainedModel
from memjax.inference.expansion import accuracy_against
from memjax.objectives import SpecialIds
from memjax.testing import WORDS

TEXTS = [" ".join(WORDS), "and the decoder reads it"]


def vectors(store):
    return store.memories.leaves["vectors"]


@pytest.fixture(scope="module")
def models(made) -> dict[str, TrainedModel]:
    return {name: memjax.load(made, name) for name in ("autoencoder", "combined", "causal_control")}


def test_encode_gives_the_memories_of_every_text(models):
    model = models["combined"]
    memories = model.encode(TEXTS)
    tokens = []
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        padded = np.zeros(-(-len(ids) // 8) * 8, np.int32)
        padded[: len(ids)] = ids
        tokens.append(padded.reshape(-1, 8))
    chunks = np.concatenate(tokens)
    assert model.config.data.packing == "packed" and (chunks == 0).any()
    # It was trained on full chunks alone, with an end id after a text.
    filled = np.where(chunks == 0, model.tokenizer.eos_id, chunks)
    expected = model.module.apply({"params": model.params}, filled[None], method="encode")[0]
    assert (memories.kind, memories.count) == ("bank", len(chunks))
    np.testing.assert_allclose(memories.leaves["vectors"], expected, rtol=1e-4, atol=1e-5)


def test_compress_takes_a_path_or_texts_and_reconstruct_returns_one_text_per_document(
    models, tmp_path
):
    model = models["autoencoder"]
    path = tmp_path / "book.txt"
    path.write_text(TEXTS[0], encoding="utf-8")
    of_path, of_texts = (model.compress(x, dtype="float32") for x in (path, TEXTS))
    count = len(of_path)
    np.testing.assert_array_equal(vectors(of_texts)[:count], vectors(of_path))
    assert len(of_path.documents) == 1 and len(of_texts.documents) == 2
    np.testing.assert_array_equal(
        vectors(model.compress(str(path), dtype="float32")), vectors(of_path)
    )
    assert of_texts.provenance.checkpoint == model.path
    found = model.reconstruct(of_texts)
    assert len(found) == 2 and [found[0]] == model.reconstruct(of_path)
    chunks = model.chunks(TEXTS)
    logits = model.module.apply({"params": model.params}, vectors(of_texts), method="decode")
    likeliest = np.where(chunks.tokens != 0, np.asarray(logits).argmax(axis=-1), 0)
    assert found[1] == model.tokenizer.decode(likeliest[count:].reshape(-1))


def test_memories_reconstruct_as_a_document_of_full_chunks(models):
    model = models["autoencoder"]
    store = model.compress(TEXTS, dtype="float32")
    full = store[store.full_chunks]
    memories = model.encode(TEXTS)
    picked = jax.tree.map(lambda x: x[store.full_chunks], memories.leaves)
    (text,) = model.reconstruct(memories.replace(leaves=picked, count=len(full)))
    assert text == "".join(model.reconstruct(full))


def test_generate_yields_what_the_generator_makes(models):
    for name in ("combined", "causal_control"):
        model = models[name]
        tokenizer = model.tokenizer
        for settings, sampling in (
            ({}, Sampling()),
            ({"temperature": 1.1, "top_k": 40, "top_p": 0.9, "seed": 3}, Sampling(1.1, 40, 0.9)),
        ):
            (ids,) = model.generator().generate(
                [tokenizer.encode("the decoder")],
                12,
                sampling,
                settings.get("seed", 0),
                stop=(tokenizer.eos_id,),
            )
            pieces = list(model.generate("the decoder", 12, **settings))
            assert len(pieces) > 1 and "".join(pieces) == tokenizer.decode(ids)


def test_generate_reads_memories_of_a_store_or_an_array(models):
    model = models["combined"]
    store = model.compress(TEXTS[0].split("decoder"), dtype="float32")
    full = model.encode(TEXTS[0].split("decoder"))
    full = full.replace(leaves={"vectors": full.leaves["vectors"][store.full_chunks]})
    of_store, of_array, alone = (
        "".join(model.generate("the", 12, memories)) for memories in (store, full, None)
    )
    assert of_store == of_array != alone


def test_scores_are_those_of_the_modules_own_logits(models, quick):
    model = models["causal_control"]
    found = model.score(TEXTS[1])
    tokens = model.tokenizer.encode(TEXTS[1])
    assert len(tokens) < 32 and model.ids == SpecialIds.of(model.tokenizer)
    row = np.zeros((1, 32), np.int32)
    row[0, : len(tokens)] = [model.ids.bos, *tokens[:-1]]
    logits = quick(model.module.apply)({"params": model.params}, row)[0, : len(tokens)]
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, None], axis=-1)
    np.testing.assert_array_equal(found.tokens, tokens)
    np.testing.assert_allclose(found.nats, nats[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(found.is_argmax, logits.argmax(axis=-1) == tokens)
    assert "".join(found.pieces) == TEXTS[1]
    assert found.mean_nats == pytest.approx(nats.mean(), rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(nats.mean()), rel=1e-3)
    assert found.accuracy == found.is_argmax.mean()


@pytest.mark.quick_cases("combined")
@pytest.mark.parametrize("name", ["combined", "causal_control"])
def test_scores_of_a_long_text_are_those_of_the_harness(models, name):
    """Of several chunks or rows, in the order of the text."""
    model, text = models[name], " ".join(WORDS * 3)
    tokens = model.tokenizer.encode(text)
    found = model.score(text)
    (whole,) = model.scorer().score([([], tokens)])
    assert len(found.nats) == len(tokens) > 64
    assert found.nats.sum() == pytest.approx(-whole.log_probability, rel=1e-5)
    for first in (0, 9, 40):
        (part,) = model.scorer().score([(tokens[:first], tokens[first : first + 1])])
        if name == "combined":
            assert found.nats[first] == pytest.approx(-part.log_probability, rel=1e-4)


@pytest.mark.parametrize("name", ["autoencoder", "combined", "causal_control"])
def test_what_is_saved_loads_to_the_last_bit(models, tmp_path, name):
    model = models[name]
    model.save(tmp_path / "out", "# A card\n")
    again = memjax.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    assert (again.config, again.stage, again.step) == (model.config, name, 8)
    assert again.module == model.module
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"
    again.save(tmp_path / "bare")
    assert not (tmp_path / "bare" / "README.md").exists()
    assert memjax.load(tmp_path / "bare").step == 8


def test_what_a_family_cannot_do_is_said_of_its_stage(models, made):
    causal, autoencoder = models["causal_control"], models["autoencoder"]
    store = autoencoder.compress(TEXTS)
    for call in (lambda: causal.encode(TEXTS), lambda: causal.compress(TEXTS)):
        with pytest.raises(
            CheckpointError, match=r"stage causal_control \(family causal_lm\) has no encoder, exp"
        ):
            call()
    with pytest.raises(CheckpointError, match=r"stage causal_control \(.*\) has no encoder"):
        causal.reconstruct(store)
    with pytest.raises(
        CheckpointError,
        match="stage causal_control: a model of family causal_lm has no decoder that",
    ):
        causal.codec()
    for call in (lambda: autoencoder.generate("a", 1), lambda: autoencoder.score("a")):
        with pytest.raises(
            GenerationError, match=f"{made}, stage autoencoder: a model of family auto"
        ):
            call()
    with pytest.raises(GenerationError, match="family causal_lm reads no memories"):
        causal.generate("a", 1, store)


def test_arguments_of_other_types_are_named(models, tmp_path):
    model = models["combined"]
    for texts in ([], [""]):
        with pytest.raises(StoreError, match="no token in all of them, expected text"):
            model.compress(texts)
    with pytest.raises(StoreError, match=r"texts: a string, expected several\. Pass \[it\]"):
        model.encode("One text.")
    path = tmp_path / "texts.store"
    model.compress(TEXTS).save(path)
    for call in (model.reconstruct, lambda memories: model.generate("a", 1, memories)):
        for given in (path, str(path)):
            with pytest.raises(StoreError, match=r"expected a store\. Open it by memjax\.open_st"):
                call(given)
    for call in (model.score, lambda text: model.generate(text, 1), lambda x: model.compress([x])):
        with pytest.raises(TokenizerError, match="text: list, expected a string"):
            call(["a", "b"])


def test_a_model_and_a_store_are_described_in_a_line(models, made):
    model = models["combined"]
    assert repr(model).startswith(f"TrainedModel({made}, stage combined, memory_model, step 8, ")
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert repr(model).endswith(f" {count:,} parameters)")
    store = model.compress(TEXTS)
    assert repr(store) == f"MemoryStore({len(store)} chunks, {len(TEXTS)} documents, bfloat16)"


def test_weights_without_a_tokenizer_take_one(models, made, tmp_path):
    model = models["combined"]
    bare = TrainedModel(model.module, model.params, model.config, None, "combined", path="here")
    for call in (
        lambda: bare.encode(TEXTS),
        lambda: bare.generate("a", 1),
        lambda: bare.score("a"),
    ):
        with pytest.raises(CheckpointError, match="here, stage combined: weights without a token"):
            call()
    tokenizer = load_tokenizer(made / "data")
    full = bare.with_tokenizer(tokenizer, made / "data")
    np.testing.assert_array_equal(
        full.encode(TEXTS).leaves["vectors"], model.encode(TEXTS).leaves["vectors"]
    )
    assert model.with_tokenizer(tokenizer).tokenizer is tokenizer


@pytest.mark.slow
def padded_on_the_left(model):
    """The model as one of rows padded on the left."""
    data = dataclasses.replace(model.config.data, packing="first_n_left")
    return dataclasses.replace(model, config=dataclasses.replace(model.config, data=data))


def test_chunks_of_texts_are_padded_as_in_training(models):
    model = padded_on_the_left(models["autoencoder"])
    chunks, right = model.chunks(TEXTS), models["autoencoder"].chunks(TEXTS)
    for ours, theirs, span in zip(chunks.tokens, right.tokens, right.spans, strict=True):
        np.testing.assert_array_equal(ours, np.roll(theirs, 8 - span[2]))
    assert (chunks.tokens != right.tokens).any()
    np.testing.assert_array_equal(chunks.spans, right.spans)
    store, real = model.compress(TEXTS, dtype="float32"), chunks.tokens != 0
    of = {"params": model.params}
    expected = model.module.apply(of, chunks.tokens, real, method="encode")
    np.testing.assert_allclose(vectors(store), expected, rtol=1e-4, atol=1e-5)
    logits = model.module.apply(of, vectors(store), method="decode")
    found = model.reconstruct_tokens(store)
    np.testing.assert_array_equal(found, np.where(real, logits.argmax(axis=-1), 0))
    assert accuracy_against(store, chunks.tokens, chunks, "texts").chunks.value == 1
    accuracy = accuracy_against(store, found, chunks, "texts")
    assert accuracy.tokens.value == pytest.approx((found == chunks.tokens)[real].mean())
    assert accuracy.chunks.value == (found == chunks.tokens).all(axis=1).mean()
    found[1:] = chunks.tokens[1:]
    some = accuracy_against(store, found[[2, 0]], chunks, "texts", [2, 0])
    assert some.chunks.value == (1 + (found[0] == chunks.tokens[0]).all()) / 2


def test_places_of_rows_padded_on_the_left_are_read_as_in_training_or_refused(models, quick):
    model = padded_on_the_left(models["causal_control"])
    tokens = model.tokenizer.encode(TEXTS[1])
    row = np.zeros((1, 32), np.int32)
    row[0, -len(tokens) :] = [model.ids.bos, *tokens[:-1]]
    logits = quick(model.module.apply)({"params": model.params}, row, row != 0)[0, -len(tokens) :]
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, None], axis=-1)
    np.testing.assert_allclose(model.score(TEXTS[1]).nats, nats[:, 0], rtol=1e-4)
    model = padded_on_the_left(models["combined"])
    for ask in (model.scorer, model.generator, lambda: model.generate("the", 1)):
        with pytest.raises(
            GenerationError, match="combined: a text: rows padded on the right, exp"
        ):
            ask()


@pytest.mark.slow
def test_an_untrained_model_is_drawn_as_training_draws(models):
    one, same, other = (models["combined"].untrained(seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    assert one.step == 0 and jax.tree.structure(one.params) == jax.tree.structure(
        models["combined"].params
    )
    table = one.params["embed"]["embedding"]
    assert (np.asarray(table) != np.asarray(other.params["embed"]["embedding"])).any()


@pytest.mark.slow
def test_parameters_that_fill_a_device_are_split_over_all():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    script = Path(__file__).with_name("split_parameters.py")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stderr[-3000:]
    whole, split = json.loads(done.stdout.splitlines()[-1])
    assert whole["held"] == 1
    # An eighth, and the parameters that no rule splits.
    assert 1 / 8 < split["held"] < 0.15
    np.testing.assert_allclose(split["memories"], whole["memories"], atol=1e-5)
    assert split["chunk"] == whole["chunk"]
