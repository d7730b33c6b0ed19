"""`memjax generate`: the continuation of a prompt on stdout, as the generator gives it, and every
wrong input as one line."""

import numpy as np
import pytest

from memjax.checkpoints.store import open_store
from memjax.cli.main import main
from memjax.inference import Sampling, load
from memjax.inference.chunking import cut, read_sources
from memjax.inference.generator import text_pieces

pytestmark = pytest.mark.usefixtures("loaded_once")


def says(capsys, *args):
    assert main(["generate", *map(str, args)]) == 0
    return capsys.readouterr().out


def expected(place, stage, prompt, tokens, sampling=Sampling(), seed=0):  # noqa: B008
    model = load(place / "run", stage)
    tokenizer = model.tokenizer
    (made,) = model.generator().generate(
        [tokenizer.encode(prompt)], tokens, sampling, seed, stop=(tokenizer.eos_id,)
    )
    return tokenizer.decode(made) + "\n"


@pytest.mark.slow
def test_the_continuation_is_written(place, capsys):
    stage = place / "run" / "stages" / "memory_model"
    prompt = "a memory holds what the chunk said and the decoder"
    greedy = says(capsys, stage, f"--prompt={prompt}", "--max_new_tokens=30")
    assert greedy == expected(place, "memory_model", prompt, 30)
    assert len(greedy) > 15
    (place / "prompt.txt").write_text(prompt, encoding="utf-8-sig")
    assert (
        says(
            capsys,
            stage,
            f"--prompt_file={place / 'prompt.txt'}",
            "--max_new_tokens=30",
        )
        == greedy
    )
    # A workdir is the last stage of its curriculum.
    chance = (
        "--prompt=",
        "--max_new_tokens=12",
        "--temperature=1.2",
        "--top_k=50",
        "--top_p=0.9",
        "--seed=5",
    )
    drawn = says(capsys, place / "run", *chance)
    assert drawn == expected(place, "causal_lm", "", 12, Sampling(1.2, 50, 0.9), 5)
    assert drawn != says(capsys, place / "run", *chance[:-1], "--seed=6")


def test_characters_are_written_when_they_are_whole(place):
    tokenizer = load(place / "run", "memory_model").tokenizer
    text = "naïve – 𝄞 λόγος\n\N{REPLACEMENT CHARACTER} end"
    written = list(text_pieces(tokenizer, tokenizer.encode(text)))
    assert "".join(written) == text and len(written) > 10
    assert not any(
        "\N{REPLACEMENT CHARACTER}" in part
        for part in written[:-4]
        if part.strip("\N{REPLACEMENT CHARACTER}")
    )
    broken = [6 + 0xE2, 6 + 0x82, *tokenizer.encode("abcd")]
    assert "".join(text_pieces(tokenizer, broken)) == tokenizer.decode(broken)
    assert "".join(text_pieces(tokenizer, broken[:2])) == tokenizer.decode(broken[:2])


