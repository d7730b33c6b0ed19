"""The documentation that is installed with Python, as a source."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import os
import platform
import sysconfig
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

from memjax.data.sources.base import Block, CorpusError, Document, Source
from memjax.data.sources.documents import ranges

PYTHON_DOCS = "python-docs"
_SHORTEST = 200
"""Characters of the shortest document."""
_SHORT_PARAGRAPH = 60
"""Characters below which a paragraph may be repeated, such as "Return repr(self)."."""
_LEAST_PROSE = 200_000
"""Characters in all, below which the interpreter was stripped of its library sources."""
_NOT_PROSE = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "__phello__",
}


class PythonDocsSource(Source):
    """The documents of `python_docs`; each process gathers them in a few seconds."""

    def __init__(self) -> None:
        super().__init__(PYTHON_DOCS, False)
        release = platform.python_version(), platform.python_implementation()
        self.signature = [[PYTHON_DOCS, *release]]

    def blocks(self, size: int) -> list[Block]:
        """Return equal ranges of documents; most characters are one byte."""
        documents = python_docs()
        characters = sum(len(document.text) for document in documents)
        return [Block(0, *part) for part in ranges(len(documents), characters, size)]

    def read(self, block: Block) -> Iterator[Document]:
        """Yield the documents of a block."""
        yield from python_docs()[block.start : block.stop]


@functools.cache
def python_docs() -> tuple[Document, ...]:
    """Return the English documentation that is installed with CPython, in sorted order.

    There is one document per language topic, one per module of the standard library, and one of the
    builtins. Sources are parsed, never imported, so the text depends on the Python release alone.

    Raises:
      CorpusError: the interpreter has too little of it.
    """
    library = Path(sysconfig.get_path("stdlib"))
    # Large topics repeat small ones, and some modules share docstrings. Each paragraph is kept
    # once, so that no held-out text is trained on.
    seen: set[str] = set()
    documents = []
    for name, entries in sorted(_entries(library), key=lambda pair: pair[0]):
        fresh = ((title, _unseen(inspect.cleandoc(text), seen)) for title, text in entries)
        text = "\n\n".join(f"{title}\n{text}" if title else text for title, text in fresh if text)
        if len(text) >= _SHORTEST and not any(
            "\ud800" <= character <= "\udfff" for character in text
        ):
            documents.append(Document(name, text))
    characters = sum(len(document.text) for document in documents)
    CorpusError.require(
        characters >= _LEAST_PROSE,
        f"corpus {PYTHON_DOCS!r}: {characters} characters in"
        f" {sysconfig.get_path('stdlib')}, expected {_LEAST_PROSE} or more. This Python was"
        " stripped of its library sources; set --config.data.corpus=PATH",
    )
    return tuple(documents)


def _unseen(text: str, seen: set[str]) -> str:
    """Return `text` without paragraphs in `seen`, and add its long paragraphs to `seen`."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip() not in seen]
    seen.update(paragraph.strip() for paragraph in paragraphs if len(paragraph) >= _SHORT_PARAGRAPH)
    return "\n\n".join(paragraphs)


def _entries(library: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield (document id, its (title, docstring) pairs) of topics, modules and the builtins."""
    for name, text in _topics(library).items():
        yield f"topic {name}", [("", text)]
    yield "builtins", _builtin_docs()
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _NOT_PROSE]
        for file in (Path(folder, name) for name in names if name.endswith(".py")):
            parts = file.relative_to(library).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = _parse(file)
            yield module, list(_docstrings(tree, module)) if tree else []


def _parse(file: Path) -> ast.Module | None:
    """Return the syntax tree of a source file, or None for the few that are broken on purpose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old escapes such as "\d" warn.
            return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _topics(library: Path) -> dict[str, str]:
    tree = _parse(library / "pydoc_data" / "topics.py")
    for statement in tree.body if tree else ():
        if (
            isinstance(statement, ast.Assign)
            and getattr(statement.targets[0], "id", "") == "topics"
        ):
            return ast.literal_eval(statement.value)
    return {}


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    """Yield qualified name and docstring of a node and of all inside it, in source order."""
    text = ast.get_docstring(node, clean=False)
    if text:
        yield name, text
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, f"{name}.{child.name}")


def _builtin_docs() -> list[tuple[str, str]]:
    # `site` and interactive shells add names, whose `__module__` differs; an alias is left out,
    # since every object stands under its own name.
    own = {
        value.__name__: value
        for value in vars(builtins).values()
        if isinstance(value, (type, types.BuiltinFunctionType)) and value.__module__ == "builtins"
    }
    entries: dict[str, object] = {}
    for name, value in sorted(own.items()):
        members = vars(value).items() if isinstance(value, type) else ()
        # Other members are constants, which have the docstring of str or int.
        described = {
            f"{name}.{key}": m
            for key, m in members
            if inspect.isroutine(m) or inspect.isdatadescriptor(m)
        }
        entries |= {name: value} | described
    documented = ((name, getattr(value, "__doc__", None)) for name, value in entries.items())
    return [(name, text) for name, text in documented if isinstance(text, str)]
