"""What every objective shows, asks and counts on one row of eight tokens, recorded from the model's
call and written out by hand.

`pytest -s` prints the tables.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.models import Autoencoder, CausalLM, MemoryModel, Oracle, RecurrentMemory
from memjax.objectives import Batch, SpecialIds, score
from memjax.testing.families import FAMILY_OBJECTIVES, WEIGHTINGS, weights_of

IDS = SpecialIds()
D, B, S = IDS.delimiter, IDS.blank, IDS.bos
VOCABULARY, CHUNK = 20, 4
# The last token is padding.
ROW = jnp.asarray([[11, 12, 13, 14, 15, 16, 17, 0]], jnp.int32)

SMALL = Backbone(width=8, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(
    chunk_length=CHUNK, memory_vectors=1, encoder=SMALL, decoder=SMALL, reconstructor=SMALL
)
MODULES = {
    "memory_model": MemoryModel(MODEL, 2, VOCABULARY),
    "causal_lm": CausalLM(MODEL, 8, VOCABULARY),
    "oracle": Oracle(MODEL, VOCABULARY),
    "recurrent_memory": RecurrentMemory(MODEL, 2, VOCABULARY),
    "autoencoder": Autoencoder(MODEL, VOCABULARY),
}
FORMS = {
    "": (),
    "published": ("unscored_first_tokens",),
    "delimited": ("unscored_first_tokens", "overwritten_delimiter"),
}

CHUNKS = [[11, 12, 13, 14], [15, 16, 17, 0]]
READ_ON = ([[S, 11, 12, 13], [S, 15, 16, 17]], CHUNKS, [[1, 1, 1, 1], [1, 1, 1, 0]])
READ_ON_PUBLISHED = (CHUNKS, [[12, 13, 14, 0], [16, 17, 0, 0]], [[1, 1, 1, 0], [1, 1, 0, 0]])
COPIED = [[11, 12, 13, 14]], [[1, 1, 1, 1]]
COPIED_PUBLISHED = [[12, 13, 14, 0]], [[1, 1, 1, 0]]
ROW_READ = (
    [[S, 11, 12, 13, 14, 15, 16, 17]],
    [[11, 12, 13, 14, 15, 16, 17, 0]],
    [[1, 1, 1, 1, 1, 1, 1, 0]],
)
ROW_READ_PUBLISHED = (
    [[11, 12, 13, 14, 15, 16, 17, 0]],
    [[12, 13, 14, 15, 16, 17, 0, 0]],
    [[1, 1, 1, 1, 1, 1, 0, 0]],
)
_ = None  # Not scored.
# The noise that evaluation always draws: the copy is shown as 11 18 13 19, and 11 8 13 17 is asked.
CORRUPTED = (
    [[S, 11, 12, 13, 14, 11, 18, 13]],
    [[_, _, _, _, 11, 8, 13, 17]],
    [[_, _, _, _, 1, 1, 1, 1]],
)
CORRUPTED_PUBLISHED = (
    [[11, 12, 13, 14, 11, 18, 13, 19]],
    [[_, _, _, 11, 8, 13, 17, _]],
    [[_, _, _, 1, 1, 1, 1, _]],
)
RANDOM = [[7, 8, 12, 15], [19, 11, 14, 0]]
BY_HAND = {
    # family, form: objective: inputs, labels and weights of every chunk that is decoded
    ("memory_model", ""): {
        "next_token": READ_ON,
        "copy": ([[D, 11, 12, 13]], *COPIED),
        "plain_copy": ([[S, 11, 12, 13]], *COPIED),
        "blank_copy": ([[D, B, B, B]], *COPIED),
        "recall": ([[D, 11, 12, 13]], *COPIED),
        "blank_recall": ([[D, B, B, B]], *COPIED),
    },
    ("memory_model", "published"): {
        "next_token": READ_ON_PUBLISHED,
        "copy": ([[11, 12, 13, 14]], *COPIED_PUBLISHED),
        "plain_copy": ([[11, 12, 13, 14]], *COPIED_PUBLISHED),
        "blank_copy": ([[B, B, B, B]], *COPIED_PUBLISHED),
    },
    ("memory_model", "delimited"): {
        "next_token": READ_ON_PUBLISHED,
        "copy": ([[D, D, D, 14]], [[12, 13, 14, 0]], [[0, 1, 1, 0]]),
        "plain_copy": ([[11, 12, 13, 14]], *COPIED_PUBLISHED),
        "blank_copy": ([[D, D, D, B]], [[12, 13, 14, 0]], [[0, 1, 1, 0]]),
    },
    ("causal_lm", ""): {
        "next_token": ROW_READ,
        "plain_copy": (
            [[S, 11, 12, 13, 14, 11, 12, 13]],
            [[_, _, _, _, 11, 12, 13, 14]],
            [[_, _, _, _, 1, 1, 1, 1]],
        ),
        "corrupted_copy": CORRUPTED,
        "unweighted_corrupted_copy": CORRUPTED,
        **dict.fromkeys(WEIGHTINGS, ROW_READ),
    },
    ("causal_lm", "published"): {
        "next_token": ROW_READ_PUBLISHED,
        "plain_copy": (
            [[11, 12, 13, 14, 11, 12, 13, 14]],
            [[_, _, _, 11, 12, 13, 14, _]],
            [[_, _, _, 1, 1, 1, 1, _]],
        ),
        "corrupted_copy": CORRUPTED_PUBLISHED,
        "unweighted_corrupted_copy": CORRUPTED_PUBLISHED,
        **dict.fromkeys(WEIGHTINGS, ROW_READ_PUBLISHED),
    },
    ("oracle", ""): {"next_token": READ_ON},
    ("oracle", "published"): {"next_token": READ_ON_PUBLISHED},
    ("recurrent_memory", ""): {"next_token": (CHUNKS, CHUNKS, [[1, 1, 1, 1], [1, 1, 1, 0]])},
    ("recurrent_memory", "published"): {
        "next_token": (CHUNKS, CHUNKS, [[0, 1, 1, 1], [0, 1, 1, 0]])
    },
    ("autoencoder", ""): {
        "reconstruction": (CHUNKS, CHUNKS, [[1, 1, 1, 1], [1, 1, 1, 0]]),
        "random_reconstruction": (RANDOM, RANDOM, [[1, 1, 1, 1], [1, 1, 1, 0]]),
    },
}
CASES = [(*key, name) for key, of_name in BY_HAND.items() for name in of_name]


def cells(values_XL, start, length):
    """Lists [X, length] of ints, None where nothing is scored."""
    after = [None] * (length - start - values_XL.shape[1])
    return [[None] * start + [int(v) for v in values_L] + after for values_L in values_XL]


def table(title, inputs, labels, weight):
    lines = [title]
    for x, parts in enumerate(zip(inputs, labels, weight, strict=True)):
        for label, part in zip((f"chunk {x}  inputs", "labels", "weight"), parts, strict=True):
            lines.append(f"{label:>16} " + " ".join(f"{'.' if v is None else v:>3}" for v in part))
    return "\n".join(lines)


def test_no_objective_that_asks_for_tokens_is_left_out():
    for family in MODULES:
        assert {name for other, _, name in CASES if other == family} == set(
            FAMILY_OBJECTIVES[family]
        )


@pytest.mark.parametrize(
    ("family", "form", "name"), CASES, ids=["-".join(filter(None, case)) for case in CASES]
)
def test_a_row_of_eight_tokens(quick, draw, family, form, name):
    module, stage = MODULES[family], Stage(family=family, compat=FORMS[form])
    rows = (
        ROW
        if family == "causal_lm"
        else ROW.reshape(2, CHUNK)
        if family in ("oracle", "autoencoder")
        else ROW.reshape(1, 2, CHUNK)
    )
    variables = draw(module, rows)
    starts = []

    def run(row):
        calls = []

        def record(call, args, kwargs, context):
            own = isinstance(context.module, type(module))
            if own and context.method_name == "joined_states":
                calls.append((args[0].inputs, args[0].labels))
                starts.append(0)
            if own and context.method_name == "score":
                calls.append(args)
                starts.append(kwargs.get("start", 0))
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            scores = score(module, variables, Batch(row), [name], IDS, stage)[name]
        assert scores.nats.shape == scores.is_argmax.shape == scores.labels.shape
        return (
            calls,
            scores.labels,
            scores.weight,
            weights_of(module, Batch(row), [name], IDS, stage)[name],
        )

    calls, labels, weight, weight_alone = quick(run)(ROW)
    assert len(calls) == 1
    # What is not shifted is shown and asked in one argument.
    shown, asked = calls[0][0], calls[0][0 if family in ("recurrent_memory", "autoencoder") else 1]
    shown = shown.reshape(-1, shown.shape[-1])
    asked = asked.reshape(-1, asked.shape[-1])
    length, start = shown.shape[1], starts[0]
    found = shown.tolist(), cells(asked, start, length), cells(weight[0], start, length)
    expected = BY_HAND[family, form][name]
    print("\n" + table(f"{family} {name} {form}", *found))
    assert np.array_equal(labels[0], asked) and np.array_equal(weight, weight_alone)
    assert found == expected, "\n" + table("by hand", *expected)


@pytest.mark.parametrize("form", ["", "published"])
def test_a_copy_is_scored_at_the_positions_of_its_table(draw, form):
    """Nats from the logits of the whole row."""
    module = MODULES["causal_lm"]
    variables = draw(module, ROW)
    found = score(
        module,
        variables,
        Batch(ROW),
        ["plain_copy"],
        IDS,
        Stage(family="causal_lm", compat=FORMS[form]),
    )["plain_copy"]
    (shown,), (asked,), _ = BY_HAND["causal_lm", form]["plain_copy"]
    logits = np.asarray(module.apply(variables, jnp.asarray([shown])))[0]
    expected = [
        np.log(np.exp(at).sum()) - at[token]
        for at, token in zip(logits, asked, strict=True)
        if token is not None
    ]
    np.testing.assert_allclose(found.nats[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain_copy", "corrupted_copy", "unweighted_corrupted_copy"])
def test_rows_without_two_halves_are_refused(draw, name):
    module, odd = MODULES["causal_lm"], Batch(ROW[:, :7])
    with pytest.raises(
        ValueError,
        match=rf"config.data.sequence_length: got 7, expected an even number for {name}, which",
    ):
        weights_of(module, odd, [name], IDS)
    with pytest.raises(
        ValueError,
        match=rf"config.data.sequence_length: got 7, expected an even number for {name}, which",
    ):
        score(module, draw(module, ROW), odd, [name], IDS)
