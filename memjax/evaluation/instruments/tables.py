"""Tables of instruments' results, for the terminal and for the HTML page.

Results are mappings as read from JSON.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from memjax.evaluation import numbers

SHOWN = 8
"""Number of layers in a table of sensitivities."""


class Table(NamedTuple):
    """Text in rows and columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


def show(estimate: Mapping[str, Any] | None, digits: int = 3, percent: bool = False) -> str:
    """Format an estimate with its interval."""
    if estimate is None:
        return numbers.DASH
    value, low, high = (
        numbers.percent(estimate[key]) if percent else numbers.decimal(estimate[key], digits)
        for key in ("value", "low", "high")
    )
    return value if numbers.DASH in (low, high) else f"{value} [{low}, {high}]"


def probe_table(found: Mapping[str, Any]) -> Table:
    """Return the table of `memjax probe`: every encoder with its controls below it."""
    rows = []
    for result in found["results"]:
        name = f"{result['encoder']} ({' × '.join(map(str, result['shape']))})"
        gain, bits = show(result["gains"].get("constant")), show(result["bits_a_dimension"], 4)
        rows.append((name, *_reading(result["own"]), gain, bits, _steps(result["own"])))
        rows += [
            (f"– {control}", *_reading(reading), "", "", _steps(reading))
            for control, reading in result["controls"].items()
        ]
    kind = found["results"][0]["protocol"]["kind"] if found["results"] else ""
    columns = (
        "vectors",
        "nats per token",
        "information",
        "accuracy",
        "nats below constant",
        "bits per number",
        "steps",
    )
    return Table(
        f"Reconstruction from frozen vectors, {kind.replace('_', '-')} probe",
        columns,
        rows,
        "held-out texts, mean over seeds; in brackets the interval of the mean over texts (95 %);"
        " a plus marks steps after which a decoder was still learning",
    )


def _reading(reading: Mapping[str, Any]) -> tuple[str, str, str]:
    return show(reading["nats"]), show(reading["information"]), _percent(reading["accuracy"])


def _steps(reading: Mapping[str, Any]) -> str:
    """Return the steps of every seed."""
    return ", ".join(f"{run['steps']}{'' if run['converged'] else '+'}" for run in reading["runs"])


def _percent(estimate: Mapping[str, Any]) -> str:
    return show(estimate, percent=True)


def _words(name: str) -> str:
    return name.replace("_", " ")


def information(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `information`."""
    zeros = {
        f"information, of {_words(name)} at {show({**zero['nats'], 'low': None})} nats": show(
            zero["information"]
        )
        for name, zero in n["zeros"].items()
    }
    rows = {
        "nats per token": show(n["nats"]),
        "accuracy": _percent(n["accuracy"]),
        "information, of random logits": show(n["information"]),
        **zeros,
        f"nats per token gained over {_words(n['best'])}": show(n["gained"]),
        "bits gained per number of the memory": show(n["bits_a_dimension"], 4),
    }
    yield Table(
        "Information about held-out text in memories", ("", "95 % interval"), list(rows.items())
    )


def recall(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `recall`."""
    yield Table(
        "Reconstructed chunks",
        ("", "accuracy", "exact chunks", "tokens before an error"),
        [
            (name, _percent(one["accuracy"]), _percent(one["exact"]), show(one["before_error"], 2))
            for name, one in (("free-running", n["free"]), ("teacher-forced", n["forced"]))
        ],
    )


def compression(n: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield the tables of `compression`."""
    yield Table(
        "Total code length of text and memory",
        (
            "bits per number",
            "memory, nats per token",
            "text and memory, nats per token",
            "bits per byte",
        ),
        [
            (
                str(one["bits"]),
                f"{one['memory_nats']:.3f}",
                show(one["normalised"]),
                show(one["bits_per_byte"]),
            )
            for one in n
        ],
    )


def quantisation(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `quantisation`."""
    rounded = [
        (
            one["kind"],
            one["place"],
            f"{one['bits_a_number']:.3g}",
            show(one["nats"]),
            _percent(one["accuracy"]),
            show(one["difference"]),
        )
        for one in n["rounded"]
    ]
    yield Table(
        "Memories with fewer bits per number",
        (
            "memory rounded to",
            "where",
            "bits per number",
            "nats per token",
            "accuracy",
            "nats lost",
        ),
        [("not rounded", "", "", show(n["nats"]), _percent(n["accuracy"]), ""), *rounded],
    )


def sensitivity(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `sensitivity`."""
    for target, one in n.items():
        more = len(one["changes"]) - SHOWN
        yield Table(
            f"One layer's {target} rounded to {one['kind']}",
            ("layer", "nats per token lost"),
            [(name, show(change, 4)) for name, change in list(one["changes"].items())[:SHOWN]],
            f"and {more} less sensitive layers" if more > 0 else "",
        )


def capacity(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `capacity`."""
    encoder, optimised = (
        f"{'≥ ' if n[key] >= n['window'] else ''}{n[key]}"
        for key in ("kept_by_encoder", "kept_by_optimisation")
    )
    yield Table(
        "Capacity of a memory",
        (
            "tokens of the text",
            "accuracy, encoder's memory",
            "accuracy, optimised memory",
            "encoder's share of the gain",
        ),
        [
            (
                str(one["length"]),
                _percent(one["encoder_accuracy"]),
                _percent(one["ceiling_accuracy"]),
                _percent(one["share"]),
            )
            for one in n["prefixes"]
        ],
        f"kept at {numbers.percent(n['threshold'], 0)} accuracy: {encoder} tokens by the encoder,"
        f" {optimised} by optimisation",
    )


def out_of_distribution(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `out_of_distribution`."""
    yield Table(
        "Other texts",
        ("text", "nats per token", "accuracy", "information"),
        [
            (_words(name), show(one["nats"]), _percent(one["accuracy"]), show(one["information"]))
            for name, one in n.items()
        ],
    )


def retrieval(n: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of `retrieval`."""
    yield Table(
        "Retrieval of a text by its memory",
        ("query", "candidates", "accuracy", "chance"),
        [
            (
                query,
                str(pool["candidates"]),
                _percent(pool["accuracy"]),
                numbers.percent(pool["chance"], 2),
            )
            for query, one in n.items()
            for pool in one["pools"]
        ],
    )


def fact_probes(n: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield the tables of `fact_probes`."""
    yield Table(
        "Single facts read from memories",
        ("task", "accuracy", "from constant memories", "gained"),
        [
            (
                one["task"],
                _percent(one["accuracy"]),
                _percent(one["constant"]),
                _percent(one["gain"]),
            )
            for one in n
        ],
    )
