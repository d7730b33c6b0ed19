"""`memjax recall`: chunks of a store on stdout, where a phrase begins, and every wrong input as one
line."""

import dataclasses

import numpy as np
import pytest

from memjax.checkpoints.store import open_store
from memjax.cli.main import main
from memjax.inference import TrainedModel, load
from memjax.models import build, example
from memjax.testing import tiny_model

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(scope="module")
def files(place, tmp_path_factory, draw):
    """A folder with `model`, an export of drawn weights as one that was trained on recall, its
    `store` of two texts, and `other.store` of another encoder."""
    folder = tmp_path_factory.mktemp("recall")
    other = load(place / "run", "memory_model")
    stage = dataclasses.replace(other.settings, objectives={"blank_recall": 1.0})
    model = tiny_model(layout="text", chunk_positions=False)
    stages = {"reading": stage, "memory_model": other.settings}
    config = dataclasses.replace(
        other.config, model=model, stages=stages, curriculum=("reading", "memory_model")
    )
    module = build(config, stage)
    params = draw(module, example(module, config))["params"]
    model = TrainedModel(module, params, config, other.tokenizer, "reading")
    model.save(folder / "model")
    texts = ["A memory holds what the chunk said.", "The decoder reads it in place of words."]
    model.compress(texts).save(folder / "store")
    other.compress(texts).save(folder / "other.store")
    return folder


def says(capsys, files, *args):
    assert main(["recall", str(files / "model"), f"--memory={files / 'store'}", *args]) == 0
    return capsys.readouterr().out


def lines(texts):
    """Each on a line of its own."""
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts)


def test_chunks_are_written_in_the_order_asked(files, capsys):
    model, store = load(files / "model"), open_store(files / "store")
    texts = model.recall(store, range(len(store)))
    assert len(set(texts)) > 2
    assert says(capsys, files, "--chunk=2") == lines([texts[2]])
    assert says(capsys, files, "--chunk=1:4,0") == lines(["".join(texts[1:4]), texts[0]])
    assert says(capsys, files, "--chunk=3,1", "--batch_size=1") == lines([texts[3], texts[1]])
    second = store.of_document(1)
    expected = lines(model.recall(second, [0]))
    assert says(capsys, files, "--chunk=0", "--document=1") == expected


def test_every_other_chunk_is_compared_with_the_text(files, tmp_path, capsys):
    model, text = load(files / "model"), tmp_path / "text.txt"
    text.write_text("A memory holds what the chunk said. The decoder reads it.")
    source, store = model.chunks(text), model.compress(text)
    store.save(tmp_path / "text.store")
    numbers = list(range(0, len(store), 2))
    found = model.recall_tokens(store, numbers)
    args = f"--memory={tmp_path / 'text.store'}", f"--chunk=0:{len(store)}:2", f"--against={text}"
    assert main(["recall", str(files / "model"), *args]) == 0
    out, err = capsys.readouterr()
    assert out == lines(model.chunk_texts(store, numbers, found))
    right = (found == source.tokens[numbers])[source.tokens[numbers] != 0].mean()
    assert f"tokens right: {right:.4g} [" in err and "whole chunks right: 0 [" in err


def test_a_phrase_is_listed_with_its_place(files, capsys):
    model, store = load(files / "model"), open_store(files / "store")
    tokens = model.recall_tokens(store, np.arange(len(store)), alone=True)
    phrase = model.tokenizer.decode(tokens[1:3].ravel())
    found = model.find(store, phrase)
    shown = says(capsys, files, f"--find={phrase}").splitlines()
    assert len(shown) == len(found) and found[0] == (1, 1.0)
    assert shown[0].split(maxsplit=2)[:2] == ["1", "1.00"]
    first, last = store.spans[1, 3:]
    assert shown[0].endswith(f"{store.documents[0].name}, bytes {first} to {last}")
    assert len(says(capsys, files, f"--find={phrase}", "--limit=1").splitlines()) == 1


