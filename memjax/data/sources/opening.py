"""Open the source that `config.data.corpus` names.

    python-docs                         the documentation that is installed with Python
    PATH                                a file, a folder with its subfolders, or a glob:
                                        text, JSON lines, Parquet, ArrayRecord
    tfds:NAME[/CONFIG][:VERSION]        prepared by TensorFlow Datasets; options: split, data_dir
    hf:OWNER/NAME[:CONFIG], hf:FOLDER   of the Hugging Face hub; options: split, revision

Options follow as in a web address: `tfds:c4/en?split=train[:10%]&data_dir=/data`. A mixture is a
sum with a weight before each part: `0.7*hf:HuggingFaceFW/fineweb-edu:sample-10BT + 0.3*tfds:c4/en`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from urllib.parse import unquote

from memjax.data.sources.base import CorpusError, Source
from memjax.data.sources.files import FilesSource, corpus_files
from memjax.data.sources.hub import HubSource
from memjax.data.sources.python_docs import PYTHON_DOCS, PythonDocsSource
from memjax.data.sources.tfds import TfdsSource

_PLUS = re.compile(
    rf"\s*\+\s*(?=[^+*/:\s]*\s*\*|{HubSource.PREFIX}|{TfdsSource.PREFIX}|{PYTHON_DOCS}\b)"
    r"|\s+\+\s+"
)
"""A plus between parts: with spaces around it, or before a weight or a prefix. Others belong to a
name."""
_WEIGHTED = re.compile(r"\s*([^*/:\s]*)\s*\*\s*(.*?)\s*", re.DOTALL)


def open_source(corpus: str, text_field: str = "text", skip_damaged: bool = False) -> Source:
    """Open one corpus without reading it; a data set of the hub is downloaded.

    Args:
      corpus: the corpus as described at the top of this module.
      text_field: the field of a JSON object, the column or the feature that holds the document.
      skip_damaged: whether to skip, and count in `skipped`, documents that are not UTF-8, not JSON,
        or without text in `text_field`; otherwise the first raises. A truncated file, or one of
        another format, always raises.

    Raises:
      CorpusError: there is no such corpus, it is a mixture, or a package is not installed.
    """
    CorpusError.require(
        len(parse_mixture(corpus)) == 1,
        f"corpus {corpus!r}: a mixture, expected one corpus. Open each part",
    )
    if corpus == PYTHON_DOCS:
        return PythonDocsSource()
    for kind in (TfdsSource, HubSource):
        if corpus.startswith(kind.PREFIX):
            data_set, options = parse_options(corpus, kind.PREFIX, kind.OPTIONS)
            return kind(corpus, data_set, options, text_field, skip_damaged)
    files, left_out = corpus_files(corpus)
    return FilesSource(corpus, files, text_field, skip_damaged, left_out=left_out)


def parse_options(corpus: str, prefix: str, allowed: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the name between the prefix and the question mark, and the options after it.

    Raises:
      CorpusError: an option is not one of `allowed`, or there is no name.
    """
    name, _, query = corpus.removeprefix(prefix).partition("?")
    options: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        key, _, value = option.partition("=")
        CorpusError.require(
            key in allowed and value,
            f"corpus {corpus!r}: option {option!r}, expected one of {'=..., '.join(allowed)}=...",
        )
        options[key] = unquote(value)
    CorpusError.require(
        name,
        f"corpus {corpus!r}: expected a data set after {prefix!r}",
    )
    return name, options


def parse_mixture(corpus: str) -> list[tuple[float, str]]:
    """Return (weight, corpus) of each part of a mixture; the weights sum to 1.

    A mixture is `W*CORPUS + W*CORPUS ...`, with or without the spaces. One corpus alone has no
    weight, so that a glob may start with a number; it is one part of weight 1.

    Raises:
      CorpusError: a part has no positive weight or no corpus; the message names it.
    """
    parts = _PLUS.split(corpus)
    matches = [_WEIGHTED.fullmatch(part) for part in parts]
    if len(parts) == 1 or not any(match and _number(match[1]) is not None for match in matches):
        return [(1.0, corpus)]
    weighted: list[tuple[float, str]] = []
    for part, match in zip(parts, matches, strict=True):
        weight = _number(match[1]) if match else None
        where = f"corpus {corpus!r}: part {part.strip()!r}"
        if match is None or weight is None:
            raise CorpusError(f"{where} has no weight. Write each part of a mixture as 0.5*CORPUS")
        CorpusError.require(
            0 < weight < math.inf,
            f"{where} has the weight {match[1]}, expected a positive number",
        )
        CorpusError.require(
            match[2],
            f"{where} has no corpus. Write it as 0.5*CORPUS",
        )
        weighted.append((weight, match[2]))
    total = sum(weight for weight, _ in weighted)
    return [(weight / total, name) for weight, name in weighted]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
