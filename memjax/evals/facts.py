"""Questions about facts, and texts of a given length that hide them at a given depth.

The text of books is cut into sentences, and the sentences of a story are put between them, whole and in their order; the question comes at
the end. This is how BABILong (Kuratov et al. 2024, arXiv 2406.10149) hides the tasks of bAbI (Weston et al. 2015, arXiv 1502.05698).
"""

import dataclasses
import gzip
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from memjax.data import Tokenizer
from memjax.evals.errors import EvalError

PEOPLE = ("Anna", "Boris", "Clara", "David", "Emma", "Felix")
PLACES = ("garden", "kitchen", "office", "bedroom", "hallway", "school")
MOVED = ("went to", "moved to", "walked to")
PROMPT = "\nQuestion: {question}\nAnswer:"
"""What stands behind the text; the answer follows after a space."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\u201d\u2019])\s+")


@dataclasses.dataclass(frozen=True)
class Question:
    """A story of short sentences and something asked of it."""

    facts: tuple[str, ...]
    support: int
    """Number of the sentence that gives the answer: of several the last."""
    question: str
    answers: tuple[str, ...]
    """Among which the right one is to be found."""
    right: int

    @property
    def prompt(self) -> str:
        """The end of the text."""
        return PROMPT.format(question=self.question)


@dataclasses.dataclass(frozen=True, eq=False)
class Hidden:
    """A question whose facts are hidden in a text."""

    question: Question
    tokens: np.ndarray
    """Int[tokens]: the text, the facts in it, and the prompt."""
    begins: tuple[int, ...]
    """Where in `tokens` each fact begins."""

    @property
    def depth(self) -> float:
        """Share of the text, without fact and prompt, that stands before the fact that gives the answer."""
        return self.begins[self.question.support] / max(self.room, 1)

    room: int
    """Tokens of the text without that fact and the prompt."""


def made_up(count: int, seed: int = 0, people: Sequence[str] = PEOPLE, places: Sequence[str] = PLACES) -> list[Question]:
    """`count` questions where someone is, after each of three people went to a place of their own."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(count):
        who, where = (generator.permutation(len(names))[:3] for names in (people, places))
        moves = generator.integers(len(MOVED), size=3)
        facts = tuple(
            f"{people[person]} {MOVED[move]} the {places[place]}."
            for person, move, place in zip(who, moves, where, strict=True)
        )
        support = int(generator.integers(3))
        question = f"Where is {people[who[support]]}?"
        found.append(Question(facts, support, question, tuple(places), int(where[support])))
    return found


def read_babi(path: str | os.PathLike, limit: int | None = None) -> list[Question]:
    """Questions of a file in bAbI's form, plain or .gz; a question's facts are the sentences of its story before it.

    The answers to choose from are all that the file has.

    Raises:
      EvalError: the file cannot be read or is of another form.
    """
    path, story, raw = Path(path), {}, []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                place, _, text = line.rstrip("\n").partition(" ")
                if not place.isdigit():
                    raise EvalError(
                        f"{path}, line {number}: begins with no number; a line of bAbI is a number, a space and a sentence"
                    )
                if int(place) == 1:
                    story = {}
                if "\t" not in text:
                    story[int(place)] = text.strip()
                    continue
                question, answer, *support = (part.strip() for part in text.split("\t"))
                last = [int(name) for name in " ".join(support).split() if name.isdigit() and int(name) in story]
                if not last:
                    raise EvalError(f"{path}, line {number}: names no sentence before it that gives the answer")
                raw.append((tuple(story.values()), list(story).index(max(last)), question, answer))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise EvalError(f"{path}: cannot be read ({error}); give a file of bAbI") from error
    answers = tuple(sorted({answer for *_, answer in raw}))
    if len(answers) < 2:
        raise EvalError(f"{path}: has {len(raw)} questions and {len(answers)} answers; give a file of bAbI, with questions")
    raw = raw[:limit]
    return [Question(facts, support, question, answers, answers.index(right)) for facts, support, question, right in raw]


class Haystack:
    """Sentences of books, as tokens, to hide facts in."""

    def __init__(self, documents: Iterable[str], tokenizer: Tokenizer):
        """Takes the books, in their order.

        Raises:
          EvalError: they hold no sentence.
        """
        self._tokenizer = tokenizer
        self._sentences = tokenizer.encode_batch([f" {sentence}" for text in documents for sentence in sentences(text)])
        if not self._sentences:
            raise EvalError("the haystack holds no sentence: give files of running text")
        self._ends = np.concatenate([[0], np.cumsum([len(ids) for ids in self._sentences])])

    @property
    def tokens(self) -> int:
        """Of all its sentences."""
        return int(self._ends[-1])

    def hide(self, question: Question, length: int, depth: float, seed: Sequence[int]) -> Hidden:
        """A text of `length` tokens, or fewer by less than its next sentence has, with the fact that gives the answer at `depth`.

        Facts before that one stand anywhere before it, those behind it anywhere behind, always between two sentences.

        Args:
          question: what is hidden.
          length: tokens of the text, facts and prompt counted.
          depth: share of the text before the fact that gives the answer, from 0 to 1.
          seed: chooses the part of the books and the places of the other facts.

        Raises:
          EvalError: the books are too short, or facts and prompt alone are longer.
        """
        generator = np.random.default_rng(list(seed))
        facts = self._tokenizer.encode_batch([f" {fact}" for fact in question.facts])
        prompt = self._tokenizer.encode(question.prompt)
        space = length - sum(map(len, facts)) - len(prompt)
        if space < 0:
            raise EvalError(
                f"lengths has {length}: the facts and the question alone are {length - space} tokens; give more, or shorter stories"
            )
        if self.tokens < space:
            raise EvalError(
                f"lengths has {length}: the haystack holds {self.tokens} tokens; give more files, or shorter lengths"
            )
        first = int(generator.integers(np.searchsorted(self._ends, self.tokens - space, side="right")))
        last = int(np.searchsorted(self._ends, self._ends[first] + space, side="right")) - 1
        borders = self._ends[first : last + 1] - self._ends[first]
        shares = generator.random(len(facts))
        before = np.arange(len(facts)) < question.support
        wanted = np.where(before, np.sort(shares) * depth, depth + np.sort(shares) * (1 - depth))
        wanted[question.support] = depth
        at = np.abs(borders[:, None] - wanted * borders[-1]).argmin(axis=0)
        parts, begins, done = [], [], 0
        for border in range(last - first + 1):
            for fact in np.flatnonzero(at == border):
                begins.append(done)
                parts.append(facts[fact])
                done += len(facts[fact])
            if border < last - first:
                parts.append(self._sentences[first + border])
                done += len(parts[-1])
        tokens = np.concatenate([*parts, prompt]).astype(np.int32)
        return Hidden(question, tokens, tuple(begins), len(tokens) - len(prompt) - len(facts[question.support]))


def sentences(text: str) -> Iterator[str]:
    """Its sentences, lines joined: what ends in a full stop or the like and is followed by white space."""
    for part in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE.split(" ".join(part.split())):
            if sentence:
                yield sentence
