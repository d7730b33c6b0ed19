"""`memjax compress --vectors`: stores of the first vectors of every memory, and who reads them."""

import numpy as np
import pytest

from memjax.checkpoints.store import open_store
from memjax.checkpoints.store_records import StoreError
from memjax.cli.main import main
from memjax.inference import GenerationError
from memjax.testing import WORDS

VECTORS = 3
TEXT = " ".join(WORDS * 3)


def test_a_store_has_the_first_vectors_of_all(models, tmp_path):
    model = models["autoencoder"]
    whole = model.compress([TEXT], dtype="float32")
    for kept in (1, 2):
        store = model.compress([TEXT], dtype="float32", vectors=kept)
        vectors = store.memories.leaves["vectors"]
        assert np.array_equal(vectors, whole.memories.leaves["vectors"][:, :kept])
        assert store.nbytes * VECTORS == whole.nbytes * kept
        store.save(tmp_path / f"{kept}")
        again = open_store(tmp_path / f"{kept}", expected=model.provenance)
        assert again.provenance.leaves == {"vectors": (kept, 16)}
        with pytest.raises(StoreError, match=r"extend: .* leaves is"):
            again.extend(whole)
    for dtype in ("bfloat16", "int8", "int4"):
        first = model.compress([TEXT], dtype=dtype).memories.leaves["vectors"][:, :2]
        stored = model.compress([TEXT], dtype=dtype, vectors=2).memories.leaves["vectors"]
        assert np.array_equal(stored, first), dtype
    every = model.compress([TEXT], dtype="float32", vectors=VECTORS)
    assert every.provenance == whole.provenance
    assert every.stored["vectors"].tobytes() == whole.stored["vectors"].tobytes()


def test_it_is_reconstructed_as_training_decodes_dropped_vectors(models):
    model = models["autoencoder"]
    chunks = model.chunks([TEXT])
    store = model.compress(chunks, dtype="float32", vectors=2)
    module = model.module

    def decode(module, memory, kept):
        return module.head(module.hidden(memory, kept))

    memory = model.compress(chunks, dtype="float32").memories.leaves["vectors"]
    kept = np.full(len(memory), 2)
    logits = module.apply({"params": model.params}, memory, kept, method=decode)
    found = model.reconstruct_tokens(store)
    real = chunks.tokens != 0
    assert np.array_equal(found[real], np.asarray(logits.argmax(-1))[real])
    assert (found != model.reconstruct_tokens(model.compress(chunks, dtype="float32"))).any()


@pytest.mark.slow
def test_it_is_recalled_and_continued_from(models):
    model = models["reading"]
    stores = {n: model.compress([TEXT], dtype="float32", vectors=n) for n in (2, VECTORS)}
    found = {n: model.recall_tokens(store, range(len(store))) for n, store in stores.items()}
    assert (found[2] != found[VECTORS]).any()
    texts = {n: "".join(model.generate("and", 12, store)) for n, store in stores.items()}
    assert all(texts.values())
    store = stores[2]
    assert model.recall(store, [0]) == model.recall(store.memories, [0])


def test_prompts_of_one_batch_have_memories_of_as_many_vectors(models):
    model = models["reading"]
    one, two = (model.compress([TEXT], vectors=n) for n in (1, 2))
    generator = model.generator()
    prompts = [model.tokenizer.encode("and")] * 2
    assert len(generator.generate(prompts, 3, memories=[two, None])) == 2
    with pytest.raises((GenerationError, StoreError), match="memories of row 1"):
        generator.generate(prompts, 3, memories=[one, two])


@pytest.mark.slow
def test_the_command_writes_and_reads_it(elastic, tmp_path, capsys):
    book, out = elastic.parent / "book.txt", tmp_path / "book.store"
    path = str(elastic / "stages" / "reading")
    command = ["compress", path, str(book), f"--out={out}", "--vectors=2", "--dtype=float32"]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[2, 16] float32 each" in shown and "of tokens right" in shown
    for read in (
        ["reconstruct", path, str(out)],
        ["recall", path, f"--memory={out}", "--chunk=1"],
        ["generate", path, "--prompt=and", f"--memory={out}", "--max_new_tokens=3"],
    ):
        assert main(read) == 0, capsys.readouterr().err


@pytest.mark.parametrize("kept", ["4", "0", "two"])
def test_more_vectors_than_the_model_has_are_one_clear_line(elastic, tmp_path, capsys, kept):
    out = tmp_path / "store"
    path, book = str(elastic / "stages" / "autoencoder"), str(elastic.parent / "book.txt")
    assert main(["compress", path, book, f"--out={out}", f"--vectors={kept}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    expected = {
        "4": "vectors: 4, expected a number from 1 to the 3 of config.model.memory_vectors. Keep",
        "0": "--vectors: 0, expected",
        "two": "--vectors: 'two', expected",
    }
    assert expected[kept] in error and not out.exists()
