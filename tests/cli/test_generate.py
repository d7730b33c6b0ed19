"""`memjax generate`: the continuation of a prompt on stdout, as the generator gives it, and every wrong input as one line."""

import numpy as np
import pytest

from memjax.cli.generate import Writer
from memjax.cli.main import main
from memjax.inference import Sampling, open_generator
from memjax.store import MemoryStore, cut, read_sources


def says(capsys, *args):
    assert main(["generate", *map(str, args)]) == 0
    return capsys.readouterr().out


def expected(place, stage, prompt, tokens, sampling=Sampling(), seed=0):  # noqa: B008
    generator, tokenizer = open_generator(place / "run", stage)
    (made,) = generator.generate([tokenizer.encode(prompt)], tokens, sampling, seed, stop=(tokenizer.eos_id,))
    return tokenizer.decode(made) + "\n"


def test_the_continuation_is_written(place, capsys):
    workdir = f"--workdir={place / 'run'}"
    prompt = "a memory holds what the chunk said and the decoder"
    greedy = says(capsys, workdir, "--stage=memory_model", f"--prompt={prompt}", "--tokens=30")
    assert greedy == expected(place, "memory_model", prompt, 30)
    assert len(greedy) > 15
    (place / "prompt.txt").write_text(prompt, encoding="utf-8")
    assert says(capsys, workdir, "--stage=memory_model", f"--prompt_file={place / 'prompt.txt'}", "--tokens=30") == greedy
    # The last stage of the curriculum unless another is named.
    chance = ("--prompt=", "--tokens=12", "--temperature=1.2", "--top_k=50", "--top_p=0.9", "--seed=5")
    drawn = says(capsys, workdir, *chance)
    assert drawn == expected(place, "causal_lm", "", 12, Sampling(1.2, 50, 0.9), 5)
    assert drawn != says(capsys, workdir, *chance[:-1], "--seed=6")


def test_characters_are_written_when_they_are_whole(place, capsys):
    _, tokenizer = open_generator(place / "run", "memory_model")
    text = "naïve – 𝄞 λόγος\n\N{REPLACEMENT CHARACTER} end"
    writer, written = Writer(tokenizer), []
    for token in tokenizer.encode(text):
        writer.add(token)
        written.append(capsys.readouterr().out)
    writer.end()
    assert "".join(written) + capsys.readouterr().out == text + "\n"
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in written[:-4] if part.strip("\N{REPLACEMENT CHARACTER}"))
    broken = [6 + 0xE2, 6 + 0x82, *tokenizer.encode("abcd")]
    for token in broken:
        writer.add(token)
    writer.end()
    assert capsys.readouterr().out == tokenizer.decode(broken) + "\n"


