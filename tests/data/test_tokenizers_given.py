"""Vocabularies that others made: their own ways with spaces, ids and texts, and damage."""

import json
from unittest import mock

import numpy as np
import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from memjax.data import TokenizerError, load_tokenizer, train_tokenizer
from memjax.data.tokenizers.base import FILES, LARGEST, LONGEST, TRIED

TEXTS = (
    "a",
    " a",
    "  a  b ",
    "the memory\n of  chunks",
    "é ﬁ \u2126",
    "\u2581",
    "\u2581 a",
    "",
    " ",
)
BEGIN, END = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"


@pytest.fixture(scope="module")
def json_model(stories) -> dict:
    """A `tokenizer.json` of byte-level BPE without special tokens of known names."""
    pytest.importorskip("tokenizers", reason="the package tokenizers (extra hf) is not installed")
    made = json.loads(train_tokenizer(stories, 540, "byte_level")._model)
    for token, name in zip(made["added_tokens"], (BEGIN, END, "<other>"), strict=False):
        made["model"]["vocab"][name] = made["model"]["vocab"].pop(token["content"])
        token["content"] = name
    return made


@pytest.fixture
def write(json_model, tmp_path):
    """Writes the vocabulary with other parts, and settings beside it; returns the folder."""

    def put(beside=(), added=(), vocab=(), **parts):
        model = json_model["model"] | {"vocab": json_model["model"]["vocab"] | dict(vocab)}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        tokens = [{"special": False, **plain, **token} for token in added]
        said = json_model | {"added_tokens": json_model["added_tokens"] + tokens, "model": model}
        (tmp_path / "tokenizer.json").write_text(json.dumps(said | parts))
        for name, contents in dict(beside).items():
            (tmp_path / f"{name}.json").write_text(json.dumps(contents))
        return tmp_path

    return put


def spelled(add_prefix_space=False):
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": True,
    }


@pytest.fixture(scope="module")
def sentencepiece_model(stories):
    """A sentencepiece model as Llama 2's, with settings of its normalisation."""

    def make(**normalizer):
        proto = ModelProto.FromString(train_tokenizer(stories, 330)._model)
        for name, value in normalizer.items():
            setattr(proto.normalizer_spec, name, value)
        return proto

    return make


def check_ends(tokenizer, text):
    """The ends are those of its tokens in the text: tokens up to there are those of that part."""
    ids = tokenizer.encode(text)
    ends = tokenizer.ends(text, ids)
    assert ends.shape == ids.shape
    assert (np.diff(ends) >= 0).all()
    assert ends[-1:].tolist() == [len(text.encode())][: len(ids)]
    return ends


# The space before a document


def test_a_space_before_a_document_is_the_librarys_and_does_not_come_back(
    sentencepiece_model, tmp_path
):
    model = sentencepiece_model(add_dummy_prefix=True).SerializeToString()
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = load_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert ours.exact
    assert ours.spaced
    for text in TEXTS:
        if "\u2581" not in text:
            assert ours.encode(text).tolist() == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
        ends = check_ends(ours, text)
        ids = ours.encode(text)
        for i in np.flatnonzero(ends < len(text.encode()))[1:]:
            begun = text.encode()[: ends[i]].decode(errors="replace")
            assert ours.decode(ids[: i + 1]) == begun
            assert ours.decode(ids[i + 1 :], start=False) == text.encode()[ends[i] :].decode(
                errors="replace"
            )
    # Inside a text there is none, and none is taken away.
    inside = ours.encode("a b", start=False)
    assert ours.pieces(inside)[0] == "a"
    assert ours.decode(inside, start=False) == "a b"
    assert ours.decode(ours.encode(" a", start=False), start=False) == " a"
    many = ours.encode_batch(["a", "", "\u2581 a", "b " * 20_000], threads=2)
    for text, ids in zip(["a", "", "\u2581 a", "b " * 20_000], many, strict=True):
        assert ids.tolist() == ours.encode(text).tolist()
        assert ours.decode(ids) == text


def test_a_vocabulary_without_that_space_has_none(sentencepiece_model, tmp_path):
    (tmp_path / "a.model").write_bytes(sentencepiece_model().SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "a.model")
    assert not tokenizer.spaced
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == tokenizer.encode(text, start=False).tolist()
        assert tokenizer.decode(tokenizer.encode(text)) == text