def test_generation_from_more_memories_than_the_model_keeps_is_one_line(files, tmp_path, capsys):
    model = load(files / "model")
    config = dataclasses.replace(
        model.config, model=dataclasses.replace(model.config.model, max_memories=2)
    )
    few = dataclasses.replace(model, config=config, module=build(config, model.settings))
    few.save(tmp_path / "few")
    full = len(open_store(files / "store").full_chunks)
    args = ["generate", str(tmp_path / "few"), f"--memory={files / 'store'}", "--prompt="]
    assert main([*args, "--max_new_tokens=2"]) == 2
    found = capsys.readouterr()
    assert " ".join(found.err.split()) == (
        f"memjax: {files / 'store'}: {full} memories before a prompt of 0 tokens and"
        " --max_new_tokens=2, expected at most 2 of the 2 of config.model.max_memories. Read the"
        " last ones by --chunks=-2:"
    )
    assert not found.out
    assert main([*args, "--max_new_tokens=2", "--chunks=:3"]) == 2
    assert "3 memories before" in (said := " ".join(capsys.readouterr().err.split()))
    assert said.endswith("--chunks=1:3")
    assert main([*args, "--max_new_tokens=2", "--chunks=1:3"]) == 0


def test_a_stage_that_recalls_reconstructs_by_its_own_objective(files, capsys):
    model, store = load(files / "model"), open_store(files / "store")
    assert model.codec().recall_objective == "blank_recall"
    assert main(["reconstruct", str(files / "model"), str(files / "store")]) == 0
    assert "not trained on" not in capsys.readouterr().err
    # In groups of as many chunks as are half a sequence, each from their memories alone.
    found, held = model.reconstruct_tokens(store), model.codec().held
    first = store[: min(held, int((store.spans[:, 0] == 0).sum()))]
    alone = model.recall_tokens(first, range(len(first)))
    np.testing.assert_array_equal(found[: len(first)], alone)


WRONG = {
    "neither": ([], "--chunk, --find: both missing, expected one of them. For example: memjax"),
    "both": (["--chunk=1", "--find=a"], "--chunk, --find: both given, expected one of them."),
    "words": (["--chunk=a"], "--chunk: 'a', expected a number, or a range such as 10:20 or"),
    "no step": (["--chunk=0:3:0"], "--chunk: '0:3:0', expected a number, or a range"),
    "below 0": (["--chunk=-1"], "--chunk: '-1', expected a number, or a range"),
    "nothing": (["--chunk="], "--chunk: '', expected a number, or a range"),
    "an empty range": (["--chunk=3:3"], "--chunk: '3:3', expected a number, or a range"),
    "outside": (["--chunk=0,99"], "chunk 99: not in the store, expected one of its {count} chunks"),
    "far outside": (
        ["--chunk=4:9999999999999"],
        "chunk {count}: not in the store, expected one of its {count} chunks. Count them from 0.",
    ),
    "beyond all numbers": (["--chunk=9" + "9" * 30], "chunks: [9999999999999999"),
    "an empty phrase": (["--find= "], "phrase: no text, expected some."),
    "a phrase against": (["--find=a", "--against=b"], "--against: given with --find, expected"),
    "a phrase by an objective": (
        ["--find=a", "--recall_objective=recall"],
        "--recall_objective: given, expected none with --find. Leave it out.",
    ),
    "chunks to a limit": (
        ["--chunk=0", "--limit=2"],
        "--limit: given, expected none with --chunk. Leave it out.",
    ),
    "another objective": (
        ["--chunk=0", "--recall_objective=recall"],
        "stage reading: trained on blank_recall, expected recall.",
    ),
    "no document": (["--chunk=0", "--document=2"], "document 2: expected a number from 0 to 1"),
    "another encoder": (
        ["--chunk=0", "--memory={files}/other.store"],
        "{files}/other.store: made by the encoder of stage memory_model",
    ),
    "no store": (["--chunk=0", "--memory=/nowhere"], "/nowhere: No such file or directory, exp"),
    "another stage": (
        ["--chunk=0"],
        "stage memory_model: trained on next_token, expected recall or blank_recall. Train a stage",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_recalled_is_one_line(files, place, capsys, case):
    args, message = WRONG[case]
    stage, store = files / "model", files / "store"
    if case == "another stage":
        stage, store = place / "run" / "stages" / "memory_model", files / "other.store"
    args = [f"--memory={store}", *(arg.format(files=files) for arg in args)]
    assert main(["recall", str(stage), *args]) == 2
    said = capsys.readouterr()
    assert message.format(files=files, count=len(open_store(files / "store"))) in " ".join(
        said.err.split()
    )
    assert said.err.count("memjax:") == 1 and not said.out
