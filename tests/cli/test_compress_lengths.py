"""`memjax compress --chunk_length`: stores of shorter chunks, and who reads them.

Shapes: N chunk, l token of it, of the model's L.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import memjax
from memjax.checkpoints.store import open_store
from memjax.checkpoints.store_records import StoreError
from memjax.cli.main import main
from memjax.inference import GenerationError
from memjax.inference.phrases import rank
from memjax.models.request import alone, next_chunks
from memjax.objectives.recall import recall_request
from memjax.objectives.requests import shift_right
from memjax.testing import WORDS

LENGTH, OWN = 8, 4
TEXT = " ".join(WORDS * 3)


def padded(tokens):
    return np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))


@pytest.fixture(scope="module")
def store(models):
    return models["autoencoder"].compress([TEXT], dtype="float32", chunk_length=OWN)


def test_a_store_has_memories_of_padded_chunks(models, store, tmp_path):
    model = models["autoencoder"]
    ids = model.tokenizer.encode(TEXT)
    assert len(ids) % OWN and store.tokens == len(ids)
    starts = np.arange(0, len(ids), OWN)
    assert store.spans[:, 1].tolist() == starts.tolist()
    # The end of the document is filled up, as the model was trained on full chunks.
    room = -len(ids) % OWN
    filled = np.pad(ids, (0, room), constant_values=model.tokenizer.eos_id).reshape(-1, OWN)
    tokens = padded(filled)
    expected = model.module.apply({"params": model.params}, tokens, tokens != 0, method="encode")
    vectors = store.memories.leaves["vectors"]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert store.full_chunks.tolist() == list(range(len(starts) - 1))
    store.save(tmp_path / "short.store")
    again = open_store(tmp_path / "short.store", expected=model.provenance)
    assert again.provenance == store.provenance
    assert (again.provenance.chunk_length, again.provenance.settings["chunk_length"]) == (4, 8)
    both = model.compress([TEXT], dtype="float32", chunk_length=OWN, vectors=2)
    assert np.array_equal(both.memories.leaves["vectors"], vectors[:, :2])
    cut = model.compress(model.chunks([TEXT], chunk_length=OWN), dtype="float32")
    assert np.array_equal(cut.memories.leaves["vectors"], vectors)
    whole = model.compress([TEXT], dtype="float32", chunk_length=LENGTH)
    assert whole.provenance == model.provenance


@pytest.mark.parametrize("vectors", [3, 2])
def test_its_tokens_are_reconstructed(models, vectors):
    model = models["autoencoder"]
    store = model.compress([TEXT], dtype="float32", chunk_length=OWN, vectors=vectors)
    memory = store.memories.leaves["vectors"]
    logits = model.module.apply({"params": model.params}, memory, method="decode")
    found = model.reconstruct_tokens(store)
    real = np.arange(OWN) < store.spans[:, 2:3]
    assert found.shape == real.shape and not found[~real].any()
    assert np.array_equal(found[real], np.asarray(logits.argmax(-1))[:, :OWN][real])
    (text,) = model.reconstruct(store)
    assert text == model.tokenizer.decode(found[real])


@pytest.mark.parametrize("vectors", [3, 2])
def test_its_chunks_are_recalled_by_their_places(models, quick, vectors):
    model = models["reading"]
    store = model.compress([TEXT], dtype="float32", chunk_length=OWN, vectors=vectors)
    memory, asked = store.memories.leaves["vectors"][None], np.array([1, 5, len(store) - 1])

    @quick
    def direct(params, memory):
        def read(module):
            labels = jnp.full((1, len(asked), LENGTH), 9)
            request = recall_request("blank_recall", labels, asked, len(store), model.ids)
            return module.head(module.joined_states(alone(request), memory))

        return model.module.apply({"params": params}, method=read)

    found = model.recall_tokens(store, asked)
    real = np.arange(OWN) < store.spans[asked, 2:3]
    expected = direct(model.params, memory)[0].argmax(-1)[:, :OWN]
    assert found.shape == (3, OWN) and np.array_equal(found, np.where(real, expected, 0))
    texts = model.recall(store, asked)
    assert texts[0] == model.tokenizer.decode(found[0], start=False)


def test_a_decoder_reconstructs_it_some_chunks_at_a_time(models, store, quick):
    model = models["reading"]
    held = model.codec().held
    memory = store.memories.leaves["vectors"][None, held : 2 * held]

    @quick
    def direct(params, memory):
        def read(module):
            labels = jnp.full((1, held, LENGTH), 9)
            request = recall_request("blank_recall", labels, np.arange(held), held, model.ids)
            return module.head(module.joined_states(alone(request), memory))

        return model.module.apply({"params": params}, method=read)

    found = model.reconstruct_tokens(store)
    expected = direct(model.params, memory)[0].argmax(-1)[:, :OWN]
    assert held == 2 and np.array_equal(found[held : 2 * held], expected)


@pytest.mark.slow
def test_phrases_are_found_in_it(models, store):
    model = models["reading"]
    tokens = model.recall_tokens(store, range(len(store)), alone=True)
    phrase = model.tokenizer.decode(tokens[3]) + model.tokenizer.decode(tokens[4])
    assert model.find(store, phrase, 3) == rank(model.tokenizer, store, tokens, phrase, 3)


def test_scores_are_those_of_padded_chunks(models, quick):
    model = models["reading"]
    scores = model.score(TEXT, chunk_length=OWN)
    ids = np.asarray(scores.tokens)[: len(scores.tokens) // OWN * OWN]
    chunks = jnp.asarray(padded(ids.reshape(-1, OWN)))[None]

    @quick
    def direct(params):
        def read(module):
            shown = shift_right(chunks, model.ids.bos, 0)
            memories = module.encode(chunks, chunks != 0)
            joined = alone(next_chunks(shown, chunks))
            states = module.joined_states(joined, memories, token_valid=shown != 0)
            return module.token_losses(states, chunks)

        return model.module.apply({"params": params}, method=read)

    nats, correct = (np.asarray(x)[0, :, :OWN].reshape(-1) for x in direct(model.params))
    np.testing.assert_allclose(scores.nats[: len(ids)], nats, atol=1e-4)
    assert np.array_equal(scores.is_argmax[: len(ids)], correct)
    assert np.abs(model.score(TEXT).nats[: len(ids)] - nats).max() > 0.1


@pytest.mark.slow
def test_a_text_continues_behind_it_in_chunks_of_its_length(models):
    model = models["reading"]
    store = model.compress([TEXT], dtype="float32", chunk_length=OWN)
    ids, generator = model.tokenizer.encode(TEXT), model.generator(chunk_length=OWN)
    memories, rest = store[: len(store) // 2], ids[len(store) // 2 * OWN :]
    (behind,) = generator.generate([rest], 11, memories=[memories])
    (whole,) = generator.generate([ids], 11)
    assert behind.tolist() == whole.tolist()
    # Greedy tokens are the most likely ones by the form without a cache.
    assert model.scorer(chunk_length=OWN).score_tokens(ids, whole)[1].all()
    read = len(model.tokenizer.decode(ids[: len(memories) * OWN]))
    text = "".join(model.generate(TEXT[read:], 5, memories))
    assert text == model.tokenizer.decode(whole[:5], start=False)
    assert generator.strategy.limit == (model.module.budget + 1) * OWN


def run(capsys, *args):
    assert main(list(args)) == 0, capsys.readouterr().err
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow
def test_commands_write_and_read_it(elastic, tmp_path, capsys):
    path, book, out = elastic / "stages" / "reading", elastic.parent / "book.txt", tmp_path / "out"
    how = f"--chunk_length={OWN}", "--vectors=2", "--dtype=float32"
    shown = run(capsys, "compress", f"{path}", f"{book}", f"--out={out}", *how)
    assert "[2, 16] float32 each" in shown and "of tokens right" in shown
    assert open_store(out).provenance.chunk_length == OWN
    against = f"--against={book}"
    assert "tokens right" in run(capsys, "reconstruct", f"{path}", f"{out}", against)
    memory = f"--memory={out}"
    assert "tokens right" in run(capsys, "recall", f"{path}", memory, "--chunk=0:9", against)
    run(capsys, "recall", f"{path}", memory, "--find=the text")
    chosen = memory, "--chunks=:2", "--prompt=and", "--max_new_tokens=5"
    assert "reads the last 2 of 2 memories" in run(capsys, "generate", f"{path}", *chosen)
    page = tmp_path / "page.html"
    run(capsys, "report", f"{out}", f"--model={path}", f"--out={page}", against)
    assert f"of {OWN} tokens" in page.read_text()


@pytest.mark.parametrize("length", ["9", "0"])
def test_more_tokens_than_the_model_reads_are_one_clear_line(elastic, tmp_path, capsys, length):
    path, book = elastic / "stages" / "autoencoder", elastic.parent / "book.txt"
    out = f"--out={tmp_path / 'out'}"
    assert main(["compress", f"{path}", f"{book}", out, f"--chunk_length={length}"]) == 2
    expected = {
        "9": "chunk_length: 9, expected a number from 1 to the 8 of config.model.chunk_length. Cut",
        "0": "--chunk_length: 0, expected",
    }
    assert expected[length] in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_corpus_is_encoded_in_whole_chunks(elastic, tmp_path, capsys):
    command = ["compress", f"{elastic / 'stages' / 'autoencoder'}", f"{elastic}"]
    assert main([*command, f"--out={tmp_path / 'out'}", f"--chunk_length={OWN}"]) == 2
    assert "--chunk_length" in capsys.readouterr().err


def test_stores_and_chunks_of_another_length_are_refused(models, store):
    model = models["autoencoder"]
    whole = model.compress([TEXT], dtype="float32")
    with pytest.raises(StoreError, match=r"extend: .* chunk_length is 4, expected 8"):
        whole.extend(store)
    with pytest.raises(StoreError, match=r"chunk_length: 2, expected the 4 tokens of the chunks"):
        model.compress(model.chunks([TEXT], chunk_length=OWN), chunk_length=2)
    reading, prompt = models["reading"], [1, 2, 3]
    with pytest.raises(GenerationError, match=r"row 0: of chunks of 4 tokens, expected 8"):
        reading.generator().generate([prompt], 1, memories=[store])
    with pytest.raises(GenerationError, match=r"row 1: of chunks of 8 tokens, expected 4 in all"):
        reading.generator(chunk_length=OWN).generate([prompt] * 2, 1, memories=[store, whole])
    with pytest.raises(GenerationError, match=r"chunk_length: 9, expected the 8"):
        reading.score(TEXT, chunk_length=9)


def test_decoders_with_slots_refuse_it(made, tmp_path, capsys):
    path = made / "stages" / "combined"
    model = memjax.load(path)
    store = model.compress([TEXT], chunk_length=OWN)
    with pytest.raises(StoreError, match=r"chunk_length is 4, expected 8"):
        list(model.generate("and", 3, store))
    store.save(tmp_path / "short.store")
    command = ["generate", f"{path}", "--prompt=and", f"--memory={tmp_path / 'short.store'}"]
    assert main(command) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "chunk_length is 4, expected 8. Use stage combined" in error
    with pytest.raises(GenerationError, match=r"chunk_length: 4, expected the 8 of config.model"):
        model.score(TEXT, chunk_length=OWN)
