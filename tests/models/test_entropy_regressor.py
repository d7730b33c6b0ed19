"""Entropy regressor: shapes, what an estimate can see, padding, and that no parameter is dead."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import CausalLM, EntropyRegressor, build, example
from memjax.objectives import Batch, SpecialIds, score

LENGTH, VOCABULARY = 8, 20
SMALL = {"width": 8, "layers": 2, "heads": 2, "mlp_ratio": 1}
MODELS = {
    "transformer": Model(chunk_length=4, decoder=Backbone(output_gate=True, **SMALL)),
    "mixer": Model(
        chunk_length=4, decoder=Backbone(kind="mixer", final_norm=False, channel_kernel=2, **SMALL)
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (3, LENGTH)).astype(np.int32)


def regressor(name):
    return EntropyRegressor(MODELS[name], LENGTH, VOCABULARY)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_float32_number_for_every_token(quick, draw, dtype):
    module = EntropyRegressor(
        dataclasses.replace(MODELS["transformer"], dtype=dtype), LENGTH, VOCABULARY
    )
    variables = draw(module, TOKENS)
    value = quick(lambda tokens: module.apply(variables, tokens))(TOKENS)
    assert value.shape == (3, LENGTH) and value.dtype == np.float32
    assert len(np.unique(value)) == value.size
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_it_is_a_causal_language_model_with_one_number_in_place_of_logits(quick, draw):
    module = regressor("transformer")
    variables = draw(module, TOKENS)
    params = flat(variables["params"])
    language = jax.eval_shape(
        CausalLM(MODELS["transformer"], LENGTH, VOCABULARY).init, jax.random.key(0), TOKENS
    )["params"]
    body = {path: leaf.shape for path, leaf in params.items() if not path.startswith("value/")}
    assert body == {
        path: leaf.shape for path, leaf in flat(language).items() if not path.startswith("head/")
    }
    assert {path: leaf.shape for path, leaf in params.items() if path.startswith("value/")} == {
        "value/kernel": (8, 1),
        "value/bias": (1,),
    }
    value = quick(lambda tokens: module.apply(variables, tokens))(TOKENS)

    # The language model's states with the same weights, and the map by hand.
    head = {"kernel": jnp.zeros((8, VOCABULARY))}
    weights = {
        "params": {
            "embed": variables["params"]["embed"],
            "backbone": variables["params"]["backbone"],
            "head": head,
        }
    }
    model = CausalLM(MODELS["transformer"], LENGTH, VOCABULARY)
    states = quick(lambda tokens: model.apply(weights, tokens, method="hidden"))(TOKENS)
    expected = states @ np.asarray(params["value/kernel"])[:, 0] + np.asarray(params["value/bias"])
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_estimate_sees_its_token_and_earlier_ones_and_no_others(quick, draw, name):
    """The Jacobian by the embeddings of the places, which is exactly zero above the diagonal and
    nowhere else."""
    module = regressor(name)
    # One id for each place, so that the gradient of the table's rows is that of places.
    tokens = np.arange(6, 6 + LENGTH, dtype=np.int32)[None]
    variables = draw(module, tokens)

    def values(table):
        params = variables["params"] | {"embed": {"embedding": table}}
        return module.apply({"params": params}, tokens)[0]

    jacobian = quick(jax.jacrev(values))(variables["params"]["embed"]["embedding"])
    seen = np.any(jacobian != 0, axis=-1)
    assert np.array_equal(seen[:, 6 : 6 + LENGTH], np.tril(np.ones((LENGTH, LENGTH), bool)))
    assert not seen[:, :6].any() and not seen[:, 6 + LENGTH :].any()


@pytest.mark.parametrize("name", MODELS)
def test_padding_is_not_read_unless_asked(quick, draw, name):
    module = regressor(name)
    variables = draw(module, TOKENS)
    valid = np.arange(LENGTH) >= np.array([[0], [3], [5]])
    run = quick(lambda tokens, valid: module.apply(variables, tokens, valid))
    before, after = run(TOKENS, valid), run(np.where(valid, TOKENS, 0), valid)
    assert np.array_equal(before[valid], after[valid])

    config = dataclasses.replace(MODELS[name], compat=("attended_padding",))
    attending = EntropyRegressor(config, LENGTH, VOCABULARY)
    run = quick(lambda tokens, valid: attending.apply(variables, tokens, valid))
    before, after = run(TOKENS, valid), run(np.where(valid, TOKENS, 0), valid)
    assert np.array_equal(before[0], after[0])
    assert np.all(before[1:][valid[1:]] != after[1:][valid[1:]])
    assert np.array_equal(before, run(TOKENS, np.ones_like(valid)))


def test_padding_anywhere_shifts_no_position(quick, draw):
    """After a start token too, where it stands in a row that is padded on the left."""
    module = regressor("transformer")
    variables = draw(module, TOKENS)
    run = quick(lambda tokens, valid: module.apply(variables, tokens, valid))
    right = run(TOKENS, np.broadcast_to(np.arange(LENGTH) < 5, TOKENS.shape))
    for places in ([3, 4, 5, 6, 7], [0, 4, 5, 6, 7], [0, 1, 4, 5, 7]):
        tokens = np.zeros_like(TOKENS)
        tokens[:, places] = TOKENS[:, :5]
        spread = run(tokens, np.broadcast_to(np.isin(np.arange(LENGTH), places), TOKENS.shape))
        np.testing.assert_allclose(spread[:, places], right[:, :5], atol=1e-5)


@pytest.mark.quick_cases("transformer-entropy_regression", "mixer-shifted_entropy_regression")
@pytest.mark.parametrize("objective", ["entropy_regression", "shifted_entropy_regression"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_reaches_every_parameter_of_every_layer(quick, draw, name, objective):
    module = regressor(name)
    variables = draw(module, TOKENS)
    batch = Batch(jnp.asarray(TOKENS), jnp.asarray(RNG.normal(2, 1, TOKENS.shape), jnp.float32))

    def loss(variables):
        scores = score(module, variables, batch, [objective], SpecialIds(), key=jax.random.key(0))[
            objective
        ]
        return jnp.sum(scores.nats * scores.weight)

    gradients = flat(quick(jax.grad(loss))(variables)["params"])
    for path, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), path
        parts = (
            gradient.reshape(len(gradient), -1) if "blocks/" in path else gradient.reshape(1, -1)
        )
        assert np.all(np.any(parts != 0, axis=1)), path
    assert sum("blocks/" in path for path in gradients) > 5
    # All that a token can be and no more: ids that the row does not hold move nothing.
    held = (
        np.unique(TOKENS)
        if objective == "entropy_regression"
        else np.unique([2, *TOKENS[:, :-1].ravel()])
    )
    assert np.array_equal(np.flatnonzero(np.any(gradients["embed/embedding"] != 0, axis=1)), held)


def test_build_makes_it_for_a_whole_row():
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=LENGTH), model=MODELS["mixer"])
    module = build(
        config, Stage(family="entropy_regressor", objectives={"entropy_regression": 1.0})
    )
    assert module == regressor("mixer")
    assert example(module, config).shape == (1, LENGTH)


def test_a_mixer_of_another_length_is_refused(draw):
    with pytest.raises(ValueError, match="a mixer built for 8 positions got 4"):
        draw(regressor("mixer"), TOKENS[:, :4])
