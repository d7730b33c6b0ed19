"""Losses that know a token's entropy, and estimates of it, against numbers by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import REGRESSIONS, WEIGHTINGS, Backbone, Model, Stage
from memjax.models import CausalLM, EntropyRegressor
from memjax.objectives import Batch, Scores, SpecialIds, counts, score, total, weighted_loss
from memjax.objectives.entropy import VARIANTS, corrupt, corrupted_copy, corrupted_weight, weighted

IDS = SpecialIds()
LENGTH, HALF, VOCABULARY = 8, 4, 24
MODEL = Model(chunk_length=4, decoder=Backbone(width=8, layers=1, heads=2, mlp_ratio=1))
LANGUAGE = CausalLM(MODEL, LENGTH, VOCABULARY)
REGRESSOR = EntropyRegressor(MODEL, LENGTH, VOCABULARY)
RNG = np.random.default_rng(0)
ROWS = RNG.integers(6, VOCABULARY, (4, LENGTH)).astype(np.int32)
# Rows without padding, with some on the right, with some on the left, and of nothing else.
REAL = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1], [0] * 8], bool)
PADDED = np.where(REAL, ROWS, IDS.pad)
MANY = np.random.default_rng(1).integers(6, VOCABULARY, (32, LENGTH)).astype(np.int32)
KEY = jax.random.key(3)


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
    for field in ("correct", "weight", "labels"):
        assert getattr(found, field) is getattr(PLAIN, field)
    # The mean is over the seven targets, whatever they weigh.
    term = total(found)
    assert term.count == 7
    assert float(weighted_loss({name: term}, {name: 1.0})) == pytest.approx(np.sum(BY_HAND[name] * WEIGHT) / 7)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradient_of_each_variant_by_hand(name):
    gradient = jax.grad(lambda nats: total(weighted(name, PLAIN.replace(nats=nats), jnp.asarray(ATTRIBUTION))).nats)(NATS)
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
    assert float(total(weighted(name, PLAIN, odd)).nats) == float(total(weighted(name, PLAIN, ATTRIBUTION)).nats)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_evaluation_is_plain_and_training_needs_an_attribution(name):
    assert weighted(name, PLAIN, None, training=False) is PLAIN
    assert weighted(name, PLAIN, ATTRIBUTION, training=False) is PLAIN
    with pytest.raises(ValueError, match=f"objective '{name}' needs an attribution .*config.data.attributions"):
        weighted(name, PLAIN, None)


def test_a_weighted_objective_weighs_the_token_that_is_predicted(quick, language):
    """An attribution of 1 at one place takes away the loss of the token of that place and of no other."""
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
    found = quick(lambda rows: score(LANGUAGE, language, rows, ["next_token", *WEIGHTINGS], IDS))(ROWS)
    for name in WEIGHTINGS:
        jax.tree.map(np.testing.assert_array_equal, found[name], found["next_token"])


# Corrupted copy


@pytest.fixture(scope="module")
def corrupted_rows(quick):
    """`corrupt` on rows of this vocabulary."""
    return quick(lambda rows, key: corrupt(rows, VOCABULARY, IDS, key))


@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_eight_tokens_copied_and_corrupted(corrupted_rows, seed):
    """Every place of every row, in a loop."""
    inputs, labels, corrupted = corrupted_rows(ROWS, jax.random.key(seed))
    for row, shown, asked, random in zip(ROWS, inputs, labels, corrupted, strict=True):
        assert shown[0] == IDS.bos
        assert shown[1:5].tolist() == asked[:4].tolist() == row[:4].tolist()
        assert not random[:4].any() and random[4:].sum() == 2
        for t in range(4, 8):
            if not random[t]:
                assert asked[t] == row[t - 4]
            else:
                assert 6 <= asked[t] < VOCABULARY
            if t == 7:
                continue  # What stands at the row's last place is shown to nobody.
            if not random[t]:
                assert shown[t + 1] == row[t - 4]
            else:
                assert 6 <= shown[t + 1] < VOCABULARY and shown[t + 1] != asked[t]


def test_corruption_is_drawn_for_each_row_and_follows_from_the_key(corrupted_rows):
    rows = np.repeat(ROWS[:1], 64, axis=0)
    inputs, labels, corrupted = corrupted_rows(rows, KEY)
    again = corrupted_rows(rows, KEY)
    other = corrupted_rows(rows, jax.random.key(4))
    for found, same, different in zip((inputs, labels, corrupted), again, other, strict=True):
        assert np.array_equal(found, same)
        assert not np.array_equal(found, different)
    # All six ways of choosing two places of four.
    assert len(np.unique(corrupted[:, HALF:], axis=0)) == 6
    assert np.array_equal(corrupted.sum(axis=1), np.full(64, 2))
    # The same places, but other ids.
    alike = np.flatnonzero(np.all(corrupted == corrupted[0], axis=1))
    assert len(np.unique(labels[alike], axis=0)) > 1 < len(np.unique(inputs[alike], axis=0))


def test_random_ids_are_all_ids_of_content_and_equally_frequent(quick):
    """Up to the last id of the vocabulary; what a position was shown tells only which label it is not."""
    ids = SpecialIds(pad=1, bos=3, blank=0, delimiter=2)
    rows = np.full((1000, 16), 5, np.int32)
    inputs, labels, corrupted = quick(lambda rows: corrupt(rows, 8, ids, KEY))(rows)
    place = corrupted[:, :-1]
    shown, asked = inputs[:, 1:][place], labels[:, :-1][place]
    for drawn in (shown, asked):
        values, count = np.unique(drawn, return_counts=True)
        assert values.tolist() == [4, 5, 6, 7]
        # Five standard deviations of a fair count.
        np.testing.assert_allclose(count, len(drawn) / 4, atol=5 * np.sqrt(len(drawn) * 3 / 16))
    assert np.all(shown != asked)
    for value in (4, 5, 6, 7):
        assert len(np.unique(asked[shown == value])) == 3


def test_padding_is_copied_and_half_of_the_tokens_are_corrupted(corrupted_rows):
    inputs, labels, corrupted = corrupted_rows(PADDED, KEY)
    copied = np.tile(PADDED[:, :HALF], 2)
    assert np.array_equal(labels == IDS.pad, copied == IDS.pad)
    assert np.array_equal(inputs[:, 1:] == IDS.pad, copied[:, :-1] == IDS.pad)
    # Of 4, 3, 2 and no tokens.
    assert corrupted.sum(axis=1).tolist() == [2, 1, 1, 0]
    weight = jax.device_get(corrupted_weight(PADDED, IDS))
    assert weight.shape == (4, 1, LENGTH) and weight.dtype == np.float32
    assert np.array_equal(weight[:, 0], np.where(np.arange(LENGTH) < HALF, 0, copied != IDS.pad))
    assert np.array_equal(weight[:, 0] > 0, (np.arange(LENGTH) >= HALF) & (labels != IDS.pad))


@pytest.fixture(scope="module")
def copies(quick, language):
    """Of rows: `corrupted_copy` in training, its control, in evaluation, and what it calls the module with."""

    def run(rows):
        batch = Batch(rows)
        return {
            "training": corrupted_copy(LANGUAGE, language, batch, IDS, KEY),
            "control": corrupted_copy(LANGUAGE, language, batch, IDS, KEY, weighted=False),
            "evaluation": corrupted_copy(LANGUAGE, language, batch, IDS, None),
            "first_key": corrupted_copy(LANGUAGE, language, batch, IDS, jax.random.key(0), weighted=False),
            "through_score": score(LANGUAGE, language, batch, ["corrupted_copy"], IDS, key=KEY)["corrupted_copy"],
            "rows": corrupt(rows, VOCABULARY, IDS, KEY),
            "logits": LANGUAGE.apply(language, corrupt(rows, VOCABULARY, IDS, KEY)[0]),
        }

    return quick(run)


def test_loss_is_kept_where_it_exceeds_the_entropy(copies):
    """Against the model's logits, place by place."""
    found = copies(MANY)
    _, labels, corrupted = found["rows"]
    logits = found["logits"]
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(found["control"].nats[:, 0], nats, atol=2e-5)
    assert np.array_equal(found["control"].correct[:, 0], logits.argmax(-1) == labels)
    training = found["training"]
    kept = np.where(corrupted, nats > np.log(24), nats > 0)
    np.testing.assert_allclose(training.nats[:, 0], np.where(kept, nats, 0), atol=2e-5)
    # Both happen to random places, and nothing happens to the others.
    assert 0.1 < kept[corrupted].mean() < 0.9 and kept[~corrupted].all()
    assert np.array_equal(training.labels[:, 0], labels)
    # A loss that is left out still counts in the mean.
    assert np.array_equal(training.weight, np.broadcast_to(np.arange(LENGTH) >= HALF, (32, 1, LENGTH)))


