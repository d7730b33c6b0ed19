import dataclasses
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from memjax.config import Data
from memjax.data import (
    CorpusError,
    RowsError,
    Tokenizer,
    TokenizerError,
    is_validation,
    open_source,
    prepare,
    rows,
    train_tokenizer,
    vocabulary,
)
from memjax.data.sources.files import FilesSource
from memjax.data.sources.lines import TextPart
from memjax.errors import MemjaxError
from memjax.files import sealed

NOT_BUILT = ("attributions", "memories")
"""Settings of data that have no effect on what is built."""


@pytest.fixture
def data(tmp_path, stories) -> Data:
    """Settings over 60 stories in a .jsonl file, some of them held out."""
    file = tmp_path / "stories.jsonl"
    file.write_text(
        "".join(json.dumps({"text": text, "title": text[:30]}) + "\n" for text in stories)
    )
    return Data(corpus=str(file), vocab_size=320, sequence_length=32, validation_share=0.25)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "data"


def contents(folder) -> dict[str, tuple[bytes, int]]:
    """Every file with its time, to tell a file kept from one written anew."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in files
    }


def text_of(split: rows.Rows, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(np.concatenate([split[i] for i in range(len(split))]))


def test_splits_are_disjoint_and_the_vocabulary_saw_only_training_text(data, folder, stories):
    prepared = prepare(data, folder)
    held_out = [text for text in stories if is_validation(text, 0.25)]
    kept = [text for text in stories if not is_validation(text, 0.25)]
    assert 5 < len(held_out) < 30
    assert "".join(kept).startswith(text_of(prepared.train, prepared.tokenizer))
    assert "".join(held_out).startswith(text_of(prepared.validation, prepared.tokenizer))
    assert prepared.tokenizer.fingerprint == train_tokenizer(kept, 320).fingerprint


def test_info_describes_the_data(data, folder, stories):
    prepared = prepare(data, folder)
    info = prepared.info
    assert (info["documents"], info["characters"]) == (60, sum(map(len, stories)))
    assert info["train"]["documents"] + info["validation"]["documents"] == 60
    assert (info["tokenizer"], info["row_tokens"]) == (prepared.tokenizer.fingerprint, 32)
    # Both splits together lose less than two rows, so what is in rows says what the whole corpus
    # would.
    tokens = sum(map(len, prepared.tokenizer.encode_batch(stories))) + 58
    assert info["bytes_per_token"] == pytest.approx(info["characters"] / tokens, rel=0.02)


def test_a_second_call_changes_nothing(data, folder, monkeypatch):
    first = prepare(data, folder)
    before = contents(folder)
    lines: list[str] = []
    again = prepare(data, folder, lines.append)
    assert contents(folder) == before
    assert again.info == first.info
    assert len(lines) == 1, "nothing but what there is was reported"
    with monkeypatch.context() as patch:
        patch.setattr(
            FilesSource, "read", None
        )  # While the file stands untouched it is not even read.
        prepare(data, folder)
    # Touched, or elsewhere: the text is what counts.
    os.utime(data.corpus, (1, 1))
    prepare(data, folder)
    prepare(
        dataclasses.replace(
            data, corpus=shutil.copy(data.corpus, data.corpus.replace("stories", "copied"))
        ),
        folder,
    )
    assert contents(folder) == before


def test_two_builds_are_equal(data, folder, tmp_path):
    prepare(data, folder)
    prepare(data, tmp_path / "other")
    assert {name: raw for name, (raw, _) in contents(folder).items()} == {
        n: raw for n, (raw, _) in contents(tmp_path / "other").items()
    }


def test_another_row_length_keeps_vocabulary_and_rows(data, folder):
    first = prepare(data, folder)
    before = contents(folder)
    longer = prepare(dataclasses.replace(data, sequence_length=48), folder)
    assert longer.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert longer.train.row_tokens == 48
    assert {
        name: file for name, file in contents(folder).items() if not name.startswith("rows-48")
    } == before


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(data, folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "entries", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, folder)
    assert list(folder.parent.iterdir()) == []
    # A kill that runs no clean-up leaves files; of other settings, they are of no use.
    left = folder.parent / ".data.partial" / "rows-64"
    left.mkdir(parents=True)
    (left / ".train-00000-of-00001.arrayrecord.9.tmp").write_bytes(b"half")
    (left.parent / "plan.json").write_text("{}")
    assert len(prepare(data, folder).train) >= 8
    assert sorted(file.name for file in folder.iterdir()) == [
        "prepared.json",
        "rows-32",
        "tokenizer.model",
    ]
    assert list(folder.parent.iterdir()) == [folder]


def test_one_of_two_processes_waits_for_the_other(data, folder, monkeypatch):
    lines, started = [], []

    def train_once(texts, vocabulary, kind):
        assert not started, "trained twice"
        other = threading.Thread(target=prepare, args=(data, folder, lines.append))
        started.append(other)
        other.start()
        while not lines:
            time.sleep(0.01)
        return train_tokenizer(texts, vocabulary, kind)

    monkeypatch.setattr(vocabulary, "train_tokenizer", train_once)
    assert len(prepare(data, folder).train) >= 8
    started[0].join(20)
    assert lines[0] == f"data: waiting for another process that is making {folder}"
    assert len(lines) == 2 and "rows to train on" in lines[1]
    assert list(folder.parent.iterdir()) == [folder]


CHANGES = {
    "vocabulary": (
        {"vocab_size": 330},
        r"config\.data\.vocab_size=320, not 330.*another --workdir",
    ),
    "validation_share": (
        {"validation_share": 0.3},
        r"config\.data\.validation_share=0\.25, not 0\.3.*another --workdir",
    ),
    "text_field": (
        {"text_field": "title"},
        r"config\.data\.text_field='text', not 'title'.*another --workdir",
    ),
    "corpus": (
        {"corpus": "other.jsonl"},
        r"config\.data\.corpus='.*stories\.jsonl', not 'other\.jsonl'.*another --workdir",
    ),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_folder_of_other_settings_is_refused(data, folder, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text('{"text": "Something else."}\n' * 60)
    changes, message = CHANGES[key]
    prepare(data, folder)
    before = contents(folder)
    with pytest.raises(RowsError, match=message):
        prepare(dataclasses.replace(data, **changes), folder)
    assert contents(folder) == before


def test_a_corpus_that_has_changed_is_refused(data, folder):
    prepare(data, folder)
    with open(data.corpus, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(
        RowsError,
        match=r"another text of config\.data\.corpus=.*60 documents.*61 and.*another --workdir",
    ):
        prepare(data, folder)


def test_a_folder_whose_text_an_earlier_memjax_split_otherwise(data, folder, monkeypatch):
    """Formats 1 and 2 made a document of each line of a wrapped text without a blank line."""
    file = Path(data.corpus).with_suffix(".txt")
    file.write_text("".join(f"{n} a line of a page\n" for n in range(2_000)))
    data = dataclasses.replace(data, corpus=str(file))
    with monkeypatch.context() as before:
        before.setattr(TextPart, "boundary", None)
        assert prepare(data, folder, workers=1).info["documents"] == 2_000
    info = json.loads((folder / "prepared.json").read_text())
    (folder / "prepared.json").write_text(json.dumps(sealed(info | {"format": 2})))
    assert prepare(data, folder).info["documents"] == 2_000, "the file is as it was"
    os.utime(file, (1, 1))
    with pytest.raises(
        RowsError, match=r"built by an earlier memjax, which split .* into 2000 documents, expected"
    ):
        prepare(data, folder)
    shutil.rmtree(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir()
    plan = {key: value for key, value in vars(data).items() if key not in NOT_BUILT}
    for number in (3, 2):
        (partial / "plan.json").write_text(json.dumps({"format": number} | plan))
        (partial / "kept").touch()
        info = prepare(data, folder).info
        assert (info["format"], info["documents"] < 20) == (3, True)
        assert (folder / "kept").exists() == (number == 3), "the blocks of an earlier memjax"
        shutil.rmtree(folder)
        partial.mkdir()


def test_a_corpus_that_is_gone_is_not_needed_for_rows_that_are_there(data, folder):
    built = prepare(data, folder)
    os.rename(data.corpus, f"{data.corpus}.moved")
    said = []
    again = prepare(data, folder, said.append)
    np.testing.assert_array_equal(again.train[0], built.train[0])
    assert data.corpus in said[0] and said[0].endswith(f"The rows in {folder} are used as they are")
    with pytest.raises(CorpusError):
        prepare(dataclasses.replace(data, sequence_length=64), folder)
    with pytest.raises(CorpusError):
        prepare(dataclasses.replace(data, corpus=f"{data.corpus}.other"), folder)


def test_a_corpus_that_changes_while_it_is_read_is_refused(data, folder, monkeypatch):
    def grow(texts, vocabulary, kind):
        tokenizer = train_tokenizer(texts, vocabulary, kind)
        with open(data.corpus, "a") as file:
            file.write('{"text": "one more"}\n')
        return tokenizer

    monkeypatch.setattr(vocabulary, "train_tokenizer", grow)
    with pytest.raises(CorpusError, match=r"changed during reading"):
        prepare(data, folder)
    assert not folder.exists()


NO_VALIDATION = (
    r"gives 0 validation rows of 32 tokens, from 0 of 60 documents, expected at"
    r" least 2.*config\.data\.validation_share"
)


@pytest.mark.parametrize(
    ("lines", "share", "message"),
    [
        (60, 1e-9, NO_VALIDATION),
        (60, 1 - 1e-9, r"config\.data\.validation_share holds out all"),
        (0, 0.25, r"config\.data\.corpus is empty"),
        (2, 0.25, r"from \d of 2 documents"),
    ],
)
def test_too_little_text(data, folder, lines, share, message):
    file = Path(data.corpus)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises((CorpusError, TokenizerError), match=message):
        prepare(dataclasses.replace(data, validation_share=share), folder)
    assert not folder.exists()


def test_rows_too_long_for_the_corpus(data, folder):
    with pytest.raises(
        CorpusError,
        match=r"gives \d train rows of 4096 tokens.*at least 8.*config\.data\.sequence_length",
    ):
        prepare(dataclasses.replace(data, sequence_length=4096), folder)


def test_a_folder_that_is_not_ours(data, folder):
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(RowsError, match=r"no prepared\.json.*another --workdir"):
        prepare(data, folder)
    assert (folder / "thesis.tex").read_text() == "precious"


def replaced_tokenizer(folder):
    train_tokenizer(["other words " * 99, "entirely different text, told twice " * 50], 270).save(
        folder / "tokenizer.model"
    )


DAMAGE = {
    "other tokenizer": (
        replaced_tokenizer,
        RowsError,
        r"tokenizer\.model: tokenizer \w+, expected \w+ as in .*prepared\.json",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.model").unlink(),
        TokenizerError,
        r"tokenizer\.model: cannot be read",
    ),
    "cut description": (
        lambda f: (f / "prepared.json").write_text("{"),
        RowsError,
        r"prepared\.json: no JSON",
    ),
    "future format": (
        lambda f: (f / "prepared.json").write_text('{"format": 9}'),
        RowsError,
        r"prepared\.json: format: 9, expected 1 or 2",
    ),
    "no rows": (
        lambda f: (f / "rows-32" / "train.json").unlink(),
        RowsError,
        r"train\.json: no such file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(data, folder, damage):
    harm, error, message = DAMAGE[damage]
    prepare(data, folder)
    harm(folder)
    with pytest.raises(error, match=message):
        prepare(data, folder)


@pytest.mark.slow
def test_python_docs_by_default(folder):
    prepared = prepare(Data(), folder)
    assert len(prepared.train) > 4000
    assert len(prepared.validation) > 200
    assert 2.0 < prepared.info["bytes_per_token"] < 3.5
    assert prepared.info["documents"] == sum(1 for _ in open_source("python-docs"))


def test_what_is_no_file_in_a_data_folder_is_named(data, folder, put_no_file):
    prepare(data, folder)
    for file in [file for file in sorted(folder.rglob("*")) if file.is_file()]:
        kept = file.rename(file.with_name("kept"))
        put_no_file(file)
        with pytest.raises(ValueError, match=rf"{file.name}.*(not a file|no such file)") as error:
            prepare(data, folder)
        assert isinstance(error.value, MemjaxError) and "\n" not in str(error.value)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        kept.rename(file)
    prepare(data, folder)
