"""Every config file and variant resolves, and its training step is sound, at full size and without an array of it."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from memjax.config import from_config_dict, from_json, to_json
from memjax.models import build
from memjax.objectives import SpecialIds
from memjax.training.loop import abstract_params
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, train_step

FOLDER = Path(__file__).resolve().parents[1] / "configs"
PARAMETERS = {
    ("quickstart", ""): {"autoencoder": 1_099_136, "combined": 1_630_720, "causal_control": 1_630_720, "no_memory": 1_085_312},
    ("quickstart", "small"): {"autoencoder": 56_032, "combined": 79_808, "causal_control": 79_808, "no_memory": 52_064},
    # The reference counts 100,427,008 with the token tables inside its two stacks, which nothing reads: 8000 * (256 + 512).
    ("memory_model", "paper"): {"combined": 100_427_008 - 8000 * (256 + 512)},
    ("memory_model", "1b"): {"combined": 1_307_255_808},
}
"""Parameters of some stages of every variant."""


def resolved(name: str, variant: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config(*[variant] if variant else []))


def test_every_config_file_is_listed_here():
    assert {name for name, _ in PARAMETERS} == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize(("name", "variant"), PARAMETERS)
def test_a_config_builds_at_full_size(name, variant):
    config = resolved(name, variant)
    assert from_json(to_json(config)) == config
    for stage_name, stage in config.stages.items():
        module = build(config, stage)
        params = abstract_params(module, config)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count == PARAMETERS[name, variant].get(stage_name, count), stage_name
        trainable, frozen = split(params, stage.trainable, "trainable")
        optimizer = make_optimizer(config.optimizer, stage, trainable)
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, frozen, jax.eval_shape(optimizer.init, trainable))
        tokens = jax.ShapeDtypeStruct((stage.rows, config.data.row_tokens), jnp.int32)
        step = functools.partial(train_step, module=module, stage=stage, optimizer=optimizer, ids=SpecialIds())
        after, metrics = jax.eval_shape(step, state, tokens)
        shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
        assert shapes(after) == shapes(state)
        assert metrics.terms.keys() == stage.objectives.keys()


@pytest.mark.parametrize("name", sorted({name for name, _ in PARAMETERS}))
def test_an_unknown_variant_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match="has no variant 'huge'; it has"):
        resolved(name, "huge")
