"""The harness's own evaluation of memjax models: its numbers are those counted by hand from the
models' plain logits."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from memjax.config import Backbone
from memjax.data import train_tokenizer
from memjax.errors import MemjaxError
from memjax.evaluation.harness import evaluate, harness_model, require_harness
from memjax.evaluation.text_scorer import TextScorer, read_settings
from memjax.inference import Sampling
from memjax.inference.likelihood import Scorer
from memjax.models import CausalLM, MemoryModel, RecurrentMemory
from memjax.objectives import SpecialIds
from memjax.testing import WORDS, tiny_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install lm-eval")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "evals"
LENGTH, CHUNKS, VOCABULARY = 16, 4, 320
MODEL = dataclasses.replace(tiny_model(), chunk_length=LENGTH)
REPEAT = Backbone(
    kind="combined_repeat", width=16, layers=1, heads=2, mlp_ratio=2.0, decay_length=2.0
)
MODULES = {
    "memory": MemoryModel(MODEL, CHUNKS, VOCABULARY),
    "causal": CausalLM(MODEL, CHUNKS * LENGTH, VOCABULARY),
    "repeat": CausalLM(dataclasses.replace(MODEL, decoder=REPEAT), CHUNKS * LENGTH, VOCABULARY),
    "recurrent": RecurrentMemory(MODEL, CHUNKS, VOCABULARY),
}
CHOICES = [
    {
        "query": "Question: what does a memory hold?",
        "choices": ["the words", "a row", "what the chunk said"],
        "gold": 2,
    },
    {
        "query": "Question: who reads the row?",
        "choices": ["the decoder", "one", "the text or the words"],
        "gold": 0,
    },
    {
        "query": "Question: when does it end?",
        "choices": ["until the row ends", "another", "in time"],
        "gold": 0,
    },
    {"query": "Question: where are words?", "choices": ["in the text", "by one"], "gold": 1},
    {
        "query": "Question: how do tokens pass?",
        "choices": ["one after another", "while it reads", "or"],
        "gold": 1,
    },
]
WORDS_MISSING = [
    {"context": "the decoder reads the", "continuation": "memory"},
    {"context": "tokens pass by one after", "continuation": "another"},
    {"context": "until the row", "continuation": "ends"},
]
EITHER = [
    {
        "context_options": [
            "the row and the chunk pass so the row",
            "the row and the chunk pass so the chunk",
        ],
        "gold": 0,
        "continuation": "ends by one.",
    },
    {
        "context_options": [
            "a decoder reads a text as the text",
            "a decoder reads a text as the decoder",
        ],
        "gold": 1,
        "continuation": "holds it in place.",
    },
]
TEXTS = [{"text": " ".join(np.random.default_rng(3).choice(WORDS, n))} for n in (40, 3, 0, 90)]


@pytest.fixture(scope="module")
def tokenizer():
    rng = np.random.default_rng(0)
    return train_tokenizer([" ".join(rng.choice(WORDS, 60)) + "." for _ in range(60)], VOCABULARY)


@pytest.fixture(scope="module")
def model(draw, tokenizer):
    made = {}

    def make(name):
        if name not in made:
            module = MODULES[name]
            shape = (1, CHUNKS * LENGTH) if isinstance(module, CausalLM) else (1, CHUNKS, LENGTH)
            params = draw(module, jnp.zeros(shape, jnp.int32))["params"]
            made[name] = TextScorer(
                Scorer(module, params, SpecialIds(), batch=16), tokenizer, {"family": name}
            )
        return made[name]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of a few made-up documents of every task."""
    folder = tmp_path_factory.mktemp("evals")
    for name, documents in {
        "arc_easy_test": CHOICES,
        "piqa": [document | {"query": document["query"] + "\n"} for document in CHOICES],
        "hellaswag": CHOICES,
        "boolq": [
            document | {"query": "Passage: a text.\n" + document["query"]} for document in CHOICES
        ],
        "lambada": WORDS_MISSING,
        "winogrande": EITHER,
        "text": TEXTS,
    }.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(doc) + "\n" for doc in documents), encoding="utf-8"
        )
    return folder


