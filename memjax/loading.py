"""From a folder on disk to a model one can call: of a run, of one of its stages, of an export, or of memories that a stage made."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
from etils import epath

from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.identity import fingerprint
from memjax.config import Config, from_json
from memjax.data import Tokenizer
from memjax.exporting.manifest import MANIFEST
from memjax.exporting.reading import is_export, read_export
from memjax.models import build

STORE = "store.json"
WHAT = "give a workdir of `memjax train`, the folder of a stage in one, an export of `memjax export`, or a store of `memjax compress`"


class Loaded(NamedTuple):
    """A trained model; unpacks as (module, variables, tokenizer)."""

    module: nn.Module
    variables: dict[str, Any]
    tokenizer: Tokenizer | None
    """None of imported weights, whose tokenizer is not known."""


class TrainedStage(NamedTuple):
    """What a stage left, wherever it was kept."""

    config: Config
    """Of its run."""
    name: str
    step: int
    params: dict[str, Any]
    tokenizer: Tokenizer | None

    def module(self) -> nn.Module:
        """The model."""
        return build(self.config, self.config.stages[self.name])


def load(path: str | os.PathLike, stage: str = "", checkpoint: str | os.PathLike = "") -> Loaded:
    """The model that a stage of a run left.

    Args:
      path: one of

        - what `memjax train` or `memjax import-reference` wrote; of gs://BUCKET/FOLDER, checkpoints are read there and the rest here, in
          ./BUCKET/FOLDER;
        - the folder of one stage in it, `runs/NAME/stages/STAGE`;
        - what `memjax export` wrote;
        - a store of memories, which gives the stage that made them. A store holds no weights: its header says where they were.
      stage: of a workdir the name of the stage; by default the last of the curriculum.
      checkpoint: of a store the stage's folder or an export, where they are no longer where the header says.

    Raises:
      CheckpointError: nothing of this kind is there, it cannot be read, or it does not belong together: weights and tokenizer, export and
        config, store and encoder.
      StoreError: the store's header is damaged.
      TokenizerError: the tokenizer cannot be read.
    """
    found = read_stage(path, stage, checkpoint)
    return Loaded(found.module(), {"params": found.params}, found.tokenizer)


def read_stage(path: str | os.PathLike, stage: str = "", checkpoint: str | os.PathLike = "") -> TrainedStage:
    """As `load`, with the settings of the run and the name of the stage.

    Raises:
      CheckpointError, StoreError, TokenizerError: as `load`.
    """
    remote = str(path) if "://" in str(path) else ""
    here = Path(remote.partition("://")[2] or path)
    kept = epath.Path(remote or path)
    if checkpoint and not (here / STORE).is_file():
        raise CheckpointError(f"{path} is no store of memories; checkpoint= is for those, {WHAT}")
    if (here / STORE).is_file() and not remote:
        return _of_store(here, stage, checkpoint)
    if is_export(here):
        if remote:
            raise CheckpointError(f"{path}: an export is read from this machine's disk; copy it here and give that folder")
        exported = read_export(here)
        return _named(TrainedStage(*_told(exported.manifest), exported.params, exported.tokenizer), stage, path)
    if (here / MANIFEST).is_file():
        return _of_workdir(here, kept, stage)
    if (kept / "checkpoints").is_dir():
        return _named(_of_stage(here, kept), stage, path)
    hint = ", and of a run in a bucket its config.json is kept here" if remote else ""
    raise CheckpointError(f"{here} holds no model: it has no config.json, checkpoints or {STORE}{hint}; {WHAT}")


def _of_workdir(here: Path, kept: epath.Path, stage: str) -> TrainedStage:
    try:
        config = from_json((here / MANIFEST).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{here / MANIFEST} is no JSON ({error}); {WHAT}") from error
    stage = stage or (config.curriculum[-1] if config.curriculum else "")
    if stage not in config.stages:
        raise CheckpointError(f"{here} has no stage {stage!r}; its stages are {', '.join(sorted(config.stages))}")
    return _of_stage(here / "stages" / stage, kept / "stages" / stage)


def _of_stage(here: Path, kept: epath.Path) -> TrainedStage:
    """Of the folder of a stage: what is on this machine, and where its checkpoints are."""
    params, meta = load_params(kept / "checkpoints")
    config = from_json(meta["config"])
    if not meta["tokenizer"]:
        return TrainedStage(config, meta["stage"], int(meta["step"]), params, None)
    data = here.absolute().parent.parent / "data"
    tokenizer = Tokenizer.load(data)
    if meta["tokenizer"] != tokenizer.fingerprint:
        raise CheckpointError(
            f"{here} was trained with tokenizer {meta['tokenizer']}, but {data} holds {tokenizer.fingerprint}"
        )
    return TrainedStage(config, meta["stage"], int(meta["step"]), params, tokenizer)


def _of_store(here: Path, stage: str, checkpoint: str | os.PathLike) -> TrainedStage:
    """The stage whose encoder made a store. What its header names is opened only if it is on this machine, and counts only if it fits."""
    # Stores read checkpoints themselves: imported here, the two need not wait for each other.
    from memjax.store.header import HEADER_LIMIT, parse_header

    with open(here / STORE, "rb") as stream:
        origin = parse_header(stream.read(HEADER_LIMIT + 1), str(here / STORE)).origin
    whose = f"memories by stage {origin.stage} ({origin.family}, step {origin.step})"
    remedy = (
        f"give the stage's folder or an export of it: memjax.load({str(here)!r}, checkpoint='runs/NAME/stages/{origin.stage}')"
    )
    where = os.fspath(checkpoint) or origin.checkpoint
    if not where:
        raise CheckpointError(f"{here} holds {whose}, and does not say where its weights are; {remedy}")
    if "://" in where and not checkpoint:
        raise CheckpointError(
            f"{here} holds {whose}, whose weights were in {where}: nothing is fetched from there unasked; {remedy}"
        )
    folder = Path(where).expanduser()
    if not checkpoint and (not folder.is_dir() or (folder / STORE).is_file()):
        raise CheckpointError(
            f"{here} holds {whose}, whose weights were in {where}, and that is no folder of a stage here; {remedy}"
        )
    found = read_stage(where, stage)
    _require_encoder(found, origin, f"{here} holds {whose}, and {where}", remedy)
    return found


def _require_encoder(found: TrainedStage, origin: Any, what: str, remedy: str) -> None:
    theirs = fingerprint(found.params["encoder"]) if "encoder" in found.params else "no encoder"
    if theirs != origin.sha256:
        raise CheckpointError(f"{what} has another encoder (sha256 {theirs[:16]}, not {origin.sha256[:16]}); {remedy}")
    if found.tokenizer is None or found.tokenizer.fingerprint != origin.tokenizer:
        raise CheckpointError(f"{what} has another tokenizer, not {origin.tokenizer}; {remedy}")


def _named(found: TrainedStage, stage: str, path: str | os.PathLike) -> TrainedStage:
    if stage not in ("", found.name):
        raise CheckpointError(
            f"{path} is stage {found.name}, and stage={stage!r} was asked for; leave that out, or give the workdir"
        )
    return found


def _told(manifest: Any) -> tuple[Config, str, int]:
    return manifest.config, manifest.stage, manifest.step
