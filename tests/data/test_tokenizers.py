import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from memjax.data import Tokenizer, TokenizerError, load_tokenizer, train_tokenizer

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
ANY_TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t▁ae<>")), max_size=80
)


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
    ids = (
        tokenizer.pad_id,
        tokenizer.unk_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.blank_id,
        tokenizer.delimiter_id,
    )
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
    again = train_tokenizer(iter(stories), 320)
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(stories[1:], 320).fingerprint != tokenizer.fingerprint
    assert len(tokenizer.encode(stories[0])) < 0.6 * len(stories[0])
    tokenizer.save(tmp_path / "t.model")
    loaded = load_tokenizer(tmp_path / "t.model")
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(stories[0]), tokenizer.encode(stories[0]))


def test_a_script_of_thousands_of_characters_fits_a_small_vocabulary():
    letters = np.random.default_rng(0).exponential(600, (20, 1500)).astype(int) + 0x4E00
    texts = ["".join(map(chr, row)) for row in letters]
    tokenizer = train_tokenizer(texts, 400)
    assert tokenizer.vocabulary == 400
    check_exact(tokenizer, texts[0])


def test_too_little_text_names_the_largest_vocabulary(stories):
    with pytest.raises(
        TokenizerError, match=r"config\.data\.vocab_size=5000.*largest that works is (\d+)"
    ) as caught:
        train_tokenizer(stories, 5000)
    largest = int(str(caught.value).split("works is ")[1].split(".")[0])
    assert train_tokenizer(stories, largest).vocabulary == largest


@pytest.mark.parametrize(
    ("texts", "vocabulary", "message"),
    [([], 320, r"config\.data\.corpus"), (["a"], 262, r"no room.*300")],
)
def test_impossible_training(texts, vocabulary, message):
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(texts, vocabulary)


