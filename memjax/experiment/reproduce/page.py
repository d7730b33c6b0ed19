"""Write `reproduction.html`, a self-contained page of verdicts and numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memjax.experiment import templates

UNITS = {
    "probe_nats": ("probe", "nats per token"),
    "probe_accuracy": ("probe", "% correct"),
    "reconstruction_error": ("reconstruction", "% wrong"),
    "reconstruction_nats": ("reconstruction", "nats per token"),
    "next_token_nats": ("next token", "nats per token"),
    "copy_accuracy": ("copy", "% correct"),
    "blank_copy_accuracy": ("blank copy", "% correct"),
    "quantised_nats": ("reconstruction", "nats per token"),
}
"""Title and unit of each kind of number."""

NAMES = {
    "constant": "constant memory",
    "autoencoder": "autoencoder",
    "oracle": "oracle",
    "causal": "causal encoder",
    "retriever": "retriever",
    "untrained": "untrained encoder",
    "mixer": "mixer",
    "transformer": "transformer",
    "no_memory": "no memory",
    "next_token": "memory, next tokens alone",
    "full_context": "full context",
    "recurrent": "recurrent memory",
    "autoencoder_combined": "frozen autoencoder, curriculum",
    "causal_combined": "frozen causal encoder, curriculum",
    "at_once": "frozen autoencoder, no curriculum",
    "plain": "plain",
    "noisy": "noise-trained",
    "float32": "32 bits",
    "float8_e4m3": "float8 e4m3",
    "float8_e5m2": "float8 e5m2",
    "int8_vector": "int8, one scale per vector",
}
"""Display names of models and formats."""


def write_page(results: Mapping[str, Any], path: Path) -> Path:
    """Write the page of the results in `reproduction.json` and return its path."""
    claims = [claim | {"groups": groups(claim["numbers"])} for claim in results["claims"]]
    counts = {
        word: sum(claim["verdict"] == word for claim in claims)
        for word in ("holds", "undecided", "does not hold")
    }
    context = {"results": results, "claims": claims, "counts": counts}
    page = templates.render("reproduce/reproduction.html.jinja", {}, **context)
    return templates.write_page(path, page)


def groups(numbers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Group numbers by unit.

    Returns:
      For each unit a heading, and of every model its name, the mean over seeds, the values of the
        seeds and the width of a bar in %.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, seeds in numbers.items():
        kind, *models = name.split("/")
        percent = UNITS[kind][1].startswith("%")
        values = [seed["value"] * (100 if percent else 1) for seed in seeds]
        intervals = [
            [
                None if seed[end] is None else seed[end] * (100 if percent else 1)
                for end in ("low", "high")
            ]
            for seed in seeds
        ]
        row = {
            "name": ", ".join(NAMES.get(model, model) for model in models),
            "mean": sum(values) / len(values),
            "seeds": values,
            "intervals": intervals,
            "texts": min(seed["texts"] for seed in seeds),
            "digits": 1 if percent else 3,
        }
        found.setdefault(UNITS[kind], []).append(row)
    for (_, unit), rows in found.items():
        top = 100.0 if unit.startswith("%") else max(row["mean"] for row in rows)
        for row in rows:
            row["share"] = 100 * max(row["mean"], 0.0) / top if top else 0.0
    return [{"title": title, "unit": unit, "rows": rows} for (title, unit), rows in found.items()]
