"""Copies of a model on a mesh exchange the gradients of several microbatches once."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from memjax.models import build
from memjax.objectives import Batch, SpecialIds
from memjax.sharding.mesh import AXES
from memjax.testing import tiny_config
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, train_step

CONFIG = tiny_config("unused")
STAGE = dataclasses.replace(
    CONFIG.stages["combined"],
    init_from="",
    init_part="",
    trainable=((".*", True),),
    batch_size=16,
    grad_accum_steps=2,
)


RETRIEVER = {
    "family": "retriever",
    "objectives": {"ngram_retrieval": 1.0},
    "dials": {"query_tokens": 3},
}


def traced(mesh, config=CONFIG, stage=STAGE):
    """The equations of a step by name, and the trainable parameters."""
    module = build(config, stage)
    trainable, frozen = split(abstract_params(module, config), stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, trainable, frozen, jax.eval_shape(optimizer.init, trainable))
    tokens = jax.ShapeDtypeStruct((stage.batch_size, config.data.sequence_length), jnp.int32)
    with jax.sharding.use_abstract_mesh(AbstractMesh(mesh, AXES, axis_types=(AxisType.Auto,) * 3)):
        found = jax.make_jaxpr(
            lambda state, batch: train_step(
                state, batch, module=module, stage=stage, optimizer=optimizer, ids=SpecialIds()
            )
        )(state, Batch(tokens))
    apart = [one for one in found.jaxpr.eqns if one.primitive.name == "shard_map"]
    return apart, sum(leaf.size for leaf in jax.tree.leaves(trainable))


def test_copies_add_up_their_gradients_after_the_last_microbatch():
    (apart,), parameters = traced((2, 4, 1))
    inside = apart.params["jaxpr"]
    summed = [one for one in inside.eqns if one.primitive.name == "psum"]
    # Beside gradients: the loss, and three sums of each objective.
    numbers = sum(value.aval.size for one in summed for value in one.invars)
    assert numbers == parameters + 1 + 3 * len(STAGE.objectives)
    loops = [one for one in inside.eqns if one.primitive.name == "scan"]
    assert [loop.params["length"] for loop in loops] == [STAGE.grad_accum_steps]
    assert "psum" not in str(loops[0])


@pytest.mark.parametrize(
    ("mesh", "changes", "noise"),
    [
        # One copy of the parameters.
        ((1, 8, 1), {}, 0.0),
        ((2, 4, 1), {"grad_accum_steps": 1}, 0.0),
        # Noise is drawn for a microbatch as a whole.
        ((2, 4, 1), {}, 0.1),
        # Its passages are compared with those of other rows.
        ((2, 4, 1), RETRIEVER, 0.0),
    ],
    ids=["one_copy", "one_microbatch", "noise", "compared_rows"],
)
def test_no_other_step_computes_copies_apart(mesh, changes, noise):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, noise=noise))
    apart, _ = traced(mesh, config, dataclasses.replace(STAGE, **changes))
    assert not apart
