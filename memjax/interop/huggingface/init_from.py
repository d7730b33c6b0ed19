"""`init_from="hf:FOLDER"`: the parameters that a stage takes from a Hugging Face folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.checkpoints import CheckpointError, parts_of, transplant
from memjax.config import Backbone, Config
from memjax.interop.huggingface.weights import Pretrained, Stored
from memjax.models import find


def start_pretrained(
    source: Pretrained, config: Config, name: str, shapes: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the parameters of a stage, with a `Stored` for each one in a Hugging Face folder; only
    headers of files are read.

    Args:
      source: the opened folder.
      config: the run.
      name: the stage.
      shapes: the parameters of its model, abstract, in the types that they are stored in.

    Raises:
      CheckpointError: the folder's model differs from the config's, or has weights of a wider type.
    """
    stage = config.stages[name]
    at = f"config.stages.{name}.init_from={stage.init_from!r}"
    window, length = source.settings.window, config.data.sequence_length
    CheckpointError.require(
        not window or length <= window,
        f"config.data.sequence_length={length}, expected at most {window}, the sliding_window of"
        f" {source.files.folder}. Use shorter sequences",
    )
    there = source.parameters()
    part = stage.init_part or ",".join(sorted(there))
    for given, taken in parts_of(part):
        stack = "encoder" if taken.startswith("encoder") else find(stage.family).backbone
        if given.startswith("backbone") or not given:
            _check_stack(getattr(config.model, stack), source.stack, f"config.model.{stack}", at)
        if not given or (given == "embed" and taken == "embed") or given == "head":
            ours, theirs = config.model.decoder.tie_embeddings, source.stack.tie_embeddings
            if ours != theirs:
                raise CheckpointError(
                    f"{at} has tie_embeddings={theirs}, and"
                    f" config.model.decoder.tie_embeddings={ours}; decoder_settings gives what fits"
                )
    flat, wanted = (
        flatten_dict(transplant(shapes, there, part, at), sep="/"),
        flatten_dict(shapes, sep="/"),
    )
    for path, leaf in flat.items():
        if isinstance(leaf, Stored):
            flat[path] = dataclasses.replace(leaf, dtype=wanted[path].dtype)
            _check_dtype(leaf, wanted[path].dtype, path, source, f"config.stages.{name}")
    return unflatten_dict(flat, sep="/")


def _check_dtype(leaf: Stored, dtype: np.dtype, path: str, source: Pretrained, key: str) -> None:
    """Raise CheckpointError if a type cannot hold every value of a parameter in files."""
    CheckpointError.require(
        jnp.promote_types(leaf.dtype, dtype) == dtype,
        f"{key}.frozen_dtypes: {dtype} for {path!r}, expected float32, as {source.files.folder} has"
        f" it in {leaf.dtype}. Change the rule",
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