# Texts that do not come back


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": spelled(add_prefix_space=True)},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"String": " "},
                        "behavior": "Removed",
                        "invert": False,
                    },
                    spelled(),
                ],
            }
        },
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "é"}, "content": "ee"}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"added": [{"id": 540, "content": "chunks", "lstrip": True}]},
    ],
)
def test_a_vocabulary_that_loses_text_says_so_and_counts_bytes_in_the_text(write, parts):
    tokenizer = load_tokenizer(write(**parts))
    assert not tokenizer.exact
    for text in TEXTS:
        check_ends(tokenizer, text)
    # From a word to the next, whatever is lost between them.
    ends = check_ends(tokenizer, "the Memory of chunks")
    assert {3, 10} <= set(ends.tolist())


def test_a_sentencepiece_model_that_loses_text_counts_bytes_in_the_text(
    sentencepiece_model, tmp_path
):
    proto = sentencepiece_model(remove_extra_whitespaces=True, add_dummy_prefix=True)
    (tmp_path / "a.model").write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "a.model")
    plain = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    assert not tokenizer.exact
    for text in TEXTS:
        check_ends(tokenizer, text)
        if "\u2581" not in text:
            assert tokenizer.encode(text).tolist() == plain.encode(text)
    ends = check_ends(tokenizer, "é  \u2581 the   memory ")
    assert {2, 7, 11} <= set(ends.tolist())


def test_a_vocabulary_that_loses_no_text_is_exact(write, tokenizer):
    for one in (load_tokenizer(write(pre_tokenizer=spelled())), tokenizer):
        assert one.exact
        for text in (*TEXTS, *TRIED):
            assert one.decode(one.encode(text)) == text
            check_ends(one, text)


# Begin and end of a document


@pytest.mark.parametrize(
    "beside",
    [
        {"config": {"bos_token_id": 0, "eos_token_id": 1}},
        {"generation_config": {"bos_token_id": 0, "eos_token_id": [1, 2]}},
        {"tokenizer_config": {"bos_token": BEGIN, "eos_token": {"content": END}}},
        # A token that is none of the vocabulary's, or stands for text, ends no document.
        {
            "tokenizer_config": {"bos_token": BEGIN, "eos_token": "<absent>"},
            "generation_config": {"eos_token_id": [9999, 300, True]},
            "config": {"bos_token_id": 2, "eos_token_id": 1},
        },
    ],
)
def test_begin_and_end_are_those_of_the_folder_also_where_it_is_copied(
    write, beside, tmp_path, caplog
):
    tokenizer = load_tokenizer(write(beside))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert len({tokenizer.pad_id, tokenizer.blank_id, tokenizer.delimiter_id, 0, 1}) == 5
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert (copy.bos_id, copy.eos_id, copy.fingerprint) == (0, 1, tokenizer.fingerprint)
    assert copy.encode("a b").tolist() == tokenizer.encode("a b").tolist()
    assert not caplog.messages


def test_no_end_is_told_once_and_the_advice_helps(write, caplog):
    folder = write()
    first = load_tokenizer(folder)
    load_tokenizer(folder)
    assert len(caplog.messages) == 1
    assert "tokenizer.json: no end of a document" in caplog.messages[0]
    assert f"id {first.eos_id}; name its own" in caplog.messages[0]
    assert '"eos_token" in tokenizer_config.json' in caplog.messages[0]
    caplog.clear()
    # A begin alone ends no text either.
    begun = load_tokenizer(write({"tokenizer_config": {"bos_token": BEGIN}}))
    assert (begun.bos_id, begun.eos_id) == (0, 0)
    assert "no end of a document" in caplog.messages[0]
    caplog.clear()
    found = load_tokenizer(write({"tokenizer_config": {"eos_token": END}}))
    assert not caplog.messages
    assert (found.bos_id, found.eos_id) == (1, 1)
    # Other ids are another vocabulary.
    assert found.fingerprint != first.fingerprint


def test_begin_and_end_of_a_sentencepiece_model_are_those_of_the_folder(
    sentencepiece_model, tmp_path
):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model().SerializeToString())
    plain = load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": 3}))
    assert load_tokenizer(tmp_path).fingerprint == plain.fingerprint
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    other = load_tokenizer(tmp_path)
    (tmp_path / "copy").mkdir()
    other.save(tmp_path / "copy")
    for one in (other, load_tokenizer(tmp_path / "copy")):
        assert (one.bos_id, one.eos_id, one.fingerprint) == (2, 5, other.fingerprint)
        assert one.delimiter_id not in (2, 5)


