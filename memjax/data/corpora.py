"""Corpora: a name or a path becomes a stream of documents, always in the same order, with constant memory."""

from __future__ import annotations

import ast
import builtins
import functools
import glob
import gzip
import hashlib
import inspect
import json
import os
import sysconfig
import types
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON_DOCS = "python-docs"
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
SEPARATOR = "<|endoftext|>"
SECTION_CHARACTERS = 4_000
"""A text file longer than this becomes several documents."""
"""A line of this alone ends a document in a .txt file."""

_SHORTEST = 200
"""Characters; a shorter entry of the Python prose says too little to be a document."""
_SHORT_PARAGRAPH = 60
"""Characters; the Python prose may repeat a paragraph shorter than this ("Return repr(self).")."""
_LEAST_PROSE = 200_000
"""Characters of Python prose below which the interpreter must have been stripped of its sources."""
_NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__"}


class CorpusError(ValueError):
    """The corpus is absent, damaged, of an unknown form or too small; the message names the file or the setting."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    id: str
    text: str


def is_validation(document_text: str, share: float) -> bool:
    """Whether a document is held out: by a hash of its text alone, so that exact duplicates fall on one side."""
    digest = hashlib.blake2b(document_text.encode(), digest_size=8, person=b"memjax split").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def read_corpus(corpus: str, text_field: str = "text") -> Iterator[Document]:
    """Yields the documents of `corpus`; those without any visible character are left out.

    Args:
      corpus: `python-docs`, or a path: a .txt or .txt.gz file (one document, or several with a line `<|endoftext|>`
        between them), a .jsonl or .jsonl.gz file (one document a line), a glob, or a folder, which is searched to its depths.
      text_field: field of a JSON line that holds the document.

    Raises:
      CorpusError: nothing matches, or a file is of another kind, not UTF-8, not JSON, without `text_field`, or truncated.
    """
    if corpus == PYTHON_DOCS:
        yield from python_docs()
        return
    for file in corpus_files(corpus):
        documents = _text_documents(file) if _suffix(file).startswith(".txt") else _json_documents(file, text_field)
        yield from (document for document in documents if document.text.strip())


def corpus_files(corpus: str) -> list[Path]:
    """The files behind a corpus path, sorted.

    Raises:
      CorpusError: there are none, or one has an ending that is not read.
    """
    kinds = ", ".join(SUFFIXES)
    path = Path(corpus).expanduser()
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and _suffix(file)]
        if not files:
            raise CorpusError(f"config.data.corpus={corpus!r} is a folder without any file that ends in {kinds}")
        return sorted(files)
    # A file whose own name holds a bracket is taken as it stands.
    files = [path] if path.exists() else [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = sorted(file for file in files if not file.is_dir())
    if not files:
        raise CorpusError(
            f"config.data.corpus={corpus!r} matches no file on this machine; give {PYTHON_DOCS!r}, or the path of a file ({kinds}),"
            " a folder of such files or a glob"
        )
    for file in files:
        if not _suffix(file):
            raise CorpusError(f"{file}: files of this ending are not read; config.data.corpus takes {kinds}")
    return files


def _suffix(file: Path) -> str:
    return next((suffix for suffix in SUFFIXES if file.name.endswith(suffix)), "")


def _lines(file: Path) -> Iterator[str]:
    """Lines of a file, plain or gzipped, with their line ends as they stand; a byte order mark is dropped."""
    offset = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            for raw in stream:
                yield raw.decode("utf-8-sig" if offset == 0 else "utf-8")
                offset += len(raw)
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file}: not UTF-8 at byte {offset + error.start}{' of the unpacked text' if file.suffix == '.gz' else ''};"
            " re-encode it, for example with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(
            f"{file}: the gzip data is truncated or damaged ({error}); copy or download the file again"
        ) from error
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror})") from error


def _text_documents(file: Path) -> Iterator[Document]:
    """What stands between separators; a long text is cut at the next blank line, so that one book can be split as well."""
    lines: list[str] = []
    number = characters = 0
    for line in _lines(file):
        separator = line.strip() == SEPARATOR
        if separator or (characters >= SECTION_CHARACTERS and not line.strip()):
            yield Document(f"{file}#{number}", "".join(lines))
            lines, number, characters = [], number + 1, 0
        if not separator:
            lines.append(line)
            characters += len(line)
    yield Document(f"{file}#{number}", "".join(lines))


def _json_documents(file: Path, field: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f'{where}: not JSON ({error}); each line must be an object such as {{"{field}": "..."}}'
            ) from error
        if not isinstance(record, dict):
            raise CorpusError(
                f'{where}: holds a {type(record).__name__}; each line must be an object such as {{"{field}": "..."}}'
            )
        if field not in record:
            raise CorpusError(
                f"{where}: has no field {field!r}, only {', '.join(record)}; set config.data.text_field to one of them"
            )
        text = record[field]
        if not isinstance(text, str):
            raise CorpusError(
                f"{where}: field {field!r} holds a {type(text).__name__}, not text; set config.data.text_field to a field with text"
            )
        if not _encodable(text):
            raise CorpusError(
                f"{where}: field {field!r} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            )
        yield Document(where, text)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
        if len(text) >= _SHORTEST and _encodable(text):
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
