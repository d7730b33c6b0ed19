"""Losses that know a token's entropy, and estimates of it, against numbers by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.layers import Head
from memjax.models import CausalLM, EntropyRegressor
from memjax.objectives import (
    OBJECTIVES,
    Asking,
    Batch,
    Scores,
    SpecialIds,
    score,
    total,
    weighted_loss,
)
from memjax.objectives.corrupted_copy import corrupt
from memjax.objectives.requests import shift_right
from memjax.objectives.weighted import VARIANTS, weighted
from memjax.testing.families import REGRESSIONS, WEIGHTINGS, counts_of, weights_of

IDS = SpecialIds()
LENGTH, HALF, VOCABULARY = 8, 4, 24
MODEL = Model(chunk_length=4, decoder=Backbone(width=8, layers=1, heads=2, mlp_ratio=1))
LANGUAGE = CausalLM(MODEL, LENGTH, VOCABULARY)
REGRESSOR = EntropyRegressor(MODEL, LENGTH, VOCABULARY)
RNG = np.random.default_rng(0)
ROWS = RNG.integers(6, VOCABULARY, (4, LENGTH)).astype(np.int32)
# Rows without padding, with some on the right, with some on the left, and of nothing else.
REAL = np.array(
    [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1], [0] * 8], bool
)
PADDED = np.where(REAL, ROWS, IDS.pad)
MANY = np.random.default_rng(1).integers(6, VOCABULARY, (32, LENGTH)).astype(np.int32)
KEY = jax.random.key(3)
STAGE, PUBLISHED = (
    Stage(family="causal_lm"),
    Stage(family="causal_lm", compat=("unscored_first_tokens",)),
)
FORMS = pytest.mark.parametrize("stage", [STAGE, PUBLISHED], ids=["shifted", "published"])
CORRUPTED = ("corrupted_copy", "unweighted_corrupted_copy")


@pytest.fixture(scope="module")
def language(draw):
    return draw(LANGUAGE, ROWS)


@pytest.fixture(scope="module")
def regressor(draw):
    return draw(REGRESSOR, ROWS)


# Weighted losses

NATS = np.array([[[0.5, 2.0, 4.0, 7.0]], [[1.0, 3.0, 0.25, 8.0]]], np.float32)
ATTRIBUTION = np.array([[0.25, 1.0, 6.0, 5.75], [3.0, 0.0, 0.5, 6.5]], np.float32)
WEIGHT = np.array([[[1, 1, 1, 1]], [[1, 1, 1, 0]]], np.float32)
PLAIN = Scores(NATS, NATS < 1, WEIGHT, np.arange(8).reshape(2, 1, 4))
BY_HAND = {
    "complement_weighted": [[[0.375, 0.0, -20.0, -33.25]], [[-2.0, 3.0, 0.125, 8.0]]],
    "ten_minus_weighted": [[[4.875, 18.0, 16.0, 29.75]], [[7.0, 30.0, 2.375, 80.0]]],
    "subtracted_weighted": [[[0.25, 1.0, -2.0, 1.25]], [[-2.0, 3.0, -0.25, 8.0]]],
    "distance_weighted": [[[0.625, 2.5, 5.0, 3.125]], [[5.0, 7.5, 0.625, 20.0]]],
    "below_six_weighted": [[[0.5, 2.0, 0.0, 7.0]], [[1.0, 3.0, 0.25, 8.0]]],
}
"""Worked out by hand; the last place is padding, where the attribution counts as 0."""


def test_the_variants_are_those_of_the_config_in_their_order():
    assert tuple(VARIANTS) == WEIGHTINGS == tuple(BY_HAND)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_each_variant_by_hand(name):
    found = weighted(name, PLAIN, jnp.asarray(ATTRIBUTION))
    assert found.nats.dtype == jnp.float32
    np.testing.assert_array_equal(found.nats, BY_HAND[name])
    for field in ("is_argmax", "weight", "labels"):
        assert getattr(found, field) is getattr(PLAIN, field)
    # The mean is over the seven targets, whatever they weigh.
    term = total(found)
    assert term.count == 7
    assert float(weighted_loss({name: term}, {name: 1.0})) == pytest.approx(
        np.sum(BY_HAND[name] * WEIGHT) / 7
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradient_of_each_variant_by_hand(name):
    gradient = jax.grad(
        lambda nats: total(weighted(name, PLAIN.replace(nats=nats), jnp.asarray(ATTRIBUTION))).nats
    )(NATS)
    a = np.where(WEIGHT > 0, ATTRIBUTION[:, None], 0)
    expected = {
        "complement_weighted": 1 - a,
        "ten_minus_weighted": 10 - a,
        "subtracted_weighted": np.ones_like(a),
        "distance_weighted": 2.5 * np.sign(NATS - a),
        "below_six_weighted": a < 6,
    }[name]
    np.testing.assert_array_equal(gradient, expected * WEIGHT)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_what_stands_at_padding_does_not_matter(name):
    odd = ATTRIBUTION.copy()
    odd[1, 3] = np.nan
    assert float(total(weighted(name, PLAIN, odd)).nats) == float(
        total(weighted(name, PLAIN, ATTRIBUTION)).nats
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_evaluation_is_plain_and_training_needs_an_attribution(name):
    for attribution in (None, ATTRIBUTION):
        asking = Asking(None, Batch(None, attribution), SpecialIds(), Stage())
        assert OBJECTIVES[name].loss(asking, None, PLAIN) is PLAIN
    with pytest.raises(
        ValueError,
        match=f"objective '{name}': got no attributions, expected .*config.data.attributions",
    ):
        weighted(name, PLAIN, None)


def test_a_weighted_objective_weighs_the_token_that_is_predicted(quick, language):
    """An attribution of 1 at one place takes away the loss of the token of that place and of no
    other."""
    attribution = np.zeros(ROWS.shape, np.float32)
    attribution[:, 3] = 1.0
    names = ["next_token", "complement_weighted"]
    run = quick(lambda rows, a: score(LANGUAGE, language, Batch(rows, a), names, IDS, key=KEY))
    found = run(ROWS, attribution)
    plain, heavy = found["next_token"].nats, found["complement_weighted"].nats
    assert np.all(plain > 0)
    assert np.all(heavy[..., 3] == 0)
    assert np.array_equal(np.delete(heavy, 3, axis=-1), np.delete(plain, 3, axis=-1))


def test_held_out_rows_are_scored_plainly_by_all_variants(quick, language):
    found = quick(lambda rows: score(LANGUAGE, language, rows, ["next_token", *WEIGHTINGS], IDS))(
        ROWS
    )
    for name in WEIGHTINGS:
        jax.tree.map(np.testing.assert_array_equal, found[name], found["next_token"])


# Corrupted copy


@pytest.fixture(scope="module")
def corrupted_texts(quick):
    """`corrupt` on first halves of rows of this vocabulary."""
    return quick(lambda text, key: corrupt(text, VOCABULARY, IDS, key))


@pytest.mark.parametrize("seed", range(3))
def test_four_tokens_copied_and_corrupted(corrupted_texts, seed):
    """Every place of every row, in a loop."""
    text = ROWS[:, :HALF]
    for row, shown, asked, random in zip(
        text, *corrupted_texts(text, jax.random.key(seed)), strict=True
    ):
        assert random.sum() == 2
        for t in range(HALF):
            noise = (
                6 <= shown[t] < VOCABULARY and 6 <= asked[t] < VOCABULARY and shown[t] != asked[t]
            )
            assert noise if random[t] else shown[t] == asked[t] == row[t]


def test_corruption_is_drawn_for_each_row_and_follows_from_the_key(corrupted_texts):
    text = np.repeat(ROWS[:1, :HALF], 64, axis=0)
    shown, asked, corrupted = corrupted_texts(text, KEY)
    again = corrupted_texts(text, KEY)
    other = corrupted_texts(text, jax.random.key(4))
    for found, same, different in zip((shown, asked, corrupted), again, other, strict=True):
        assert np.array_equal(found, same) and not np.array_equal(found, different)
    # All six ways of choosing two places of four.
    assert len(np.unique(corrupted, axis=0)) == 6
    assert np.array_equal(corrupted.sum(axis=1), np.full(64, 2))
    # The same places, but other ids.
    alike = np.flatnonzero(np.all(corrupted == corrupted[0], axis=1))
    assert len(np.unique(asked[alike], axis=0)) > 1 < len(np.unique(shown[alike], axis=0))


def test_random_ids_are_all_ids_of_content_and_equally_frequent(quick):
    """Up to the last id of the vocabulary; what was shown tells only which label it is not."""
    ids = SpecialIds(pad=1, bos=3, blank=0, delimiter=2)
    text = np.full((1000, 8), 5, np.int32)
    shown, asked, place = quick(lambda text: corrupt(text, 8, ids, KEY))(text)
    shown, asked = shown[place], asked[place]
    for drawn in (shown, asked):
        values, count = np.unique(drawn, return_counts=True)
        assert values.tolist() == [4, 5, 6, 7]
        # Five standard deviations of a fair count.
        np.testing.assert_allclose(count, len(drawn) / 4, atol=5 * np.sqrt(len(drawn) * 3 / 16))
    assert np.all(shown != asked)
    for value in (4, 5, 6, 7):
        assert len(np.unique(asked[shown == value])) == 3


def test_padding_is_copied_and_half_of_the_tokens_are_corrupted(corrupted_texts):
    text = PADDED[:, :HALF]
    shown, asked, corrupted = corrupted_texts(text, KEY)
    assert np.array_equal([shown == IDS.pad, asked == IDS.pad], [text == IDS.pad] * 2)
    # Of 4, 3, 2 and no tokens.
    assert corrupted.sum(axis=1).tolist() == [2, 1, 1, 0]


def copied_rows(rows, stage):
    """Inputs [B, N] and labels [B, H] as `KEY` corrupts them, and where scoring starts, put
    together by hand."""
    shown, asked, corrupted = corrupt(jnp.asarray(rows[:, :HALF]), VOCABULARY, IDS, KEY)
    row = jnp.concatenate([jnp.asarray(rows[:, :HALF]), shown], axis=1)
    if stage is PUBLISHED:
        return row, asked, corrupted, HALF - 1
    return shift_right(row[:, None], IDS.bos, IDS.pad)[:, 0], asked, corrupted, HALF


@pytest.fixture(scope="module")
def copies(quick, language):
    """By form, of rows: both corrupted copies in training and in evaluation, rows put together by
    hand, and the model's logits."""

    def of_form(stage):
        def run(rows):
            def scores(key):
                return score(LANGUAGE, language, rows, CORRUPTED, IDS, stage, key)

            inputs, labels, corrupted, start = copied_rows(rows, stage)
            return {
                "training": scores(KEY),
                "evaluation": scores(None),
                "first_key": scores(jax.random.key(0)),
                "through_score": score(
                    LANGUAGE, language, rows, ["corrupted_copy"], IDS, stage, KEY
                ),
                "weights": weights_of(LANGUAGE, rows, ["plain_copy", *CORRUPTED], IDS, stage),
                "rows": (inputs, labels, corrupted),
                "logits": LANGUAGE.apply(language, inputs)[:, start : start + HALF],
            }

        return quick(run)

    return {stage.compat: of_form(stage) for stage in (STAGE, PUBLISHED)}


