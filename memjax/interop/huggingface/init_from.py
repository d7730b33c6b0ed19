"""`init_from="hf:FOLDER"`: the parameters that a stage takes from a Hugging Face folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from memjax.checkpoints import CheckpointError, parts_of, transplant
from memjax.config import Backbone, Config
from memjax.interop.huggingface.weights import Pretrained
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
      shapes: the parameters of its model, abstract.

    Raises:
      CheckpointError: the folder's model differs from the config's.
    """
    stage = config.stages[name]
    at = f"config.stages.{name}.init_from={stage.init_from!r}"
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
    return transplant(shapes, there, part, at)


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
