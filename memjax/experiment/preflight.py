"""Checks of all stages on abstract arrays, so that no error comes after hours of training."""

import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp

from memjax.checkpoints import transplant
from memjax.config import Config, ConfigError
from memjax.config.choices import FULL_PACKINGS
from memjax.data import Prepared, evenly_spaced, open_attributions
from memjax.evaluation.evaluators import check_evaluators
from memjax.interop.huggingface.init_from import start_pretrained
from memjax.models import build
from memjax.objectives import SpecialIds, build_requests, weights
from memjax.sharding import shardings
from memjax.sharding.mesh import memory
from memjax.training.compiled_steps import StageSteps
from memjax.training.encode_corpus import check_frozen
from memjax.training.init_state import abstract_params, open_sources
from memjax.training.optimizer import as_stored

ROWS = 256
"""Padded training rows in which every objective must have a target."""


def check_targets(config: Config, data: Prepared) -> None:
    """Check that padded training rows have targets for every objective.

    Raises:
      ConfigError: in evenly spaced rows, an objective has none.
    """
    if config.data.packing in FULL_PACKINGS:
        return
    ids = SpecialIds.of(data.tokenizer)
    rows = jnp.asarray(data.train.read(evenly_spaced(len(data.train), ROWS)))
    for name in config.curriculum + config.controls:
        stage = config.stages[name]
        objectives = tuple(stage.objectives)
        requests = build_requests(build(config, stage), rows, objectives, ids, stage)
        for objective, weight in weights(requests, objectives).items():
            ConfigError.require(
                weight.any(),
                f"config.stages.{name}.objectives: {objective}, which has no target in {len(rows)}"
                f" rows of data.packing={config.data.packing!r}, expected one. Use longer"
                " documents, a shorter config.data.sequence_length or another packing",
            )


def check_stages(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Build every stage of the run on abstract arrays.

    Raises:
      ConfigError: a batch does not divide over the devices, no rule matches a parameter, Muon is
        to update a parameter that is no matrix, an evaluator is of an unknown kind, or Weights &
        Biases is set and not installed.
      CheckpointError: a source that `init_from` or `init_parts` names is missing or does not fit.
    """
    ConfigError.require(
        not config.wandb_project or importlib.util.find_spec("wandb"),
        f"config.wandb_project={config.wandb_project!r} needs Weights & Biases: pip install wandb",
    )
    platform = mesh.devices.flat[0].platform
    ConfigError.require(
        config.model.attention != "splash" or platform == "tpu",
        "config.model.attention='splash' is a kernel for TPUs, and these devices are"
        f" {platform}; use 'auto' or 'xla'",
    )
    check_evaluators(config)
    for name in config.curriculum + config.controls:
        stage = config.stages[name]
        steps = StageSteps(config, name, mesh)
        _check_memory(config, name, steps.shapes, mesh)
        ConfigError.require(
            steps.trainable, f"config.stages.{name}.trainable leaves no parameter to train"
        )
        check_frozen(config, name, steps.trainable)
        if config.data.attributions:
            open_attributions(config.data.attributions)
        params = as_stored(abstract_params(steps.module, config), stage)
        for source in stage.sources:
            if source.path in config.stages:
                there = abstract_params(build(config, config.stages[source.path]), config)
                fill_layers = "untrained_layers" in stage.compat
                transplant(params, there, source.part, f"config.stages.{source.path}", fill_layers)
        for source, found in open_sources(config, name, ""):
            if found.pretrained is not None:
                start_pretrained(found.pretrained, config, name, source, params)


def _check_memory(config: Config, name: str, params: Any, mesh: jax.sharding.Mesh) -> None:
    """Raise ConfigError if a device cannot hold its parameters and its share of a batch of ids."""
    device, stage = mesh.local_devices[0], config.stages[name]
    places = jax.tree.leaves(shardings(params, config.mesh.rules, mesh))
    sizes = [
        leaf.dtype.itemsize * math.prod(place.shard_shape(leaf.shape))
        for leaf, place in zip(jax.tree.leaves(params), places, strict=True)
    ]
    ids = 4 * stage.batch_size * config.data.sequence_length // mesh.size
    needed, there = ids + sum(sizes), memory(device)
    ConfigError.require(
        needed <= there,
        f"config.stages.{name}: {needed:,} bytes of parameters and ids per device, expected at most"
        f" the {there:,} of {device.device_kind}. Lower config.model's sizes or batch_size",
    )
