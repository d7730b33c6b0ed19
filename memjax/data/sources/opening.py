"""A corpus as the config has it becomes a source.

    python-docs                              the prose that comes with Python
    PATH                                     a file, a folder (to its depths) or a glob: text, JSON lines, Parquet, ArrayRecord
    tfds:NAME[/CONFIG][:VERSION]             prepared by TensorFlow Datasets       options: split, data_dir
    hf:OWNER/NAME[:CONFIG], hf:FOLDER        of the Hugging Face hub               options: split, revision

Options follow as a web address has them: `tfds:c4/en?split=train[:10%]&data_dir=/data`. A mixture is a sum with a weight before each
part: `0.7*hf:HuggingFaceFW/fineweb-edu:sample-10BT + 0.3*tfds:c4/en`.
"""

from __future__ import annotations

import math
import re
from urllib.parse import unquote

from memjax.data.sources.base import CorpusError, Source
from memjax.data.sources.files import FilesSource, corpus_files
from memjax.data.sources.hub import OPTIONS as HUB_OPTIONS
from memjax.data.sources.hub import PREFIX as HUB
from memjax.data.sources.hub import HubSource
from memjax.data.sources.python_docs import PYTHON_DOCS, PythonDocsSource
from memjax.data.sources.tfds import OPTIONS as TFDS_OPTIONS
from memjax.data.sources.tfds import PREFIX as TFDS
from memjax.data.sources.tfds import TfdsSource

_PLUS = re.compile(rf"\s*\+\s*(?=[^+*/:\s]*\s*\*|{HUB}|{TFDS}|{PYTHON_DOCS}\b)|\s+\+\s+")
"""A plus between parts: one with spaces around it, or before a weight or a prefix. Others belong to a name."""
_WEIGHTED = re.compile(r"\s*([^*/:\s]*)\s*\*\s*(.*?)\s*", re.DOTALL)


def open_source(corpus: str, text_field: str = "text", skip_damaged: bool = False) -> Source:
    """The documents of one corpus, which is opened but not yet read (what is on the hub is downloaded).

    Args:
      corpus: as this module's first lines say.
      text_field: of a JSON object, or the column or feature, that holds the document.
      skip_damaged: whether to skip, and count in `skipped`, documents that are not UTF-8, not JSON, or without text in `text_field`;
        else the first raises. Files that are truncated or of another format are errors in either case.

    Raises:
      CorpusError: there is no such corpus, it is a mixture, or a package it needs is not installed.
    """
    if len(parse_mixture(corpus)) > 1:
        raise CorpusError(f"config.data.corpus={corpus!r} is a mixture; open each of its parts")
    if corpus == PYTHON_DOCS:
        return PythonDocsSource()
    if corpus.startswith(TFDS):
        data_set, options = _options(corpus, TFDS, TFDS_OPTIONS)
        return TfdsSource(corpus, data_set, options, text_field, skip_damaged)
    if corpus.startswith(HUB):
        data_set, options = _options(corpus, HUB, HUB_OPTIONS)
        return HubSource(corpus, data_set, options, text_field, skip_damaged)
    return FilesSource(corpus, corpus_files(corpus), text_field, skip_damaged)


def _options(corpus: str, prefix: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """What stands between the prefix and the question mark, and the options after it."""
    name, _, query = corpus.removeprefix(prefix).partition("?")
    options: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        key, equals, value = option.partition("=")
        if key not in allowed or not equals or not value:
            raise CorpusError(f"config.data.corpus={corpus!r}: option {option!r} is not one of {'=..., '.join(allowed)}=...")
        options[key] = unquote(value)
    if not name:
        raise CorpusError(f"config.data.corpus={corpus!r}: names no data set after {prefix!r}")
    return name, options


def parse_mixture(corpus: str) -> list[tuple[float, str]]:
    """The parts of a mixture with their weights, which add up to 1; a plain corpus is one part of weight 1.

    `W*CORPUS + W*CORPUS ...`, with or without the spaces. One corpus alone has no weight, so that a glob may start with a number.

    Raises:
      CorpusError: a part has no weight, no positive one or no corpus; the message names it.
    """
    parts = _PLUS.split(corpus)
    matches = [_WEIGHTED.fullmatch(part) for part in parts]
    if len(parts) == 1 or not any(match and _number(match[1]) is not None for match in matches):
        return [(1.0, corpus)]
    weighted: list[tuple[float, str]] = []
    for part, match in zip(parts, matches, strict=True):
        weight = _number(match[1]) if match else None
        where = f"config.data.corpus={corpus!r}: part {part.strip()!r}"
        if match is None or weight is None:
            raise CorpusError(f"{where} has no weight; write each part of a mixture as 0.5*CORPUS")
        if not (weight > 0 and math.isfinite(weight)):
            raise CorpusError(f"{where} has the weight {match[1]}; weights are positive numbers")
        if not match[2]:
            raise CorpusError(f"{where} names no corpus")
        weighted.append((weight, match[2]))
    total = sum(weight for weight, _ in weighted)
    return [(weight / total, name) for weight, name in weighted]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