def test_evaluation_is_one_corruption_in_which_no_loss_is_left_out(copies):
    found = copies(MANY)
    for field in ("nats", "correct", "weight", "labels"):
        assert np.array_equal(getattr(found["evaluation"], field), getattr(found["first_key"], field))
        assert np.array_equal(getattr(found["through_score"], field), getattr(found["training"], field))
    assert np.all(found["evaluation"].nats > 0)
    assert not np.array_equal(found["evaluation"].labels, found["training"].labels)


def test_only_the_first_half_of_a_row_is_used(copies):
    other = np.concatenate([MANY[:, :HALF], MANY[::-1, HALF:]], axis=1)
    assert not np.array_equal(other, MANY)
    before, after = copies(MANY), copies(other)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_weights_are_those_of_the_scores(copies):
    for rows in (MANY, np.tile(PADDED, (8, 1))):
        found = copies(rows)
        expected = jax.device_get(corrupted_weight(rows, IDS))
        for name in ("training", "control", "evaluation"):
            assert found[name].nats.shape == found[name].labels.shape == (32, 1, LENGTH)
            assert np.array_equal(found[name].weight, expected)
            assert np.all(np.isfinite(found[name].nats))
        count = counts(LANGUAGE, jnp.asarray(rows), ["corrupted_copy"], IDS)["corrupted_copy"]
        assert count == expected.sum()
    assert count == 8 * (4 + 3 + 2)


