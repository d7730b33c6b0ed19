"""How well a model recalls facts from long texts, by the length of the text and by how deep in it the fact stands.

A fact is recalled where its answer is the likeliest of those to choose from. What a model does not keep it cannot recall: the result says
how much of each text it kept, and of how many texts the fact that gives the answer.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from memjax.evals.errors import EvalError
from memjax.evals.facts import Haystack, Hidden, Question
from memjax.evals.text_model import TextModel
from memjax.instruments import uncertainty
from memjax.instruments.uncertainty import Estimate

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (1024, 4096)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Texts of one length, or of one depth, or of both."""

    accuracy: Estimate
    """Over texts."""
    kept_share: float
    """Of a text's tokens, those that the model keeps: the mean over texts."""
    fact_kept: float
    """Share of the texts of which the model keeps the fact that gives the answer."""


@dataclasses.dataclass(frozen=True)
class LongRecall:
    """What was found."""

    overall: Cell
    by_length: dict[int, Cell]
    by_depth: dict[float, Cell]
    cells: dict[str, Cell]
    """By `LENGTH@DEPTH`."""
    chance: float
    """Accuracy of guessing."""
    tokens: dict[int, float]
    """Tokens that the texts of each length have: the mean, facts and question counted."""
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The fields, as the json module writes them."""
        return uncertainty.to_json(self)


def long_recall(
    model: TextModel,
    haystack: Iterable[str],
    questions: Sequence[Question],
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    count: int = 20,
    seed: int = 0,
) -> LongRecall:
    """Hides questions in texts of every length and depth, and ranks their answers by log-likelihood.

    Args:
      model: whom to ask.
      haystack: texts whose sentences the facts are hidden between.
      questions: from `made_up` or `read_babi`; every length and depth takes `count` of them, in turn.
      lengths: tokens of a text in the model's own words, facts and question counted.
      depths: share of a text before the fact that gives the answer.
      count: texts of each length and depth.
      seed: chooses questions, parts of the haystack and the places of other facts.

    Raises:
      EvalError: the haystack is too short, a length has no room for the facts, a depth is no share, or there is nothing to ask.
    """
    if not questions or count < 1:
        raise EvalError("there is no question to ask: give count of 1 or more and questions")
    for name, values in (("lengths", lengths), ("depths", depths)):
        if not values or len(set(values)) < len(values):
            raise EvalError(f"{name}={list(values)} must be one number or more, none of them twice")
    if min(depths) < 0 or max(depths) > 1:
        raise EvalError(f"depths={list(depths)} must be shares of a text, from 0 (its beginning) to 1 (its end)")
    if min(lengths) < 1:
        raise EvalError(f"lengths={list(lengths)} must be numbers of tokens")
    hay = Haystack(haystack, model.tokenizer)
    order = np.random.default_rng([seed, 0]).permutation(len(questions))
    texts: list[tuple[int, float, Hidden]] = []
    for length in lengths:
        for depth in depths:
            for _ in range(count):
                number = len(texts)
                question = questions[order[number % len(order)]]
                texts.append((length, depth, hay.hide(question, length, depth, [seed, 1, number])))
    right, kept, reached = _ask(model, [text for *_, text in texts])
    of_length, of_depth = (np.array([text[axis] for text in texts]) for axis in (0, 1))
    tokens = np.array([len(text.tokens) for *_, text in texts])

    def cell(chosen: np.ndarray) -> Cell:
        share = kept[chosen] / tokens[chosen]
        return Cell(uncertainty.mean(right[chosen], seed), float(share.mean()), float(reached[chosen].mean()))

    return LongRecall(
        overall=cell(np.ones(len(texts), bool)),
        by_length={length: cell(of_length == length) for length in lengths},
        by_depth={depth: cell(of_depth == depth) for depth in depths},
        cells={f"{n}@{depth:g}": cell((of_length == n) & (of_depth == depth)) for n in lengths for depth in depths},
        chance=float(np.mean([1 / len(text.question.answers) for *_, text in texts])),
        tokens={length: float(tokens[of_length == length].mean()) for length in lengths},
        seed=seed,
    )


def _ask(model: TextModel, texts: Sequence[Hidden]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each text: whether the right answer is the likeliest, tokens that were kept for it, and whether the fact was among them."""
    spelled = {name: model.tokenizer.encode(f" {name}") for name in {x for text in texts for x in text.question.answers}}
    pairs = [(text.tokens, spelled[name]) for text in texts for name in text.question.answers]
    scored = iter(model.scorer.score(pairs, model.bar))
    right, kept, reached = np.zeros((3, len(texts)))
    for row, text in enumerate(texts):
        found = [next(scored) for _ in text.question.answers]
        right[row] = int(np.argmax([answer.log_probability for answer in found])) == text.question.right
        kept[row] = found[text.question.right].kept
        reached[row] = text.begins[text.question.support] >= len(text.tokens) - kept[row]
    return right, kept, reached
