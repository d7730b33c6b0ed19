"""Imports between the rooms of `memjax/` point one way, wherever they are written."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "memjax"
LEAVES = ("version", "errors", "progress", "allocator", "files", "released")
ORDER = (
    *("config", "sharding", "data", "layers", "models", "objectives", "checkpoints", "interop"),
    *("training", "inference", "evaluation", "experiment", "performance", "testing", "cli"),
)
RANK = dict.fromkeys(LEAVES, 0) | {room: rank for rank, room in enumerate(ORDER, 1)}
ABOVE_ALL = {"performance": ("cli", "testing")}
"""Rooms that only these may import."""


def imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, anywhere, and of every string that names a module."""
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"memjax(\.\w+)+", str(node.value)):
            yield from () if id(node) in documents else [(node.lineno, node.value)]


def violations(sources: dict[str, str]) -> list[str]:
    """What is wrong with files, given as text under their path from the package's parent."""
    found = []
    for path, text in sources.items():
        parts = Path(path).with_suffix("").parts
        room, package = parts[1], ".".join(parts[:-1])
        if room == "__init__":
            continue  # It names the public names of all rooms.
        if room not in RANK:
            found.append(f"{path}: {room} is no room of the design")
            continue
        for line, name in imports(ast.parse(text), package):
            target = name.split(".")
            if target[0] != "memjax":
                continue
            if len(target) == 1 or target[1] not in RANK:
                found.append(f"{path}:{line}: {name} is no room of the design")
            elif target[1] != room and RANK[target[1]] >= RANK[room] > 0:
                found.append(f"{path}:{line}: {room} imports {name}, which stands above it")
            elif target[1] != room and room not in ABOVE_ALL.get(target[1], (room,)):
                found.append(
                    f"{path}:{line}: {room} imports {name}, which only {ABOVE_ALL[target[1]]} may"
                )
            elif RANK[room] == 0 and target[1] != room:
                found.append(f"{path}:{line}: {room} is a leaf and imports {name}")
    return found


def test_imports_point_downwards():
    sources = {
        str(path.relative_to(PACKAGE.parent)): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    assert violations(sources) == []


@pytest.mark.parametrize(
    "text",
    [
        "from memjax.training import step",
        "import memjax.training.step",
        "from memjax import training",
        "from .. import training",
        "from ..training.step import train_step",
        "def f():\n    from memjax.training import step",
        "import importlib\nimportlib.import_module('memjax.training.step')",
        "import memjax",
        "from memjax.errands import x",
        "from memjax import cli",
    ],
)
def test_an_import_that_points_upwards_is_found(text):
    assert len(violations({"memjax/models/encoder.py": text})) == 1


def test_other_ways_to_be_wrong_are_found():
    assert violations({"memjax/errands/run.py": ""})
    assert violations({"memjax/errors.py": "from memjax import version"})
    assert violations({"memjax/testing/x.py": "from memjax.cli import main"})
    assert not violations({"memjax/cli/bench.py": "from memjax.performance.bench import timing"})
    assert not violations(
        {"memjax/training/x.py": "from .step import train_step\nfrom memjax.models import build"}
    )
