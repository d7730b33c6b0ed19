"""Shared stacks, models, stages and runs of the published experiments (Badger 2026).

A config file is loaded by its path and cannot import another; it imports these pieces.
Defaults are what most of the experiments have in common: a vocabulary of 8000, AdamW, 500 steps of
warm-up and then linear decay to 0, bfloat16.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from memjax.config.choices import FREEZING
from memjax.config.model import Backbone, Model
from memjax.config.settings import Config, Data, Stage, usual_evaluators
from memjax.config.tree import to_config_dict

AS_PUBLISHED = "_as_published"
"""Suffix of a variant with the quirks of the published code."""
RATES = {"transformer": 2e-4, "mixer": 5e-4}
"""Learning rate by the kind of stack that is trained."""
FROZEN: Mapping[str, dict[str, Any]] = {
    "": {"trainable": FREEZING["frozen_all"], "init_part": "encoder"},
    "_blocks": {"trainable": FREEZING["frozen_blocks"], "init_part": "encoder/backbone"},
}
"""Frozen parameters of a trained encoder, by suffix of the variant: all, or its blocks.

Frozen blocks get a new token table, as the published memory models and small probes do.
"""
CAUSAL_PARTS = {
    "": "backbone:encoder/backbone,embed:encoder/embed",
    "_blocks": "backbone:encoder/backbone",
}
"""`init_part` in place of FROZEN's where the encoder is the stack of a causal language model."""
STAGE_QUIRKS: Mapping[str, tuple[str, ...]] = {
    "memory_model": ("unscored_first_tokens", "chunk_means"),
    "recurrent_memory": ("unscored_first_tokens", "chunk_means"),
    "oracle": ("unscored_first_tokens",),
    "causal_lm": ("unscored_first_tokens",),
}
"""Quirks of training by family."""


def llama(width: int, layers: int, heads: int = 4, **changes: Any) -> Backbone:
    """Return the published transformer: RMS norm, SwiGLU four times as wide, and a final norm.

    Autoencoders leave the final norm out.
    """
    return Backbone(kind="transformer", width=width, layers=layers, heads=heads, **changes)


def mixer(
    width: int, layers: int, heads: int = 0, channel_kernel: int = 1, **changes: Any
) -> Backbone:
    """Return the published masked mixer: layer norm, GELU four times as wide, no final norm.

    0 heads is flat mixing.
    """
    return Backbone(
        kind="mixer",
        width=width,
        layers=layers,
        heads=heads,
        channel_kernel=channel_kernel,
        mlp="gelu",
        norm="layer",
        final_norm=False,
        **changes,
    )


def repeat_mixer(kind: str, width: int, layers: int, heads: int, **changes: Any) -> Backbone:
    """Return the published repeat mixer; `kind` is one of `config.REPEATS`."""
    return Backbone(
        kind=kind,
        width=width,
        layers=layers,
        heads=heads,
        mlp="silu",
        norm="layer",
        final_norm=False,
        **changes,
    )


def model(
    chunk_length: int,
    encoder: Backbone,
    decoder: Backbone | None = None,
    reconstructor: Backbone | None = None,
    **changes: Any,
) -> Model:
    """Return a model without memjax's learned positions and task embedding.

    A missing part is that of its nearest neighbour.
    """
    decoder = decoder or reconstructor or encoder
    return Model(
        chunk_length=chunk_length,
        encoder=encoder,
        decoder=decoder,
        reconstructor=reconstructor or decoder,
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
        dtype="bfloat16",
        remat="dots_with_no_batch_dims_saveable",
        **changes,
    )


def stage(family: str, objectives: str, trained: Backbone, **changes: Any) -> Stage:
    """Return a stage of 200,000 steps with a batch size of 128.

    Args:
      family: of models.
      objectives: names with spaces between them; all weigh the same.
      trained: the stack whose kind sets the learning rate.
      **changes: other settings of the stage.
    """
    settings: dict[str, Any] = {
        "steps": 200_000,
        "batch_size": 128,
        "learning_rate": RATES.get(trained.kind, RATES["transformer"]),
        "warmup_steps": 500,
        "lr_schedule": "linear",
    }
    return Stage(
        family=family, objectives=dict.fromkeys(objectives.split(), 1.0), **settings | changes
    )