WRONG = {
    "no stage": (["--prompt=a"], "PATH: missing, expected PATH."),
    "no prompt": (["{run}"], "--prompt, --prompt_file: both missing, expected one"),
    "two prompts": (
        ["{run}", "--prompt=a", "--prompt_file=b"],
        "--prompt, --prompt_file: both given, expected one",
    ),
    "a stray word": (["{run}", "--prompt=a", "word"], "'word': unexpected argument"),
    "no file": (["{run}", "--prompt_file=/nowhere/at/all"], "/nowhere/at/all"),
    "a device": (["{run}", "--prompt_file=/dev/zero"], "/dev/zero has more than 16,777,216 char"),
    "no text": (["{run}", "--prompt_file={bytes}"], "expected UTF-8 text"),
    "an unknown stage": (
        ["{run}/stages/copy", "--prompt=a"],
        "stages/copy: no folder of a stage, expected a workdir",
    ),
    "a family without a next token": (
        ["{run}/stages/autoencoder", "--prompt=a"],
        "stage autoencoder: a model of family autoencoder does not generate or score text"
        " token by token; memory_model, causal_lm, recurrent_memory do",
    ),
    "imported weights": (
        ["{imported}", "--prompt=a"],
        "imported, stage causal_lm: weights without a tokenizer, expected one",
    ),
    "a negative temperature": (
        ["{run}", "--prompt=a", "--temperature=-1"],
        "--temperature: -1, expected a number of at least 0.",
    ),
    "no tokens": (["{run}", "--prompt=a", "--max_new_tokens=0"], "--max_new_tokens: 0, expected"),
    "too many tokens": (
        ["{run}", "--prompt=a", "--max_new_tokens=100", "--overflow=error"],
        "max_new_tokens=100, expected at most the 32 tokens of which the model keeps everything.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(place, capsys, case):
    args, message = WRONG[case]
    bad = place / "bytes.txt"
    bad.write_bytes(b"\xff\xfe")
    args = [arg.format(run=place / "run", imported=place / "imported", bytes=bad) for arg in args]
    assert main(["generate", *args]) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert said.err.count("memjax:") == 1 and not said.out


# From memories

LENGTH, CHUNKS = 8, 4


@pytest.fixture(scope="module")
def novel(book, tmp_path_factory):
    """The book without the last characters of its texts, which then fill no chunk."""
    path = tmp_path_factory.mktemp("novel") / "novel.txt"
    path.write_text(
        "<|endoftext|>\n".join(
            text[:-9] + "\n" for text in book.read_text().split("<|endoftext|>\n")
        )
    )
    return path


@pytest.fixture(scope="module")
def stores(workdir, novel, tmp_path_factory):
    """The novel in stores of encoders that are one, and of another."""
    folder = tmp_path_factory.mktemp("stores")
    for stage, dtype in (
        ("autoencoder", "float32"),
        ("autoencoder", "int8"),
        ("combined", "float32"),
        ("retriever", "float32"),
    ):
        out = f"--out={folder / stage}-{dtype}"
        args = [
            str(workdir / "stages" / stage),
            str(novel),
            out,
            f"--dtype={dtype}",
            "--eval_examples=0",
        ]
        assert main(["compress", *args]) == 0
    return folder


def test_a_text_goes_on_from_its_memories(workdir, novel, stores, capsys):
    """As from the text itself, of which a model keeps three chunks and what follows them."""
    model = load(workdir, "combined")
    generator, tokenizer = model.generator(), model.tokenizer
    chunks = cut(read_sources([str(novel)]), tokenizer, LENGTH)
    document, full = chunks.spans[:, 0], chunks.spans[:, 2] == LENGTH
    prompt = "the memory"
    ids = tokenizer.encode(prompt)
    assert LENGTH <= len(ids) < 2 * LENGTH and not full.all()

    def text(picked):
        prompt = np.concatenate([*chunks.tokens[picked], ids])
        (made,) = generator.generate([prompt], 30, stop=(tokenizer.eos_id,))
        return "".join(text_pieces(tokenizer, made)) + "\n"

    def said(store, *flags):
        args = [
            "generate",
            str(workdir / "stages" / "combined"),
            f"--memory={stores / store}",
            f"--prompt={prompt}",
        ]
        assert main([*args, "--max_new_tokens=30", *flags]) == 0
        return capsys.readouterr()

    capsys.readouterr()
    last = said("autoencoder-float32")
    assert last.out == text(full)
    assert said("combined-float32").out == last.out, "a frozen encoder stays the same"
    read = CHUNKS - 1 - len(ids) // LENGTH
    assert f"reads the last {read} of {full.sum()} memories" in " ".join(last.err.split())
    for flags, picked in (
        (("--document=0",), full & (document == 0)),
        (("--document=0", "--chunks=:2"), np.flatnonzero(document == 0)[:2]),
        (("--chunks=3:-4",), np.flatnonzero(full)[3:-4]),
    ):
        found = said("autoencoder-float32", *flags)
        assert found.out == text(picked) != last.out
    assert len(said("autoencoder-int8").out) > 15
    generate = [
        "generate",
        str(workdir / "stages" / "combined"),
        f"--memory={stores / 'autoencoder-float32'}",
    ]
    assert (
        main([*generate, "--prompt=", "--chunks=-3:", "--max_new_tokens=8", "--overflow=error"])
        == 0
    )
    assert main([*generate, "--prompt=", "--max_new_tokens=8", "--overflow=error"]) == 2
    message = (
        f"autoencoder-float32: {full.sum()} memories before a prompt of 0 tokens and"
        " --max_new_tokens=8, expected at most 3 of the 3 before the last chunk of a training"
        " sequence. Read the last ones by --chunks=-3:"
    )
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_fills_no_chunk_is_named(workdir, novel, stores, capsys):
    """The bytes that are named are the text that the memories lack."""
    store = open_store(stores / "autoencoder-float32")
    number, name = next((n, d.name) for n, d in enumerate(store.documents) if d.tokens % LENGTH)
    spans = store.of_document(number).spans
    _, _, tokens, first, last = spans[-1].tolist()
    args = [
        str(workdir / "stages" / "combined"),
        f"--memory={stores / 'autoencoder-float32'}",
        f"--document={number}",
    ]
    assert main(["generate", *args, "--prompt=", "--max_new_tokens=1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"the next {tokens} tokens ({name}, bytes {first} to {last}) fill no chunk" in said
    assert novel.read_bytes()[first:last].decode().strip()
    assert main(["generate", *args, "--prompt=", "--max_new_tokens=1", "--chunks=:-1"]) == 0
    assert "fill no chunk" not in capsys.readouterr().err


REFUSED = {
    "no store": (
        ["--memory=/nowhere/at/all", "--prompt="],
        "/nowhere/at/all: No such file or directory, expected a store",
    ),
    "a document of none": (
        ["--document=1", "--prompt="],
        "--document: given without a store. Add --memory=STORE.",
    ),
    "chunks of none": (
        ["--chunks=1:", "--prompt="],
        "--chunks: given without a store. Add --memory=STORE.",
    ),
    "chunks that are none": (
        ["--memory={store}", "--chunks=3", "--prompt="],
        "--chunks: '3', expected a slice such as 10:20",
    ),
    "words for chunks": (
        ["--memory={store}", "--chunks=a:b", "--prompt="],
        "--chunks: 'a:b', expected a slice such as 10:20",
    ),
    "no such chunk": (
        ["--memory={store}", "--chunks=900:", "--prompt="],
        "--chunks: 900:, expected at least one of the",
    ),
    "no such document": (
        ["--memory={store}", "--document=7", "--prompt="],
        "document 7: expected a number from 0 to 1",
    ),
    "another encoder": (
        ["--memory={other}", "--prompt="],
        "made by the encoder of stage retriever (retriever, step 1)",
    ),
    "another family": (
        ["--memory={store}", "--prompt="],
        "a model of family causal_lm reads no memories; models of family",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_memories_that_cannot_be_read_are_refused(workdir, stores, capsys, case):
    args, message = REFUSED[case]
    args = [
        arg.format(store=stores / "autoencoder-float32", other=stores / "retriever-float32")
        for arg in args
    ]
    stage = workdir / "stages" / ("causal_control" if case == "another family" else "combined")
    assert main(["generate", str(stage), "--max_new_tokens=3", *args]) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert said.err.count("memjax:") == 1 and not said.out


def test_a_text_shorter_than_a_chunk_belongs_in_the_prompt(workdir, tmp_path, capsys):
    text, stage = tmp_path / "short.txt", str(workdir / "stages" / "combined")
    text.write_text("a memory")
    store = f"{tmp_path / 'store'}"
    assert main(["compress", stage, str(text), f"--out={store}", "--eval_examples=0"]) == 0
    capsys.readouterr()
    args = ["generate", stage, "--max_new_tokens=2"]
    assert main([*args, f"--memory={store}", "--prompt="]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"memjax: {store}: ") and "--chunks" not in said
    assert "tokens in texts shorter than a chunk, expected 8 or more. Begin the prompt" in said
    assert main([*args, f"--prompt={text.read_text()}"]) == 0


def test_a_store_of_another_run_is_refused(place, stores, capsys):
    """Its words are others."""
    args = [
        str(place / "run" / "stages" / "memory_model"),
        f"--memory={stores / 'autoencoder-float32'}",
        "--prompt=",
    ]
    assert main(["generate", *args]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ": tokenizer " in said or ": sha256 is " in said
