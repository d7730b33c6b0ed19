"""A path to a trained stage: the one place that distinguishes kinds of path.

| path | stage |
|---|---|
| a workdir of `memjax train` or of `memjax import` | the last of its curriculum |
| the folder of a stage, `runs/NAME/stages/STAGE` | that one |
| an export of `memjax export` | the one in it |
| the name of a released model | the one in it |
| `hf:FOLDER`, a model of Hugging Face | `pretrained`, a causal language model |

Workdirs and stages may be in a bucket: of gs://BUCKET/FOLDER checkpoints are read there, and the
rest (config.json, tokenizer, metrics) here, in ./BUCKET/FOLDER.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from memjax import released
from memjax.checkpoints.export_manifest import MANIFEST, RECONSTRUCTOR, ExportError, is_manifest
from memjax.checkpoints.export_reading import Place, read_export
from memjax.checkpoints.reading import (
    CheckpointError,
    Step,
    absolute,
    load_sound,
    read_params,
    trained_stages,
)
from memjax.config import HUGGINGFACE, Config, Stage
from memjax.data import Tokenizer, load_tokenizer
from memjax.data.tokenizers import FILES as TOKENIZERS
from memjax.files import is_remote, on_this_machine, read_json
from memjax.interop.huggingface.settings import HuggingFaceError, folder_of
from memjax.interop.huggingface.weights import Pretrained, open_pretrained, pretrained_config
from memjax.models import Encoder, can


@dataclasses.dataclass(frozen=True, eq=False)
class StoredStage:
    """A trained stage on disk; weights and tokenizer are read when they are needed."""

    path: str
    """The path that was given, for messages."""
    config: Config
    """The config of its run, checked."""
    name: str
    """The stage."""
    step: int
    fingerprint: str
    """Fingerprint of its tokenizer; empty where the weights came without one."""
    folder: Path
    """The stage's folder on this machine (metrics, instruments), or that of the export."""
    data: Path
    """Where its run keeps tokenizer and rows."""
    read: Callable[[Place | None], dict[str, Any]]
    """Parameters, in the types that they are stored in; those of an export are float32. Takes a map
    from the tree of shapes and dtypes to a sharding per leaf; None puts all leaves on this
    machine's first device."""
    read_tokenizer: Callable[[], Tokenizer | None]
    """The tokenizer, compared with `fingerprint`; None where the weights came without one."""
    autoencoder: str = ""
    """The path of the autoencoder that its encoder began as; empty for none."""
    pretrained: Pretrained | None = None
    """The weights where `hf:FOLDER` was given, to read one by one."""

    @property
    def settings(self) -> Stage:
        """The stage's settings."""
        return self.config.stages[self.name]


def open_stage(
    path: str | os.PathLike, stage: str = "", vocab_size: int = 0, step: Step = None
) -> StoredStage:
    """Open the trained stage at a path; reads no weights.

    Args:
      path: a workdir, the folder of a stage, an export, a released model's name as a string, or
        `hf:FOLDER` (see the module).
      stage: the stage of a workdir; by default the last of its curriculum.
      vocab_size: rows of the token table for `hf:FOLDER`; by default the files' or the tokenizer's,
        whichever are more.
      step: the step of a stage's checkpoint, or `best`, the one that config.checkpoint_best kept;
        by default the last.

    Raises:
      CheckpointError: there is no trained stage at `path`, it cannot be read, or its files do not
        belong together.
      TokenizerError: the tokenizer of `hf:FOLDER` cannot be read.
    """
    if folder := released.folder_of(path):
        found = _open_export(str(path), folder)
    elif folder_of(str(path)):
        found = _open_huggingface(str(path), vocab_size)
    else:
        found = _open_folder(str(path), stage, step)
    if step not in (None, "best", found.step):
        raise CheckpointError(f"{path}: step {found.step}, expected {step}. Leave the step out.")
    if stage not in ("", found.name):
        raise CheckpointError(
            f"{path}: stage {found.name}, expected {stage}. Leave the stage out, or pass the"
            " workdir."
        )
    return found


