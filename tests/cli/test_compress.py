"""`memjax compress` and `memjax expand` on stages that were trained a little.

Shapes: N chunk, L token.
"""

import re

import numpy as np
import pytest

from memjax.cli.compress import DTYPES
from memjax.cli.compress import define_flags as compress_flags
from memjax.cli.main import main
from memjax.instruments.recall_curves import say
from memjax.store import DTYPES as STORED
from memjax.store import MemoryStore, Source, compress, cut, expand, open_compressor, rounding_loss, text_of

LENGTH = 8


def stage(workdir, name="autoencoder"):
    return f"--checkpoint={workdir / 'stages' / name}"


def said_by(capsys, *args):
    assert main(list(args)) == 0
    return capsys.readouterr()


@pytest.fixture(scope="module")
def compressor(workdir):
    return open_compressor(workdir / "stages" / "autoencoder")


@pytest.fixture(scope="module")
def chunks(compressor, book):
    text = [Source(f"book.txt#{i}", part, 0) for i, part in enumerate(book.read_text().split("<|endoftext|>\n"))]
    return cut(text, compressor.tokenizer, LENGTH)


@pytest.fixture(scope="module")
def expected(compressor, chunks, quick):
    """(memories, the likeliest token of every position) by the model's own calls, all chunks at once."""
    module = compressor.system.module

    def both(params, tokens):
        memory = module.apply({"params": params}, tokens, tokens != 0, method="encode")
        return memory, module.apply({"params": params}, memory, method="decode").argmax(axis=-1)

    return quick(both)(compressor.params, chunks.tokens)


