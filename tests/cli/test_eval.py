"""`memjax eval`: the harness's table and every number as JSON, and every wrong input as one line."""

import importlib.util
import json

import numpy as np
import pytest

from memjax.cli import eval as command
from memjax.cli.main import _complain, _expected
from memjax.evals import EvalError, open_text_model
from memjax.evals.facts import made_up
from memjax.evals.long_recall import long_recall
from memjax.testing import WORDS

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'memjax[eval]'")

QUESTIONS = [
    {"query": "Question: what does it hold?", "choices": ["the words", "a row"], "gold": 0},
    {"query": "Question: who reads?", "choices": ["one", "the decoder"], "gold": 1},
    {"query": "Question: when?", "choices": ["in time", "until the end"], "gold": 1},
]


@pytest.fixture(scope="module", autouse=True)
def files(place):
    """What is evaluated on, beside the models."""
    (place / "arc_easy.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in QUESTIONS), encoding="utf-8")
    rng = np.random.default_rng(0)
    book = " ".join(f"{' '.join(rng.choice(WORDS, 5))}." for _ in range(200))
    (place / "book.txt").write_text(book, encoding="utf-8")


def says(capsys, *args):
    assert command.run(["eval", *map(str, args)]) == 0
    return capsys.readouterr().out


def test_the_table_and_all_numbers(place, capsys):
    said = says(capsys, f"--workdir={place / 'run'}", "--stage=memory_model", "--tasks=arc_easy_local", f"--data={place}")
    written = json.loads((place / "run" / "stages" / "memory_model" / "evaluations.json").read_text(encoding="utf-8"))
    accuracy = written["results"]["arc_easy_local"]["acc,none"]
    assert "|arc_easy_local|" in said and f"{accuracy:.4f}" in said
    model = open_text_model(place / "run", "memory_model")
    pairs = [(f"{doc['query']}\nAnswer:", f" {choice}") for doc in QUESTIONS for choice in doc["choices"]]
    nats = np.array([n for n, _ in model.loglikelihood(pairs)]).reshape(-1, 2)
    assert accuracy == pytest.approx(np.mean(nats.argmax(axis=-1) == [doc["gold"] for doc in QUESTIONS]))
    assert written["model"] == dict(model.about)
    assert (written["model"]["step"], written["model"]["tokenizer"]) == (2, model.tokenizer.fingerprint)
    assert set(written["memjax"]) == {"memjax", "jax", "lm_eval"}
    assert written["n-samples"]["arc_easy_local"] == {"original": 3, "effective": 3}
    assert written["versions"]["arc_easy_local"] == 1.0


def test_long_recall_beside_a_task(place, capsys):
    """The last stage of the curriculum unless another is named; and what the function says."""
    out = place / "elsewhere" / "found.json"
    said = says(
        capsys, f"--workdir={place / 'run'}", "--tasks=long_recall,arc_easy_local", f"--data={place}", "--limit=1",
        f"--haystack={place / 'book.txt'}", "--lengths=120,160", "--depths=0,1", "--questions=2", f"--out={out}", "--seed=3",
    )  # fmt: skip
    written = json.loads(out.read_text(encoding="utf-8"))
    assert "|arc_easy_local|" in said and "depth 1" in said and "text kept" in said
    model = open_text_model(place / "run", "causal_lm")
    text = (place / "book.txt").read_text(encoding="utf-8")
    found = long_recall(model, [text], made_up(8, 3), (120, 160), (0.0, 1.0), 2, 3).to_json()
    assert {key: written["long_recall"][key] for key in found} == json.loads(json.dumps(found))
    assert written["long_recall"]["facts"] == "made up"
    assert written["n-samples"]["arc_easy_local"]["effective"] == 1


WRONG = {
    "no workdir": (["--tasks=a"], "--workdir is missing"),
    "no tasks": (["--workdir={run}"], "--tasks is missing"),
    "a stray word": (["--workdir={run}", "--tasks=a", "word"], "'word' is no flag"),
    "no haystack": (["--workdir={run}", "--tasks=long_recall"], "--tasks=long_recall needs --haystack"),
    "no lengths": (["--workdir={run}", "--tasks=a", "--lengths=1k"], "--lengths=1k: invalid literal"),
    "no limit": (["--workdir={run}", "--tasks=a", "--limit=0"], "--limit"),
    "an unknown stage": (["--workdir={run}", "--tasks=a", "--stage=copy"], "has no stage 'copy'"),
    "no next token": (
        ["--workdir={run}", "--tasks=a", "--stage=autoencoder"],
        "stage autoencoder: Autoencoder does not say what comes next in a text",
    ),
    "imported weights": (["--workdir={imported}", "--tasks=a"], "holds imported weights, whose tokenizer is not known"),
    "no data": (["--workdir={run}", "--tasks=arc_easy_local"], "use --data=DIR"),
    "a short haystack": (
        ["--workdir={run}", "--tasks=long_recall", "--haystack={book}", "--lengths=100000"],
        "lengths has 100000: the haystack holds",
    ),
    "no facts": (
        ["--workdir={run}", "--tasks=long_recall", "--haystack={book}", "--facts={book}"],
        "book.txt, line 1: begins with no number",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(place, capsys, case):
    args, message = WRONG[case]
    args = [arg.format(run=place / "run", imported=place / "imported", book=place / "book.txt") for arg in args]
    with pytest.raises(Exception) as caught:  # noqa: PT011
        command.run(["eval", *args])
    assert isinstance(caught.value, EvalError | command.flags.Error) or _expected(caught.value) == 2
    _complain(str(caught.value))
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert len(str(caught.value).splitlines()) == 1


def test_without_the_harness_it_says_what_to_install(place, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "lm_eval" else find(name, *args))
    with pytest.raises(EvalError, match=r"not installed: pip install 'memjax\[eval\]'"):
        command.run(["eval", f"--workdir={place / 'run'}", "--tasks=arc_easy"])


def test_help_says_how(capsys):
    said = says(capsys, "--help")
    assert "--haystack" in said and "memjax eval --workdir=" in said
