"""Facts are hidden where and in as much text as was asked, and recalled by what a model keeps of
it."""

import dataclasses
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.data import Tokenizer, train_tokenizer
from memjax.errors import MemjaxError
from memjax.evaluation.facts import MOVED, PEOPLE, PLACES, Haystack, made_up, read_babi, sentences
from memjax.evaluation.long_recall import long_recall
from memjax.evaluation.text_scorer import TextScorer
from memjax.inference.likelihood import Likelihood, Scorer
from memjax.models import CausalLM, MemoryModel
from memjax.objectives import SpecialIds
from memjax.objectives.uncertainty import to_json
from memjax.testing import WORDS, tiny_model

VOCABULARY, ROW = 400, 64
RNG = np.random.default_rng(0)
BOOK = " ".join(f"{' '.join(RNG.choice(WORDS, RNG.integers(2, 7)))}." for _ in range(400))
STORIES = """1 Mia took the pot.
2 Otto left.
3 Who took the pot?\tMia\t1
4 Otto took the cup.
5 Who took the cup?\tOtto\t4 2
1 Otto took the cup.
2 Who took the cup?\tOtto\t1
"""


@pytest.fixture(scope="module")
def tokenizer():
    said = " ".join(
        f"{p} {m} the {w}. Where is {p}? Question: Answer: {w}"
        for p in PEOPLE
        for m in MOVED
        for w in PLACES
    )
    return train_tokenizer([BOOK, *[said] * 6], VOCABULARY)


# Texts


def room(hidden, tokenizer):
    """Tokens of a text without its supporting fact and its prompt."""
    question = hidden.question
    fact = tokenizer.encode(f" {question.facts[question.support]}")
    return len(hidden.tokens) - len(fact) - len(tokenizer.encode(question.prompt))


def test_facts_stand_whole_between_sentences_at_their_depth(tokenizer):
    hay, longest = (
        Haystack([BOOK], tokenizer),
        max(len(tokenizer.encode(f" {s}")) for s in sentences(BOOK)),
    )
    for number, question in enumerate(made_up(12)):
        length, depth = (128, 300)[number % 2], (0.0, 0.3, 1.0)[number % 3]
        hidden = hay.hide(question, length, depth, [number])
        text = tokenizer.decode(hidden.tokens)
        assert length - longest < len(hidden.tokens) <= length
        assert np.array_equal(tokenizer.encode(text), hidden.tokens), (
            "as if the text had been encoded as a whole"
        )
        assert text.endswith(f"\nQuestion: {question.question}\nAnswer:")
        body = text.removesuffix(question.prompt)
        parts = list(sentences(body))
        assert [part for part in parts if part in question.facts] == list(question.facts), (
            "in their order"
        )
        rest = " ".join(part for part in parts if part not in question.facts)
        assert rest in BOOK, "and what is between them is the book, whole"
        for fact, begin in zip(question.facts, hidden.begins, strict=True):
            assert tokenizer.decode(hidden.tokens[begin:]).startswith(f" {fact}")
        # The other facts count as text: each moves the border by no more than its own length.
        facts = sum(len(tokenizer.encode(f" {fact}")) for fact in question.facts)
        assert (
            abs(hidden.begins[question.support] - depth * room(hidden, tokenizer))
            <= longest + facts
        )
    ends = [
        hay.hide(question, 128, depth, [1]) for question in made_up(6, 1) for depth in (0.0, 1.0)
    ]
    for first, last in zip(ends[::2], ends[1::2], strict=True):
        assert first.begins[first.question.support] == sum(
            len(tokenizer.encode(f" {fact}"))
            for fact in first.question.facts[: first.question.support]
        )
        behind = last.question.facts[last.question.support :]
        assert last.begins[last.question.support] == room(last, tokenizer) - sum(
            len(tokenizer.encode(f" {fact}")) for fact in behind[1:]
        )


def test_texts_are_the_same_for_the_same_seed(tokenizer):
    hay, question = Haystack([BOOK], tokenizer), made_up(1)[0]
    first, again, other = (
        hay.hide(question, 100, 0.5, seed).tokens.tolist() for seed in ([3], [3], [4])
    )
    assert first == again != other
    assert made_up(5, 1) == made_up(5, 1) != made_up(5, 2)


