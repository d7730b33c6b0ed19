"""`hf:FOLDER` as a source of a stage: the parameters that it takes from a Hugging Face folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from memjax.checkpoints import CheckpointError, parts_of, transplant
from memjax.config import Backbone, Config, Source
from memjax.interop.huggingface.weights import Pretrained, Stored
from memjax.models import find


def start_pretrained(
    pretrained: Pretrained, config: Config, name: str, source: Source, shapes: Mapping[str, Any]
) -> dict[str, Stored]:
    """Return the parameters that a stage takes from a Hugging Face folder, by path; only headers of
    files are read.

    Args:
      pretrained: the opened folder.
      config: the run.
      name: the stage.
      source: which parts it takes.
      shapes: the parameters of its model, abstract, in the types that they are stored in.

    Raises:
      CheckpointError: the folder's model differs from the config's, or has weights of a wider type.
    """
    stage = config.stages[name]
    at = f"config.stages.{name}.{source.key}={source.path!r}"
    window, length = pretrained.settings.window, config.data.sequence_length
    CheckpointError.require(
        not window or length <= window,
        f"config.data.sequence_length={length}, expected at most {window}, the sliding_window of"
        f" {pretrained.files.folder}. Use shorter sequences",
    )
    there = pretrained.parameters()
    part = source.part or ",".join(sorted(there))
    for given, taken in parts_of(part):
        stack = "encoder" if taken.startswith("encoder") else find(stage.family).backbone
        if given.startswith("backbone") or not given:
            _check_stack(
                getattr(config.model, stack), pretrained.stack, f"config.model.{stack}", at
            )
        if not given or (given == "embed" and taken == "embed") or given == "head":
            ours, theirs = config.model.decoder.tie_embeddings, pretrained.stack.tie_embeddings
            if ours != theirs:
                raise CheckpointError(
                    f"{at} has tie_embeddings={theirs}, and"
                    f" config.model.decoder.tie_embeddings={ours}; decoder_settings gives what fits"
                )
    taken = flatten_dict(transplant(shapes, there, part, at), sep="/")
    types = {path: leaf.dtype for path, leaf in flatten_dict(shapes, sep="/").items()}
    stored = {path: leaf for path, leaf in taken.items() if isinstance(leaf, Stored)}
    for path, leaf in stored.items():
        _check_dtype(leaf, types[path], path, pretrained, f"config.stages.{name}")
    return {path: dataclasses.replace(x, dtype=types[path]) for path, x in stored.items()}


def _check_dtype(
    leaf: Stored, dtype: np.dtype, path: str, pretrained: Pretrained, key: str
) -> None:
    """Raise CheckpointError if a type cannot hold every value of a parameter in files."""
    CheckpointError.require(
        jnp.promote_types(leaf.dtype, dtype) == dtype,
        f"{key}.frozen_dtypes: {dtype} for {path!r}, expected float32, as"
        f" {pretrained.files.folder} has it in {leaf.dtype}. Change the rule",
    )


def _check_stack(ours: Backbone, theirs: Backbone, key: str, at: str) -> None:
    """Raise CheckpointError for the first setting that gives the weights another meaning."""
    found = _meaning(ours)
    for name, wanted in _meaning(theirs).items():
        if found[name] != wanted:
            raise CheckpointError(
                f"{at} has {name}={wanted}, this run has {key}.{name}={found[name]};"
                " memjax.interop.huggingface.settings.decoder_settings gives what fits"
            )


def _meaning(stack: Backbone) -> dict[str, Any]:
    """Return settings with defaults filled in, so that equal functions have equal settings."""
    fields = dataclasses.asdict(stack) | {
        "hidden_width": stack.hidden_width,
        "head_dim": stack.attention_head_dim,
        "norm_eps": stack.epsilon,
        "kv_heads": stack.kv_heads or stack.heads,
    }
    without_effect = ("tie_embeddings", "mlp_ratio", "decay_length")
    return {name: value for name, value in fields.items() if name not in without_effect}
