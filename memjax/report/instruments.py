"""What instruments found, as tables: for the terminal and for the page. Numbers come as JSON has them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table as RichTable

SHOWN = 8
"""Layers that a table of sensitivities names."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column is what a row is about."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, caption=self.caption or None)
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def show(estimate: Mapping[str, Any] | None, digits: int = 3, percent: bool = False) -> str:
    """An estimate with its interval."""
    if estimate is None or estimate["value"] is None:
        return "–"
    factor, unit = (100, " %") if percent else (1, "")
    digits = 1 if percent else digits
    value, low, high = (None if estimate[key] is None else estimate[key] * factor for key in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:.{digits}f}{unit}"
    return f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def tables(found: Mapping[str, Any]) -> list[Table]:
    """One table or more an instrument, in the order they were run in."""
    made: list[Table] = []
    for name, numbers in found["instruments"].items():
        if name in _MAKERS:
            made += _MAKERS[name](numbers)
    return made


def probe_table(found: Mapping[str, Any]) -> Table:
    """What `memjax probe` wrote: every encoder with its controls below it."""
    rows = []
    for result in found["results"]:
        name = f"{result['encoder']} ({' × '.join(map(str, result['shape']))})"
        rows.append(
            (name, *_reading(result["own"]), show(result["gains"].get("constant")), show(result["bits_a_dimension"], 4))
        )
        rows += [(f"– {control}", *_reading(reading), "", "") for control, reading in result["controls"].items()]
    kind = found["results"][0]["protocol"]["kind"].replace("_", "-") if found["results"] else ""
    columns = ("vectors", "nats a token", "information", "tokens right", "nats below constant", "bits a number")
    return Table(f"What a {kind} probe gets back from frozen vectors", columns, tuple(rows))


def _reading(reading: Mapping[str, Any]) -> tuple[str, str, str]:
    return show(reading["nats"]), show(reading["information"]), show(reading["accuracy"], percent=True)


def _information(n: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        ("nats a token", show(n["nats"])),
        ("accuracy", show(n["accuracy"], percent=True)),
        ("information, of random logits", show(n["information"])),
    ]
    rows += [
        (f"information, of {name.replace('_', ' ')} at {show({**zero['nats'], 'low': None})} nats", show(zero["information"]))
        for name, zero in n["zeros"].items()
    ]
    rows += [
        (f"nats a token gained over {n['best'].replace('_', ' ')}", show(n["gained"])),
        ("bits a number of the memory gained", show(n["bits_a_dimension"], 4)),
    ]
    yield Table("What memories hold of held-out text", ("", "95 % interval"), tuple(rows))


def _recall(n: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (name, show(n[kind]["accuracy"], percent=True), show(n[kind]["exact"], percent=True), show(n[kind]["before_error"], 2))
        for kind, name in (("free", "free-running"), ("forced", "teacher-forced"))
    ]
    yield Table("Chunks said again", ("", "tokens right", "chunks exact", "tokens before an error"), tuple(rows))


def _compression(n: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    rows = [(str(one["bits"]), f"{one['memory_nats']:.3f}", show(one["normalised"]), show(one["bits_per_byte"])) for one in n]
    columns = ("bits a number", "memory, nats a token", "text and memory, nats a token", "bits a byte")
    yield Table("What text and memory cost together", columns, tuple(rows))


def _quantisation(n: Mapping[str, Any]) -> Iterator[Table]:
    rows = [("as it is", "", "", show(n["nats"]), show(n["accuracy"], percent=True), "")]
    rows += [
        (
            one["kind"],
            one["place"],
            f"{one['bits_a_number']:.3g}",
            show(one["nats"]),
            show(one["accuracy"], percent=True),
            show(one["difference"]),
        )
        for one in n["rounded"]
    ]
    columns = ("memory rounded to", "where", "bits a number", "nats a token", "tokens right", "nats lost")
    yield Table("Fewer bits a number", columns, tuple(rows))


def _sensitivity(n: Mapping[str, Any]) -> Iterator[Table]:
    for target, one in n.items():
        rows = [(name, show(change, 4)) for name, change in list(one["changes"].items())[:SHOWN]]
        more = len(one["changes"]) - len(rows)
        yield Table(
            f"One layer's {target} rounded to {one['kind']}",
            ("layer", "nats a token lost"),
            tuple(rows),
            f"and {more} that are less sensitive" if more > 0 else "",
        )


def _capacity(n: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (
            str(one["length"]),
            show(one["encoder_accuracy"], percent=True),
            show(one["ceiling_accuracy"], percent=True),
            show(one["share"], percent=True),
        )
        for one in n["prefixes"]
    ]
    kept = [f"{'≥ ' if n[key] >= n['window'] else ''}{n[key]}" for key in ("kept_by_encoder", "kept_by_optimisation")]
    columns = ("tokens of the text", "encoder's memory, right", "optimised memory, right", "encoder's share of the gain")
    caption = f"kept at {100 * n['threshold']:.0f} %: {kept[0]} tokens by the encoder, {kept[1]} by optimisation"
    yield Table("What the decoder could read", columns, tuple(rows), caption)


def _generalisation(n: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (name.replace("_", " "), show(one["nats"]), show(one["accuracy"], percent=True), show(one["information"]))
        for name, one in n.items()
    ]
    yield Table("Other texts", ("text", "nats a token", "tokens right", "information"), tuple(rows))


def _retrieval(n: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (query, str(pool["candidates"]), show(pool["accuracy"], percent=True), f"{100 * pool['chance']:.2f} %")
        for query, one in n.items()
        for pool in one["pools"]
    ]
    yield Table("A text among others, by its memory", ("query", "candidates", "found first", "chance"), tuple(rows))


def _access(n: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    rows = [
        (one["task"], show(one["accuracy"], percent=True), show(one["constant"], percent=True), show(one["gain"], percent=True))
        for one in n
    ]
    yield Table("Single facts read from memories", ("task", "right", "from constant memories", "gained"), tuple(rows))


_MAKERS = {
    "information": _information,
    "recall": _recall,
    "compression": _compression,
    "quantisation": _quantisation,
    "sensitivity": _sensitivity,
    "capacity": _capacity,
    "generalisation": _generalisation,
    "retrieval": _retrieval,
    "access": _access,
}