def run(
    model: Model,
    sequence_length: int,
    stages: Mapping[str, Stage],
    controls: tuple[str, ...] = (),
    **data: Any,
) -> Config:
    """Return a run of the stages in their order, `controls` last.

    Args:
      model: what the stages train.
      sequence_length: tokens in a row.
      stages: by name.
      controls: stages that are trained for comparison.
      **data: other settings of the data.
    """
    settings: dict[str, Any] = {"vocab_size": 8000, "validation_share": 0.005}
    return Config(
        data=Data(sequence_length=sequence_length, **settings | data),
        model=model,
        stages=stages,
        curriculum=tuple(name for name in stages if name not in controls),
        controls=controls,
        log_every=50,
        checkpoint_every=2000,
        evaluators=usual_evaluators(every=2000, examples=2048),
    )


def single(model: Model, sequence_length: int, stage: Stage, **data: Any) -> Config:
    """Return a run of one stage with the name `train`."""
    return run(model, sequence_length, {"train": stage}, **data)


def trained(file: str, variant: str, stage: str = "train") -> str:
    """Return `init_from` for a stage of another config's run: its folder in runs/FILE/VARIANT."""
    return f"runs/{file}/{variant}/stages/{stage}"


def attends_padding(model: Model, families: set[str]) -> bool:
    """Return whether published code reads padding like text.

    It does so in mixers, in autoencoders and in recurrent memory, which has no mask for it.
    """
    kinds = (
        {model.decoder.kind}
        if families <= {"causal_lm", "recurrent_memory"}
        else {model.encoder.kind, model.decoder.kind}
    )
    return bool({"autoencoder", "recurrent_memory"} & families) or "mixer" in kinds


def as_published(config: Config) -> Config:
    """Return the config with the quirks of the published code that apply to it.

    Initial weights come from a run with the same quirks.
    """
    model, families = config.model, {stage.family for stage in config.stages.values()}
    constant = "slots_of_ones" if model.decoder.kind == "transformer" else "slots_of_zeros"
    asked = {
        constant: "memory_model" in families and model.layout == "fixed",
        "attended_padding": attends_padding(model, families),
        "dense_mixing_gradient": "mixer"
        in (model.encoder.kind, model.decoder.kind, model.reconstructor.kind),
        "reference_init": True,
        "overwritten_write_slot": "recurrent_memory" in families,
        "one_sided_noise": model.noise > 0,
    }
    compat = (*model.compat, *(quirk for quirk, wanted in asked.items() if wanted))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, compat=compat),
        stages={name: _stage_as_published(stage) for name, stage in config.stages.items()},
    )


def _stage_as_published(stage: Stage) -> Stage:
    quirks = (*stage.compat, *STAGE_QUIRKS.get(stage.family, ()))
    if {"copy", "blank_copy"} & set(stage.objectives):
        quirks += ("overwritten_delimiter",)
    source = re.sub(r"^(runs/\w+/\w+)(?=/stages/)", rf"\1{AS_PUBLISHED}", stage.init_from)
    return dataclasses.replace(stage, compat=quirks, init_from=source)


def choose(file: str, variants: Mapping[str, Config], variant: str) -> ml_collections.ConfigDict:
    """Return a config file's variant, or its twin `_as_published`, for `get_config` to return.

    Args:
      file: the config file's `__file__`.
      variants: all it has, without the twins.
      variant: the name of the variant to return.

    Raises:
      ValueError: there is no such variant.
    """
    path, name = Path(file), variant.removesuffix(AS_PUBLISHED)
    if name not in variants:
        raise ValueError(
            f"{path.name} has no variant {variant!r}; it has {', '.join(variants)}, each also with"
            f" {AS_PUBLISHED}"
        )
    config = dataclasses.replace(variants[name], name=f"{path.stem}-{variant}")
    return to_config_dict(config if name == variant else as_published(config))
