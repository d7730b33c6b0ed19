"""No module outside models/registry.py tests the family of a model, and none uses another's private
names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "memjax"
REGISTRY = "memjax/models/registry.py"
NAMED_TUPLES = ("_replace", "_asdict", "_fields", "_make")


def families(sources: dict[str, str]) -> set[str]:
    """The names of all classes of modules in models/."""
    return {
        node.name
        for path, text in sources.items()
        if path.startswith("memjax/models/")
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        and any(re.search("Module|Memory", ast.unparse(base)) for base in node.bases)
    }


def violations(sources: dict[str, str]) -> Iterator[str]:
    """Places of files, given as text by path, that test a family or use a private name."""
    classes = families(sources)
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            at = f"{path}:{getattr(node, 'lineno', 0)}"
            if path != REGISTRY and is_family_test(node, classes):
                yield f"{at}: {ast.unparse(node)} tests a family; ask the adapter"
            if uses_a_private_name(node):
                yield f"{at}: {ast.unparse(node)} is private"


def is_family_test(node: ast.AST, classes: set[str]) -> bool:
    """Whether a node tests the type of a model, or compares the name of a family or a class."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        return bool(set(re.findall(r"\w+", ast.unparse(node.args[-1]))) & classes)
    if isinstance(node, ast.Compare):
        text = ast.unparse(node)
        return bool(re.search(r"\.family\b|\.__name__", text)) and "__main__" not in text
    return isinstance(node, ast.Match) and ".family" in ast.unparse(node.subject)


def uses_a_private_name(node: ast.AST) -> bool:
    """Whether a node is an attribute with a leading underscore of something else than self."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in NAMED_TUPLES
        and isinstance(node.value, ast.Name)
        and node.value.id not in ("self", "cls")
    )


def test_families_are_told_apart_in_the_registry_alone():
    sources = {
        path.relative_to(PACKAGE.parent).as_posix(): path.read_text()
        for path in PACKAGE.rglob("*.py")
    }
    assert {"MemoryModel", "RecurrentMemory", "CausalLM", "Encoder"} <= families(sources)
    assert list(violations(sources)) == []


MODEL = {"memjax/models/toy.py": "class Toy(nn.Module):\n    pass"}


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(model, Toy)",
        "isinstance(model, (str, models.Toy))",
        "issubclass(kind, Toy)",
        "stage.family == 'toy'",
        "stage.family in ('toy', 'other')",
        "type(model).__name__ == 'Toy'",
        "match stage.family:\n    case 'toy':\n        pass",
        "model._fill_value",
    ],
)
def test_other_ways_to_tell_are_found(text):
    assert len(list(violations(MODEL | {"memjax/training/step.py": text}))) == 1


def test_what_is_ones_own_is_accepted():
    lines = (
        "self._x",
        "cls._y",
        "x._replace(a=1)",
        "x.__dict__",
        "isinstance(x, str)",
        "can(s.family, 1)",
    )
    text = "\n".join(lines)
    assert not list(violations(MODEL | {"memjax/training/step.py": text}))
    assert not list(violations(MODEL | {REGISTRY: "isinstance(model, Toy)"}))
