"""`memjax compress` and `memjax reconstruct` on stages that were trained a little.

Shapes: N chunk, L token.
"""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import Checkpoints
from memjax.checkpoints.rounding import DTYPES as STORED
from memjax.checkpoints.store import MemoryStore, open_store
from memjax.cli.compress import ARGUMENTS, DTYPES
from memjax.cli.main import main
from memjax.config import to_json
from memjax.evaluation.instruments.rounding_loss import rounding_loss
from memjax.inference import load
from memjax.inference.chunking import Source, cut
from memjax.inference.expansion import text_of
from memjax.models.memory import bank

LENGTH = 8

pytestmark = pytest.mark.usefixtures("loaded_once")


def stage(workdir, name="autoencoder"):
    return str(workdir / "stages" / name)


def said_by(capsys, *args):
    assert main(list(args)) == 0
    return capsys.readouterr()


@pytest.fixture(scope="module")
def model(workdir):
    return load(workdir / "stages" / "autoencoder")


@pytest.fixture(scope="module")
def chunks(model, book):
    text = [
        Source(f"book.txt#{i}", part, 0)
        for i, part in enumerate(book.read_text().split("<|endoftext|>\n"))
    ]
    return cut(text, model.tokenizer, LENGTH)


@pytest.fixture(scope="module")
def expected(model, chunks, quick):
    """(memories, the likeliest token of every position) by the model's own calls, all chunks at
    once."""
    module = model.module

    def both(params, tokens):
        memory = module.apply({"params": params}, tokens, tokens != 0, method="encode")
        return memory, module.apply({"params": params}, memory, method="decode").argmax(axis=-1)

    return quick(both)(model.params, chunks.tokens)


