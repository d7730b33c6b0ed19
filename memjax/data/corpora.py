"""The documents of a corpus as a stream, which of them are held out, and the prose that comes with Python."""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import os
import sysconfig
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

from memjax.data.sources import PYTHON_DOCS, CorpusError, Document, corpus_files, open_source

__all__ = ["PYTHON_DOCS", "CorpusError", "Document", "corpus_files", "is_validation", "python_docs", "read_corpus"]

_SHORTEST = 200
"""Characters; a shorter entry of the Python prose says too little to be a document."""
_SHORT_PARAGRAPH = 60
"""Characters; the Python prose may repeat a paragraph shorter than this ("Return repr(self).")."""
_LEAST_PROSE = 200_000
"""Characters of Python prose below which the interpreter must have been stripped of its sources."""
_NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__"}


def is_validation(document_text: str, share: float) -> bool:
    """Whether a document is held out: by a hash of its text alone, so that exact duplicates fall on one side."""
    digest = hashlib.blake2b(document_text.encode(), digest_size=8, person=b"memjax split").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def read_corpus(corpus: str, text_field: str = "text") -> Iterator[Document]:
    """Yields the documents of `corpus` in order; those without any visible character are left out.

    Args:
      corpus: as `memjax.data.sources.opening` says: `python-docs`, a path, `tfds:NAME` or `hf:NAME`.
      text_field: of a JSON object, or the column or feature, that holds the document.

    Raises:
      CorpusError: nothing matches, or a file is of another kind, not UTF-8, not JSON, without `text_field`, or truncated.
    """
    yield from open_source(corpus, text_field)


def python_docs() -> Iterator[Document]:
    """The English prose that comes with CPython: language topics, the docstrings of the standard library, the builtins.

    One document a topic and one a module, in sorted order. Sources are parsed, never imported, so the text depends on the Python
    release alone and not on what is installed.

    Raises:
      CorpusError: the interpreter carries too little of it.
    """
    documents = _python_docs()
    characters = sum(len(document.text) for document in documents)
    if characters < _LEAST_PROSE:
        raise CorpusError(
            f"config.data.corpus={PYTHON_DOCS!r}: this Python ({sysconfig.get_path('stdlib')}) carries only {characters} characters of"
            " documentation: it was stripped of its library sources; give text of your own with --config.data.corpus=PATH"
        )
    yield from documents


@functools.cache
def _python_docs() -> tuple[Document, ...]:
    library = Path(sysconfig.get_path("stdlib"))
    # Large topics repeat small ones and twin modules each other's docstrings; told once, nothing held out was trained on.
    told: set[str] = set()
    documents = []
    for name, entries in sorted(_entries(library), key=lambda pair: pair[0]):
        fresh = ((title, _untold(inspect.cleandoc(text), told)) for title, text in entries)
        text = "\n\n".join(f"{title}\n{text}" if title else text for title, text in fresh if text)
        if len(text) >= _SHORTEST and not any("\ud800" <= character <= "\udfff" for character in text):
            documents.append(Document(name, text))
    return tuple(documents)


def _untold(text: str, told: set[str]) -> str:
    """`text` without the paragraphs in `told`, to which it adds its own; short ones may recur."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip() not in told]
    told.update(paragraph.strip() for paragraph in paragraphs if len(paragraph) >= _SHORT_PARAGRAPH)
    return "\n\n".join(paragraphs)


def _entries(library: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(document id, its (title, docstring) pairs) of every topic, module and the builtins."""
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
    """A source file's syntax tree; None for the few that are broken on purpose."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old escapes such as "\d" warn; that is not the reader's business.
            return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _topics(library: Path) -> dict[str, str]:
    tree = _parse(library / "pydoc_data" / "topics.py")
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "topics":
            return ast.literal_eval(statement.value)
    return {}


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of a module, class or function and of all inside it, in source order."""
    text = ast.get_docstring(node, clean=False)
    if text:
        yield name, text
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, f"{name}.{child.name}")


def _builtin_docs() -> list[tuple[str, str]]:
    entries: dict[str, object] = {}
    for name, value in sorted(vars(builtins).items()):
        # `site` and interactive shells put names of their own here; those say where they come from.
        own = isinstance(value, (type, types.BuiltinFunctionType)) and value.__module__ == "builtins"
        if own and value.__name__ == name:
            members = vars(value).items() if isinstance(value, type) else ()
            # Other members are constants, whose docstring is that of str or int.
            described = {f"{name}.{key}": m for key, m in members if inspect.isroutine(m) or inspect.isdatadescriptor(m)}
            entries |= {name: value} | described
    documented = ((name, getattr(value, "__doc__", None)) for name, value in entries.items())
    return [(name, text) for name, text in documented if isinstance(text, str)]