def test_there_and_back(workdir, book, chunks, expected, tmp_path, capsys):
    out, text = tmp_path / "new" / "store", tmp_path / "text"
    said = said_by(
        capsys, "compress", str(book), stage(workdir), f"--out={out}", "--dtype=float32", "--batch=7", "--sample=1000"
    ).out
    store = MemoryStore.load(out)
    np.testing.assert_allclose(store.memories, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(store.spans[:, :3], chunks.spans[:, :3])
    assert [document.name for document in store.documents] == ["book.txt#0", "book.txt#1"]
    raw = book.read_bytes()
    spelled = [raw[first:last] for _, _, _, first, last in store.spans.tolist()]
    assert b"".join(spelled) == raw.replace(b"<|endoftext|>\n", b"")
    assert store.text_bytes == sum(map(len, spelled)) and store.tokens == (chunks.tokens != 0).sum()
    taken = sum(path.stat().st_size for path in out.iterdir())
    for line in (
        f"{len(chunks)} chunks of 2 documents, [1, 16] float32 each",
        f"tokens {store.tokens:,}",
        f"bytes of text {store.text_bytes:,}",
        f"bytes of the store {taken:,}",
        f"bits a token {len(chunks) * 16 * 32 / store.tokens:.1f} ",
        "float32 is not rounded",
    ):
        assert line in " ".join(said.split()), said

    real = chunks.tokens != 0
    right = (expected[1] == chunks.tokens)[real].mean()
    found = said_by(capsys, "expand", str(out), stage(workdir), f"--out={text}", f"--against={book}", "--batch=5").err
    value = float(re.search(r"tokens right: ([\d.]+) \[", found)[1])
    assert value == pytest.approx(right, abs=1e-3)
    scored = float(re.search(r"nats a token, ([\d.]+) \[.*of tokens right \(", said)[1])
    assert scored == pytest.approx(right, abs=1e-3)
    tokenizer = open_compressor(workdir / "stages" / "autoencoder").tokenizer
    parts = [np.where(real, expected[1], 0)[chunks.spans[:, 0] == number].reshape(-1) for number in (0, 1)]
    assert text.read_text() == "\n<|endoftext|>\n".join(map(tokenizer.decode, parts))

    one = said_by(capsys, "expand", str(out), stage(workdir), "--document=1").out
    assert one.rstrip("\n") == tokenizer.decode(parts[1]).rstrip("\n")


def test_own_memories_say_more_than_others(compressor, chunks, expected):
    store = compress(compressor, chunks, "bfloat16")
    own, true = expand(compressor, store), chunks.tokens
    swapped = MemoryStore.create(store.origin, "bfloat16")
    for number, document in enumerate(store.documents):
        part = store.of_document(number)
        swapped.append(document, np.roll(part.memories, 1, axis=0), part.spans[:, 1:])
    real = true != 0
    accuracy, other = (float((said == true)[real].mean()) for said in (own, expand(compressor, swapped)))
    assert accuracy > other + 0.1
    assert accuracy == pytest.approx((expected[1] == true)[real].mean(), abs=0.03)
    assert (own[~real] == 0).all()


def test_what_is_left_after_eviction_expands_as_before(compressor, chunks):
    store = compress(compressor, chunks, "float32", batch=16)
    whole = expand(compressor, store)
    store.evict(indices=[0, 3, len(chunks) - 1])
    kept = np.setdiff1d(np.arange(len(chunks)), [0, 3, len(chunks) - 1])
    np.testing.assert_array_equal(expand(compressor, store), whole[kept])
    store.evict(before=len(store))
    assert expand(compressor, store).shape == (0, LENGTH) and text_of(compressor, store, whole[:0]) == ""


@pytest.mark.parametrize("dtype", STORED)
def test_rounding_is_measured_beside_unrounded_memories(compressor, chunks, expected, dtype):
    """The whole text as the sample: what is measured is what the stored memories say."""
    loss = rounding_loss(compressor, chunks, dtype, sample=10**6, batch=64)
    real = chunks.tokens != 0
    assert loss.accuracy.value == pytest.approx((expected[1] == chunks.tokens)[real].mean(), abs=1e-6)
    said = expand(compressor, compress(compressor, chunks, dtype))
    if dtype == "float32":
        assert loss.rounded is None
        return
    assert loss.rounded.accuracy.value == pytest.approx((said == chunks.tokens)[real].mean(), abs=0.011)
    assert loss.rounded.difference.value == pytest.approx(loss.rounded.nats.value - loss.nats.value, abs=1e-5)
    assert loss.rounded.difference.value != 0
    assert rounding_loss(compressor, chunks, dtype, sample=0) is None


def test_a_memory_model_reads_the_same_store_by_blanks(workdir, book, tmp_path, capsys, quick, chunks):
    """The stages share an encoder; two chunks of a document are said again at once."""
    out = tmp_path / "store"
    said_by(capsys, "compress", str(book), stage(workdir), f"--out={out}", "--sample=0", "--dtype=float32")
    reader = open_compressor(workdir / "stages" / "blanks")
    store = MemoryStore.load(out, expected=reader.origin)
    said = expand(reader, store, batch=4)
    system, params = reader.system, reader.params
    assert system.held == 2
    picked = chunks.tokens[:4].reshape(2, 16)  # Whole chunks of the first document: true tokens, to be ignored.
    logits = quick(lambda params, tokens: system.logits(params, system.encode(params, tokens), tokens))(params, picked)
    np.testing.assert_array_equal(said[:4], logits.argmax(axis=-1).reshape(4, 8))
    asked = said_by(capsys, "expand", str(out), stage(workdir, "combined"), f"--out={tmp_path / 'text'}")
    assert "not trained on blank_copy" in asked.err
    assert "not trained" not in said_by(capsys, "expand", str(out), stage(workdir, "blanks"), "--document=0").err


def test_an_oracle_is_shown_its_own_words_and_no_true_one(workdir, chunks, quick):
    oracle = open_compressor(workdir / "stages" / "oracle")
    system, tokens = oracle.system, chunks.tokens[:8]
    free = quick(lambda params, tokens: say(system, params, system.encode(params, tokens), tokens))(oracle.params, tokens)
    said = expand(oracle, compress(oracle, chunks, "float32")[:8])
    np.testing.assert_array_equal(said, free)
    assert (said != tokens).any()


def test_an_encoder_without_decoder_compresses(workdir, book, tmp_path, capsys):
    out = tmp_path / "store"
    said = said_by(capsys, "compress", str(book), stage(workdir, "retriever"), f"--out={out}", "--limit=3", "--dtype=int8").out
    assert "3 chunks" in said and "cannot turn memories into text" in said and "unrounded" not in said
    assert len(MemoryStore.load(out)) == 3
    assert main(["expand", str(out), stage(workdir, "retriever")]) == 2
    assert "cannot turn memories into text (Retriever has no decoder" in " ".join(capsys.readouterr().err.split())
    assert main(["expand", str(out), stage(workdir)]) == 2
    assert "compressed by the encoder of stage retriever" in " ".join(capsys.readouterr().err.split())


def test_wrong_input_is_one_clear_line(workdir, book, tmp_path, capsys):
    out, other = tmp_path / "store", tmp_path / "other.txt"
    other.write_text("nothing that was compressed")
    args = [str(book), stage(workdir), f"--out={out}", "--limit=2", "--sample=0"]
    assert main(["compress", *args]) == 0
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "store.json").write_text('{"format": 2}')
    for wrong, message in (
        (["compress", *args], f"{out}: is there already; give --out a new folder"),
        (["compress", *args[1:]], "there is no file to compress; for example: memjax compress"),
        (["compress", args[0], args[2]], "--checkpoint is missing"),
        (["compress", args[0], args[1]], "--out is missing"),
        (["compress", *args[:2], f"--out={tmp_path / 'x'}", "--dtype=float16"], "float16"),
        (["compress", "/absent.txt", args[1], f"--out={tmp_path / 'x'}"], "matches no file"),
        (["compress", args[0], stage(workdir, "causal_control"), f"--out={tmp_path / 'x'}"], "causal_lm that has no encoder"),
        (["compress", args[0], stage(workdir, "absent"), f"--out={tmp_path / 'x'}"], "no checkpoint here"),
        (["expand", args[1]], "give one folder of a store and flags (it is missing)"),
        (["expand", str(out), "more", args[1]], "'more' is one too many"),
        (["expand", str(out)], "--checkpoint is missing"),
        (["expand", str(tmp_path / "none"), args[1]], "none/store.json: no such file"),
        (["expand", str(tmp_path / "damaged"), args[1]], "a store of format 2"),
        (["expand", str(out), args[1], "--document=7"], "there is no document 7; there are 1"),
        (["expand", str(out), args[1], f"--against={other}"], "holds none of the texts of the store (book.txt#0"),
    ):
        assert main(wrong) == 2, wrong
        said = " ".join(capsys.readouterr().err.split())
        assert message in said and "Traceback" not in said and said.count("memjax:") == 1, said
    assert not (tmp_path / "x").exists()


def test_the_command_offers_what_can_be_stored(capsys):
    assert tuple(STORED) == DTYPES == tuple(compress_flags()["dtype"].parser.enum_values)
    assert "--out=book.store" in said_by(capsys, "compress", "--help").out
    assert "--against" in said_by(capsys, "expand", "--help").out
