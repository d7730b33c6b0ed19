"""Models as NNX modules: the same outputs and gradients as in Linen, and NNX's own transformations
train them.

Shapes: B row, C chunk, L token.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from memjax import objectives
from memjax.models import Autoencoder, CausalLM, MemoryModel
from memjax.testing import tiny_model

nnx = pytest.importorskip("flax.nnx", reason="NNX does not import here")

from memjax.interop.nnx import NNXError, from_nnx, to_nnx  # noqa: E402

CHUNKS, LENGTH, VOCABULARY = 4, 8, 40
IDS = objectives.SpecialIds()
MODELS = {
    "memory_model": (MemoryModel(tiny_model(), CHUNKS, VOCABULARY), (CHUNKS, LENGTH), "copy"),
    "causal_lm": (
        CausalLM(tiny_model(), CHUNKS * LENGTH, VOCABULARY),
        (CHUNKS * LENGTH,),
        "next_token",
    ),
    "autoencoder": (Autoencoder(tiny_model(), VOCABULARY), (LENGTH,), "reconstruction"),
}
RNG = np.random.default_rng(0)


@pytest.fixture(params=MODELS)
def case(request, draw):
    """A module, its variables, tokens, and a loss of parameters."""
    module, shape, objective = MODELS[request.param]
    tokens = RNG.integers(6, VOCABULARY, (2, *shape)).astype(np.int32)
    rows = RNG.integers(6, VOCABULARY, (2, CHUNKS * LENGTH)).astype(np.int32)

    def scored(params):
        score = objectives.score(module, {"params": params}, rows, (objective,), IDS)[objective]
        total = objectives.total(score)
        return total.nats / total.count

    return module, draw(module, tokens), tokens, scored


def squared(outputs):
    return jnp.mean(outputs.astype(jnp.float32) ** 2), outputs


@pytest.mark.quick_cases("autoencoder")
def test_outputs_and_gradients_are_those_of_linen(case):
    module, variables, tokens, _ = case
    model = to_nnx(module, variables)
    assert isinstance(model, nnx.Module)
    params = nnx.state(model, nnx.Param)
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(variables))
    assert all(
        isinstance(p, nnx.Param)
        for p in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    )

    ours, outputs = nnx.jit(nnx.grad(lambda m, x: squared(m(x)), has_aux=True))(model, tokens)
    apply = jax.jit(jax.grad(lambda p, x: squared(module.apply({"params": p}, x)), has_aux=True))
    theirs, expected = apply(variables["params"], tokens)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)
    ours = nnx.to_pure_dict(ours)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(theirs)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.slow
def test_a_step_of_an_nnx_optimizer_lowers_the_loss_as_sgd_by_hand(case):
    module, variables, _, scored = case
    model = to_nnx(module, variables)
    optimizer = nnx.Optimizer(model, optax.sgd(0.02), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(lambda m: scored(from_nnx(m)[1]["params"]))(model)
        optimizer.update(model, gradients)
        return value

    before = float(step(model, optimizer))
    back, after = from_nnx(model)
    assert back is module
    value, gradients = jax.jit(jax.value_and_grad(scored))(variables["params"])
    np.testing.assert_allclose(before, value, rtol=1e-6)
    ours = ravel_pytree(after["params"])[0]
    expected = ravel_pytree(variables["params"])[0] - 0.02 * ravel_pytree(gradients)[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert float(step(model, optimizer)) < before - 1e-3
    # The given variables are as they were.
    assert float(jnp.abs(ravel_pytree(variables["params"])[0] - ours).max()) > 1e-4


@pytest.mark.slow
def test_there_and_back_and_other_methods(draw):
    module, shape, _ = MODELS["memory_model"]
    tokens = RNG.integers(6, VOCABULARY, (2, *shape)).astype(np.int32)
    variables = draw(module, tokens)
    model = to_nnx(module, variables)
    jax.tree.map(np.testing.assert_array_equal, from_nnx(model)[1], variables)
    memories = model.encode(tokens[:, :-1])
    np.testing.assert_array_equal(
        memories, module.apply(variables, tokens[:, :-1], method="encode")
    )
    np.testing.assert_allclose(
        model.decode(tokens, memories), module.apply(variables, tokens), rtol=1e-5, atol=1e-5
    )
    # As a part of another NNX module its parameters are that one's.
    whole = nnx.Dict(inner=model)
    assert len(jax.tree.leaves(nnx.state(whole, nnx.Param))) == len(jax.tree.leaves(variables))


def test_what_is_no_such_module():
    module = MODELS["autoencoder"][0]
    with pytest.raises(
        NNXError, match=r"must be \{'params': ...\}; these hold 'params', 'batch_stats'"
    ):
        to_nnx(module, {"params": {}, "batch_stats": {}})
    with pytest.raises(NNXError, match="'encode' has the name of a method of Autoencoder"):
        to_nnx(module, {"params": {"encode": jnp.zeros(2)}})
    with pytest.raises(NNXError, match="Linear has no Linen module, expected a result of to_nnx"):
        from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