def test_the_gradient_of_a_loss_that_is_left_out_is_exactly_zero(quick, language):
    """By every parameter, of the losses at the places that are left out, at those that are not, and of the control."""

    def gradients(variables):
        def pull(weighted):
            def losses(variables):
                return corrupted_copy(LANGUAGE, variables, Batch(jnp.asarray(MANY)), IDS, KEY, weighted).nats

            return jax.vjp(losses, variables)

        (nats, back), (_, back_control) = pull(True), pull(False)
        left_out = nats == 0
        return nats, back(left_out * 1.0), back(~left_out * 1.0), back_control(left_out * 1.0)

    nats, *found = quick(gradients)(language)
    assert np.sum(nats[..., HALF:] == 0) > 5 and np.all(nats[..., :HALF] > 0)
    left_out, kept, control = (jax.tree.leaves(gradient) for gradient in found)
    assert not any(leaf.any() for leaf in left_out)
    assert all(leaf.any() for leaf in kept) and all(leaf.any() for leaf in control)


def test_the_model_is_called_once_on_the_shifted_row(quick, language, corrupted_rows):
    def calls(rows):
        seen = []

        def spy(call, args, kwargs, context):
            if isinstance(context.module, CausalLM) and context.method_name == "score":
                seen.append(args)
            return call(*args, **kwargs)

        with nn.intercept_methods(spy):
            corrupted_copy(LANGUAGE, language, Batch(rows), IDS, KEY)
        return seen

    seen = quick(calls)(PADDED)
    inputs, labels, _ = corrupted_rows(PADDED, KEY)
    assert len(seen) == 1
    for given, expected in zip(seen[0], (inputs, labels, inputs != IDS.pad), strict=True):
        assert np.array_equal(given, expected)


def test_rows_without_two_halves_are_refused(language):
    rows = jnp.asarray(ROWS[:, :7])
    with pytest.raises(ValueError, match=r"config.data.row_tokens=7 must be even for corrupted_copy"):
        corrupted_weight(rows, IDS)
    with pytest.raises(ValueError, match=r"config.data.row_tokens=7 must be even for corrupted_copy"):
        corrupted_copy(LANGUAGE, language, Batch(rows), IDS, KEY)


# Estimates

TRUTH = RNG.normal(2, 1, ROWS.shape).astype(np.float32)


