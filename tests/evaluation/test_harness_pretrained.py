"""Scores and texts of pretrained folders, counted by hand as the harness's own backend does:
context and continuation encoded together by the vocabulary's own library, after the begin that the
folder's settings put before every text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

import memjax
from memjax.data import train_tokenizer
from memjax.evaluation.harness import harness_model
from memjax.evaluation.text_scorer import text_scorer
from memjax.testing import WORDS

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hf"
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
PAIRS = [
    ("the row", " ends"),
    ("the row ", "ends by one"),
    ("tokens pass  ", " by"),
    ("a", " memory holds"),
    ("", "the row ends"),
    (" \n", "the row"),
]
TEXT = "the decoder reads it"
ROW = 48
FOLDERS = {
    "llama 2": ("llama_mha_untied", "model", {"tokenizer_class": "LlamaTokenizer"}, "every"),
    "llama 2, not": ("llama_mha_untied", "model", {"add_bos_token": False}, "empty"),
    "without settings": ("llama_mha_untied", "model", None, "every"),
    "llama 3": ("llama32_gqa_tied", "template", {"bos_token": BEGIN, "eos_token": END}, "every"),
    "llama 3, not": (
        "llama32_gqa_tied",
        "template",
        {"bos_token": BEGIN, "eos_token": END, "add_bos_token": False},
        "empty",
    ),
    "named": ("llama32_gqa_tied", "json", {"bos_token": BEGIN, "eos_token": END}, "empty"),
    "added": (
        "llama32_gqa_tied",
        "json",
        {"bos_token": {"content": BEGIN}, "eos_token": END, "add_bos_token": True},
        "every",
    ),
    "qwen 3": ("qwen3_qknorm", "json", {"bos_token": None, "eos_token": END}, "none"),
}
"""From a name to its weights, vocabulary and settings, and the texts that its begin stands before;
with `none` the end of a document stands before an empty one."""


@pytest.fixture(scope="module")
def vocabularies():
    pytest.importorskip("tokenizers", reason="the package tokenizers (extra hf) is not installed")
    text = " ".join(WORDS * 40)
    spaced = ModelProto.FromString(train_tokenizer([text], 300)._model)
    spaced.normalizer_spec.add_dummy_prefix = True
    plain = json.loads(train_tokenizer([text], 530, "byte_level")._model)
    begin = {"id": BEGIN, "ids": [0], "tokens": [BEGIN]}
    parts = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    around = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BEGIN: begin},
    }
    return {
        "model": spaced.SerializeToString(),
        "json": json.dumps(plain).encode(),
        "template": json.dumps(plain | {"post_processor": around}).encode(),
    }


@pytest.fixture
def folder(vocabularies, tmp_path, request):
    """The folder of a name, its library's encoder, and the begin before texts and empty ones."""
    weights, kind, settings, where = FOLDERS[request.param]
    shutil.copytree(GOLDEN / weights, tmp_path, dirs_exist_ok=True)
    name = "tokenizer.model" if kind == "model" else "tokenizer.json"
    (tmp_path / name).write_bytes(vocabularies[kind])
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "model":
        library = SentencePieceProcessor(model_proto=vocabularies[kind])
        encode, begin, end = library.encode, library.bos_id(), library.eos_id()
    else:
        from tokenizers import Tokenizer

        library = Tokenizer.from_file(str(tmp_path / name))
        begin, end = library.token_to_id(BEGIN), library.token_to_id(END)

        def encode(text):
            return library.encode(text, add_special_tokens=False).ids

    for file in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / file).read_text())
        ids = {"bos_token_id": begin, "eos_token_id": end}
        (tmp_path / file).write_text(json.dumps(said | ids))
    always = [begin] * (where == "every")
    return f"hf:{tmp_path}", encode, always, [end if where == "none" else begin]


def asked(encode, always, empty, context, continuation):
    """(ids shown before the continuation, its ids), as `lm_eval.api.model.TemplateLM`."""
    if not context.strip():
        return empty, encode(context + continuation)
    spaces = len(context) - len(context.rstrip())
    cut = len(context) - spaces
    context, continuation = context[:cut], context[cut:] + continuation
    border = len(encode(context))
    whole = encode(context + continuation)
    return always + whole[:border], whole[border:]


@pytest.mark.quick_cases("llama 2", "without settings", "llama 3", "named")
@pytest.mark.parametrize("folder", FOLDERS, indirect=True)
def test_a_begin_stands_where_the_settings_put_it(folder):
    path, *theirs = folder
    model = memjax.load(path)
    scorer = text_scorer(model)
    strategy = scorer.scorer.strategy

    def shown(context, continuation):
        (piece,) = strategy.pieces(context, continuation)
        return [*strategy.shown(piece).tolist(), int(continuation[-1])]

    for pair, ids in zip(PAIRS, scorer.encode_pairs(PAIRS), strict=True):
        before, after = asked(*theirs, *pair)
        assert shown(*ids) == before + after
        assert ids[1].tolist() == after
    encode, always, empty = theirs
    for prompt in (TEXT, ""):
        ids = strategy.prompt(model.tokenizer, prompt)
        window = np.pad(ids, (0, 40 - len(ids)))[None]
        length = len(ids) + strategy.shift
        begun = always + encode(prompt) if prompt else empty
        assert strategy.inputs(window, len(ids))[0, :length].tolist() == begun


@pytest.mark.quick_cases(slow=("llama 2", "llama 3", "qwen 3"))
@pytest.mark.parametrize("folder", FOLDERS, indirect=True)
def test_scores_and_texts_are_those_of_the_harness_own_backend(folder, quick):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    path, encode, always, empty = folder
    model = memjax.load(path)
    theirs = [asked(encode, always, empty, *pair) for pair in PAIRS]
    # Rolling: the whole text after the prefix, with the begin that is before every text.
    theirs.append((empty, always + encode(TEXT)))
    rows = np.full((len(theirs), ROW), 9, np.int32)
    for row, (before, after) in zip(rows, theirs, strict=True):
        row[: len(before) + len(after)] = before + after
    forward = quick(lambda params, rows: model.module.apply({"params": params}, rows))
    logs = log_softmax(forward(model.params, rows).astype(np.float64), axis=-1)
    wanted = []
    for log, (before, after) in zip(logs, theirs, strict=True):
        places = np.arange(len(before) - 1, len(before) + len(after) - 1)
        greedy = (log[places].argmax(axis=-1) == after).all()
        wanted.append((log[places, after].sum(), bool(greedy)))
    ours = harness_model(text_scorer(model))
    kinds = ["loglikelihood"] * len(PAIRS) + ["loglikelihood_rolling"]
    texts = [*PAIRS, (TEXT,)]
    requests = [Instance(kind, {}, args, 0) for kind, args in zip(kinds, texts, strict=True)]
    found = ours.loglikelihood(requests[:-1])
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in wanted[:-1]], atol=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted[:-1]]
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(requests[-1:]), [wanted[-1][0]], atol=2e-4
    )
    # A text, greedily.
    ids = always + encode(TEXT)
    for _ in range(5):
        row = np.full((len(theirs), ROW), 9, np.int32)
        row[:, : len(ids)] = ids
        ids.append(int(forward(model.params, row)[0, len(ids) - 1].argmax()))
    said = model.tokenizer.decode(ids[-5:])
    request = Instance("generate_until", {}, (TEXT, {"max_gen_toks": 5, "until": []}), 0)
    assert ours.generate_until([request]) == [said]
    assert "".join(model.generate(TEXT, 5)) == model.tokenizer.decode(ids[-5:], start=False)