def test_there_and_back(workdir, book, chunks, expected, tmp_path, capsys):
    out, text = tmp_path / "new" / "store", tmp_path / "text"
    said = said_by(
        capsys,
        "compress",
        stage(workdir),
        str(book),
        f"--out={out}",
        "--dtype=float32",
        "--batch_size=7",
        "--eval_examples=1000",
    ).out
    store = open_store(out)
    np.testing.assert_allclose(store.memories.leaves["vectors"], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(store.spans[:, :3], chunks.spans[:, :3])
    assert [document.name for document in store.documents] == ["book.txt#0", "book.txt#1"]
    raw = book.read_bytes()
    spelled = [raw[first:last] for _, _, _, first, last in store.spans.tolist()]
    assert b"".join(spelled) == raw.replace(b"<|endoftext|>\n", b"")
    assert store.text_bytes == sum(map(len, spelled)) and store.tokens == (chunks.tokens != 0).sum()
    taken = out.stat().st_size
    for line in (
        f"{len(chunks)} chunks of 2 documents, [1, 16] float32 each",
        f"tokens {store.tokens:,}",
        f"bytes of text {store.text_bytes:,}",
        f"bytes of the store {taken:,}",
        f"bits per token {len(chunks) * 16 * 32 / store.tokens:.1f} ",
        "float32 is not rounded",
    ):
        assert line in " ".join(said.split()), said

    real = chunks.tokens != 0
    right = (expected[1] == chunks.tokens)[real].mean()
    found = said_by(
        capsys,
        "reconstruct",
        stage(workdir),
        str(out),
        f"--out={text}",
        f"--against={book}",
        "--batch_size=5",
    ).err
    value = float(re.search(r"tokens right: ([\d.]+) \[", found)[1])
    assert value == pytest.approx(right, abs=1e-3)
    scored = float(re.search(r"nats per token, ([\d.]+) \[.*of tokens right \(", said)[1])
    assert scored == pytest.approx(right, abs=1e-3)
    tokenizer = load(workdir / "stages" / "autoencoder").tokenizer
    parts = [
        np.where(real, expected[1], 0)[chunks.spans[:, 0] == number].reshape(-1)
        for number in (0, 1)
    ]
    assert text.read_text() == "\n<|endoftext|>\n".join(map(tokenizer.decode, parts))

    one = said_by(capsys, "reconstruct", stage(workdir), str(out), "--document=1").out
    assert one.rstrip("\n") == tokenizer.decode(parts[1]).rstrip("\n")


def test_own_memories_say_more_than_others(model, chunks, expected):
    store = model.compress(chunks)
    own, true = model.reconstruct_tokens(store), chunks.tokens
    swapped = MemoryStore(store.provenance, "bfloat16")
    for number, document in enumerate(store.documents):
        part = store.of_document(number)
        rolled = np.roll(part.memories.leaves["vectors"], 1, axis=0)
        swapped.append(document, bank(rolled), part.spans[:, 1:])
    real = true != 0
    accuracy, other = (
        float((said == true)[real].mean()) for said in (own, model.reconstruct_tokens(swapped))
    )
    assert accuracy > other + 0.1
    assert accuracy == pytest.approx((expected[1] == true)[real].mean(), abs=0.03)
    assert (own[~real] == 0).all()


def test_a_selection_expands_as_before(model, chunks):
    store = model.compress(chunks, dtype="float32", batch=16)
    whole = model.reconstruct_tokens(store)
    kept = np.setdiff1d(np.arange(len(chunks)), [0, 3, len(chunks) - 1])
    np.testing.assert_array_equal(model.reconstruct_tokens(store[kept]), whole[kept])
    none = store[len(store) :]
    assert model.reconstruct_tokens(none).shape == (0, LENGTH)
    assert text_of(model.tokenizer, none, whole[:0]) == ""


@pytest.mark.parametrize("dtype", STORED)
def test_rounding_is_measured_beside_unrounded_memories(model, chunks, expected, dtype):
    """The whole text as the sample: what is measured is what the stored memories say."""
    loss = rounding_loss(model, chunks, dtype, sample=10**6, batch=64)
    real = chunks.tokens != 0
    assert loss.accuracy.value == pytest.approx(
        (expected[1] == chunks.tokens)[real].mean(), abs=1e-6
    )
    said = model.reconstruct_tokens(model.compress(chunks, dtype=dtype))
    if dtype == "float32":
        assert loss.rounded == ()
        return
    (rounded,) = loss.rounded
    assert rounded.accuracy.value == pytest.approx((said == chunks.tokens)[real].mean(), abs=0.011)
    assert rounded.difference.value == pytest.approx(rounded.nats.value - loss.nats.value, abs=1e-5)
    assert rounded.difference.value != 0


@pytest.mark.slow
def test_a_memory_model_reads_the_same_store_by_blanks(
    workdir, book, tmp_path, capsys, quick, chunks
):
    """The stages share an encoder; two chunks of a document are said again at once."""
    out = tmp_path / "store"
    said_by(
        capsys,
        "compress",
        stage(workdir),
        str(book),
        f"--out={out}",
        "--eval_examples=0",
        "--dtype=float32",
    )
    own = tmp_path / "own"
    for name in ("blanks", "combined"):  # Exports of the memory models alone.
        found = dataclasses.replace(load(workdir / "stages" / name), autoencoder="")
        found.save(own / name)
    reader = load(own / "blanks")
    store = open_store(out, expected=reader.provenance)
    said = reader.reconstruct_tokens(store, batch=4)
    system, params = reader.codec(), reader.params
    assert system.held == 2
    picked = chunks.tokens[:4].reshape(
        2, 16
    )  # Whole chunks of the first document: true tokens, to be ignored.
    logits = quick(
        lambda params, tokens: system.logits(params, system.encode(params, tokens), tokens)
    )(params, picked)
    np.testing.assert_array_equal(said[:4], logits.argmax(axis=-1).reshape(4, 8))
    asked = said_by(
        capsys, "reconstruct", str(own / "combined"), str(out), f"--out={tmp_path / 'text'}"
    )
    assert "not trained on blank_copy" in asked.err
    assert (
        "not trained"
        not in said_by(capsys, "reconstruct", str(own / "blanks"), str(out), "--document=0").err
    )


@pytest.mark.slow
def test_a_memory_model_on_a_frozen_encoder_reconstructs_by_its_autoencoder(
    workdir, chunks, expected, tmp_path
):
    model, autoencoder = (load(workdir / "stages" / name) for name in ("blanks", "autoencoder"))
    store = model.compress(chunks, dtype="float32")
    ours = autoencoder.reconstruct_tokens(store)
    np.testing.assert_array_equal(model.reconstruct_tokens(store), ours)
    model.save(tmp_path / "export")
    again = load(tmp_path / "export")
    np.testing.assert_array_equal(again.reconstruct_tokens(store), ours)
    again.save(tmp_path / "again")
    assert load(tmp_path / "again").reconstructor.stage == "autoencoder"
    # As a stage that began with the export, of another run.
    begun = dataclasses.replace(model.settings, init_from=str(tmp_path / "export"))
    meta = {
        "stage": "begun",
        "config": to_json(
            dataclasses.replace(model.config, stages={"begun": begun}, curriculum=("begun",))
        ),
        "tokenizer": model.tokenizer.fingerprint,
    }
    with Checkpoints(tmp_path / "run" / "stages" / "begun" / "checkpoints") as checkpoints:
        checkpoints.save(1, model.params, {"step": jnp.int32(1)}, meta)
    shutil.copytree(workdir / "data", tmp_path / "run" / "data")
    further = load(tmp_path / "run" / "stages" / "begun")
    assert further.reconstructor.stage == "autoencoder"
    # An encoder that was trained further is another.
    other = jax.tree.map(lambda x: x + 1e-3, model.params["encoder"])
    changed = dataclasses.replace(model, params=model.params | {"encoder": other})
    assert changed.reconstructor is changed


def test_an_oracle_is_shown_its_own_words_and_no_true_one(workdir, chunks, quick):
    oracle = load(workdir / "stages" / "oracle")
    system, tokens = oracle.codec(), chunks.tokens[:8]
    free = quick(lambda p, x: system.reconstruct(p, system.encode(p, x), x))(oracle.params, tokens)
    said = oracle.reconstruct_tokens(oracle.compress(chunks, dtype="float32")[:8])
    np.testing.assert_array_equal(said, free)
    assert (said != tokens).any()


def test_an_encoder_without_decoder_compresses(workdir, book, tmp_path, capsys):
    out = tmp_path / "store"
    said = said_by(
        capsys,
        "compress",
        stage(workdir, "retriever"),
        str(book),
        f"--out={out}",
        "--limit=3",
        "--dtype=int8",
    ).out
    assert (
        "3 chunks" in said
        and "this stage does not reconstruct text" in said
        and "unrounded" not in said
    )
    assert len(open_store(out)) == 3
    assert main(["reconstruct", stage(workdir, "retriever"), str(out)]) == 2
    assert "a model of family retriever has no decoder that reads a memory" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["reconstruct", stage(workdir), str(out)]) == 2
    assert "made by the encoder of stage retriever" in " ".join(capsys.readouterr().err.split())