@pytest.mark.quick_cases("shifted")
@FORMS
def test_loss_is_kept_where_it_exceeds_the_entropy(copies, stage):
    """Against the model's logits, place by place."""
    found = copies[stage.compat](MANY)
    _, labels, corrupted = found["rows"]
    logits = found["logits"]
    nats = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )
    training, control = (found["training"][name] for name in CORRUPTED)
    assert control.nats.shape == (32, 1, HALF)
    np.testing.assert_allclose(control.nats[:, 0], nats, atol=2e-5)
    assert np.array_equal(control.is_argmax[:, 0], logits.argmax(-1) == labels)
    kept = np.where(corrupted, nats > np.log(24), nats > 0)
    np.testing.assert_allclose(training.nats[:, 0], np.where(kept, nats, 0), atol=2e-5)
    # Both happen to random places, and nothing happens to the others.
    assert 0.1 < kept[corrupted].mean() < 0.9 and kept[~corrupted].all()
    assert np.array_equal(training.labels[:, 0], labels)
    # A loss that is left out still counts in the mean.
    assert np.array_equal(training.weight, np.ones((32, 1, HALF)))


@FORMS
def test_evaluation_is_one_corruption_in_which_no_loss_is_left_out(copies, stage):
    found = copies[stage.compat](MANY)
    plain = found["first_key"]["unweighted_corrupted_copy"]
    for field in ("nats", "is_argmax", "weight", "labels"):
        for name in CORRUPTED:
            assert np.array_equal(getattr(found["evaluation"][name], field), getattr(plain, field))
        through = found["through_score"]["corrupted_copy"]
        assert np.array_equal(
            getattr(through, field), getattr(found["training"]["corrupted_copy"], field)
        )
    assert np.all(plain.nats > 0)
    assert not np.array_equal(plain.labels, found["training"]["corrupted_copy"].labels)


