"""Contexts and continuations as ids."""

from types import SimpleNamespace
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from memjax.data import load_tokenizer, train_tokenizer
from memjax.evaluation.text_scorer import TextScorer
from memjax.inference.strategy import DecodingStrategy
from memjax.testing import WORDS


class _Strategy:
    needs_token, prompt = True, DecodingStrategy.prompt


MODEL: Any = SimpleNamespace(strategy=_Strategy())


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_tokenizer([" ".join(WORDS * 40)], 300)._model


def of(model, tmp_path, **normalizer):
    """A scorer with that vocabulary and other settings of its normalisation, and the library's."""
    proto = ModelProto.FromString(model)
    for name, value in normalizer.items():
        setattr(proto.normalizer_spec, name, value)
    (tmp_path / "a.model").write_bytes(proto.SerializeToString())
    theirs = SentencePieceProcessor(model_proto=proto.SerializeToString())
    return TextScorer(MODEL, load_tokenizer(tmp_path / "a.model")), theirs


def test_a_vocabulary_that_changes_its_text_is_parted_where_the_context_ends(model, tmp_path):
    scorer, _ = of(model, tmp_path, remove_extra_whitespaces=True)
    before, after = scorer.encode_pairs([("  the   row  ", "   ends")])[0]
    assert scorer.tokenizer.decode(before) == "the row"
    assert scorer.tokenizer.decode(after) == " ends"


def test_a_text_starts_as_its_vocabulary_has_it(model, tmp_path):
    """With a space, as Llama 2's: ids are those of the harness's own models, which part them at
    the number of tokens of the context."""
    scorer, theirs = of(model, tmp_path, add_dummy_prefix=True)
    pairs = [("the row", " ends"), ("a", "  b"), ("", "the row"), ("", "1"), ("  the row ", "ends")]
    for (context, continuation), (before, after) in zip(
        pairs, scorer.encode_pairs(pairs), strict=True
    ):
        own = len(theirs.encode(context.rstrip())) if context else 0
        whole = theirs.encode(context + continuation)
        assert before.tolist() == (whole[:own] or scorer.prefix.tolist())
        assert after.tolist() == whole[own:]
