"""How a decoder reads thousands of memories: the numbers against direct counts."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax import objectives
from memjax.config import Backbone, Config, Data, Evaluator, Model, Stage
from memjax.evaluation.evaluators import reading
from memjax.evaluation.evaluators.accuracy import open_accuracy
from memjax.evaluation.evaluators.reading import open_reading
from memjax.evaluation.evaluators.recall import open_recall
from memjax.models import build
from memjax.objectives import SpecialIds
from memjax.sharding import make_mesh
from memjax.training.init_state import abstract_params

LENGTH, VOCABULARY, ENTRIES = 2, 8, 16
IDS = SpecialIds()
STACK = Backbone(width=8, layers=1, heads=2, mlp_ratio=1)
READER = dataclasses.replace(
    STACK, qk_norm=True, features=("rotary_values", "blind_memories"), place_heads=1
)
MODEL = Model(
    chunk_length=LENGTH,
    encoder=STACK,
    decoder=READER,
    layout="text",
    chunk_positions=False,
)
RECALL = Stage(objectives={"recall": 1.0, "next_token": 1.0})


class HeldOut(list):
    """Sequences in memory in place of those on disk."""

    @property
    def row_tokens(self) -> int:
        return len(self[0])


def run_of(chunks: np.ndarray, model: Model = MODEL, stage: Stage = RECALL) -> Any:
    """A run whose held-out text is one sequence of these chunks and one of padding."""
    row = np.concatenate([chunks, np.full((1, LENGTH), IDS.pad)]).astype(np.int32)
    data = Data(vocab_size=VOCABULARY, sequence_length=row.size)
    config = Config(data=data, model=model, stages={"main": stage}, curriculum=("main",))
    tokenizer = SimpleNamespace(byte_lengths=np.ones(VOCABULARY), pieces=list)
    held_out = SimpleNamespace(validation=HeldOut([row.ravel()]), tokenizer=tokenizer)
    return SimpleNamespace(config=config, data=held_out, ids=IDS, mesh=make_mesh())


def text(chunks: int) -> np.ndarray:
    return np.random.default_rng(0).integers(6, VOCABULARY, (chunks, LENGTH))


def draw(run: Any) -> Any:
    """Parameters that are far from those at the beginning, and prefer tokens of text."""
    module = build(run.config, run.config.stages["main"])
    shapes = abstract_params(module, run.config)
    generator = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), shapes)
    params["head"]["kernel"] *= jnp.arange(VOCABULARY) >= IDS.first_content
    return params


@functools.cache
def scorer(module: Any, name: str) -> Any:
    """The compiled scores of a sequence by an objective."""

    def score(params: Any, tokens: jax.Array) -> Any:
        return objectives.score(module, {"params": params}, tokens, (name,), IDS)[name]

    return jax.jit(score)


def direct(run: Any, params: Any, tokens: np.ndarray, name: str) -> Any:
    """Scores of one sequence by the objective."""
    module = build(run.config, run.config.stages["main"])
    return scorer(module, name)(params, tokens.reshape(1, -1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SIZES", (4, ENTRIES))
    monkeypatch.setattr(reading, "GROUP", 4)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_recall_is_that_of_the_objective_where_both_exist() -> None:
    run = run_of(text(ENTRIES))
    params, row = draw(run), run.data.validation[0]
    evaluate: Any = open_reading(run, "main", Evaluator("reading", examples=ENTRIES))
    found = evaluate(params, {})
    for key, name in (("recall", "recall"), ("recall_blank", "blank_recall")):
        right = np.asarray(direct(run, params, row, name).is_argmax)[0]
        assert found[f"{key}_accuracy"]["16"] == pytest.approx(right.mean()) and right.any()
        assert found[f"{key}_exact"]["16"] == pytest.approx(right.all(axis=-1).mean())
        low, high = found[f"{key}_accuracy_interval"]["16"]
        assert low <= right.mean() <= high
    exact = np.asarray(direct(run, params, row, "recall").is_argmax)[0].all(axis=-1)
    assert 0 < exact.sum() < ENTRIES
    assert found["recall_exact_by_place"]["16"] == exact.tolist()
    flat = jax.tree_util.tree_map_with_path(
        lambda path, x: x * ("address" not in jax.tree_util.keystr(path)), params
    )
    right = direct(run, flat, row, "recall").is_argmax
    assert found["recall_accuracy_without_address"]["16"] == pytest.approx(float(right.mean()))
    assert found["recall_chunks"] == {"4": 16, "16": 16}
    assert set(found["next_token_nats_by_memories"]) == {"4"}, "no chunk has 16 before it"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_next_tokens_are_those_of_the_same_chunks_behind_more_and_fewer_memories() -> None:
    chunks = text(ENTRIES + 4)
    run = run_of(chunks)
    params = draw(run)
    evaluate: Any = open_reading(run, "main", Evaluator("reading", examples=8))
    found = evaluate(params, {})["next_token_nats_by_memories"]
    for size in (4, ENTRIES):
        behind = chunks[ENTRIES - size :]
        nats = direct(run, params, behind, "next_token").nats[0, size : size + 4]
        assert found[str(size)] == pytest.approx(float(nats.mean()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_passages_from_far_back_are_the_most_likely_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TENTHS", 3)
    stage = Stage(objectives={"blank_recall": 1.0})
    run = run_of(text(ENTRIES + 1), stage=stage)
    params, chunks = draw(run), text(ENTRIES + 1)[:ENTRIES]
    evaluate: Any = open_reading(run, "main", Evaluator("reading", examples=4))
    found = evaluate(params, {})["far_passages"]
    assert [(one["place"], one["memories"]) for one in found] == [(0, 16), (2, 16), (4, 16)]
    # By the objective, on the sequence of these memories and one more chunk.
    scored = direct(run, params, run.data.validation[0][:-LENGTH], "blank_recall")
    for one in found:
        assert list(one["source"]) == chunks[one["place"]].tolist()
        same = [a == b for a, b in zip(one["source"], one["regenerated"], strict=True)]
        assert one["correct"] == same
        assert one["correct"] == np.asarray(scored.is_argmax)[0, one["place"]].tolist()
    assert {right for one in found for right in one["correct"]} == {True, False}


def test_a_stage_without_blank_recall_has_no_passages(small: None) -> None:
    run = run_of(text(ENTRIES))
    evaluate: Any = open_reading(run, "main", Evaluator("reading", examples=4))
    assert "far_passages" not in evaluate(draw(run), {})


@pytest.mark.parametrize("chunks", [0, 15])
def test_too_little_text_has_no_numbers(chunks: int) -> None:
    evaluate: Any = open_reading(run_of(text(chunks)), "main", Evaluator("reading"))
    assert evaluate({}, {}) == {}


def test_places_are_uniform_and_windows_are_over_the_whole_text() -> None:
    windows = reading._draw(200, 64, 640, 16)
    assert windows.asked.shape == (10, 64) and windows.entries.shape == (10, 64)
    assert np.bincount(windows.places.ravel()).tolist() == [10] * 64
    assert windows.entries[0, 0] == 0 and windows.entries[-1, -1] == 199
    few = reading._draw(16, 16, 2048, 16)
    assert few.asked.shape == (1, 16), "no chunk is asked for twice"


@pytest.mark.parametrize(("size", "bins"), [(16, 16), (64, 10), (4096, 10)])
def test_the_worst_tenth_of_places(size: int, bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tenth is recalled by half, and the others whole but for one token in each chunk of
    the first."""

    def scores(*_: Any, windows: Any, **rest: Any) -> Any:
        right = np.ones((*windows.places.shape, LENGTH), bool)
        right[windows.places * bins // size == bins - 1] = np.array([True, False])
        right[(windows.places * bins // size == bins - 1) & (windows.places % 2 == 0)] = True
        right[windows.places == 0, 0] = False
        yield [(np.zeros(right.shape), right)] * 2

    monkeypatch.setattr(reading, "_scores", scores)
    held = reading.Text(np.zeros((size, LENGTH), np.int32), np.zeros((size, 1, 8)))
    module: Any = SimpleNamespace(config=dataclasses.replace(MODEL, decoder=STACK))
    found = reading._recall(run_of(text(1)), module, {}, held, size, size)
    places = np.arange(size)
    last = places[places * bins // size == bins - 1]
    first = (places * bins // size == 0).sum()
    by_place = [1 - 1 / first, *[1.0] * (bins - 2), float((last % 2 == 0).mean())]
    assert found["recall_exact_by_place"] == pytest.approx(by_place)
    assert found["recall_exact_worst_tenth"] == pytest.approx(min(by_place))
    assert "recall_accuracy_without_address" not in found


@pytest.mark.parametrize(
    ("model", "stage"),
    [
        (dataclasses.replace(MODEL, layout="fixed", decoder=STACK), RECALL),
        (MODEL, dataclasses.replace(RECALL, memory=False)),
        (MODEL, Stage(family="autoencoder", objectives={"reconstruction": 1.0})),
    ],
)
def test_other_models_have_nothing_to_evaluate(model: Model, stage: Stage) -> None:
    assert open_reading(run_of(text(4), model, stage), "main", Evaluator("reading")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "trained", ["recall", "next_token", pytest.param("copy", marks=pytest.mark.slow)]
)
def test_copies_are_recall_among_all_entries(trained: str) -> None:
    """Unless the stage trains copies, which are then what they are in every model."""
    run = run_of(text(8), stage=Stage(objectives={trained: 1.0, "next_token": 1.0}))
    params, row, found = draw(run), run.data.validation[0], {}
    for opened in (open_accuracy, open_recall):
        evaluate: Any = opened(run, "main", Evaluator("", examples=1))
        found |= evaluate(params, found)
    prompt = found["asked_to_copy_by"]
    assert prompt in {"recall": ["recall"], "copy": ["copy", "plain_copy"]}.get(
        trained, ["recall", "plain_copy"]
    )
    shown = direct(run, params, row, prompt)
    real = np.asarray(shown.weight[0]) > 0
    right = np.asarray(shown.is_argmax[0])
    assert found["copy_accuracy"] == pytest.approx(right[real].mean())
    assert found["free_running_exact_chunks"] == pytest.approx(
        (right | ~real).all(axis=-1)[real.any(axis=-1)].mean()
    )
    blank = direct(run, params, row, "blank_copy" if trained == "copy" else "blank_recall")
    assert found["blank_copy_nats"] == pytest.approx(
        float(jnp.sum(blank.nats * blank.weight) / jnp.sum(blank.weight)), rel=1e-5
    )
    assert "recall_accuracy" not in found, "a mapping, of another evaluator"


def test_what_an_autoencoder_holds_is_counted_in_whole_chunks_too() -> None:
    model = dataclasses.replace(MODEL, reconstructor=STACK)
    stage = Stage(family="autoencoder", objectives={"reconstruction": 1.0})
    run = run_of(text(8), model, stage)
    params = draw(run)
    evaluate: Any = open_accuracy(run, "main", Evaluator("accuracy", examples=1))
    right = direct(run, params, run.data.validation[0], "reconstruction").is_argmax[0, :8]
    assert evaluate(params, {})["autoencoder_exact"] == float(right.all(axis=-1).mean())


def test_with_no_memory_in_view_the_numbers_are_those_of_the_control_on_the_same_parameters() -> (
    None
):
    run = run_of(text(8))
    control = run_of(text(8), stage=dataclasses.replace(RECALL, memory=False))
    params, row = draw(run), run.data.validation[0]
    evaluate: Any = open_accuracy(run, "main", Evaluator("base_accuracy", examples=1), base=True)
    found = evaluate(params, {})
    for key, name in (("next_token_empty", "next_token"), ("copy_empty", "recall")):
        one = direct(control, params, row, name)
        expected = float(jnp.sum(one.nats * one.weight) / jnp.sum(one.weight))
        assert found[f"{key}_nats"] == pytest.approx(expected, rel=1e-5)
    assert {key.rpartition("_")[0] for key in found if key.endswith("_nats")} == {
        "next_token_empty",
        "copy_empty",
    }
