"""What can be asked of preparation: modes of rows, vocabularies of all kinds, mixtures."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from memjax.config import Data
from memjax.data import (
    CorpusError,
    MixedRows,
    RowsError,
    TokenizerError,
    TrainBatches,
    blocks,
    is_validation,
    open_rows,
    prepare,
    train_tokenizer,
)
from memjax.data.vocabulary import Parts, training_texts

SHARE = 0.25


def write(file: Path, texts: list[str]) -> str:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


@pytest.fixture
def data(tmp_path, stories) -> Data:
    """Sixty stories, of which every third is cut to fewer tokens than a row has."""
    texts = [text[:40] if number % 3 == 0 else text for number, text in enumerate(stories)]
    return Data(
        corpus=write(tmp_path / "stories.jsonl", texts),
        vocab_size=320,
        sequence_length=32,
        validation_share=SHARE,
    )


def of_split(data: Data, held_out: bool) -> list[str]:
    texts = [json.loads(line)["text"] for line in Path(data.corpus).read_text().splitlines()]
    return [text for text in texts if is_validation(text, SHARE) == held_out]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_first_n_are_the_first_tokens_of_each_document(data, tmp_path, padding):
    prepared = prepare(
        dataclasses.replace(data, packing={"right": "first_n", "left": "first_n_left"}[padding]),
        tmp_path / "data",
    )
    for rows, held_out in ((prepared.train, False), (prepared.validation, True)):
        firsts = [ids[:32] for ids in prepared.tokenizer.encode_batch(of_split(data, held_out))]
        expected = np.full((len(firsts), 32), prepared.tokenizer.pad_id)
        for row, ids in zip(expected, firsts, strict=True):
            row[slice(0, len(ids)) if padding == "right" else slice(32 - len(ids), 32)] = ids
        np.testing.assert_array_equal(rows.read(range(len(rows))), expected)
        assert (
            rows.info["tokens"]
            == sum(map(len, firsts))
            < rows.info["tokens"] + rows.info["padding"]
            == expected.size
        )
        assert rows.info["documents"] == len(firsts)
    counted = [prepared.info[split] for split in ("train", "validation")]
    assert prepared.info["bytes_per_token"] == sum(c["bytes"] for c in counted) / sum(
        c["tokens"] for c in counted
    )
    assert prepared.train.info["side"] == padding


def test_rows_per_document_hold_all_text(data, tmp_path):
    prepared = prepare(dataclasses.replace(data, packing="per_document"), tmp_path / "data")
    rows = prepared.train.read(range(len(prepared.train)))
    texts = of_split(data, False)
    assert prepared.tokenizer.decode(rows.reshape(-1)) == "".join(texts)
    assert prepared.train.info["dropped_tokens"] == 0
    assert prepared.train.info["bytes"] == len("".join(texts).encode())
    assert len(rows) == sum(-(-len(ids) // 32) for ids in prepared.tokenizer.encode_batch(texts))


def test_full_length_only_leaves_short_documents_out(data, tmp_path):
    prepared = prepare(dataclasses.replace(data, packing="full_length_only"), tmp_path / "data")
    long = [
        ids[:32] for ids in prepared.tokenizer.encode_batch(of_split(data, False)) if len(ids) >= 32
    ]
    np.testing.assert_array_equal(prepared.train.read(range(len(prepared.train))), np.stack(long))
    assert prepared.train.info["padding"] == 0
    assert prepared.train.info["documents"] > len(long)


CHANGES = {
    "rows": (
        {"packing": "packed"},
        r"config\.data\.packing=first_n, not packed\. Use another --workdir",
    ),
    "side": (
        {"packing": "first_n_left"},
        r"config\.data\.packing=first_n, not first_n_left\. Use another --workdir",
    ),
    "skip_damaged": (
        {"skip_damaged": True},
        r"config\.data\.skip_damaged=False, not True\. Use another --workdir",
    ),
    "tokenizer": (
        {"tokenizer": "byte_level"},
        r"config\.data\.tokenizer='', not 'byte_level'\. Use another --workdir",
    ),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_folder_of_other_settings_is_refused(data, tmp_path, key):
    changes, message = CHANGES[key]
    data = dataclasses.replace(data, packing="first_n")
    prepare(data, tmp_path / "data")
    with pytest.raises(RowsError, match=message):
        prepare(dataclasses.replace(data, **changes), tmp_path / "data")


def test_the_published_kind_of_vocabulary(data, tmp_path):
    pytest.importorskip("tokenizers")
    asked = dataclasses.replace(
        data, tokenizer="byte_level", vocab_size=540, packing="first_n_left"
    )
    prepared = prepare(asked, tmp_path / "data")
    assert (prepared.tokenizer.vocabulary, prepared.tokenizer.content) == (540, (256, 540))
    assert (tmp_path / "data" / "tokenizer.json").exists()
    kept = of_split(data, False)
    assert prepared.tokenizer.fingerprint == train_tokenizer(kept, 540, "byte_level").fingerprint
    rows = prepared.train.read(range(len(prepared.train)))
    firsts = [prepared.tokenizer.decode(ids[:32]) for ids in prepared.tokenizer.encode_batch(kept)]
    assert [prepared.tokenizer.decode(row) for row in rows] == firsts
    assert prepare(asked, tmp_path / "data").info == prepared.info


@pytest.fixture
def given(tmp_path, tokenizer) -> str:
    tokenizer.save(tmp_path / "given.model")
    return str(tmp_path / "given.model")


def test_a_vocabulary_that_is_given(data, tmp_path, given, tokenizer):
    lines = []
    padded = dataclasses.replace(data, tokenizer=given, vocab_size=384)
    prepared = prepare(padded, tmp_path / "data", lines.append)
    assert prepared.tokenizer.fingerprint == tokenizer.fingerprint
    assert not any("trained" in line for line in lines)
    joined = list(
        itertools.chain.from_iterable(
            [tokenizer.eos_id, *ids] for ids in tokenizer.encode_batch(of_split(data, False))
        )
    )[1:]
    rows = prepared.train.read(range(len(prepared.train)))
    assert rows.reshape(-1).tolist() == joined[: rows.size]
    # Token tables of another size are of no concern to rows.
    prepare(dataclasses.replace(padded, vocab_size=320), tmp_path / "data")
    # The folder has a copy of its own.
    Path(given).unlink()
    prepare(padded, tmp_path / "data")


def test_a_given_vocabulary_may_be_in_the_folder_of_the_user(
    data, tmp_path, given, tokenizer, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = dataclasses.replace(data, tokenizer="~/given.model")
    assert prepare(asked, tmp_path / "data").tokenizer.fingerprint == tokenizer.fingerprint
    train_tokenizer(["other words " * 99, "entirely different text, told twice " * 50], 270).save(
        Path(given)
    )
    with pytest.raises(RowsError, match=r"config\.data\.tokenizer='~/given\.model' is now"):
        prepare(asked, tmp_path / "data")


def test_a_given_vocabulary_keeps_the_end_that_its_folder_names_and_loses_text_aloud(
    data, tmp_path, tokenizer
):
    proto = ModelProto.FromString(tokenizer._model)
    proto.normalizer_spec.remove_extra_whitespaces = True
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
    asked, lines = dataclasses.replace(data, tokenizer=str(tmp_path), vocab_size=384), []
    prepared = prepare(asked, tmp_path / "data", lines.append)
    assert any(f"{tmp_path} loses parts of texts" in line for line in lines)
    assert prepared.tokenizer.eos_id == 5
    rows = prepared.train.read(range(len(prepared.train)))
    assert 5 in rows and 3 not in rows
    assert prepare(asked, tmp_path / "data").tokenizer.eos_id == 5


def test_a_given_vocabulary_that_does_not_fit(data, tmp_path, given):
    with pytest.raises(
        TokenizerError,
        match=r"config\.data\.vocab_size=319: .* has 320 ids.*Use 320 or more",
    ):
        prepare(dataclasses.replace(data, tokenizer=given, vocab_size=319), tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with pytest.raises(TokenizerError, match=r"nowhere\.model: cannot be read"):
        prepare(
            dataclasses.replace(data, tokenizer=str(tmp_path / "nowhere.model")), tmp_path / "data"
        )


def test_a_given_vocabulary_that_changed_is_refused(data, tmp_path, given):
    asked = dataclasses.replace(data, tokenizer=given)
    prepare(asked, tmp_path / "data")
    other = train_tokenizer(["other words " * 99, "entirely different text, told twice " * 50], 270)
    other.save(given)
    with pytest.raises(
        RowsError,
        match=r"built with tokenizer \w+, but config\.data\.tokenizer='.*given\.model' is now"
        rf" {other.fingerprint}",
    ):
        prepare(asked, tmp_path / "data")
    other.save(tmp_path / "other.model")
    with pytest.raises(
        RowsError,
        match=r"built with config\.data\.tokenizer='.*given\.model', not '.*other\.model'",
    ):
        prepare(
            dataclasses.replace(data, tokenizer=str(tmp_path / "other.model")), tmp_path / "data"
        )


@pytest.fixture
def mixture(tmp_path, stories) -> Data:
    """Forty stories that weigh three quarters, and twenty in capitals."""
    one = write(tmp_path / "one.jsonl", stories[:40])
    two = write(tmp_path / "two.jsonl", [text.upper() for text in stories[40:]])
    return Data(
        corpus=f"0.75*{one} + 0.25*{two}",
        vocab_size=320,
        sequence_length=32,
        validation_share=SHARE,
    )


def test_parts_of_a_mixture_lie_apart(mixture, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8000)
    prepared = prepare(mixture, tmp_path / "data", workers=1)
    assert isinstance(prepared.train, MixedRows)
    assert prepared.train.weights == prepared.validation.weights == (0.75, 0.25)
    lower, upper = (
        [prepared.tokenizer.decode(row) for row in part.read(range(len(part)))]
        for part in prepared.train.parts
    )
    assert all(text == text.lower() for text in lower) and all(
        text == text.upper() for text in upper
    )
    assert len(prepared.train) == len(lower) + len(upper) == prepared.info["train"]["rows"]
    assert prepared.tokenizer.decode(prepared.validation[-1]).isupper()
    assert [(part["weight"], part["documents"]) for part in prepared.info["parts"]] == [
        (0.75, 40),
        (0.25, 20),
    ]
    assert prepared.info["documents"] == 60
    for part in prepared.train.parts:
        assert {file.name.split("-")[0].split(".")[0] for file in part.folder.iterdir()} == {
            "train",
            "validation",
        }
    # By itself, as other commands open it.
    alone = open_rows(tmp_path / "data" / "rows-32", "train", prepared.tokenizer.fingerprint)
    np.testing.assert_array_equal(
        alone.read([0, len(alone) - 1]), prepared.train.read([0, len(alone) - 1])
    )
    drawn = TrainBatches(prepared.train, 64, seed=0).batch(0)["tokens"]
    share = np.mean([prepared.tokenizer.decode(row).islower() for row in drawn])
    assert 0.6 < share < 0.9
    # Any number of processes, again, and gone on with.
    prepare(mixture, tmp_path / "again", workers=2)
    assert files(tmp_path / "again") == files(tmp_path / "data")
    assert prepare(mixture, tmp_path / "data").info == prepared.info
    assert isinstance(
        prepare(dataclasses.replace(mixture, sequence_length=48), tmp_path / "data").train,
        MixedRows,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_other_weights_are_another_mixture(mixture, tmp_path):
    prepare(mixture, tmp_path / "data")
    other = mixture.corpus.replace("0.75", "0.5").replace("0.25", "0.5")
    with pytest.raises(
        RowsError, match=r"built with config\.data\.corpus='0\.75\*.*' *, not '0\.5\*"
    ):
        prepare(dataclasses.replace(mixture, corpus=other), tmp_path / "data")


def test_a_vocabulary_sees_the_parts_in_proportion(mixture):
    texts = itertools.islice(training_texts(Parts.of(mixture), SHARE), 20)
    sizes = {True: 0, False: 0}
    for text in texts:
        sizes[text.isupper()] += len(text)
        assert not is_validation(text, SHARE)
    assert sizes[True] / sum(sizes.values()) == pytest.approx(0.25, abs=0.05)


def test_a_part_without_rows_is_named(mixture, tmp_path):
    short = write(tmp_path / "short.jsonl", ["few words"])
    with pytest.raises(
        CorpusError, match=r"short\.jsonl gives no train row of 32 tokens, .*Leave it out"
    ):
        prepare(
            dataclasses.replace(mixture, corpus=f"{mixture.corpus} + 0.1*{short}"),
            tmp_path / "data",
        )
    assert list(tmp_path.glob("*data*")) == []