@FORMS
def test_only_the_first_half_of_a_row_is_used(copies, stage):
    other = np.concatenate([MANY[:, :HALF], MANY[::-1, HALF:]], axis=1)
    assert not np.array_equal(other, MANY)
    before, after = copies[stage.compat](MANY), copies[stage.compat](other)
    jax.tree.map(np.testing.assert_array_equal, before, after)


@FORMS
def test_weights_are_those_of_the_scores(copies, stage):
    """Every token of the copy counts, random or not, and no padding."""
    for rows in (MANY, np.tile(PADDED, (8, 1))):
        found = copies[stage.compat](rows)
        expected = (rows[:, None, :HALF] != IDS.pad).astype(np.float32)
        for name in CORRUPTED:
            for scores in (found["training"][name], found["evaluation"][name]):
                assert scores.nats.shape == scores.labels.shape == (32, 1, HALF)
                assert scores.weight.dtype == np.float32 and np.array_equal(scores.weight, expected)
                assert np.all(np.isfinite(scores.nats))
        for weight in found["weights"].values():
            assert weight.dtype == np.float32 and np.array_equal(weight, expected)
    count = counts_of(LANGUAGE, jnp.asarray(rows), ["corrupted_copy"], IDS, stage)["corrupted_copy"]
    assert count == 8 * (4 + 3 + 2)


