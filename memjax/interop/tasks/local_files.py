"""What the task files of this folder call: documents of a JSON-lines file, and the metrics of running text."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "MEMJAX_EVAL_DATA"
ENDINGS = (".jsonl", ".jsonl.gz")


class LocalDataError(ValueError):
    """A folder has no file of a task, or it cannot be read; the message names it."""


def read(file: str, fields: list[str], data: str = "", **_: Any) -> dict[str, Any]:
    """The one split of a task.

    Args:
      file: what the name of the task's file begins with.
      fields: that every document must have.
      data: the folder; by default what the environment variable says.

    Raises:
      LocalDataError: there is no such file, there are several, or it is damaged or of other fields.
    """
    from datasets import Dataset  # Comes with the harness.

    folder = Path(data or os.environ.get(VARIABLE, "")).expanduser()
    if not (data or os.environ.get(VARIABLE)):
        raise LocalDataError(f"no folder of {file}*.jsonl is given: use --data=DIR, or set {VARIABLE}")
    found = sorted(path for path in folder.glob(f"{file}*") if path.name.endswith(ENDINGS))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) if found else "none"
        raise LocalDataError(f"{folder}: there must be one file {file}*.jsonl or {file}*.jsonl.gz here, and there is {names}")
    documents = _documents(found[0], fields)
    if not documents:
        raise LocalDataError(f"{found[0]}: holds no document")
    return {"test": Dataset.from_list(documents)}


def _documents(path: Path, fields: list[str]) -> list[dict[str, Any]]:
    documents = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                document = json.loads(line)
                lacking = [name for name in fields if name not in document]
                if lacking:
                    raise LocalDataError(
                        f"{path}, line {number}: has no {lacking[0]!r}; this task's fields are {', '.join(fields)}"
                    )
                documents.append({name: document[name] for name in fields})
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise LocalDataError(f"{path}: cannot be read ({error}); give one JSON object a line") from error
    return documents


def running_text(doc: dict[str, Any], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a whole text beside its words and its bytes."""
    (log_likelihood,) = results
    words, size = len(doc["text"].split()), len(doc["text"].encode())
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
        "bits_per_byte": (log_likelihood, size),
    }