def test_made_up_questions_have_one_answer():
    questions = made_up(300)
    for question in questions:
        (told,) = [fact for fact in question.facts if fact.split()[0] in question.question]
        assert told == question.facts[question.support]
        assert told.endswith(f" {question.answers[question.right]}.")
        assert len({fact.split()[-1] for fact in question.facts}) == 3
    counts = np.bincount([question.right for question in questions])
    assert len(counts) == len(PLACES) and counts.min() > 25


def test_stories_of_babi_are_read(tmp_path):
    (tmp_path / "qa.txt").write_text(STORIES, encoding="utf-8")
    with gzip.open(tmp_path / "qa.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write(STORIES)
    first, second, third = read_babi(tmp_path / "qa.txt")
    assert read_babi(tmp_path / "qa.txt.gz") == [first, second, third]
    assert first.facts == ("Mia took the pot.", "Otto left.")
    assert (first.support, first.question, first.answers, first.right) == (
        0,
        "Who took the pot?",
        ("Mia", "Otto"),
        0,
    )
    assert second.facts == (*first.facts, "Otto took the cup.") and second.support == 2
    assert third.facts == ("Otto took the cup.",) and third.right == 1


# Recall


@dataclasses.dataclass
class Reads:
    """A reader that keeps the last tokens of a text and finds likely what the one asked for is said
    to have done there."""

    tokenizer: Tokenizer
    keeps: int

    def score(self, pairs):
        found = []
        for context, answer in pairs:
            kept, asked = (
                context[-self.keeps :],
                self.tokenizer.decode(context).rpartition("Where is ")[2].partition("?")[0],
            )
            said = self.tokenizer.decode(kept).rpartition(f" {asked} ")[2].partition(".")[0]
            found.append(
                Likelihood(
                    -1.0 if said.endswith(self.tokenizer.decode(answer)) else -2.0, False, len(kept)
                )
            )
        return found


def test_what_is_kept_is_recalled_and_what_is_not_is_said(tokenizer):
    """At 100 tokens a reader of 100 recalls everything; at 300 only what is deep, and the result
    says why."""
    found = long_recall(
        TextScorer(Reads(tokenizer, 100), tokenizer),
        [BOOK],
        made_up(40),
        (100, 300),
        (0.0, 1.0),
        count=20,
    )
    whole, long = found.by_length[100], found.by_length[300]
    assert (whole.accuracy.value, whole.kept_share, whole.fact_kept) == (1.0, 1.0, 1.0)
    assert found.cells["300@1"].accuracy.value == found.cells["300@1"].fact_kept == 1.0
    assert found.cells["300@0"].fact_kept == 0.0
    assert found.cells["300@0"].accuracy.value < 0.6
    assert long.kept_share == pytest.approx(100 / found.tokens[300], rel=0.02)
    assert found.by_depth[1.0].accuracy.value == 1.0
    assert found.overall.accuracy.texts == 80 and found.cells["300@0"].accuracy.texts == 20
    assert found.overall.accuracy.value == pytest.approx(
        np.mean([cell.accuracy.value for cell in found.cells.values()])
    )
    assert found.chance == pytest.approx(1 / 6)
    assert to_json(found)["by_length"]["300"]["accuracy"]["texts"] == 40


def text_model(module, params, tokenizer):
    return TextScorer(Scorer(module, params, SpecialIds(), batch=64), tokenizer)


def test_drawn_weights_guess(draw, tokenizer):
    """And a memory model keeps the chunks that its slots hold: 3 of 8 tokens, and the last one."""
    module = MemoryModel(tiny_model(), 4, VOCABULARY)
    model = text_model(module, draw(module, jnp.zeros((1, 4, 8), jnp.int32))["params"], tokenizer)
    found = long_recall(model, [BOOK], made_up(60), (80,), (0.0, 1.0), count=30)
    assert found.overall.accuracy.low < found.chance < found.overall.accuracy.high
    assert 24 / 80 <= found.overall.kept_share <= 32 / 60
    assert found.cells["80@0"].fact_kept == 0.0
    assert found == long_recall(model, [BOOK], made_up(60), (80,), (0.0, 1.0), count=30)


def trained(tokenizer, hay):
    """A causal model after a few dozen steps on the likelihoods of right answers."""
    wide = dataclasses.replace(tiny_model().decoder, width=32)
    module = CausalLM(dataclasses.replace(tiny_model(), decoder=wide), ROW, VOCABULARY)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, ROW), jnp.int32))["params"]
    strategy, pieces = Scorer(module, params, SpecialIds()).strategy, []
    for number, question in enumerate(made_up(1024, seed=9)):
        context = hay.hide(question, ROW - 4, RNG.random(), [9, number]).tokens
        pieces += strategy.pieces(context, tokenizer.encode(f" {question.answers[question.right]}"))
    batch, optimizer = strategy.arrays(pieces, (ROW, 8)), optax.adam(1e-2)

    @jax.jit
    def run(params, batch):
        def step(carry, key):
            params, state = carry
            chosen = jax.random.randint(key, (64,), 0, len(pieces))
            part = jax.tree.map(lambda x: x[chosen], batch)
            loss, gradients = jax.value_and_grad(lambda p: strategy.score(p, part)[0].sum() / 64)(
                params
            )
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(
            step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 60)
        )

    (params, _), losses = run(params, batch)
    assert float(losses[-5:].mean()) < 0.5 * float(losses[0])
    return module, jax.device_get(params)


