"""The baseline in two passes is the combined step done without thrift: the same loss and gradient
from more work."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, ConfigError, Stage
from memjax.models import build
from memjax.objectives import Batch, SpecialIds
from memjax.performance.bench.programs import flops
from memjax.performance.bench.two_passes import check_two_passes, two_pass_step
from memjax.testing import tiny_config, tiny_model
from memjax.training.flops import counted_flops, model_flops
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import split
from memjax.training.step import TrainState, train_step

IDS = SpecialIds()
BOTH = {"next_token": 0.5, "copy": 1.25}
SMALL = {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
WIDER = Backbone(**(SMALL | {"width": 24}))
CASES = {
    "all trained": (tiny_model(), Stage(batch_size=4, objectives=BOTH)),
    "frozen encoder of another width": (
        tiny_model(encoder=WIDER),
        Stage(batch_size=4, objectives=BOTH, trainable=(("^encoder/", False), (".*", True))),
    ),
    "an odd number of chunks": (
        tiny_model(decoder=Backbone(**SMALL)),
        Stage(batch_size=4, objectives=BOTH),
    ),
    "slots that follow the filled ones": (
        tiny_model(layout="variable"),
        Stage(batch_size=4, objectives=BOTH),
    ),
}


def setting(case):
    model, stage = CASES[case]
    config = tiny_config("unused", model=model)
    if "odd" in case:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, sequence_length=40)
        )
    return config, stage, build(config, stage)


def steps(config, stage, module):
    """Both steps of (state, batch); the optimizer subtracts the gradient itself."""
    known = {"module": module, "stage": stage, "optimizer": optax.sgd(1.0), "ids": IDS}
    return functools.partial(train_step, **known), functools.partial(two_pass_step, **known)


def fresh(config, stage, module, params):
    trainable, frozen = split(params, stage.trainable, "trainable")
    return TrainState(jnp.int32(0), trainable, frozen, optax.sgd(1.0).init(trainable))


def rows(config):
    """Text, text that ends within a chunk, text that ends with one, and a row of one token."""
    tokens = np.random.default_rng(1).integers(
        6, config.data.vocab_size, (4, config.data.sequence_length), np.int32
    )
    for row, end in ((1, 19), (2, 8), (3, 1)):
        tokens[row, end:] = IDS.pad
    return Batch(jnp.asarray(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_combined_step(case, quick, draw):
    config, stage, module = setting(case)
    params = draw(module, jnp.zeros((1, config.chunks, 8), jnp.int32))["params"]
    state, batch = fresh(config, stage, module, params), rows(config)
    (one, ours), (two, theirs) = (
        quick(step)(state, batch) for step in steps(config, stage, module)
    )
    assert float(ours.loss) > 1
    np.testing.assert_allclose(theirs.loss, ours.loss, rtol=1e-5)
    for name in BOTH:
        np.testing.assert_allclose(theirs.terms[name].nats, ours.terms[name].nats, rtol=1e-5)
        assert theirs.terms[name].count == ours.terms[name].count > 0
        assert theirs.terms[name].correct == ours.terms[name].correct
    np.testing.assert_allclose(theirs.gradient_norm, ours.gradient_norm, rtol=1e-4)
    scale = float(ours.gradient_norm)
    for before, by_one, by_two in zip(
        *map(jax.tree.leaves, (state.trainable, one.trainable, two.trainable)), strict=True
    ):
        assert np.abs(by_one - before).max() > 0
        np.testing.assert_allclose(by_two, by_one, atol=2e-5 * scale)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, two.frozen, state.frozen)


def abstract(config, stage, module):
    state = jax.eval_shape(lambda: fresh(config, stage, module, abstract_params(module, config)))
    return state, Batch(
        jax.ShapeDtypeStruct((stage.batch_size, config.data.sequence_length), jnp.int32)
    )


def test_each_pass_encodes_and_decodes_every_chunk_of_its_row():
    config, stage, module = setting("all trained")
    arguments, seen = abstract(config, stage, module), []

    def watch(call, args, kwargs, context):
        if context.module.name is None and context.method_name in ("encode", "joined_states"):
            inputs = getattr(args[0], "inputs", args[0])
            seen.append((context.method_name, inputs.shape[1]))
        return call(*args, **kwargs)

    found = []
    for step in steps(config, stage, module):
        seen.clear()
        with nn.intercept_methods(watch):
            jax.eval_shape(step, *arguments)
        found.append(list(seen))
    combined, two = found
    assert combined == [("encode", 3), ("joined_states", 6)]
    assert two == [("encode", 4), ("joined_states", 4)] * 2


@pytest.mark.quick_cases("all trained")
@pytest.mark.parametrize("case", CASES)
def test_its_flops_are_those_of_its_products(case):
    config, stage, module = setting(case)
    _, two = steps(config, stage, module)
    counted = counted_flops(jax.jit(two).trace(*abstract(config, stage, module)).jaxpr)
    # A program has causal matrices in full and every logit once more in the backward pass; FORMULA
    # says of which there are how many.
    reading = dataclasses.replace(stage, objectives={"next_token": 1.0})
    whole, length = 0.0, config.model.chunk_length
    for chunks in (config.chunks, config.chunks // 2 * 2):
        data = dataclasses.replace(config.data, sequence_length=chunks * length)
        parts = model_flops(dataclasses.replace(config, data=data), reading).parts
        whole += parts["decoder_mixing"].total + parts["head"].forward
        whole += parts["encoder_mixing"].total * chunks / (chunks - 1)
    assert counted == pytest.approx(flops(config, stage, "two_passes") + whole, rel=1e-12)


OTHERS = {
    "one objective": {"objectives": {"copy": 1.0}},
    "no memory": {"objectives": BOTH, "memory": False},
    "another family": {"objectives": {"reconstruction": 1.0}, "family": "autoencoder"},
    "published requests": {"objectives": BOTH, "compat": ("unscored_first_tokens",)},
    "microbatches": {"objectives": BOTH, "grad_accum_steps": 2},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS.keys())
def test_other_stages_have_no_such_form(changes):
    with pytest.raises(
        ConfigError,
        match=r"^two_passes: got another stage, expected a memory_model .* config\.data\.memories$",
    ):
        check_two_passes(tiny_config("unused"), Stage(**changes))