@pytest.fixture(scope="module")
def estimates(quick, regressor):
    """Both objectives, and the model's estimates on rows as they are and shifted, of rows and attributions."""

    def run(rows, truth):
        shifted = jnp.concatenate([jnp.full((len(rows), 1), IDS.bos, rows.dtype), rows[:, :-1]], axis=1)
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
        expected = [(estimate[b, n] - TRUTH[b, n]) ** 2 for b, n in zip(*np.nonzero(real), strict=True)]
        np.testing.assert_allclose(found.nats[:, 0][real], expected, rtol=1e-4, atol=1e-6)
        assert np.array_equal(found.weight[:, 0], real)
        assert found.correct.dtype == bool and not found.correct.any() and found.labels is None
        term = total(found)
        assert float(term.nats / term.count) == pytest.approx(np.mean(expected), rel=1e-4)
    expected_count = {name: float(scores[name].weight.sum()) for name in REGRESSIONS}
    found_count = counts(REGRESSOR, jnp.asarray(rows), REGRESSIONS, IDS)
    assert {name: float(n) for name, n in found_count.items()} == expected_count


@pytest.mark.parametrize(("name", "first"), [("entropy_regression", 0), ("shifted_entropy_regression", 1)])
def test_whether_the_estimate_of_a_token_has_read_it(estimates, name, first):
    """A change at n reaches the errors from n on, or from n + 1 on, and no other at all."""
    before = estimates(ROWS, TRUTH)[0][name].nats[:, 0]
    for n in range(LENGTH):
        rows = ROWS.copy()
        rows[:, n] = 6 + (rows[:, n] - 5) % (VOCABULARY - 6)
        changed = before != estimates(rows, TRUTH)[0][name].nats[:, 0]
        assert np.array_equal(changed, np.broadcast_to(np.arange(LENGTH) >= n + first, changed.shape))


def test_an_attribution_at_padding_does_not_matter(quick, regressor, estimates):
    odd = np.where(REAL, TRUTH, np.nan)
    before, after = estimates(PADDED, TRUTH)[0], estimates(PADDED, odd)[0]
    for name in REGRESSIONS:
        assert float(total(before[name]).nats) == float(total(after[name]).nats)

    def loss(variables, truth):
        scores = score(REGRESSOR, variables, Batch(PADDED, truth), REGRESSIONS, IDS, key=KEY)
        return sum(total(s).nats for s in scores.values())

    gradient = quick(jax.grad(loss))
    jax.tree.map(np.testing.assert_array_equal, gradient(regressor, TRUTH), gradient(regressor, odd))


@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_there_is_no_estimate_without_an_attribution(regressor, name, key):
    with pytest.raises(ValueError, match=f"objective '{name}' needs an attribution .*config.data.attributions"):
        score(REGRESSOR, regressor, Batch(jnp.asarray(ROWS)), [name], IDS, key=key)


def test_without_a_start_token_an_attribution_stays_with_its_token(language):
    """The quirk `unscored_first_tokens`: position t says token t + 1, whose attribution stands at t + 1."""
    published = Stage(family="causal_lm", compat=("unscored_first_tokens",))
    attribution = jnp.asarray(RNG.random(ROWS.shape), jnp.float32)
    names = ["next_token", "complement_weighted"]
    found = score(LANGUAGE, language, Batch(ROWS, attribution), names, IDS, published, KEY)
    plain, weighed = (np.asarray(found[name].nats)[:, 0, :-1] for name in names)
    np.testing.assert_allclose(weighed, (1 - attribution[:, 1:]) * plain, rtol=1e-6)
    assert np.asarray(found["next_token"].weight)[:, 0].tolist() == [[1.0] * 7 + [0.0]] * 4
    assert np.array_equal(found["next_token"].labels[:, 0, :-1], ROWS[:, 1:])


def test_a_plain_copy_is_the_first_half_again(language):
    found = score(LANGUAGE, language, PADDED, ["plain_copy"], IDS)["plain_copy"]
    halves = PADDED[:, :HALF]
    assert np.array_equal(found.labels[:, 0], np.concatenate([halves, halves], axis=1))
    assert found.weight[:, 0].tolist() == [[0.0] * HALF + (row != 0).astype(float).tolist() for row in halves]
    row = np.concatenate([halves[:1], halves[:1]], axis=1)
    logits = np.asarray(LANGUAGE.apply(language, jnp.asarray(np.r_[[IDS.bos], row[0, :-1]])[None]))[0]
    expected = np.asarray(jax.nn.logsumexp(logits, axis=-1)) - logits[np.arange(LENGTH), row[0]]
    np.testing.assert_allclose(found.nats[0, 0], expected, rtol=1e-5)