@pytest.mark.parametrize("name", ["config", "generation_config", "tokenizer_config"])
def test_damaged_settings_beside_a_vocabulary_are_named(write, name):
    folder = write()
    (folder / f"{name}.json").write_text("{")
    with pytest.raises(TokenizerError, match=rf"{name}\.json"):
        load_tokenizer(folder)


# Ids


def test_ids_may_have_gaps_and_odd_tokens(write):
    odd = [
        {"id": 700, "content": "\x01\x1b[2J"},
        {"id": 800, "content": "x y", "special": True},
    ]
    vocab = {"\x01\x1b[2J": 700, "a piece of no bytes \x02": 750, "x y": 800}
    tokenizer = load_tokenizer(write(added=odd, vocab=vocab))
    assert tokenizer.vocabulary >= 801
    assert tokenizer.blank_id not in (700, 750, 800)
    every = range(tokenizer.vocabulary)
    assert tokenizer.byte_lengths.shape == (tokenizer.vocabulary,)
    assert len(tokenizer.pieces(every)) == tokenizer.vocabulary
    assert [tokenizer.decode([i], start=False) for i in (650, 700, 750, 800)] == [
        "",
        "\x01\x1b[2J",
        "a piece of no bytes \x02",
        "",
    ]
    assert "a piece" in tokenizer.decode(every)
    assert tokenizer.encode("a \x01\x1b[2J").tolist()[-1] == 700


def test_an_id_beyond_all_reason_is_refused_by_name(write):
    with pytest.raises(TokenizerError, match=rf"id 4000000000, expected ids below {LARGEST}"):
        load_tokenizer(write(vocab={"far": 4_000_000_000}))
    with (
        pytest.raises(TokenizerError, match=rf"id 2147483648, expected ids below {LARGEST}"),
        mock.patch("tokenizers.Tokenizer.from_buffer", side_effect=AssertionError("8 GB")),
    ):
        load_tokenizer(write(vocab={"far": 2**31}))
    with pytest.raises(
        TokenizerError, match="added token 'far' has id 700, expected 540"
    ) as caught:
        load_tokenizer(write(added=[{"id": 700, "content": "far"}]))
    assert "Number added tokens after the others, without gaps" in str(caught.value)
    load_tokenizer(write(added=[{"id": 540, "content": "far"}]))


# Damage


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}}, "not byte-level"),
        ({"model": {"continuing_subword_prefix": "##", "vocab": {}}}, "not byte-level"),
        ({"added_tokens": [{"id": 3}]}, "or a damaged one"),
        ({"pre_tokenizer": 3}, "or a damaged one"),
        ({"added": [{"id": 320, "content": "a", "special": True}]}, "no piece for byte 0x61"),
    ],
)
def test_other_parts_than_those_of_a_vocabulary_are_one_line(write, parts, said, capfd):
    with pytest.raises(TokenizerError, match=said) as caught:
        load_tokenizer(write(**parts))
    assert capfd.readouterr().err == "", "a library panicked"
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(write()))


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_more_bytes_than_a_vocabulary_is_not_read(name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(TokenizerError, match=rf"{name}: {2**42} bytes, expected at most {LONGEST}"):
        load_tokenizer(tmp_path)


def check_damaged(path, damaged):
    """A damaged vocabulary is one error, or gives ids that are all read."""
    path.write_bytes(damaged)
    said, tokenizer = "", None
    try:
        tokenizer = load_tokenizer(path)
    except TokenizerError as error:
        said = str(error)
    if tokenizer is None:
        assert said.isprintable()
        assert said.startswith(str(path))
        return
    tokenizer.pieces(range(tokenizer.vocabulary))
    for text in TEXTS:
        back = tokenizer.decode(tokenizer.encode(text))
        assert back == text or not tokenizer.exact
        check_ends(tokenizer, text)


@pytest.mark.parametrize("kind", ["model", "json"])
@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_found_when_it_is_loaded(
    kind, count, json_model, sentencepiece_model, tmp_path
):
    good = {
        "model": sentencepiece_model(add_dummy_prefix=True).SerializeToString(),
        "json": json.dumps(json_model).encode(),
    }[kind]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] ^= 1 << rng.integers(8)
        check_damaged(tmp_path / f"a.{kind}", bytes(damaged))