def test_wrong_input_is_one_clear_line(workdir, book, tmp_path, capsys):
    out, other = tmp_path / "store", tmp_path / "other.txt"
    other.write_text("nothing that was compressed")
    args = [stage(workdir), str(book), f"--out={out}", "--limit=2", "--eval_examples=0"]
    assert main(["compress", *args]) == 0
    (tmp_path / "damaged").write_bytes(out.read_bytes()[:-1])
    for wrong, message in (
        (["compress", *args], f"--out={out}: exists, expected a new file"),
        (["compress", args[0], args[2]], "SOURCE: missing, expected PATH SOURCE..."),
        (["compress", args[2]], "PATH: missing, expected PATH SOURCE..."),
        (["compress", args[0], args[1]], "--out: missing"),
        (
            ["compress", *args[:2], f"--out={tmp_path / 'x'}", "--split=validation"],
            "--split: given, expected none with texts",
        ),
        (
            ["compress", args[0], str(workdir), args[1], f"--out={tmp_path / 'x'}"],
            "SOURCE: 2 sources with a prepared corpus",
        ),
        (
            ["compress", args[0], str(workdir), f"--out={tmp_path / 'x'}", "--limit=2"],
            "--limit: given, expected none with a prepared corpus",
        ),
        (
            ["compress", args[0], str(workdir), f"--out={tmp_path / 'x'}", "--dtype=int8"],
            "--dtype: 'int8', expected float32 or bfloat16 for a prepared corpus.",
        ),
        (["compress", *args[:2], f"--out={tmp_path / 'x'}", "--dtype=float16"], "float16"),
        (
            ["compress", args[0], "/absent.txt", f"--out={tmp_path / 'x'}"],
            "no such file on this machine",
        ),
        (
            ["compress", stage(workdir, "causal_control"), args[1], f"--out={tmp_path / 'x'}"],
            "stage causal_control (family causal_lm) has no encoder, expected",
        ),
        (
            ["compress", stage(workdir, "absent"), args[1], f"--out={tmp_path / 'x'}"],
            "absent: no folder of a stage, expected",
        ),
        (["reconstruct", args[0]], "STORE: missing, expected PATH STORE."),
        (["reconstruct", args[0], str(out), "more"], "'more': unexpected argument"),
        (["reconstruct"], "PATH: missing, expected PATH STORE."),
        (
            ["reconstruct", args[0], str(tmp_path / "none")],
            "none: No such file or directory, expected a store",
        ),
        (
            ["reconstruct", args[0], str(tmp_path / "damaged")],
            "damaged: Error while deserializing header",
        ),
        (
            ["reconstruct", args[0], str(out), "--document=7"],
            "document 7: expected a number from 0 to 0",
        ),
        (
            ["reconstruct", args[0], str(out), f"--against={other}"],
            "holds none of the texts of the store (book.txt#0",
        ),
    ):
        assert main(wrong) == 2, wrong
        said = " ".join(capsys.readouterr().err.split())
        assert message in said and "Traceback" not in said and said.count("memjax:") == 1, said
    assert not (tmp_path / "x").exists()


def test_the_command_offers_what_can_be_stored():
    assert tuple(STORED) == DTYPES == ARGUMENTS.flags["dtype"].choices