def by_hand(quick, model, pairs):
    """(log-probability, greedy) of each continuation: the module's logits on whole rows; texts are
    no longer than a row."""
    module, texts, starts = model.scorer.module, [], []
    for context, continuation in pairs:
        ids = model.tokenizer.encode(context + continuation)
        start = len(model.tokenizer.encode(context))
        assert model.tokenizer.decode(ids[:start]) == context
        texts.append(ids)
        starts.append(start)
    rows = np.full((len(texts), CHUNKS * LENGTH), 9, np.int32)
    for row, ids in zip(rows, texts, strict=True):
        row[: len(ids)] = ids
    bos = SpecialIds().bos

    def forward(params, rows):
        chunks, variables = rows.reshape(-1, CHUNKS, LENGTH), {"params": params}
        if isinstance(module, RecurrentMemory):
            return module.apply(variables, chunks)
        if isinstance(module, CausalLM):
            return module.apply(
                variables, jnp.pad(rows[:, :-1], ((0, 0), (1, 0)), constant_values=bos)
            )
        memories = module.apply(variables, chunks[:, :-1], method="encode")
        shown = jnp.pad(chunks[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=bos)
        return module.apply(variables, shown, memories, method="decode")

    logits = quick(forward)(model.scorer.params, rows).reshape(*rows.shape, VOCABULARY)
    found = []
    for ids, start, row in zip(
        texts, starts, log_softmax(logits.astype(np.float64), axis=-1), strict=True
    ):
        places = np.arange(start, len(ids))
        found.append(
            (
                row[places, ids[start:]].sum(),
                bool((row[places].argmax(axis=-1) == ids[start:]).all()),
            )
        )
    return found


@pytest.mark.quick_cases("memory")
@pytest.mark.parametrize("name", MODULES)
def test_the_harness_counts_what_is_counted_by_hand(quick, model, data, name):
    found = evaluate(
        model(name), ["arc_easy_local", "lambada_local", "winogrande_local"], data=str(data)
    )["results"]
    pairs = [
        (f"{doc['query']}\nAnswer:", f" {choice}") for doc in CHOICES for choice in doc["choices"]
    ]
    pairs += [(doc["context"], f" {doc['continuation']}") for doc in WORDS_MISSING]
    pairs += [
        (context, f" {doc['continuation']}") for doc in EITHER for context in doc["context_options"]
    ]
    counted = by_hand(quick, model(name), pairs)
    scored = iter(counted)
    nats = [[next(scored)[0] for _ in doc["choices"]] for doc in CHOICES]
    right = [int(np.argmax(row)) == doc["gold"] for row, doc in zip(nats, CHOICES, strict=True)]
    lengths = [np.array([len(choice) for choice in doc["choices"]]) for doc in CHOICES]
    normed = [
        int(np.argmax(np.array(row) / n)) == doc["gold"]
        for row, n, doc in zip(nats, lengths, CHOICES, strict=True)
    ]
    assert found["arc_easy_local"]["acc,none"] == pytest.approx(np.mean(right))
    assert found["arc_easy_local"]["acc_norm,none"] == pytest.approx(np.mean(normed))
    words = [next(scored) for _ in WORDS_MISSING]
    assert found["lambada_local"]["perplexity,none"] == pytest.approx(
        math.exp(-np.mean([n for n, _ in words])), rel=1e-4
    )
    assert found["lambada_local"]["acc,none"] == np.mean([greedy for _, greedy in words])
    either = [int(np.argmax([next(scored)[0] for _ in range(2)])) == doc["gold"] for doc in EITHER]
    assert found["winogrande_local"]["acc,none"] == np.mean(either)
    # And each one, in the order it was asked.
    requested = model(name).loglikelihood(pairs)
    np.testing.assert_allclose([n for n, _ in requested], [n for n, _ in counted], atol=2e-4)
    assert [greedy for _, greedy in requested] == [greedy for _, greedy in counted]


def test_every_local_task_and_worked_examples(model, data):
    names = ["arc_easy_local", "boolq_local", "hellaswag_local", "piqa_local"]
    found = evaluate(
        model("memory"), names, data=str(data), limit=2, num_fewshot=1, log_samples=True
    )
    assert found["n-samples"]["boolq_local"] == {"original": len(CHOICES), "effective": 2}
    assert found["config"]["family"] == "memory"
    asked = {name: found["samples"][name][0]["arguments"][0][0] for name in names}
    assert asked["arc_easy_local"].endswith("\n\nQuestion: what does a memory hold?\nAnswer:")
    assert asked["arc_easy_local"] == asked["piqa_local"]
    assert asked["boolq_local"].endswith("\n\na text.\nQuestion: what does a memory hold?\nAnswer:")
    assert asked["hellaswag_local"].endswith("\n\nQuestion: what does a memory hold?")
    assert "Answer: " in asked["arc_easy_local"], "a worked example stands before the question"


@pytest.mark.slow
def test_rolling_counts_every_token_once(quick, model, data):
    """The sum over a text is that of its parts, each scored alone after all before it that the
    model keeps."""
    for name in ("memory", "causal"):
        found, text = model(name), TEXTS[0]["text"]
        ids = found.tokenizer.encode(text)
        (whole,) = found.rolling([text])
        assert len(ids) > CHUNKS * LENGTH, "longer than a row"
        assert found.rolling(["", text]) == [0.0, pytest.approx(whole, abs=1e-3)]
        if name == "causal":
            # Windows of a row: a token's context begins where its window does.
            row, last = CHUNKS * LENGTH, len(ids) % (CHUNKS * LENGTH)
            parts = [(ids[:0], ids[i : i + row]) for i in range(0, len(ids) - last, row)]
            parts += (
                [(ids[len(ids) - row : len(ids) - last], ids[len(ids) - last :])] if last else []
            )
        else:
            parts = [(ids[:i], ids[i : i + 5]) for i in range(0, len(ids), 5)]
        assert sum(len(part) for _, part in parts) == len(ids)
        assert whole == pytest.approx(
            sum(one.log_probability for one in found.scorer.score(parts)), abs=2e-3
        )
    results = evaluate(model("causal"), ["text_local"], data=str(data))["results"]["text_local"]
    total = sum(model("causal").rolling([doc["text"] for doc in TEXTS]))
    size = sum(len(doc["text"].encode()) for doc in TEXTS)
    assert results["bits_per_byte,none"] == pytest.approx(-total / size / math.log(2), rel=1e-5)


def test_a_continuation_begins_with_the_token_it_has_in_the_text(model):
    found = model("memory")
    for context, continuation in (
        ("the row", " ends"),
        ("the row ", "ends"),
        ("the row  \n", "ends"),
        ("the dec", "oder"),
    ):
        ((before, after),) = found.encode_pairs([(context, continuation)])
        whole = found.tokenizer.encode(context + continuation)
        assert np.array_equal(np.concatenate([before, after]), whole)
        assert context.rstrip().startswith(found.tokenizer.decode(before))
        assert continuation.lstrip() in found.tokenizer.decode(after)
    assert (
        found.encode_pairs([("the row", " ends")])[0][1].tolist()
        == found.tokenizer.encode(" ends").tolist()
    )
    assert found.encode_pairs([("", "ends")])[0][0].tolist() == []
    assert found.loglikelihood([("the row", "")]) == [(0.0, True)]


# Texts that are written

TASK = """
task: say_on
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{continuation}}}}"
generation_kwargs:
  until: {until}
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
"""


@pytest.mark.slow
def test_texts_are_the_generators_until_a_stop_text(model, data, tmp_path):
    for name in ("causal", "memory"):
        found = model(name)
        prompts = [doc["context"] for doc in WORDS_MISSING]
        ids = found.generator.generate(
            [found.tokenizer.encode(x) for x in prompts], 12, stop=(found.tokenizer.eos_id,)
        )
        free = [found.tokenizer.decode(row) for row in ids]
        assert found.generate_until([(x, {"max_gen_toks": 12}) for x in prompts]) == free
        stop = free[0][4:6]
        cut = found.generate_until(
            [(x, {"max_gen_toks": 12, "until": [stop, "no such"]}) for x in prompts]
        )
        assert cut == [text.partition(stop)[0] for text in free]
        assert cut[0] != free[0]
    file = tmp_path / "say_on.yaml"
    file.write_text(
        TASK.format(file=data / "lambada.jsonl", cache=tmp_path / "cache", until=json.dumps([stop]))
    )
    samples = evaluate(found, ["say_on"], include_path=str(tmp_path), log_samples=True)["samples"][
        "say_on"
    ]
    assert [sample["resps"][0][0] for sample in samples] == cut


def test_chance_depends_on_the_place_and_the_seed(model):
    found, asked = model("causal"), {"temperature": 1.0, "do_sample": True, "max_gen_toks": 8}
    once, again = (found.generate_until([("the row", asked)] * 3, seed) for seed in (0, 0))
    assert once == again
    assert len(set(once)) > 1
    assert once != found.generate_until([("the row", asked)] * 3, 1)


def test_what_generation_settings_ask_for():
    ask = read_settings(
        {"until": ["\n", ""], "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "num_beams": 1}
    )
    assert (ask.stop, ask.tokens, ask.sampling) == (("\n",), 7, Sampling(0.5, 0, 0.9))
    assert (
        read_settings({"until": "x", "do_sample": False, "temperature": 0.7}).sampling == Sampling()
    )
    assert read_settings({"do_sample": True}).sampling.temperature == 1.0
    with pytest.raises(
        MemjaxError, match="generation_kwargs has num_beams=4, which is not supported"
    ):
        read_settings({"num_beams": 4})


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "temperature": 0, "top_k": 5, "top_p": 0.5},
        {"temperature": 0.0},
        {"do_sample": False, "temperature": None, "top_p": 0.5},
        {},
    ],
)
def test_temperature_0_is_greedy(settings):
    assert read_settings(settings).sampling == Sampling()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": "false"}, "do_sample='false', expected true or false"),
        ({"do_sample": 1}, "do_sample=1, expected true or false"),
        ({"temperature": "0.5"}, "temperature='0.5', expected a number"),
        ({"temperature": True}, "temperature=True, expected a number"),
        ({"temperature": float("nan")}, "temperature=nan must be a number from 0"),
        ({"temperature": -1}, "temperature=-1.0 must be"),
        ({"do_sample": True, "top_p": 0}, "top_p=0.0 must be more than 0"),
        ({"top_k": 2.5}, "top_k=2.5, expected a whole number"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1 must be 0"),
        ({"max_gen_toks": "many"}, "max_gen_toks='many', expected a whole number"),
        ({"max_gen_toks": 0}, r"\[0\] tokens at most, expected one number above 0"),
        ({"max_gen_toks": 5, "max_tokens": 6}, r"\[5, 6\] tokens at most, expected one number"),
        ({"until": 3}, "until=3, expected a text or a list of texts"),
        ({"until": ["a", 3]}, "until=3, expected a text or a list of texts"),
    ],
)
def test_generation_settings_that_contradict_or_are_of_another_type(settings, message):
    with pytest.raises(MemjaxError, match=message):
        read_settings(settings)


