"""A stage that starts from a Hugging Face folder: which parameters come from there, and what the base model loses while it is trained."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from memjax.checkpoints import CheckpointError, parts_of, transplant
from memjax.config import Backbone, Config, Stage
from memjax.interop.huggingface import HuggingFaceError, Pretrained, open_pretrained
from memjax.interop.huggingface_settings import folder_of
from memjax.models import CausalLM, MemoryModel
from memjax.training.optimizer import Tree

EMPTY = "next_token_empty"
"""Next tokens of held-out rows with no memory in any slot: what is left of the language model."""


class Start(NamedTuple):
    """Where the parameters of a stage come from."""

    source: Pretrained
    params: Tree
    """Of the stage: a `Stored` for every one that is in the folder."""


def start_pretrained(config: Config, name: str, shapes: Tree) -> Start | None:
    """What a stage takes from a Hugging Face folder; None where its `init_from` names something else. Headers of files are read.

    Args:
      config: the run.
      name: the stage.
      shapes: its model's parameters, abstract.

    Raises:
      CheckpointError: the folder cannot be read, or its model is another than the config's.
    """
    stage = config.stages[name]
    folder = folder_of(stage.init_from)
    if not folder:
        return None
    at = f"config.stages.{name}.init_from={stage.init_from!r}"
    try:
        source = open_pretrained(folder, config.data.vocabulary)
    except HuggingFaceError as error:
        raise CheckpointError(f"{at}: {error}") from error
    there = source.parameters()
    part = stage.init_part or ",".join(sorted(there))
    for given, taken in parts_of(part):
        stack = "encoder" if taken.startswith("encoder") else "reconstructor" if stage.family == "autoencoder" else "decoder"
        if given.startswith("backbone") or not given:
            _check_stack(getattr(config.model, stack), source.stack, f"config.model.{stack}", at)
        if not given or (given == "embed" and taken == "embed") or given == "head":
            ours, theirs = config.model.decoder.tied_head, source.stack.tied_head
            if ours != theirs:
                raise CheckpointError(
                    f"{at} has tied_head={theirs}, and config.model.decoder.pretrained says {ours}; decoder_settings gives what fits"
                )
    return Start(source, transplant(shapes, there, part, at))


def _check_stack(ours: Backbone, theirs: Backbone, key: str, at: str) -> None:
    """Raises CheckpointError for the first setting under which the weights would be another function."""
    for name, wanted in _meaning(theirs).items():
        if _meaning(ours)[name] != wanted:
            raise CheckpointError(
                f"{at} has {name}={wanted}, this run has {key}.{name}={_meaning(ours)[name]}; memjax.interop.decoder_settings gives what"
                " fits"
            )


def _meaning(stack: Backbone) -> dict[str, Any]:
    """Settings with the defaults that stand for them, so that the same function has the same ones."""
    named = ("head_width", "query_key_norm", "norm_epsilon", "rotary_base", "rotary_scaling", "hidden_width")
    fields = dataclasses.asdict(stack) | {name: getattr(stack, name) for name in named}
    fields["kv_heads"] = stack.kv_heads or stack.heads
    return {name: value for name, value in fields.items() if name not in ("pretrained", "mlp_ratio", "decay_length")}


def without_memory(module: nn.Module, stage: Stage) -> nn.Module | None:
    """The language model in a stage's model, on the same parameters; None where none was put there, or the family has none."""
    if not folder_of(stage.init_from):
        return None
    if isinstance(module, MemoryModel):
        return module.clone(memory=False)
    return module if isinstance(module, CausalLM) else None
