"""What holds of every family of models, whatever its stacks are made of.

Shapes: B row, N = C * L token of a row, J objective of the family.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.config.choices import READING_FEATURES
from memjax.models import build, example
from memjax.objectives import Batch, SpecialIds, score, total, weighted_loss
from memjax.testing.families import FAMILY_OBJECTIVES

IDS, KEY = SpecialIds(), jax.random.key(1)
CHUNKS, LENGTH, VOCABULARY = 4, 4, 20
SMALL = {"layers": 2, "mlp_ratio": 1.0}
STACKS = {
    "transformer": Backbone(heads=2, output_gate=True, **SMALL),
    "mixer": Backbone(
        kind="mixer", heads=0, channel_kernel=2, mlp="gelu", norm="layer", final_norm=False, **SMALL
    ),
    "repeat": Backbone(
        kind="combined_repeat", heads=2, mlp="silu", norm="layer", decay_length=2.0, **SMALL
    ),
    "text": Backbone(heads=2, output_gate=True, **SMALL),
}
PLACED = {"place_heads": 1, "features": READING_FEATURES, "qk_norm": True}
"""Settings of a decoder with positions of the text."""
ONCE = [
    (family, kind)
    for family, kind in zip(FAMILY_OBJECTIVES, ["transformer", "mixer"] * 4, strict=True)
]
"""Each family with one kind of stack."""
CASES = [
    *ONCE,
    ("autoencoder", "mixer"),
    ("memory_model", "transformer"),
    ("memory_model", "repeat"),
    ("memory_model", "text"),
    ("causal_lm", "mixer"),
    ("recurrent_memory", "mixer"),
    ("recurrent_memory", "repeat"),
]
POLICY = "dots_with_no_batch_dims_saveable"

RNG = np.random.default_rng(0)
ROWS = RNG.integers(IDS.first_content, VOCABULARY, (3, CHUNKS * LENGTH)).astype(np.int32)
# Rows of unequal true length, so that a mean of rows' means is not the mean.
ROWS[1, 11:] = IDS.pad
ATTRIBUTION = RNG.uniform(0, 8, ROWS.shape).astype(np.float32)


def make(family: str, kind: str, **changes: object) -> tuple[nn.Module, Config, Stage]:
    """A model whose encoder is narrower than its decoder, and a stage of all its objectives."""
    stack, decoder = STACKS[kind], STACKS["transformer" if family == "ranker" else kind]
    objectives = FAMILY_OBJECTIVES[family]
    if kind == "text":
        decoder = dataclasses.replace(decoder, **PLACED)
        changes |= {"layout": "text", "chunk_positions": False}
    else:
        objectives = [name for name in objectives if not name.endswith("recall")]
    model = Model(
        chunk_length=LENGTH,
        bottleneck=4,
        encoder=dataclasses.replace(stack, width=8),
        decoder=dataclasses.replace(decoder, width=12),
        reconstructor=dataclasses.replace(stack, width=12),
        **changes,
    )
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=model)
    stage = Stage(
        family=family, objectives=dict.fromkeys(objectives, 1.0), dials={"query_tokens": 3}
    )
    return build(config, stage), config, stage


def scores_of(module, stage, variables, tokens, attribution):
    return score(
        module, variables, Batch(tokens, attribution), tuple(stage.objectives), IDS, stage, KEY
    )


def losses_of(module, stage, variables, tokens, attribution):
    """The loss of each objective as the only one, [J], and its scores."""
    scores = scores_of(module, stage, variables, tokens, attribution)
    terms = {name: total(s) for name, s in scores.items()}
    return jnp.stack([weighted_loss(terms, {name: 1.0}) for name in stage.objectives]), scores


def gradients_of(module, stage):
    """A function of variables and rows: losses [J], scores, and the gradients of all losses
    apart."""

    def run(variables, tokens, attribution):
        def losses(variables):
            found, scores = losses_of(module, stage, variables, tokens, attribution)
            return found, (found, scores)

        gradients, (found, scores) = jax.jacrev(losses, has_aux=True)(variables)
        return found, scores, gradients

    return run


@pytest.fixture(scope="module")
def compiled(quick, draw):
    """Of a family and kind: module, stage, variables and `gradients_of`; each compiled once."""

    @functools.cache
    def of(family, kind):
        module, config, stage = make(family, kind)
        return (
            module,
            stage,
            draw(module, example(module, config)),
            quick(gradients_of(module, stage)),
        )

    return of


@pytest.mark.quick_cases(
    "memory_model-mixer",
    "recurrent_memory-mixer",
    "retriever-mixer",
    slow=(
        "autoencoder-transformer",
        "causal_lm-transformer",
        "oracle-mixer",
        "ranker-transformer",
        "entropy_regressor-mixer",
        "memory_model-repeat",
        "memory_model-text",
    ),
)
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_gradient_reaches_every_parameter_under_every_single_objective(family, kind, compiled):
    _, stage, variables, gradients_at = compiled(family, kind)
    _, _, gradients = gradients_at(variables, ROWS, ATTRIBUTION)
    flat = flatten_dict(gradients["params"], sep="/")
    largest = np.max([np.abs(g).max(axis=tuple(range(1, g.ndim))) for g in flat.values()], axis=0)
    for path, gradient_J in flat.items():
        for name, gradient, scale in zip(stage.objectives, gradient_J, largest, strict=True):
            parts = (
                np.abs(gradient).reshape(len(gradient) if "blocks/" in path else 1, -1).max(axis=1)
            )
            # What is but the rounding of a gradient of zero is smaller than this.
            assert np.all(parts > 1e-5 * scale), (name, path, parts)


@pytest.mark.quick_cases(
    "memory_model-mixer",
    "recurrent_memory-mixer",
    "entropy_regressor-mixer",
    slow=(
        "autoencoder-transformer",
        "causal_lm-transformer",
        "oracle-mixer",
        "ranker-transformer",
        "memory_model-repeat",
        "memory_model-text",
    ),
)
@pytest.mark.parametrize(("family", "kind"), [case for case in CASES if case[0] != "retriever"])
def test_a_row_among_padding_is_scored_as_among_others(family, kind, compiled):
    """Not so in retrieval, where a passage is told from those of all rows."""
    _, stage, variables, gradients_at = compiled(family, kind)
    _, together, _ = gradients_at(variables, ROWS, ATTRIBUTION)
    for row in range(len(ROWS)):
        tokens = np.full_like(ROWS, IDS.pad)
        tokens[row] = ROWS[row]
        losses, alone, _ = gradients_at(variables, tokens, ATTRIBUTION)
        for name, loss in zip(stage.objectives, losses, strict=True):
            a, b = alone[name], together[name]
            np.testing.assert_allclose(a.nats[row], b.nats[row], atol=1e-6, err_msg=name)
            for field in ("is_argmax", "weight"):
                assert np.array_equal(getattr(a, field)[row], getattr(b, field)[row]), (name, field)
            assert a.weight.sum() == a.weight[row].sum() > 0, name
            mean = np.sum(b.nats[row] * b.weight[row]) / b.weight[row].sum()
            np.testing.assert_allclose(loss, mean, rtol=1e-5, err_msg=name)


@pytest.mark.quick_cases("memory_model-mixer")
@pytest.mark.parametrize(("family", "kind"), ONCE)
def test_rows_of_padding_change_no_loss(family, kind, compiled, quick):
    """Two rows in a batch of two, and the same with a third of padding."""
    module, stage, variables, gradients_at = compiled(family, kind)
    padded = np.concatenate([ROWS[:2], np.full_like(ROWS[:1], IDS.pad)])
    found, scores, _ = gradients_at(variables, padded, ATTRIBUTION)
    expected, _ = quick(functools.partial(losses_of, module, stage))(
        variables, ROWS[:2], ATTRIBUTION[:2]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not any(s.weight[2:].any() for s in scores.values())


def summed(module, stage):
    """A function of variables and rows: the sum of all losses, their scores, and its gradient."""

    def run(variables, tokens, attribution):
        def loss(variables):
            losses, scores = losses_of(module, stage, variables, tokens, attribution)
            return losses.sum(), scores

        (value, scores), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
        return value, scores, gradient

    return run


@pytest.mark.quick_cases(
    "memory_model-mixer",
    slow=("autoencoder-transformer", "causal_lm-transformer", "ranker-transformer"),
)
@pytest.mark.parametrize(("family", "kind"), ONCE)
def test_what_is_kept_for_the_backward_pass_changes_nothing(family, kind, compiled, quick):
    _, stage, variables, gradients_at = compiled(family, kind)
    module, *_ = make(family, kind, remat=POLICY)
    losses, _, gradients = gradients_at(variables, ROWS, ATTRIBUTION)
    value, _, gradient = quick(summed(module, stage))(variables, ROWS, ATTRIBUTION)
    np.testing.assert_allclose(value, losses.sum(), rtol=1e-6)
    # Similarities are divided by a temperature of 0.02, and so are their rounding errors.
    scale = max(1.0, *(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.sum(axis=0), rtol=0, atol=2e-6 * scale),
        gradient,
        gradients,
    )


@pytest.mark.quick_cases(
    "memory_model-mixer",
    slow=("autoencoder-transformer", "causal_lm-transformer", "ranker-transformer"),
)
@pytest.mark.parametrize(("family", "kind"), ONCE)
def test_in_bfloat16_losses_and_gradients_are_float32_and_finite(family, kind, compiled, quick):
    """Recomputing, as the published experiments are run."""
    _, stage, variables, gradients_at = compiled(family, kind)
    module, *_ = make(family, kind, remat=POLICY, dtype="bfloat16")
    _, exact, _ = gradients_at(variables, ROWS, ATTRIBUTION)
    value, scores, gradient = quick(summed(module, stage))(variables, ROWS, ATTRIBUTION)
    for leaf in (value, *[s.nats for s in scores.values()], *jax.tree.leaves(gradient)):
        assert leaf.dtype == np.float32
        assert np.isfinite(leaf).all()
    for name, found in scores.items():
        assert not np.array_equal(found.nats, exact[name].nats), name
    for path, leaf in flatten_dict(gradient["params"], sep="/").items():
        assert leaf.any(), path


@pytest.mark.quick_cases("causal_lm")
@pytest.mark.parametrize("family", FAMILY_OBJECTIVES)
def test_compiled_is_eager(family, quick, draw):
    module, config, _ = make(family, "mixer")
    tokens = jnp.asarray(ROWS[1:2].reshape(-1, *example(module, config).shape[1:]))
    variables = draw(module, tokens)
    eager = module.apply(variables, tokens, tokens != IDS.pad)
    compiled = quick(lambda variables, tokens: module.apply(variables, tokens, tokens != IDS.pad))(
        variables, tokens
    )
    np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-5)
