"""From a folder on disk to a model one can call."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
from etils import epath

from memjax.checkpoints import CheckpointError, load_params
from memjax.config import from_json
from memjax.data import Tokenizer
from memjax.models import build


class Loaded(NamedTuple):
    """A trained model; unpacks as (module, variables, tokenizer)."""

    module: nn.Module
    variables: dict[str, Any]
    tokenizer: Tokenizer | None
    """None of imported weights, whose tokenizer is not known."""


def load(workdir: str | os.PathLike, stage: str = "") -> Loaded:
    """The model that a stage of a run left.

    Args:
      workdir: where `memjax train` or `memjax import-reference` wrote; of gs://BUCKET/FOLDER, checkpoints are read there and the rest here,
        in ./BUCKET/FOLDER.
      stage: name of the stage; by default the last of the curriculum.

    Raises:
      CheckpointError: the folder holds no such stage, or its checkpoint cannot be read or belongs to another tokenizer.
      TokenizerError: the tokenizer cannot be read.
    """
    remote = str(workdir) if "://" in str(workdir) else ""
    workdir = Path(remote.partition("://")[2] or workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{workdir} is no workdir of `memjax train`: it has no config.json")
    config = from_json(path.read_text(encoding="utf-8"))
    stage = stage or config.curriculum[-1]
    if stage not in config.stages:
        raise CheckpointError(f"{workdir} has no stage {stage!r}; its stages are {', '.join(sorted(config.stages))}")
    params, meta = load_params(epath.Path(remote or workdir) / "stages" / stage / "checkpoints")
    module, variables = build(config, config.stages[stage]), {"params": params}
    if not meta["tokenizer"]:
        return Loaded(module, variables, None)
    tokenizer = Tokenizer.load(workdir / "data" / "tokenizer.model")
    if meta["tokenizer"] != tokenizer.fingerprint:
        raise CheckpointError(
            f"{workdir / 'stages' / stage} was trained with tokenizer {meta['tokenizer']}, but {workdir / 'data'} holds"
            f" {tokenizer.fingerprint}"
        )
    return Loaded(module, variables, tokenizer)
