import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from memjax.data import Tokenizer, TokenizerError

TRICKY = (
    "",
    " ",
    "   three  two ",
    "\n\n\t\t\r\n",
    "▁",
    "a▁b ▁▁ c",
    "nul \0 byte",
    "😀 e\u0301 ﬁ ½ \u3000 \ufffd \u2585 \ufeff",
    "<pad> <unk> <s> </s> <blank> <delimiter> <0x41>",
    "the memory " * 5000,
)
ANY_TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t▁ae<>")), max_size=80)


def check_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert ids.min(initial=99) > tokenizer.delimiter_id
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_tricky_texts_come_back(tokenizer, text):
    check_exact(tokenizer, text)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_and_makes_no_reserved_id(tokenizer, text):
    check_exact(tokenizer, text)


def test_batches_on_threads_are_single_texts(tokenizer, stories):
    texts = [*TRICKY, *stories]
    for text, ids in zip(texts, tokenizer.encode_batch(texts, threads=2), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.encode_batch([]) == []


def test_reserved_ids(tokenizer):
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.blank_id, tokenizer.delimiter_id)
    assert ids == (0, 1, 2, 3, 4, 5)
    assert tokenizer.pieces(ids) == ["<pad>", "<unk>", "<s>", "</s>", "<blank>", "<delimiter>"]
    assert tokenizer.decode(ids) == ""
    assert tokenizer.byte_lengths[:6].tolist() == [0] * 6
    assert tokenizer.byte_lengths.shape == (tokenizer.vocabulary,) == (320,)


def test_pieces_join_to_the_text_and_spell_odd_bytes(tokenizer):
    text = "the memory\n of  chunks\t"
    assert "".join(tokenizer.pieces(tokenizer.encode(text))) == text
    assert tokenizer.pieces(tokenizer.encode("é")) == ["\\xc3", "\\xa9"]
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_training_is_deterministic_and_learns_words(tokenizer, stories, tmp_path):
    again = Tokenizer.train(iter(stories), 320)
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(stories[1:], 320).fingerprint != tokenizer.fingerprint
    assert len(tokenizer.encode(stories[0])) < 0.6 * len(stories[0])
    tokenizer.save(tmp_path / "t.model")
    loaded = Tokenizer.load(tmp_path / "t.model")
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(stories[0]), tokenizer.encode(stories[0]))


def test_a_script_of_thousands_of_characters_fits_a_small_vocabulary():
    letters = np.random.default_rng(0).exponential(600, (20, 1500)).astype(int) + 0x4E00
    texts = ["".join(map(chr, row)) for row in letters]
    tokenizer = Tokenizer.train(texts, 400)
    assert tokenizer.vocabulary == 400
    check_exact(tokenizer, texts[0])


def test_too_little_text_names_the_largest_vocabulary(stories):
    with pytest.raises(TokenizerError, match=r"config\.data\.vocabulary=5000.*largest that works is (\d+)") as caught:
        Tokenizer.train(stories, 5000)
    largest = int(str(caught.value).split("works is ")[1].split(";")[0])
    assert Tokenizer.train(stories, largest).vocabulary == largest


@pytest.mark.parametrize(
    ("texts", "vocabulary", "message"), [([], 320, r"config\.data\.corpus"), (["a"], 262, r"no room.*300")]
)
def test_impossible_training(texts, vocabulary, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.train(texts, vocabulary)


def foreign(tmp_path, stories, **options) -> bytes:
    lines = tmp_path / "lines"
    lines.write_text("\n".join(stories))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(tmp_path / "foreign"), model_type="bpe", minloglevel=2, **options
    )
    return (tmp_path / "foreign.model").read_bytes()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot be read"),
        ("empty", "lacks the reserved ids"),
        ("text", "no sentencepiece model"),
        ("truncated", "no sentencepiece model"),
        ("foreign", "lacks the reserved ids"),
        ("no bytes", "byte_fallback"),
    ],
)
def test_files_that_are_no_vocabulary_of_ours(tmp_path, stories, tokenizer, contents, message):
    file = tmp_path / "some.model"
    tokenizer.save(tmp_path / "good.model")
    good = (tmp_path / "good.model").read_bytes()
    ours = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "control_symbols": ["<blank>", "<delimiter>"]}
    if contents is not None:
        made = {"empty": b"", "text": b"hello, world", "truncated": good[: len(good) // 2]}.get(contents)
        file.write_bytes(
            made if made is not None else foreign(tmp_path, stories, vocab_size=60, **(ours if contents == "no bytes" else {}))
        )
    with pytest.raises(TokenizerError, match=rf"some\.model.*{message}"):
        Tokenizer.load(file)
