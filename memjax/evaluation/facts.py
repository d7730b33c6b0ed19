"""Questions about facts, and texts of a given length that hide these facts at a given depth.

The text of books is split into sentences. The sentences of a story are inserted between them, whole
and in their order, and the question follows at the end. BABILong (Kuratov et al. 2024, arXiv
2406.10149) hides the tasks of bAbI (Weston et al. 2015, arXiv 1502.05698) in this way.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from memjax.data import Tokenizer, text_lines
from memjax.errors import MemjaxError

PEOPLE = ("Anna", "Boris", "Clara", "David", "Emma", "Felix")
PLACES = ("garden", "kitchen", "office", "bedroom", "hallway", "school")
MOVED = ("went to", "moved to", "walked to")
PROMPT = "\nQuestion: {question}\nAnswer:"
"""The prompt after the text; the answer follows after a space."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\u201d\u2019])\s+")


@dataclasses.dataclass(frozen=True)
class Question:
    """A story of short sentences and a question about it."""

    facts: tuple[str, ...]
    support: int
    """The number of the sentence that gives the answer; the last one, if there are several."""
    question: str
    answers: tuple[str, ...]
    """The answers to choose from."""
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
    """The position in `tokens` at which each fact begins."""


def made_up(count: int, seed: int = 0) -> list[Question]:
    """Return `count` questions about the place of a person, after three people went elsewhere.

    Each of the three goes to another place.
    """
    generator, found = np.random.default_rng(seed), []
    for _ in range(count):
        who, where = (generator.permutation(len(names))[:3] for names in (PEOPLE, PLACES))
        moves = generator.integers(len(MOVED), size=3)
        facts = tuple(
            f"{PEOPLE[person]} {MOVED[move]} the {PLACES[place]}."
            for person, move, place in zip(who, moves, where, strict=True)
        )
        support = int(generator.integers(3))
        question = f"Where is {PEOPLE[who[support]]}?"
        found.append(Question(facts, support, question, PLACES, int(where[support])))
    return found


def read_babi(path: str | os.PathLike) -> list[Question]:
    """Read the questions of a file in bAbI's format, plain or compressed.

    The facts of a question are the preceding sentences of its story. The choices are all answers of
    the file.

    Raises:
      MemjaxError: the file cannot be read or is of another form.
    """
    story, raw = {}, []
    for number, line in text_lines(path):
        place, _, text = line.rstrip("\n").partition(" ")
        MemjaxError.require(
            place.isdecimal() and len(place) < 10,
            f"{path}, line {number}: no number at the beginning, expected a"
            " number, a space and a sentence, as in bAbI",
        )
        if int(place) == 1:
            story = {}
        if "\t" not in text:
            story[int(place)] = text.strip()
            continue
        question, answer, *support = (part.strip() for part in text.split("\t"))
        last = [
            int(name)
            for name in " ".join(support).split()
            if name.isdecimal() and len(name) < 10 and int(name) in story
        ]
        MemjaxError.require(
            last,
            f"{path}, line {number}: no earlier supporting sentence, expected its number",
        )
        raw.append((tuple(story.values()), list(story).index(max(last)), question, answer))
    answers = tuple(sorted({answer for *_, answer in raw}))
    MemjaxError.require(
        len(answers) >= 2,
        f"{path}: {len(raw)} questions and {len(answers)} answers, expected a file of bAbI"
        " with two answers or more",
    )
    return [
        Question(facts, support, question, answers, answers.index(right))
        for facts, support, question, right in raw
    ]


class Haystack:
    """Sentences of books, as tokens, to hide facts in."""

    def __init__(self, documents: Iterable[str], tokenizer: Tokenizer):
        """Split the books into sentences, in their order.

        Raises:
          MemjaxError: they hold no sentence.
        """
        self._tokenizer = tokenizer
        self._sentences = tokenizer.encode_batch(
            [f" {sentence}" for text in documents for sentence in sentences(text)], start=False
        )
        MemjaxError.require(
            self._sentences, "haystack: no sentence, expected files of running text"
        )
        self._ends = np.concatenate([[0], np.cumsum([len(ids) for ids in self._sentences])])

    def hide(self, question: Question, length: int, depth: float, seed: Sequence[int]) -> Hidden:
        """Return a text of about `length` tokens with the supporting fact at `depth`.

        The text is shorter by less than one sentence. Earlier facts are inserted anywhere before
        that fact, later ones anywhere after it, always between two sentences.

        Args:
          question: the question and its facts.
          length: tokens of the text, facts and prompt included.
          depth: share of the text before the fact that gives the answer, from 0 to 1.
          seed: seed of the part of the books and of the positions of the other facts.

        Raises:
          MemjaxError: the books are too short, or facts and prompt alone are longer.
        """
        generator = np.random.default_rng(list(seed))
        facts = self._tokenizer.encode_batch([f" {fact}" for fact in question.facts], start=False)
        prompt = self._tokenizer.encode(question.prompt, start=False)
        space = length - sum(map(len, facts)) - len(prompt)
        MemjaxError.require(
            space >= 0,
            f"lengths: {length}, expected more than the {length - space} tokens of the facts"
            " and the question. Pass greater lengths, or shorter stories",
        )
        MemjaxError.require(
            space <= self._ends[-1],
            f"lengths: {length}, expected at most the {self._ends[-1]} tokens of the haystack."
            " Pass more files, or shorter lengths",
        )
        first = int(
            generator.integers(np.searchsorted(self._ends, self._ends[-1] - space, side="right"))
        )
        last = int(np.searchsorted(self._ends, self._ends[first] + space, side="right")) - 1
        borders = self._ends[first : last + 1] - self._ends[first]
        shares = np.sort(generator.random(len(facts)))
        before = np.arange(len(facts)) < question.support
        wanted = np.where(before, shares * depth, depth + shares * (1 - depth))
        wanted[question.support] = depth
        at = np.abs(borders[:, None] - wanted * borders[-1]).argmin(axis=0)
        # The order of the parts: sentences, by their number, and facts as -1, in front of theirs.
        order = np.insert(np.arange(first, last), at, -1)
        next_fact = iter(facts)
        parts = [next(next_fact) if part < 0 else self._sentences[part] for part in order]
        begins = np.cumsum([0, *map(len, parts)])[:-1][order < 0]
        tokens = np.concatenate([*parts, prompt]).astype(np.int32)
        return Hidden(question, tokens, tuple(begins.tolist()))


def sentences(text: str) -> Iterator[str]:
    """Return the sentences of a text, with lines joined.

    A sentence ends with a full stop or the like and white space.
    """
    for part in re.split(r"\n\s*\n", text):
        yield from filter(None, _SENTENCE.split(" ".join(part.split())))