def encoder_of(config: Config, stage: str, params: Any, where: str | os.PathLike) -> Encoder:
    """Return the encoder inside a stage's model; its parameters are `params["encoder"]`.

    Args:
      config: the run's config.
      stage: the name of the stage, for messages.
      params: parameters of the stage's model.
      where: its path, for messages.

    Raises:
      CheckpointError: the model has no encoder.
    """
    if "encoder" not in params:
        raise CheckpointError(
            f"{where}: stage {stage} (family {config.stages[stage].family}) has no encoder,"
            " expected a model with one. Pass another stage."
        )
    # An oracle's encoder may lack the map back from the bottleneck: its memories are as wide as
    # that.
    return Encoder(config.model, config.data.vocab_size, expand="up" in params["encoder"])


def check_tokenizer(
    tokenizer: Tokenizer,
    fingerprint: str,
    vocab_size: int,
    path: str | os.PathLike,
    where: str | os.PathLike,
) -> None:
    """Check that a tokenizer's ids are those that weights were trained with.

    Args:
      tokenizer: the tokenizer.
      fingerprint: of the weights' own; empty where they came without one.
      vocab_size: rows of the weights' token table.
      path: the path of the weights, for messages.
      where: the file of the tokenizer, for messages.

    Raises:
      CheckpointError: they are not.
    """
    if fingerprint and tokenizer.fingerprint != fingerprint:
        raise CheckpointError(
            f"{where}: tokenizer {tokenizer.fingerprint}, expected {fingerprint}, which {path} was"
            " trained with. Pass data made by that one."
        )
    if tokenizer.vocabulary > vocab_size:
        raise CheckpointError(
            f"{where}: tokenizer of {tokenizer.vocabulary} entries, expected at most {vocab_size},"
            f" the token table of {path}. Pass data made by its own tokenizer."
        )


def _open_folder(path: str, stage: str, step: Step) -> StoredStage:
    remote = path if is_remote(path) else ""
    here = on_this_machine(path)
    described: dict[str, Any] = {}
    if (here / MANIFEST).exists():
        described = read_json(
            here / MANIFEST, ExportError, {"curriculum?": [str]}, "Copy or write it again"
        )
    if is_manifest(described):
        if remote:
            raise CheckpointError(
                f"{path}: an export in a bucket, expected one on this machine's disk. Copy it here."
            )
        return _open_export(path, here)
    kept = absolute(remote or here)
    if "curriculum" in described:
        stages, curriculum = trained_stages(kept), described["curriculum"] or [""]
        name = stage or str(curriculum[-1])
        if name not in stages:
            there = f"one of {', '.join(stages)}" if stages else "a stage that has been trained"
            raise CheckpointError(
                f"{path}: stage {name!r} has no checkpoint, expected {there}. Name a trained stage,"
                " or train this one by `memjax train`."
            )
        return _open_checkpoint(path, here / "stages" / name, kept / "stages" / name, step)
    if (kept / "checkpoints").is_dir():
        return _open_checkpoint(path, here, kept, step)
    raise CheckpointError(_mistake(path, here, kept, described))


def _open_checkpoint(path: str, here: Path, kept: epath.Path, step: Step) -> StoredStage:
    """Open the folder of a stage: `here` on this machine, with its checkpoints at `kept`."""
    checkpoint, meta, config = load_sound(kept / "checkpoints", step)
    data = here.absolute().parent.parent / "data"

    def read_tokenizer() -> Tokenizer | None:
        if not meta["tokenizer"]:
            return None
        tokenizer = load_tokenizer(data)
        file = data / tokenizer.file_name
        check_tokenizer(tokenizer, meta["tokenizer"], config.data.vocab_size, path, file)
        return tokenizer

    return StoredStage(
        path=path,
        config=config,
        name=meta["stage"],
        step=meta["step"],
        fingerprint=meta["tokenizer"],
        folder=here,
        data=data,
        read=lambda place=None: read_params(checkpoint, place),
        read_tokenizer=read_tokenizer,
        autoencoder=_autoencoder_of(config, meta["stage"], kept.parent),
    )