@pytest.mark.parametrize(
    "text", ["[1, 2, 3]", "[1,2,3]", "['a']", '["the row"]', [1, 2, 3], {"a": 1}, 7]
)
def test_a_document_in_the_form_of_a_list_is_text(model, text, tmp_path, monkeypatch):
    """The harness evaluates what a template renders; the text is scored as it stands."""
    found, asked = model("memory"), []
    monkeypatch.setattr(type(found), "rolling", lambda _, texts: asked.extend(texts) or [-1.0])
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    scored = evaluate(found, ["text_local"], data=str(tmp_path))["results"]["text_local"]
    assert asked == [text if isinstance(text, str) else json.dumps(text)]
    assert scored["bits_per_byte,none"] == pytest.approx(1 / np.log(2) / len(asked[0]))


def test_what_a_task_of_ones_own_evaluates_is_scored_as_text(model, monkeypatch):
    found, asked = model("memory"), []
    monkeypatch.setattr(type(found), "rolling", lambda _, texts: asked.extend(texts) or [-1.0])
    request = SimpleNamespace(args=([1, 2, 3],))
    assert harness_model(found).loglikelihood_rolling([request]) == [-1.0]
    assert asked == ["[1, 2, 3]"]


# What cannot be


def test_what_cannot_be_evaluated_says_so(model, data, tmp_path, monkeypatch):
    found = model("memory")
    # The harness's own tasks are thousands of files, which take seconds to look through.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))
    with pytest.raises(MemjaxError, match="tasks is empty; those of local files are"):
        evaluate(found, [])
    with pytest.raises(
        MemjaxError,
        match="tasks has no task 'no_such'; those of local files are arc_easy_local, boolq_local",
    ):
        evaluate(found, ["no_such"])
    with pytest.raises(
        MemjaxError, match=f"include_path={tmp_path / 'no'}: not a folder, expected"
    ):
        evaluate(found, ["arc_easy_local"], include_path=str(tmp_path / "no"))
    with pytest.raises(
        MemjaxError,
        match=r"no folder of arc_easy\*.jsonl is given: use --task_folder=FOLDER, or set"
        " MEMJAX_EVAL_DATA",
    ):
        evaluate(found, ["arc_easy_local"])
    with pytest.raises(
        MemjaxError, match=r"there must be one file arc_easy\*.jsonl .* and there is none"
    ):
        evaluate(found, ["arc_easy_local"], data=str(tmp_path))
    for content, message in (
        (
            "{}\n",
            "line 1: has no query, choices, gold; this task's fields are query",
        ),
        ("{", "line 1: no JSON .* Write one JSON object per line"),
        ("\n", "holds no document"),
    ):
        (tmp_path / "arc_easy.jsonl").write_text(content)
        with pytest.raises(MemjaxError, match=message):
            evaluate(found, ["arc_easy_local"], data=str(tmp_path))
    monkeypatch.setenv("MEMJAX_EVAL_DATA", str(data))
    assert (
        evaluate(found, ["lambada_local"], limit=1)["n-samples"]["lambada_local"]["effective"] == 1
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MemjaxError, match=r"not installed: pip install lm-eval"):
        require_harness()
    with pytest.raises(MemjaxError, match=r"pip install lm-eval"):
        harness_model(found)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the evaluation files, which are not part of the repository"
)
def test_real_files_are_read(model):
    names = [
        f"{name}_local"
        for name in ("arc_easy", "boolq", "hellaswag", "lambada", "piqa", "winogrande")
    ]
    found = evaluate(model("memory"), names, data=str(SHARED), limit=2, log_samples=True)
    assert {name: found["n-samples"][name]["original"] for name in names} == dict(
        zip(names, (2376, 3270, 2020, 4153, 1838, 1267), strict=True)
    )
    asked = {name: found["samples"][name][0]["arguments"][0][0] for name in names}
    for name in ("arc_easy_local", "piqa_local"):
        assert (
            asked[name].startswith("Question: ")
            and asked[name].endswith("\nAnswer:")
            and "\n\n" not in asked[name]
        )
    assert not asked["boolq_local"].startswith("Passage:")
    assert asked["boolq_local"].endswith("?\nAnswer:")