def test_the_gradient_of_a_loss_that_is_left_out_is_exactly_zero(quick, language):
    """By every parameter, of the losses at the places that are left out, at those that are not, and
    of the control."""

    def gradients(variables):
        def losses(variables):
            found = score(LANGUAGE, variables, jnp.asarray(MANY), CORRUPTED, IDS, STAGE, KEY)
            return [found[name].nats for name in CORRUPTED]

        (nats, control), back = jax.vjp(losses, variables)
        left_out, none = (nats == 0) * 1.0, jnp.zeros(nats.shape)
        return (
            nats,
            control,
            *(back(to)[0] for to in ([left_out, none], [1 - left_out, none], [none, left_out])),
        )

    nats, control, *found = quick(gradients)(language)
    assert np.sum(nats == 0) > 5 and np.all(control > 0)
    left_out, kept, control = (jax.tree.leaves(gradient) for gradient in found)
    assert not any(leaf.any() for leaf in left_out)
    assert all(leaf.any() for leaf in kept) and all(leaf.any() for leaf in control)


@FORMS
def test_one_call_on_the_copied_row_serves_both_corrupted_copies(quick, language, stage):
    """And the head is applied to the copied half only."""
    starts, widths = [], []

    def calls(rows):
        seen = []

        def spy(call, args, kwargs, context):
            if context.method_name == "score" and isinstance(context.module, CausalLM):
                seen.append(args)
                starts.append(kwargs["start"])
            if context.method_name == "token_losses" and isinstance(context.module, Head):
                widths.append(args[0].shape[1])
            return call(*args, **kwargs)

        with nn.intercept_methods(spy):
            score(LANGUAGE, language, rows, CORRUPTED, IDS, stage, KEY)
        return seen

    seen = quick(calls)(PADDED)
    inputs, labels, _, start = copied_rows(PADDED, stage)
    assert len(seen) == 1 and starts == [start] and widths == [HALF]
    for given, expected in zip(seen[0], (inputs, labels, inputs != IDS.pad), strict=True):
        assert np.array_equal(given, expected)


# Estimates

TRUTH = RNG.normal(2, 1, ROWS.shape).astype(np.float32)