def foreign(tmp_path, stories, **options) -> bytes:
    lines = tmp_path / "lines"
    lines.write_text("\n".join(stories))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(tmp_path / "foreign"),
        model_type="bpe",
        minloglevel=2,
        **options,
    )
    return (tmp_path / "foreign.model").read_bytes()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot be read"),
        ("empty", "no sentencepiece model"),
        ("text", "no sentencepiece model"),
        ("truncated", "no sentencepiece model"),
        ("foreign", "0 of the 256 bytes"),
        ("no bytes", "byte_fallback"),
    ],
)
def test_files_that_are_no_vocabulary_of_ours(tmp_path, stories, tokenizer, contents, message):
    file = tmp_path / "some.model"
    tokenizer.save(tmp_path / "good.model")
    good = (tmp_path / "good.model").read_bytes()
    ours = {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "control_symbols": ["<blank>", "<delimiter>"],
    }
    if contents is not None:
        made = {"empty": b"", "text": b"hello, world", "truncated": good[: len(good) // 2]}.get(
            contents
        )
        file.write_bytes(
            made
            if made is not None
            else foreign(
                tmp_path, stories, vocab_size=60, **(ours if contents == "no bytes" else {})
            )
        )
    with pytest.raises(TokenizerError, match=rf"some\.model.*{message}"):
        load_tokenizer(file)


def test_other_sentencepiece_models_keep_their_ids_and_get_what_they_lack(tmp_path, stories):
    """A model as Llama 2's: bytes spelled out, no padding, a space before every text."""
    file = tmp_path / "other.model"
    plainly = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    file.write_bytes(foreign(tmp_path, stories, vocab_size=330, **plainly))
    other = load_tokenizer(file)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert (other.unk_id, other.bos_id, other.eos_id) == (0, 1, 2)
    assert (other.pad_id, other.blank_id, other.delimiter_id) == (330, 331, 332)
    assert (other.vocabulary, other.content) == (333, (3, 330))
    sentence = stories[0].strip()
    np.testing.assert_array_equal(other.encode(sentence), plain.encode(sentence))
    assert other.exact
    assert other.decode(other.encode("  a \u2581 b")) == "  a \u2581 b"
    file.write_bytes(foreign(tmp_path, stories, vocab_size=330, byte_fallback=True))
    assert not load_tokenizer(file).exact  # It knows a ligature as its letters.


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_byte_level_texts_come_back(byte_level, text):
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert ids.min(initial=999) >= byte_level.content[0] == 256
    assert byte_level.byte_lengths[ids].sum() == len(text.encode())
    np.testing.assert_array_equal(byte_level.encode_batch([text, "x"], threads=2)[0], ids)


@settings(max_examples=200, deadline=None)
@given(
    text=ANY_TEXT
    | st.sampled_from(["<|begin_of_text|>", "a<|end_of_text|>b", "<|reserved_special_token_7|>"])
)
def test_any_text_comes_back_from_bytes_and_makes_no_reserved_id(byte_level, text):
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert ids.min(initial=999) >= 256


@pytest.fixture(scope="module")
def byte_level(stories) -> Tokenizer:
    pytest.importorskip("tokenizers", reason="the package tokenizers (extra hf) is not installed")
    return train_tokenizer(stories, 600, "byte_level")


def test_the_published_kind_of_vocabulary(byte_level, stories, tmp_path):
    assert byte_level.vocabulary == 600
    assert (byte_level.bos_id, byte_level.eos_id, byte_level.pad_id) == (0, 1, 2)
    reserved = {
        byte_level.pad_id,
        byte_level.bos_id,
        byte_level.eos_id,
        byte_level.blank_id,
        byte_level.delimiter_id,
    }
    assert len(reserved) == 5
    assert max(reserved) < 256
    assert train_tokenizer(iter(stories), 600, "byte_level").fingerprint == byte_level.fingerprint
    byte_level.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == byte_level.fingerprint
    np.testing.assert_array_equal(loaded.encode(stories[0]), byte_level.encode(stories[0]))
    assert loaded.pieces([0, *loaded.encode("é")])[0] == "<|begin_of_text|>"
    with pytest.raises(TokenizerError, match=r"vocab_size=9000.*largest that works is \d+"):
        train_tokenizer(stories, 9000, "byte_level")
    with pytest.raises(TokenizerError, match="no room"):
        train_tokenizer(stories, 512, "byte_level")


def test_files_that_are_no_byte_level_vocabulary(byte_level, tmp_path):
    import tokenizers

    file = tmp_path / "tokenizer.json"
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    )
    for contents, message in (
        ("{", r"no tokenizer\.json"),
        (words.to_str(), "WordLevel vocabulary that is not byte-level"),
    ):
        file.write_text(contents)
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(file)
    byte_level.save(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_normalises_says_so(byte_level, tmp_path):
    import tokenizers

    byte_level.save(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.normalizer = tokenizers.normalizers.NFC()
    other.save(str(tmp_path / "tokenizer.json"))
    assert byte_level.exact
    assert not load_tokenizer(tmp_path).exact


@pytest.mark.parametrize("name", ["a.model", "a.json", "folder/tokenizer.model"])
def test_a_vocabulary_that_is_no_file(put_no_file, tmp_path, name):
    (tmp_path / "folder").mkdir()
    file = put_no_file(tmp_path / name)
    with pytest.raises(TokenizerError, match=r"cannot be read|no sentencepiece model"):
        load_tokenizer(file.parent if "/" in name else file)


@pytest.mark.parametrize(("kind", "entries"), [("", 300), ("byte_level", 530)])
def test_text_with_half_surrogates_is_refused(kind, entries):
    if kind:
        pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    words = "a quick brown fox jumps over lazy dogs while seven wizards mix potions in big jars"
    texts = [" ".join(words.split()[i:] + words.split()[:i]) for i in range(15)] * 9
    vocabulary = train_tokenizer(texts, entries, kind)
    for text in ("\ud800", "a prompt in another encoding: \udcff"):
        with pytest.raises(TokenizerError, match=rf"at character {len(text) - 1}, expected UTF-8"):
            vocabulary.encode(text)
