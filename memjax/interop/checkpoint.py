"""Weights of the published PyTorch implementation as files: a safetensors state dict to a folder that memjax reads, and back.

The folder is a workdir of one stage, `reference`, at step 0: `config.json`, `stages/reference/checkpoints`, `reference.json` (the
spec) and, where the state dict holds tensors that no forward pass reads, `unused.safetensors`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memjax.checkpoints import Checkpoints, load_params
from memjax.config import FUNCTION_QUIRKS, Config, Model, from_json, to_json
from memjax.interop.reference import UNUSED, StateDictError, export_state_dict, import_state_dict, parameter_count
from memjax.interop.spec import STAGE, Spec, SpecError, family, to_config

SPEC_FILE, UNUSED_FILE = "reference.json", "unused.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")
_INDIFFERENT = ("dtype", "remat", "noise", "truncate")
"""Settings of a model that change its training or its precision, not what its parameters do."""


class FolderError(ValueError):
    """A folder to import into is taken, or one to export from was not imported; the message names it."""


class Imported(NamedTuple):
    """What came of an import."""

    family: str
    parameters: int
    """Numbers that forward passes read."""
    unused: tuple[str, ...]
    """Tensors that none reads."""
    converted: int
    """Tensors that were not float32."""


def read_spec(path: str | os.PathLike) -> Spec:
    """The spec in a JSON file.

    Raises:
      SpecError: there is none, or it is no JSON object.
    """
    try:
        spec = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SpecError(f"{path} is no JSON ({error})") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{path} holds no JSON object; a spec is one, like {{'kind': 'causal_lm', ...}}")
    return spec


def read_state_dict(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], int]:
    """The tensors of a safetensors file as float32, and how many of them were of another float type.

    Raises:
      StateDictError: there is no such file, it is of another kind, or it holds a tensor that is not of floats.
    """
    tensors, converted = {}, 0
    try:
        with safe_open(path, framework="numpy") as file:
            for name in sorted(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _FLOATS:
                    raise StateDictError(f"{path}: tensor {name!r} is of type {dtype}; weights are {', '.join(_FLOATS)}")
                tensors[name] = np.asarray(file.get_tensor(name)).astype(np.float32)
                converted += dtype != "F32"
    except SafetensorError as error:
        raise StateDictError(f"{path} is no safetensors file ({error})") from error
    except OSError as error:
        raise StateDictError(f"{path} cannot be read ({error})") from error
    return tensors, converted


def import_checkpoint(state: str | os.PathLike, spec: str | os.PathLike, out: str | os.PathLike) -> Imported:
    """Writes the folder `out` from a safetensors file `state` and what the JSON file `spec` says of its model.

    Nothing is written before everything is known to fit. `memjax.load(out)` gives the model, without tokenizer; a stage of a run can
    start from `out/stages/reference`.

    Raises:
      SpecError, StateDictError: a file cannot be read, or they do not fit; the message names file and key or tensor.
      FolderError: `out` is there and not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FolderError(f"{out} is there already; import into a new or empty folder")
    said = read_spec(spec)
    tensors, converted = read_state_dict(state)
    try:
        config = to_config(said)
        _, variables = import_state_dict(tensors, said)
    except SpecError as error:
        raise SpecError(f"{spec}: {error}") from error
    except StateDictError as error:
        raise StateDictError(f"{state}: {error}") from error
    unused = variables.get(UNUSED, {})
    out.mkdir(parents=True, exist_ok=True)
    if unused:
        save_file(unused, out / UNUSED_FILE)
    (out / SPEC_FILE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    with Checkpoints(out / "stages" / STAGE / "checkpoints") as checkpoints:
        checkpoints.save(0, variables["params"], {"step": jnp.int32(0)}, _meta(config))
    # Last: without it the folder is no workdir.
    (out / "config.json").write_text(to_json(config), encoding="utf-8")
    parameters = parameter_count(tensors.values()) - parameter_count(unused.values())
    return Imported(family(said), parameters, tuple(unused), converted)


def _meta(config: Config) -> dict[str, Any]:
    return {"stage": STAGE, "step": 0, "config": to_json(config), "tokenizer": "", "next_row": 0, "seconds": 0.0}


def export_checkpoint(folder: str | os.PathLike, out: str | os.PathLike, stage: str = STAGE) -> int:
    """Writes the state dict of an imported folder, its unused tensors too, as a safetensors file, and returns how many tensors it has.

    Args:
      folder: what `import_checkpoint` wrote.
      out: the file. The one that was imported comes back byte for byte if it was float32 and without metadata.
      stage: a stage in `folder`, or, with a slash, the folder of a stage elsewhere that trained the same model on.

    Raises:
      FolderError: `folder` was not imported, or `out` is there.
      CheckpointError: the stage has no checkpoint that can be read.
      SpecError, StateDictError: the spec or the parameters are of another model.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / SPEC_FILE).is_file():
        raise FolderError(f"{folder} has no {SPEC_FILE}: it is no folder that `memjax import-reference` wrote")
    if out.exists():
        raise FolderError(f"{out} is there already; export to a new file")
    spec = read_spec(folder / SPEC_FILE)
    stage_folder = Path(stage) if "/" in stage else folder / "stages" / stage
    params, meta = load_params(stage_folder / "checkpoints")
    unused = read_state_dict(folder / UNUSED_FILE)[0] if (folder / UNUSED_FILE).exists() else {}
    try:
        _check_settings(to_config(spec), from_json(meta["config"]))
        tensors = export_state_dict({"params": params, UNUSED: unused}, spec)
    except SpecError as error:
        raise SpecError(f"{folder / SPEC_FILE}: {error}") from error
    except StateDictError as error:
        raise StateDictError(f"{stage_folder}: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp")
    save_file(tensors, temporary)
    temporary.replace(out)
    return len(tensors)


def _check_settings(spec: Config, trained: Config) -> None:
    """Raises StateDictError where parameters of the same names would be of other shapes or would mean something else."""
    ours, theirs = _meaning(spec.model), _meaning(trained.model)
    for key, wanted in ours.items():
        if theirs[key] != wanted:
            raise StateDictError(f"it was trained with config.model.{key}={theirs[key]}; the spec's model has {wanted}")
    if spec.data.vocabulary != trained.data.vocabulary or spec.data.row_tokens != trained.data.row_tokens:
        raise StateDictError(
            f"it was trained with a vocabulary of {trained.data.vocabulary} and rows of {trained.data.row_tokens};"
            f" the spec's model has {spec.data.vocabulary} and {spec.data.row_tokens}"
        )


def _meaning(model: Model) -> dict[str, Any]:
    """The settings that say what parameters do."""
    settings = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in _INDIFFERENT}
    return settings | {"compat": sorted(FUNCTION_QUIRKS.intersection(model.compat))}