WRONG = {
    "no workdir": (["--prompt=a"], "--workdir is missing"),
    "no prompt": (["--workdir={run}"], "--prompt and --prompt_file are both missing"),
    "two prompts": (["--workdir={run}", "--prompt=a", "--prompt_file=b"], "--prompt and --prompt_file are both given"),
    "a stray word": (["--workdir={run}", "--prompt=a", "word"], "'word' is no flag"),
    "no file": (["--workdir={run}", "--prompt_file=/nowhere/at/all"], "/nowhere/at/all"),
    "no text": (["--workdir={run}", "--prompt_file={bytes}"], "is no UTF-8 text"),
    "an unknown stage": (
        ["--workdir={run}", "--prompt=a", "--stage=copy"],
        "has no stage 'copy'; its stages are autoencoder, causal_lm, memory_model",
    ),
    "a family without a next token": (
        ["--workdir={run}", "--prompt=a", "--stage=autoencoder"],
        "stage autoencoder: Autoencoder does not say what comes next in a text; MemoryModel, CausalLM, RecurrentMemory do",
    ),
    "imported weights": (["--workdir={imported}", "--prompt=a"], "holds imported weights, whose tokenizer is not known"),
    "a negative temperature": (
        ["--workdir={run}", "--prompt=a", "--temperature=-1"],
        "temperature=-1.0 must be a number from 0",
    ),
    "no tokens": (["--workdir={run}", "--prompt=a", "--tokens=0"], "--tokens"),
    "too many tokens": (
        ["--workdir={run}", "--prompt=a", "--tokens=100", "--beyond=error"],
        "max_new_tokens=100 are more than the 32 tokens",
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
    path.write_text("<|endoftext|>\n".join(text[:-9] + "\n" for text in book.read_text().split("<|endoftext|>\n")))
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
        args = [str(novel), f"--checkpoint={workdir / 'stages' / stage}", out, f"--dtype={dtype}", "--sample=0"]
        assert main(["compress", *args]) == 0
    return folder


def test_a_text_goes_on_from_its_memories(workdir, novel, stores, capsys):
    """As from the text itself, of which a model keeps three chunks and what follows them."""
    generator, tokenizer = open_generator(workdir, "combined")
    chunks = cut(read_sources([str(novel)]), tokenizer, LENGTH)
    document, full = chunks.spans[:, 0], chunks.spans[:, 2] == LENGTH
    prompt = "the memory"
    ids = tokenizer.encode(prompt)
    assert LENGTH <= len(ids) < 2 * LENGTH and not full.all()

    def text(picked):
        capsys.readouterr()
        writer, prompt = Writer(tokenizer), np.concatenate([*chunks.tokens[picked], ids])
        generator.generate([prompt], 30, stop=(tokenizer.eos_id,), on_token=lambda _, token: writer.add(token))
        writer.end()
        return capsys.readouterr().out

    def said(store, *flags):
        args = ["generate", f"--workdir={workdir}", "--stage=combined", f"--memory={stores / store}", f"--prompt={prompt}"]
        assert main([*args, "--tokens=30", *flags]) == 0
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
    generate = ["generate", f"--workdir={workdir}", "--stage=combined", f"--memory={stores / 'autoencoder-float32'}"]
    assert main([*generate, "--prompt=", "--chunks=-3:", "--tokens=8", "--beyond=error"]) == 0
    assert main([*generate, "--prompt=", "--tokens=8", "--beyond=error"]) == 2
    assert f"{full.sum()} memories of 8 tokens each, a prompt of 0 tokens" in " ".join(capsys.readouterr().err.split())


def test_what_fills_no_chunk_is_named(workdir, novel, stores, capsys):
    """The bytes that are named are the text that the memories lack."""
    store = MemoryStore.load(stores / "autoencoder-float32")
    number, name = next((n, d.name) for n, d in enumerate(store.documents) if d.tokens % LENGTH)
    spans = store.of_document(number).spans
    _, _, tokens, first, last = spans[-1].tolist()
    args = [f"--workdir={workdir}", "--stage=combined", f"--memory={stores / 'autoencoder-float32'}", f"--document={number}"]
    assert main(["generate", *args, "--prompt=", "--tokens=1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tokens} tokens that follow ({name}, bytes {first} to {last}) fill no chunk" in said
    assert novel.read_bytes()[first:last].decode().strip()
    assert main(["generate", *args, "--prompt=", "--tokens=1", "--chunks=:-1"]) == 0
    assert "fill no chunk" not in capsys.readouterr().err


REFUSED = {
    "no store": (["--memory=/nowhere/at/all", "--prompt="], "/nowhere/at/all/store.json: no such file"),
    "a document of none": (["--document=1", "--prompt="], "--document is of a store, and --memory is missing"),
    "chunks of none": (["--chunks=1:", "--prompt="], "--chunks is of a store, and --memory is missing"),
    "chunks that are none": (["--memory={store}", "--chunks=3", "--prompt="], "--chunks=3 does not say which; give FIRST:END"),
    "words for chunks": (["--memory={store}", "--chunks=a:b", "--prompt="], "--chunks=a:b does not say which; give FIRST:END"),
    "no such chunk": (["--memory={store}", "--chunks=900:", "--prompt="], "full chunks is chosen"),
    "no such document": (["--memory={store}", "--document=7", "--prompt="], "there is no document 7; there are 2"),
    "another encoder": (["--memory={other}", "--prompt="], "compressed by the encoder of stage retriever (retriever, step 1)"),
    "another family": (
        ["--memory={store}", "--stage=causal_control", "--prompt="],
        "CausalLM reads no memories; a MemoryModel does",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_memories_that_cannot_be_read_are_refused(workdir, stores, capsys, case):
    args, message = REFUSED[case]
    args = [arg.format(store=stores / "autoencoder-float32", other=stores / "retriever-float32") for arg in args]
    assert main(["generate", f"--workdir={workdir}", "--stage=combined", "--tokens=3", *args]) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert said.err.count("memjax:") == 1 and not said.out


def test_a_store_of_another_run_is_refused(place, stores, capsys):
    """Its words are others."""
    args = [f"--workdir={place / 'run'}", "--stage=memory_model", f"--memory={stores / 'autoencoder-float32'}", "--prompt="]
    assert main(["generate", *args]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "text in the words of tokenizer" in said or "sha256 of parameters" in said


def test_help_says_how(capsys):
    assert main(["generate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--top_p" in said and "memjax generate --workdir=" in said
    assert np.all([name in said for name in ("--temperature", "--beyond", "--prompt_file")])
