"""Models that come with the package, each by the name of its folder here.

A folder is what `memjax export` writes; its README.md is the model's card. The name as a string is
the model, `./NAME` is a path.
"""

import os
from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the names of all released models."""
    return tuple(sorted(file.parent.name for file in _FOLDER.glob("*/config.json")))


def folder_of(path: str | os.PathLike) -> Path | None:
    """Return the folder of the released model that is named; None for a path, of any kind."""
    return _FOLDER / path if isinstance(path, str) and path in names() else None
