"""Weights of the published PyTorch implementation as files: import of a safetensors state dict into
a folder for memjax, and export.

The folder is a workdir of one stage, `reference`, at step 0: `config.json`,
`stages/reference/checkpoints`, `reference.json` (the spec) and, if the state dict holds tensors
that no forward pass reads, `unused.safetensors`.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from memjax.checkpoints import Checkpoints
from memjax.config import FUNCTION_QUIRKS, Config, to_json
from memjax.errors import MemjaxError
from memjax.files import (
    atomic_file,
    local,
    new_folder,
    read_json,
    regular,
    write_json,
    write_text,
    writing,
)
from memjax.files.tensors import save_tensors
from memjax.interop.reference.spec import STAGE, Spec, SpecError, family, to_config
from memjax.interop.reference.weights import (
    UNUSED,
    StateDictError,
    export_state_dict,
    import_state_dict,
)
from memjax.interop.stage import open_stage

SPEC_FILE, UNUSED_FILE = "reference.json", "unused.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")
_WITHOUT_EFFECT = ("dtype", "remat", "noise", "bptt_chunks")
"""Settings of a model that change its training or its precision, but not the meaning of its
parameters."""


class FolderError(MemjaxError):
    """The target folder of an import exists, or the source of an export was not imported; the
    message names it.
    """


class Imported(NamedTuple):
    """The result of an import."""

    family: str
    parameters: int
    """Number of values that forward passes read."""
    unused: tuple[str, ...]
    """Names of the tensors that no forward pass reads."""
    converted: int
    """Number of tensors in other types than float32."""


def read_spec(path: str | os.PathLike) -> Spec:
    """Return the spec in a JSON file.

    Raises:
      SpecError: the file is absent, or holds no JSON object.
    """
    return read_json(path, SpecError, dict, "Give a spec such as {'kind': 'causal_lm', ...}")


def read_state_dict(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], int]:
    """Return the tensors of a safetensors file as float32, and the number of tensors in other float
    types.

    Raises:
      StateDictError: the file is absent, of another kind, or holds a tensor without floats.
    """
    tensors, converted = {}, 0
    try:
        with safe_open(regular(path), framework="numpy") as file:
            for name in sorted(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _FLOATS:
                    raise StateDictError(
                        f"{path}: tensor {name!r} is of type {dtype}; weights are"
                        f" {', '.join(_FLOATS)}"
                    )
                tensors[name] = np.asarray(file.get_tensor(name)).astype(np.float32)
                converted += dtype != "F32"
    except SafetensorError as error:
        raise StateDictError(f"{path} is no safetensors file ({error})") from error
    except OSError as error:
        raise StateDictError(f"{path} cannot be read ({error})") from error
    return tensors, converted


def import_checkpoint(
    state: str | os.PathLike, spec: str | os.PathLike, out: str | os.PathLike
) -> Imported:
    """Write the folder `out` from a safetensors file `state` and the JSON file `spec` of its model.

    Everything is checked before anything is written. `memjax.load(out)` returns the model, without
    a tokenizer. A stage of a run can start from `out/stages/reference`.

    Raises:
      SpecError, StateDictError: a file cannot be read, or they do not match; the message names file
        and key or tensor.
      FolderError: `out` exists and is not empty.
    """
    out = new_folder(out, FolderError)
    given = read_spec(spec)
    tensors, converted = read_state_dict(state)
    try:
        config = to_config(given)
        _, variables = import_state_dict(tensors, given)
    except SpecError as error:
        raise SpecError(f"{spec}: {error}") from error
    except StateDictError as error:
        raise StateDictError(f"{state}: {error}") from error
    unused = variables.get(UNUSED, {})
    out.mkdir(parents=True, exist_ok=True)
    if unused:
        with writing(out / UNUSED_FILE):
            save_tensors(out / UNUSED_FILE, unused)
    write_json(out / SPEC_FILE, given, indent=1)
    meta = {"stage": STAGE, "step": 0, "config": to_json(config), "tokenizer": "", "next_row": 0}
    with Checkpoints(out / "stages" / STAGE / "checkpoints") as checkpoints:
        step = {"step": jnp.int32(0)}
        checkpoints.save(0, variables["params"], step, meta | {"seconds": 0.0})
    # Written last: without it the folder is no workdir.
    write_text(out / "config.json", to_json(config))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Imported(family(given), parameters, tuple(unused), converted)


def export_checkpoint(folder: str | os.PathLike, out: str | os.PathLike, stage: str = STAGE) -> int:
    """Write the state dict of an imported folder, with its unused tensors, as a safetensors file;
    return its number of tensors.

    Args:
      folder: a folder that `import_checkpoint` wrote.
      out: the file. It equals the imported file byte for byte, if that was float32 without
        metadata.
      stage: a stage in `folder`, or, with a slash, the folder of a stage elsewhere that trained the
        same model further.

    Raises:
      FolderError: `folder` was not imported, or `out` exists.
      CheckpointError: the stage has no readable checkpoint.
      SpecError, StateDictError: the spec or the parameters belong to another model.
    """
    folder, out = Path(folder), local(out)
    if not (folder / SPEC_FILE).is_file():
        raise FolderError(
            f"{folder} has no {SPEC_FILE}: it is no folder that `memjax import` wrote"
        )
    if out.exists():
        raise FolderError(f"{out} is there already; export to a new file")
    spec = read_spec(folder / SPEC_FILE)
    found = open_stage(stage) if "/" in stage else open_stage(folder, stage)
    params = found.read(None)
    unused = read_state_dict(folder / UNUSED_FILE)[0] if (folder / UNUSED_FILE).exists() else {}
    try:
        _check_settings(to_config(spec), found.config)
        tensors = export_state_dict({"params": params, UNUSED: unused}, spec)
    except SpecError as error:
        raise SpecError(f"{folder / SPEC_FILE}: {error}") from error
    except StateDictError as error:
        raise StateDictError(f"{found.path}: {error}") from error
    with atomic_file(out) as temporary:
        save_tensors(temporary, tensors)
    return len(tensors)


def _check_settings(spec: Config, trained: Config) -> None:
    """Raise StateDictError if parameters of equal names have other shapes or another meaning."""
    found = _meaning(trained)
    for key, wanted in _meaning(spec).items():
        if found[key] != wanted:
            raise StateDictError(
                f"it was trained with config.{key}={found[key]}; the spec's model has {wanted}"
            )


def _meaning(config: Config) -> dict[str, Any]:
    """Return the settings that determine the shapes and the meaning of parameters."""
    model, data = vars(config.model), config.data
    settings = {f"model.{name}": model[name] for name in model if name not in _WITHOUT_EFFECT}
    return settings | {
        "model.compat": sorted(FUNCTION_QUIRKS.intersection(config.model.compat)),
        "data.vocab_size": data.vocab_size,
        "data.sequence_length": data.sequence_length,
    }
