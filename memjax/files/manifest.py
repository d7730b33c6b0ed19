"""Manifests: JSON objects of a `format` and `files`, which are names beside them with their `bytes`
and `sha256`. A manifest is written last.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from memjax.files.atomic import sha256
from memjax.files.json_values import Error, ending, read_json

_FILE_NAME = 255
"""Bytes of a file's name, at most, on most file systems."""


def entries(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the `files` of a manifest: the name of each file, its `bytes` and `sha256`."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}


def read_manifest(
    path: Path, formats: Collection[int], remedy: str, error: Error, shape: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Read a manifest and compare the sizes of the files that it lists.

    Args:
      path: the manifest.
      formats: values of `format` that the caller reads.
      remedy: a sentence for the message of an error: what to do.
      error: the class of error to raise.
      shape: what else it holds, as in `require_shape`.

    Raises:
      error: the manifest or a file is absent, damaged or of another format, or no file of its
        folder.
    """
    listed = {str: {"bytes": int, "sha256": str}}
    info = read_json(path, error, {"format": tuple(formats), "files": listed, **shape}, remedy)
    check_seal(info, path, remedy, error)
    for name, file in info["files"].items():
        require_inside(name, path, remedy, error)
        check_size(path.parent / name, file["bytes"], remedy, error)
    return info


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` with the checksum of all its other members.

    Without it, a setting that changed by chance would be another model of the same shape, and a
    count another result.
    """
    others = {key: value[key] for key in value if key != "sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return others | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def check_seal(info: Mapping[str, Any], path: Path, remedy: str, error: Error) -> None:
    """Raise `error` if an object in a file is not what `sealed` returned; older ones have none."""
    found = sealed(info)["sha256"]
    if info.get("sha256", found) != found:
        raise error(f"{path}: not what was written (its sha256 differs){ending(remedy)}")


def require_inside(name: str, where: object, remedy: str, error: Error) -> None:
    """Raise `error` if a name that the file `where` lists leads out of its folder."""
    outside = {"..", ".", "", "/"} & {*Path(name).parts, name}
    if outside or "\0" in name or len(name.encode()) > _FILE_NAME:
        raise error(f"{where}: file {name[:80]!r}, expected one beside it{ending(remedy)}")


def verify(folder: Path, files: Mapping[str, Any], remedy: str, error: type[ValueError]) -> None:
    """Read the files that a manifest in `folder` lists, and compare their checksums.

    Raises:
      error: a file is not what was written; the message names it.
    """
    for name, file in files.items():
        found, expected = sha256(folder / name), file["sha256"]
        if found != expected:
            raise error(f"{folder / name}: sha256 {found[:16]}, expected {expected[:16]}. {remedy}")


def check_size(path: Path, size: int, remedy: str, error: type[ValueError]) -> None:
    """Raise `error` unless `path` is a file of `size` bytes."""
    if not path.is_file():
        raise error(f"{path}: no such file, expected {size} bytes. {remedy}")
    if path.stat().st_size != size:
        raise error(f"{path}: {path.stat().st_size} bytes, expected {size}. {remedy}")