@pytest.mark.slow
def test_a_trained_model_recalls_what_its_row_holds(tokenizer):
    """A place that was named is likelier than one that was not; where the row no longer holds the
    facts the model guesses."""
    model = text_model(*trained(tokenizer, Haystack([BOOK], tokenizer)), tokenizer)
    near = long_recall(model, [BOOK], made_up(100), (ROW - 4,), (0.5,), count=100).overall
    assert near.kept_share == near.fact_kept == 1.0
    assert near.accuracy.low > 1 / len(PLACES)
    last = [question for question in made_up(300) if question.support == 2]
    far = long_recall(model, [BOOK], last, (5 * ROW,), (0.0,), count=80).overall
    assert far.fact_kept == 0.0 and far.kept_share < 0.25
    assert far.accuracy.value < near.accuracy.low


# What cannot be


def test_what_cannot_be_asked_says_so(tokenizer, tmp_path):
    model = TextScorer(Reads(tokenizer, 9), tokenizer)
    for arguments, message in (
        (([BOOK], [], (100,)), "questions: none, expected"),
        (
            ([BOOK], made_up(1), (100, 100)),
            r"lengths=\[100, 100\], expected one number or more, none of them twice",
        ),
        (
            ([BOOK], made_up(1), (100,), (1.5,)),
            r"depths=\[1\.5\], expected shares of a text, from 0 .* to 1",
        ),
        (([BOOK], made_up(1), (0,)), r"lengths=\[0\], expected 1 or more tokens"),
        (
            ([BOOK], made_up(1), (20,)),
            r"lengths: 20, expected more than the \d+ tokens of the facts",
        ),
        (
            ([BOOK], made_up(1), (10**6,)),
            "lengths: 1000000, expected at most the .* tokens of the haystack. Pass more files",
        ),
        (([""], made_up(1), (100,)), "haystack: no sentence, expected files"),
    ):
        with pytest.raises(MemjaxError, match=message):
            long_recall(model, *arguments)
    for content, message in (
        ("Mia left.\n", "line 1: no number at the beginning, expected"),
        ("1 Mia left.\n2 Who?\tMia\t7\n", "line 2: no earlier supporting sentence, expected"),
        ("1 Mia left.\n2 Who?\tMia\t1\n", "1 questions and 1 answers, expected"),
        ("\u00b2 Mia left.\n", "line 1: no number at the beginning, expected"),
        (f"{'9' * 5000} Mia left.\n", "line 1: no number at the beginning, expected"),
        (b"\xff", "not UTF-8 at byte 0"),
    ):
        path = tmp_path / "qa.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(MemjaxError, match=message):
            read_babi(path)
    with pytest.raises(MemjaxError, match=r"none\.txt: unreadable \(No such file"):
        read_babi(tmp_path / "none.txt")
