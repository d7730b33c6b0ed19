"""Functions for the task files of this folder: documents of a file, and metrics of running text."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memjax.data import text_lines
from memjax.errors import MemjaxError, few
from memjax.files import parse_json

VARIABLE = "MEMJAX_EVAL_DATA"
TEXTS = ("text", "query", "context", "continuation")
"""Fields that are text: token ids and lists in their place are the text of their JSON."""
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class LocalDataError(MemjaxError):
    """A folder has no file for a task, or it cannot be read; the message names it."""

    names_file = True


def read(file: str, fields: list[str], data: str = "", **_: Any) -> dict[str, Any]:
    """Return the one split of a task.

    Args:
      file: the beginning of the name of the task's file.
      fields: the fields that every document must have.
      data: the folder; by default the value of the environment variable.

    Raises:
      LocalDataError: there is no such file, there are several, or it has other fields.
      CorpusError: it is damaged or no text.
    """
    from datasets import Dataset  # The harness brings it.

    folder = Path(data or os.environ.get(VARIABLE, "")).expanduser()
    LocalDataError.require(
        data or os.environ.get(VARIABLE),
        f"no folder of {file}*.jsonl is given: use --task_folder=FOLDER, or set {VARIABLE}",
    )
    found = sorted(path for path in folder.glob(f"{file}*") if path.name.lower().endswith(ENDINGS))
    LocalDataError.require(
        len(found) == 1,
        f"{folder}: there must be one file {file}*.jsonl here, plain or compressed, and there"
        f" is {few([path.name for path in found]) or 'none'}",
    )
    documents = list(_documents(found[0], fields))
    LocalDataError.require(documents, f"{found[0]}: holds no document")
    try:
        return {"test": Dataset.from_list(documents)}
    except (ValueError, OverflowError) as error:
        raise LocalDataError(
            f"{found[0]}: fields of several types ({error}), expected one type per field. Write"
            " each field alike on all lines"
        ) from error


def _documents(path: Path, fields: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        document = parse_json(line, where, LocalDataError, dict, "Write one JSON object per line")
        lacking = [name for name in fields if name not in document]
        LocalDataError.require(
            not lacking,
            f"{where}: has no {', '.join(lacking)}; this task's fields are {', '.join(fields)}",
        )
        for name in fields:
            if name in TEXTS and not isinstance(document[name], str):
                document[name] = json.dumps(document[name])
        yield {name: document[name] for name in fields}


def running_text(doc: dict[str, Any], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Return the log-likelihood of a whole text beside its words and its bytes."""
    (log_likelihood,) = results
    words, size = len(doc["text"].split()), len(doc["text"].encode())
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
        "bits_per_byte": (log_likelihood, size),
    }
