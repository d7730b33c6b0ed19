"""Recall of facts from long texts, by the length of the text and the depth of the fact.

A fact is recalled if its answer is the likeliest of the choices. A model cannot recall tokens that
it does not keep, so the result has the share of each text that it kept, and the share of texts with
the supporting fact kept.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from memjax.errors import MemjaxError
from memjax.evaluation.facts import Haystack, Hidden, Question
from memjax.evaluation.text_scorer import TextScorer
from memjax.objectives import uncertainty
from memjax.objectives.uncertainty import Estimate

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (1024, 4096)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Result of texts of one length, or of one depth, or of both."""

    accuracy: Estimate
    """Share of correct answers, over texts."""
    kept_share: float
    """Share of a text's tokens that the model keeps: the mean over texts."""
    fact_kept: float
    """Share of the texts of which the model keeps the supporting fact."""


@dataclasses.dataclass(frozen=True)
class LongRecall:
    """Results by length and depth, and in total."""

    overall: Cell
    by_length: dict[int, Cell]
    by_depth: dict[float, Cell]
    cells: dict[str, Cell]
    """Cells by `LENGTH@DEPTH`."""
    chance: float
    """Accuracy of guessing."""
    tokens: dict[int, float]
    """Mean tokens of the texts of each length, facts and question counted."""
    seed: int


def long_recall(
    model: TextScorer,
    haystack: Iterable[str],
    questions: Sequence[Question],
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    count: int = 20,
    seed: int = 0,
) -> LongRecall:
    """Hide questions in texts of every length and depth, and rank their answers by log-likelihood.

    Args:
      model: the model to evaluate.
      haystack: texts; the facts are hidden between their sentences.
      questions: from `made_up` or `read_babi`; every length and depth takes the next `count`.
      lengths: tokens of a text by the model's tokenizer, facts and question counted.
      depths: share of a text before the supporting fact.
      count: texts per length and depth.
      seed: seed of the questions, the parts of the haystack and the positions of other facts.

    Raises:
      MemjaxError: the haystack is too short, a length has no room for the facts, a depth is not a
        share, or there are no questions.
    """
    MemjaxError.require(
        questions and count >= 1, "questions: none, expected one or more, and a count of 1 or more"
    )
    for name, values in (("lengths", lengths), ("depths", depths)):
        MemjaxError.require(
            values and len(set(values)) == len(values),
            f"{name}={list(values)}, expected one number or more, none of them twice",
        )
    MemjaxError.require(
        min(depths) >= 0 and max(depths) <= 1,
        f"depths={list(depths)}, expected shares of a text, from 0 (its beginning) to 1 (its end)",
    )
    MemjaxError.require(min(lengths) >= 1, f"lengths={list(lengths)}, expected 1 or more tokens")
    hay = Haystack(haystack, model.tokenizer)
    order = np.random.default_rng([seed, 0]).permutation(len(questions))
    texts: list[tuple[int, float, Hidden]] = []
    for number, (length, depth, _) in enumerate(itertools.product(lengths, depths, range(count))):
        question = questions[order[number % len(order)]]
        texts.append((length, depth, hay.hide(question, length, depth, [seed, 1, number])))
    right, kept, reached = _rank(model, [text for *_, text in texts])
    of_length, of_depth = (np.array([text[axis] for text in texts]) for axis in (0, 1))
    tokens = np.array([len(text.tokens) for *_, text in texts])

    def cell(chosen: np.ndarray) -> Cell:
        share = kept[chosen] / tokens[chosen]
        return Cell(
            uncertainty.mean(right[chosen], seed),
            float(share.mean()),
            float(reached[chosen].mean()),
        )

    return LongRecall(
        overall=cell(np.ones(len(texts), bool)),
        by_length={length: cell(of_length == length) for length in lengths},
        by_depth={depth: cell(of_depth == depth) for depth in depths},
        cells={
            f"{length}@{depth:g}": cell((of_length == length) & (of_depth == depth))
            for length, depth in itertools.product(lengths, depths)
        },
        chance=float(np.mean([1 / len(text.question.answers) for *_, text in texts])),
        tokens={length: float(tokens[of_length == length].mean()) for length in lengths},
        seed=seed,
    )


def _rank(model: TextScorer, texts: Sequence[Hidden]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each text (right answer is likeliest, kept tokens, supporting fact is kept)."""
    spelled = {
        name: model.tokenizer.encode(f" {name}", start=False)
        for name in {x for text in texts for x in text.question.answers}
    }
    pairs = [(text.tokens, spelled[name]) for text in texts for name in text.question.answers]
    scored = iter(model.scorer.score(pairs))
    right, kept, reached = np.zeros((3, len(texts)))
    for row, text in enumerate(texts):
        found = [next(scored) for _ in text.question.answers]
        right[row] = (
            int(np.argmax([answer.log_probability for answer in found])) == text.question.right
        )
        kept[row] = found[text.question.right].kept
        reached[row] = text.begins[text.question.support] >= len(text.tokens) - kept[row]
    return right, kept, reached