def _autoencoder_of(config: Config, stage: str, stages: epath.Path) -> str:
    """Return the path of the trained autoencoder whose encoder a stage took: of the same run, or of
    the export that it began with.
    """
    # Of imported weights another stage than the config's may have been trained.
    started = config.stages[stage] if stage in config.stages else Stage()
    name = started.init_parts.get("encoder", started.init_from)
    if name in config.stages:
        there = (stages / name / "checkpoints").is_dir()
        return (
            str(stages / name) if there and can(config.stages[name].family, "reconstructs") else ""
        )
    beside = (released.folder_of(name) or Path(name).expanduser()) / RECONSTRUCTOR
    return str(beside) if name and (beside / MANIFEST).is_file() else ""


def _open_export(path: str, here: Path) -> StoredStage:
    exported, reconstructor = read_export(here), here / RECONSTRUCTOR
    manifest = exported.manifest
    return StoredStage(
        path=path,
        config=manifest.config,
        name=manifest.stage,
        step=manifest.step,
        fingerprint=manifest.tokenizer,
        folder=here,
        data=here,
        read=exported.read,
        read_tokenizer=lambda: exported.tokenizer,
        autoencoder=str(reconstructor) if reconstructor.is_dir() else "",
    )


def _open_huggingface(path: str, vocab_size: int) -> StoredStage:
    here = Path(folder_of(path)).expanduser()
    tokenizer = None
    if not vocab_size and any((here / name).is_file() for name in TOKENIZERS):
        tokenizer = load_tokenizer(here)
    try:
        pretrained = open_pretrained(here, vocab_size)
        if tokenizer is not None and tokenizer.vocabulary > pretrained.vocabulary:
            pretrained = open_pretrained(here, tokenizer.vocabulary)
    except HuggingFaceError as error:
        raise CheckpointError(str(error)) from error
    config = pretrained_config(pretrained, here.name, begins=not tokenizer or tokenizer.begins)
    return StoredStage(
        path=path,
        config=config,
        name=config.curriculum[-1],
        step=0,
        fingerprint=tokenizer.fingerprint if tokenizer else "",
        folder=here,
        data=here,
        read=pretrained.read_all,
        read_tokenizer=lambda: tokenizer,
        pretrained=pretrained,
    )


def _kinds() -> str:
    return ", ".join(
        (
            "a workdir",
            "the folder of a stage (runs/NAME/stages/STAGE)",
            "an export",
            *(f"the released model {name}" for name in released.names()),
            "or hf:FOLDER of a Hugging Face model",
        )
    )


def _mistake(path: str, here: Path, kept: epath.Path, described: dict[str, Any]) -> str:
    """Return the message for a path that is no trained stage, with a path to pass instead."""
    if here.is_file():
        return f"{path}: a file, expected {_kinds()}. memjax.open_store opens a store of memories."
    if "model_type" in described:
        return f"{path}: a Hugging Face folder, expected its prefix. Pass {HUGGINGFACE}{path}."
    for folder in kept.parents:
        stages = trained_stages(folder)
        if not stages:
            continue
        parts = [part for part in kept.relative_to(folder).parts if part in stages]
        names = parts or list(stages)
        below = str(folder)[len(str(kept)) :] if str(folder).startswith(str(kept)) else str(folder)
        return (
            f"{path}: no folder of a stage, expected {_kinds()}. Pass"
            f" {' or '.join(f'{below}/stages/{name}' for name in names)}."
        )
    if trained_stages(kept):
        hint = " (of a run in a bucket it is kept on this machine)" if is_remote(path) else ""
        lacks = f"{path}: a workdir without config.json{hint}"
        if (here / MANIFEST).exists():
            lacks = f"{here / MANIFEST}: no curriculum, expected the config of a run"
        return f"{lacks}. Pass {path}/stages/STAGE."
    what = "holds no model" if here.exists() else "not found"
    return f"{path}: {what}, expected {_kinds()}. Train one by `memjax train`, or correct the path."
