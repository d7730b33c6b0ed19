"""Log-likelihoods are those of the module's own logits on rows as in training, whatever is scored
beside them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from memjax import objectives
from memjax.config import Backbone, Model, Stage
from memjax.inference import GenerationError, Generator
from memjax.inference.likelihood import Scorer, compiled
from memjax.models import Autoencoder, CausalLM, MemoryModel, RecurrentMemory

IDS = objectives.SpecialIds()
LENGTH, CHUNKS, VOCABULARY, ROW = 4, 4, 40, 12
SMALL = {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 1.0}
TRANSFORMER = Backbone(output_gate=True, **SMALL)
MIXER = Backbone(kind="mixer", **SMALL)
BASE = Model(chunk_length=LENGTH, encoder=MIXER, decoder=TRANSFORMER)
PLAIN = {"token_positions": False, "chunk_positions": False, "task_embedding": False}


def memory_model(memory=True, **changes):
    return MemoryModel(dataclasses.replace(BASE, **changes), CHUNKS, VOCABULARY, memory)


def causal(**changes):
    return CausalLM(dataclasses.replace(BASE, **changes), ROW, VOCABULARY)


def recurrent(**changes):
    return RecurrentMemory(dataclasses.replace(BASE, **changes), CHUNKS, VOCABULARY)


NARROW = Backbone(kind="mixer", **SMALL | {"width": 8})
MODULES = {
    "memory, fixed": memory_model(),
    "memory, variable, 2 narrow vectors": memory_model(
        layout="variable", memory_vectors=2, readout="memory_tokens", encoder=NARROW
    ),
    "memory, attended slots": memory_model(compat=("slots_of_ones", "attended_padding"), **PLAIN),
    "memory, none": memory_model(memory=False),
    "memory, mixer": memory_model(decoder=MIXER),
    "causal, transformer": causal(),
    "causal, published": causal(),
    "causal, mixer": causal(decoder=MIXER),
    "recurrent, mixer": recurrent(decoder=MIXER, memory_vectors=2),
}
RNG = np.random.default_rng(0)
PAIRS = [
    (RNG.integers(6, VOCABULARY, context), RNG.integers(6, VOCABULARY, continuation))
    for context, continuation in (
        (3, 1),
        (1, 2),
        (4, 4),
        (9, 3),
        (5, 9),
        (21, 2),
        (2, 0),
        (15, 1),
        (13, 15),
    )
]
"""Within a chunk, at its borders, over them, longer than a row, nothing, and a continuation that is
longer than a row."""


@pytest.fixture(scope="module")
def scorer(draw):
    """Scorers of modules with drawn weights."""
    made = {}

    def make(name, batch=4):
        module = MODULES[name]
        shape = (1, ROW) if isinstance(module, CausalLM) else (1, CHUNKS, LENGTH)
        if name not in made:
            made[name] = draw(module, jnp.zeros(shape, jnp.int32))["params"]
        return Scorer(
            module,
            made[name],
            IDS,
            ("unscored_first_tokens",) if "published" in name else (),
            batch,
        )

    return make


def said(quick, scorer, pairs):
    """For each pair the log-probabilities [tokens, V] of its continuation, from the module's
    logits.

    One row for every token, filled up with noise behind it, all in one call.
    """
    module, rows, places = scorer.module, [], []
    noise = np.random.default_rng(7).integers(6, VOCABULARY, 64)
    for context, continuation in pairs:
        text = np.concatenate([context, continuation])
        for i in range(len(context), len(text)):
            shape, first, begin = (CHUNKS, LENGTH), max(0, i // LENGTH - CHUNKS + 1) * LENGTH, []
            if isinstance(module, RecurrentMemory):
                shape, first = (8, LENGTH), 0
            elif isinstance(module, CausalLM):
                # The window of ROW tokens in which it is scored, and what fits before that.
                end = min(len(context) + ((i - len(context)) // ROW + 1) * ROW, len(text))
                shape, first, begin = (
                    (ROW,),
                    max(0, end - ROW - len(scorer.compat)),
                    [IDS.bos][len(scorer.compat) :],
                )
            rows.append(
                np.concatenate([begin, text[first:i], noise])[: np.prod(shape)].reshape(shape)
            )
            places.append(i - first - len(scorer.compat))

    def forward(params, rows):
        variables = {"params": params}
        if not isinstance(module, MemoryModel):
            return module.apply(variables, rows)
        memories = module.apply(variables, rows[:, :-1], method="encode") if module.memory else None
        start = jnp.full_like(rows[..., :1], IDS.bos)
        return module.apply(
            variables, jnp.concatenate([start, rows[..., :-1]], axis=-1), memories, method="decode"
        )

    logits = quick(forward)(scorer.params, np.array(rows, np.int32)).reshape(
        len(rows), -1, VOCABULARY
    )
    found = log_softmax(logits[np.arange(len(rows)), places].astype(np.float64), axis=-1)
    return np.split(found, np.cumsum([len(continuation) for _, continuation in pairs])[:-1])


@pytest.mark.quick_cases("causal, transformer")
@pytest.mark.parametrize("name", MODULES)
def test_likelihoods_are_those_of_the_modules_own_logits(quick, scorer, name):
    found = scorer(name)
    scored = found.score(PAIRS)
    for (_, continuation), one, expected in zip(
        PAIRS, scored, said(quick, found, PAIRS), strict=True
    ):
        picked = expected[np.arange(len(continuation)), continuation]
        assert one.log_probability == pytest.approx(picked.sum(), abs=2e-4)
        assert one.greedy == bool((expected.argmax(axis=-1) == continuation).all())
        assert len(continuation) < 2 or np.ptp(picked) > 1e-3, (
            "weights are drawn so that what was read matters"
        )


def test_a_row_as_in_training_is_scored_as_in_training(quick, scorer):
    """The objective that a memory model is trained on, and all its tokens as one continuation."""
    found, stage = scorer("memory, fixed"), Stage(objectives={"next_token": 1.0})
    rows = np.random.default_rng(1).integers(6, VOCABULARY, (3, CHUNKS * LENGTH))
    train = quick(
        lambda p, x: (
            objectives.score(found.module, {"params": p}, x, ("next_token",), IDS, stage)[
                "next_token"
            ].nats
        )
    )
    nats = train(found.params, rows)
    scored = found.score([([], row) for row in rows])
    np.testing.assert_allclose(
        [-one.log_probability for one in scored], nats.sum(axis=(1, 2)), rtol=1e-5
    )


@pytest.mark.slow
def test_together_alone_and_in_any_order(scorer):
    for name in ("memory, fixed", "causal, transformer", "recurrent, mixer"):
        together = scorer(name).score(PAIRS)
        order = np.random.default_rng(2).permutation(len(PAIRS))
        others = list(zip(order, scorer(name).score([PAIRS[i] for i in order]), strict=True))
        others += [(i, scorer(name, batch=1).score([PAIRS[i]])[0]) for i in (1, 3)]
        for i, other in others:
            assert other.log_probability == pytest.approx(together[i].log_probability, abs=1e-4)
            assert other[1:] == together[i][1:]
    assert scorer("memory, fixed").score([]) == []


def test_lengths_are_of_few_shapes(scorer):
    """Every length up to a row, in batches of one size: programs are powers of two."""
    found = scorer("causal, transformer", batch=4)
    before = compiled(found.strategy)._cache_size()
    found.score([(PAIRS[5][0][:n], PAIRS[4][1][:k]) for n in range(1, 12) for k in (1, 2, 3, 4)])
    assert compiled(found.strategy)._cache_size() - before <= 2


def test_what_the_model_would_say_is_greedy(scorer):
    for name in ("memory, fixed", "causal, mixer"):
        found = scorer(name)
        context = PAIRS[0][0]
        (made,) = Generator(found.module, found.params, IDS).generate([context], 6)
        wrong = made.copy()
        wrong[4] = (wrong[4] + 1 - 6) % (VOCABULARY - 6) + 6
        assert [one.greedy for one in found.score([(context, made), (context, wrong)])] == [
            True,
            False,
        ]


@pytest.mark.quick_cases("memory, fixed", "memory, none", "causal, published")
@pytest.mark.parametrize(
    "name",
    [
        "memory, fixed",
        "memory, none",
        "causal, transformer",
        "causal, published",
        "recurrent, mixer",
    ],
)
def test_a_continuation_depends_on_the_tokens_that_are_kept_and_on_no_others(scorer, name):
    """Every token of a context is changed in turn."""
    found = scorer(name, batch=16)
    for context, continuation in (PAIRS[5], PAIRS[3]):
        changed = [context.copy() for _ in context]
        for i, other in enumerate(changed):
            other[i] = (other[i] + 5 - 6) % (VOCABULARY - 6) + 6
        whole, *others = found.score([(other, continuation) for other in (context, *changed)])
        moved = np.array([abs(other.log_probability - whole.log_probability) for other in others])
        lost = len(context) - whole.kept
        assert (moved[:lost] < 1e-5).all()
        assert (moved[lost:] > 1e-5).all()


def test_memories_are_what_carries_a_context(scorer):
    """The same chunks in another order are other memories; the control without memories cannot
    tell."""
    chunks = PAIRS[5][0][:12].reshape(3, LENGTH)
    texts = [
        (chunks[list(order)].ravel(), PAIRS[3][1]) for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2))
    ]
    for name, differs in (("memory, fixed", True), ("memory, none", False)):
        spread = np.ptp([one.log_probability for one in scorer(name).score(texts)])
        assert spread > 1e-3 if differs else spread < 1e-5


def test_a_chunk_that_several_texts_read_is_encoded_once(scorer):
    strategy, context = scorer("memory, fixed").strategy, PAIRS[5][0][:9]
    pieces = [piece for last in (7, 8, 9) for piece in strategy.pieces(context, np.array([last]))]
    assert len(strategy.arrays(pieces, strategy.shape(pieces[0]))["chunks"]) == 2


def test_the_windows_of_a_long_text_are_the_harness_own(scorer):
    utils = pytest.importorskip("lm_eval.utils")
    text = [int(x) for x in np.concatenate(PAIRS[8])]
    prefix = 3
    windows = list(utils.get_rolling_token_windows(text, prefix, ROW, 1))
    pieces = scorer("causal, published").strategy.pieces(np.array([prefix]), np.array(text))
    assert [piece.tokens.tolist() for piece in pieces] == [
        [*shown, scored[-1]] for shown, scored in windows
    ]
    assert [piece.scored for piece in pieces] == [len(scored) for _, scored in windows]
    assert sum(piece.scored for piece in pieces) == len(text)


def test_what_cannot_be_scored_says_so(scorer):
    with pytest.raises(GenerationError, match="family autoencoder does not generate or score text"):
        Scorer(Autoencoder(BASE, VOCABULARY), {}, IDS)
    with pytest.raises(GenerationError, match="never learned the first token"):
        Scorer(MODULES["memory, fixed"], {}, IDS, ("unscored_first_tokens",))
    with pytest.raises(
        GenerationError,
        match="text 1 has no context, and this model was trained without a start token",
    ):
        scorer("causal, published").score([PAIRS[0], ([], [7])])
    with pytest.raises(
        GenerationError,
        match=f"text 0 has ids from 7 to {VOCABULARY}; the model's go from 0 to {VOCABULARY - 1}",
    ):
        scorer("memory, fixed").score([([7], [VOCABULARY])])