@pytest.fixture(scope="module")
def estimates(quick, regressor):
    """Both objectives, and the model's estimates on rows as they are and shifted, of rows and
    attributions."""

    def run(rows, truth):
        shifted = shift_right(rows[:, None], IDS.bos, IDS.pad)[:, 0]
        return (
            score(REGRESSOR, regressor, Batch(rows, truth), REGRESSIONS, IDS, key=KEY),
            REGRESSOR.apply(regressor, rows, rows != IDS.pad),
            REGRESSOR.apply(regressor, shifted, shifted != IDS.pad),
        )

    return quick(run)


@pytest.mark.parametrize("rows", [ROWS, PADDED], ids=["full", "padded"])
def test_squared_errors_by_hand(estimates, rows):
    scores, at_token, before_token = estimates(rows, TRUTH)
    assert list(scores) == list(REGRESSIONS)
    for found, estimate in zip(scores.values(), (at_token, before_token), strict=True):
        assert found.nats.shape == (4, 1, LENGTH) and found.nats.dtype == np.float32
        real = rows != IDS.pad
        expected = [
            (estimate[b, n] - TRUTH[b, n]) ** 2 for b, n in zip(*np.nonzero(real), strict=True)
        ]
        np.testing.assert_allclose(found.nats[:, 0][real], expected, rtol=1e-4, atol=1e-6)
        assert np.array_equal(found.weight[:, 0], real)
        assert found.is_argmax.dtype == bool and not found.is_argmax.any() and found.labels is None
        term = total(found)
        assert float(term.nats / term.count) == pytest.approx(np.mean(expected), rel=1e-4)
    expected_count = {name: float(scores[name].weight.sum()) for name in REGRESSIONS}
    found_count = counts_of(REGRESSOR, jnp.asarray(rows), REGRESSIONS, IDS)
    assert {name: float(n) for name, n in found_count.items()} == expected_count


@pytest.mark.parametrize(
    ("name", "first"), [("entropy_regression", 0), ("shifted_entropy_regression", 1)]
)
def test_whether_the_estimate_of_a_token_has_read_it(estimates, name, first):
    """A change at n reaches the errors from n on, or from n + 1 on, and no other at all."""
    before = estimates(ROWS, TRUTH)[0][name].nats[:, 0]
    for n in range(LENGTH):
        rows = ROWS.copy()
        rows[:, n] = 6 + (rows[:, n] - 5) % (VOCABULARY - 6)
        changed = before != estimates(rows, TRUTH)[0][name].nats[:, 0]
        assert np.array_equal(
            changed, np.broadcast_to(np.arange(LENGTH) >= n + first, changed.shape)
        )


def test_an_attribution_at_padding_does_not_matter(quick, regressor, estimates):
    odd = np.where(REAL, TRUTH, np.nan)
    before, after = estimates(PADDED, TRUTH)[0], estimates(PADDED, odd)[0]
    for name in REGRESSIONS:
        assert float(total(before[name]).nats) == float(total(after[name]).nats)

    def loss(variables, truth):
        scores = score(REGRESSOR, variables, Batch(PADDED, truth), REGRESSIONS, IDS, key=KEY)
        return sum(total(s).nats for s in scores.values())

    gradient = quick(jax.grad(loss))
    jax.tree.map(
        np.testing.assert_array_equal, gradient(regressor, TRUTH), gradient(regressor, odd)
    )


@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_there_is_no_estimate_without_an_attribution(regressor, name, key):
    with pytest.raises(
        ValueError,
        match=f"objective '{name}': got no attributions, expected .*config.data.attributions",
    ):
        score(REGRESSOR, regressor, Batch(jnp.asarray(ROWS)), [name], IDS, key=key)


def test_without_a_start_token_an_attribution_stays_with_its_token(language):
    """The quirk `unscored_first_tokens`: position t says token t + 1, whose attribution stands at t
    + 1."""
    attribution = jnp.asarray(RNG.random(ROWS.shape), jnp.float32)
    names = ["next_token", "complement_weighted"]
    found = score(LANGUAGE, language, Batch(ROWS, attribution), names, IDS, PUBLISHED, KEY)
    plain, weighed = (np.asarray(found[name].nats)[:, 0, :-1] for name in names)
    np.testing.assert_allclose(weighed, (1 - attribution[:, 1:]) * plain, rtol=1e-6)
    assert np.asarray(found["next_token"].weight)[:, 0].tolist() == [[1.0] * 7 + [0.0]] * 4
    assert np.array_equal(found["next_token"].labels[:, 0, :-1], ROWS[:, 1:])
