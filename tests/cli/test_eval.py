"""`memjax eval`: the harness's table and every number as JSON, and every wrong input as one
line."""

import importlib.util
import json

import numpy as np
import pytest

from memjax.cli import eval as command
from memjax.cli.arguments import parse
from memjax.cli.main import _complain
from memjax.errors import MemjaxError
from memjax.evaluation.facts import made_up
from memjax.evaluation.long_recall import long_recall
from memjax.evaluation.text_scorer import text_scorer
from memjax.inference import load
from memjax.objectives.uncertainty import to_json
from memjax.testing import WORDS

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install lm-eval")

QUESTIONS = [
    {"query": "Question: what does it hold?", "choices": ["the words", "a row"], "gold": 0},
    {"query": "Question: who reads?", "choices": ["one", "the decoder"], "gold": 1},
    {"query": "Question: when?", "choices": ["in time", "until the end"], "gold": 1},
]


@pytest.fixture(scope="module", autouse=True)
def files(place):
    """What is evaluated on, beside the models."""
    (place / "arc_easy.jsonl").write_text(
        "".join(json.dumps(doc) + "\n" for doc in QUESTIONS), encoding="utf-8"
    )
    rng = np.random.default_rng(0)
    book = " ".join(f"{' '.join(rng.choice(WORDS, 5))}." for _ in range(200))
    (place / "book.txt").write_text(book, encoding="utf-8")


def run(*args):
    command.run(parse(command.ARGUMENTS, list(map(str, args))))


def says(capsys, *args):
    run(*args)
    return capsys.readouterr().out


def test_the_table_and_all_numbers(place, capsys):
    said = says(
        capsys,
        place / "run" / "stages" / "memory_model",
        "--tasks=arc_easy_local",
        f"--task_folder={place}",
    )
    written = json.loads(
        (place / "run" / "stages" / "memory_model" / "evaluations.json").read_text(encoding="utf-8")
    )
    accuracy = written["results"]["arc_easy_local"]["acc,none"]
    assert "|arc_easy_local|" in said and f"{accuracy:.4f}" in said
    model = text_scorer(load(place / "run" / "stages" / "memory_model"))
    pairs = [
        (f"{doc['query']}\nAnswer:", f" {choice}") for doc in QUESTIONS for choice in doc["choices"]
    ]
    nats = np.array([n for n, _ in model.loglikelihood(pairs)]).reshape(-1, 2)
    assert accuracy == pytest.approx(
        np.mean(nats.argmax(axis=-1) == [doc["gold"] for doc in QUESTIONS])
    )
    assert written["model"] == dict(model.about)
    assert (written["model"]["step"], written["model"]["tokenizer"]) == (
        2,
        model.tokenizer.fingerprint,
    )
    assert set(written["memjax"]) == {"memjax", "jax", "lm_eval"}
    assert written["n-samples"]["arc_easy_local"] == {"original": 3, "effective": 3}
    assert written["versions"]["arc_easy_local"] == 1.0


def test_long_recall_beside_a_task(place, capsys):
    """A workdir is the last stage of its curriculum; the numbers are the function's."""
    out = place / "elsewhere" / "found.json"
    said = says(
        capsys,
        place / "run",
        "--tasks=long_recall,arc_easy_local",
        f"--task_folder={place}",
        "--limit=1",
        f"--corpus={place / 'book.txt'}",
        "--long_recall=lengths=120+160,depths=0+1,questions=2",
        f"--out={out}",
        "--seed=3",
    )
    written = json.loads(out.read_text(encoding="utf-8"))
    assert "|arc_easy_local|" in said and "depth 1" in said and "text kept" in said
    model = text_scorer(load(place / "run", "causal_lm"))
    text = (place / "book.txt").read_text(encoding="utf-8")
    found = to_json(long_recall(model, [text], made_up(8, 3), (120, 160), (0.0, 1.0), 2, 3))
    assert {key: written["long_recall"][key] for key in found} == json.loads(json.dumps(found))
    assert written["long_recall"]["facts"] == "made up"
    assert written["n-samples"]["arc_easy_local"]["effective"] == 1


WRONG = {
    "no stage": (["--tasks=a"], "PATH: missing, expected PATH."),
    "no tasks": (["{run}"], "--tasks: missing, expected NAME,..."),
    "a stray word": (["{run}", "--tasks=a", "word"], "'word': unexpected argument"),
    "no haystack": (["{run}", "--tasks=long_recall"], "--corpus: missing, expected text for"),
    "no lengths": (
        ["{run}", "--tasks=a", "--long_recall=lengths=1k"],
        "--long_recall: lengths='1k', expected a whole number of at least 1.",
    ),
    "no limit": (["{run}", "--tasks=a", "--limit=0"], "--limit: 0, expected a whole number"),
    "no folder of tasks": (
        ["{run}", "--tasks=a", "--task_folder={book}"],
        "book.txt', expected a folder.",
    ),
    "an unknown stage": (
        ["{run}/stages/copy", "--tasks=a"],
        "stages/copy: no folder of a stage, expected",
    ),
    "no next token": (
        ["{run}/stages/autoencoder", "--tasks=a"],
        "stage autoencoder: a model of family autoencoder does not generate or score text",
    ),
    "imported weights": (
        ["{imported}", "--tasks=a"],
        "imported, stage causal_lm: weights without a tokenizer, expected one",
    ),
    "no data": (["{run}", "--tasks=arc_easy_local"], "use --task_folder=FOLDER"),
    "a short haystack": (
        ["{run}", "--tasks=long_recall", "--corpus={book}", "--long_recall=lengths=100000"],
        "lengths: 100000, expected at most the",
    ),
    "no facts": (
        ["{run}", "--tasks=long_recall", "--corpus={book}", "--long_recall=facts={book}"],
        "book.txt, line 1: no number at the beginning, expected",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(place, capsys, case):
    args, message = WRONG[case]
    args = [
        arg.format(run=place / "run", imported=place / "imported", book=place / "book.txt")
        for arg in args
    ]
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(*args)
    assert isinstance(caught.value, MemjaxError | OSError)
    _complain(str(caught.value))
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert len(str(caught.value).splitlines()) == 1


def test_without_the_harness_it_says_what_to_install(place, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "lm_eval" else find(name, *args),
    )
    with pytest.raises(MemjaxError, match=r"not installed: pip install lm-eval"):
        run(place / "run", "--tasks=arc_easy")
