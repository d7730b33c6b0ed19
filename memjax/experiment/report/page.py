"""Build `report.html` from a run's numbers: the values that its template shows."""

import base64
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memjax.evaluation import numbers
from memjax.evaluation.instruments import suite
from memjax.evaluation.instruments.tables import probe_table
from memjax.experiment.report import claim, passages, plots, words
from memjax.experiment.report.cost import cost_table
from memjax.experiment.report.run import CAUSAL_CONTROL, NO_MEMORY, Run, read_run
from memjax.experiment.templates import render, write_page

COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("next_token_nats", "next token", "nats", -1),
    ("next_token_bits_per_byte", "next token", "bits/byte", -1),
    ("copy_accuracy", "copy", "% correct", 1),
    ("blank_copy_accuracy", "blank copy", "% correct", 1),
    ("free_running_exact_chunks", "exact recall", "% of chunks", 1),
    ("autoencoder_accuracy", "autoencoder", "% correct", 1),
)
"""Key in a model's results, heading, unit, and whether higher (1) or lower (-1) is better."""


def write_report(workdir: Path) -> Path:
    """Write `workdir/plots/*.png` and `workdir/report.html`, and return the page's path.

    The page is self-contained.

    Raises:
      ReportError: `workdir/results.json` does not exist.
      ReportError: it is not JSON.
      ReportError: it is JSON, but not an object.
    """
    workdir = Path(workdir)
    run = read_run(workdir)
    holds, losses = plots.draw_all(run, workdir / "plots")
    filters = {
        "percent": numbers.percent,
        "decimal": numbers.decimal,
        "count": numbers.count,
        "short": numbers.short_count,
        "duration": numbers.duration,
        "embed": _embed,
    }
    page = render("report/page.html.jinja", filters, **_context(run, holds, losses))
    return write_page(workdir / "report.html", page)


def _embed(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _context(run: Run, holds: list[plots.Plot], losses: list[plots.Plot]) -> dict[str, Any]:
    name = str(run.results.get("name") or "run")
    data = run.section("data")
    return {
        "run": run,
        "name": name,
        "command": run.results.get("command") or "",
        "facts": run.results.get,
        "created": _date(run.results.get("created")),
        "claim": claim.judge(run),
        "headline": _headline(run),
        "columns": [(heading, unit) for _, heading, unit, _ in COLUMNS],
        "models": _models(run),
        "passages": passages.read_passages(run.results.get("passages")),
        "far": passages.read_passages(run.results.get("far_passages")),
        "holds": holds,
        "losses": losses,
        "stages": [_stage(run, stage) for stage in (*run.curriculum, *run.controls)],
        "tokens_ours": _total(run, run.curriculum),
        "tokens_control": _total(run, (CAUSAL_CONTROL,)),
        "next_token_control": CAUSAL_CONTROL in run.controls,
        "control_copied": not {"copy", "blank_copy"}.isdisjoint(
            run.section("stages", CAUSAL_CONTROL, "objectives")
        ),
        "passage_control": _passage_control(run),
        "recalled": run.section("models", run.final).get("asked_to_copy_by") == "recall",
        "data": data,
        "chunk": _whole(data.get("chunk_length"), "L"),
        "chunks": _whole(data.get("chunks"), "C"),
        "cost": cost_table(data),
        "chance": run.section("chance"),
        "measured": [_measured(found) for found in run.measured.values()],
        "probed": probe_table(run.probed) if run.probed else None,
        "versions": {
            str(package): str(version) for package, version in run.section("versions").items()
        },
        "dash": numbers.DASH,
    }


def _measured(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's name with the tables of its instruments."""
    objective = f", by {words.stage_name(found['ask'])}" if found.get("ask") else ""
    texts = f"{found['texts']} held-out texts of {found['tokens_a_text']} tokens"
    return {
        "name": words.stage_name(found["stage"]),
        "about": f"{texts}{objective}, step {found['step']}",
        "tables": suite.tables_of(found),
    }


def _headline(run: Run) -> dict[str, Any]:
    controls = words.compared_controls(run)
    floor = run.headline("copy_accuracy", NO_MEMORY)
    copied = {name: run.headline("copy_accuracy", name) for name in controls}
    copied |= {NO_MEMORY: floor} if floor is not None else {}
    bars = [("memory model", "ours", run.headline("copy_accuracy"))] + [
        (words.model_name(run, name), words.model_class(run, name), share)
        for name, share in copied.items()
    ]
    exact, chunks = (
        run.headline("free_running_exact_chunks"),
        run.of_model(run.final, "free_running_chunks"),
    )
    nats, causal = run.headline("next_token_nats"), run.headline("next_token_nats", CAUSAL_CONTROL)
    return {
        "bars": bars,
        "exact": exact,
        "exact_of": None
        if exact is None or chunks is None
        else (round(exact * chunks), round(chunks)),
        "price": numbers.signed_percent(numbers.relative(nats, causal))
        if CAUSAL_CONTROL in controls
        else numbers.decimal(nats),
        "nats": (nats, causal, run.headline("next_token_nats", NO_MEMORY)),
        "seconds": numbers.number(run.results.get("seconds_total")),
        "tokens_per_second": numbers.number(run.results.get("tokens_per_second")),
    }


def _passage_control(run: Run) -> tuple[str, str] | None:
    """Return the name and the class of the control whose passages are shown, if there is one."""
    # It is the first one that reconstructed text: see `memjax.experiment.evaluate`.
    made = (c for c in run.controls if run.of_model(c, "free_running_exact_chunks") is not None)
    control = next(made, next(iter(words.compared_controls(run)), None))
    if control is None:
        return None
    return words.model_name(run, control), words.model_class(run, control)


def _models(run: Run) -> list[dict[str, Any]]:
    """Return the rows of the table of models.

    The memory model comes first, then the controls, then earlier stages with results, latest first.
    """
    compared = (run.final, *run.controls)
    best: dict[str, float | None] = {}
    for key, _, _, sign in COLUMNS:
        values = [v for model in compared if (v := run.of_model(model, key)) is not None]
        best[key] = max(values, key=lambda value: sign * value) if len(values) > 1 else None
    rows = []
    for model in dict.fromkeys((*compared, *reversed(run.curriculum))):
        found = {key: run.of_model(model, key) for key, *_ in COLUMNS}
        kind = "ours" if model == run.final else "control" if model in run.controls else "earlier"
        if kind == "earlier" and set(found.values()) == {None}:
            continue
        cells = [
            {
                "text": (numbers.percent if unit.startswith("%") else numbers.decimal)(found[key]),
                "best": kind != "earlier" and found[key] is not None and found[key] == best[key],
            }
            for key, _, unit, _ in COLUMNS
        ]
        rows.append(
            {
                "name": words.model_name(run, model),
                "kind": kind,
                "trained": words.objectives(run, model),
                "cells": cells,
                "status": run.status(model),
            }
        )
    return rows


def _stage(run: Run, stage: str) -> dict[str, Any]:
    facts = run.section("stages", stage)
    total, moving = (
        numbers.number(facts.get("parameters")),
        numbers.number(facts.get("trainable_parameters")),
    )
    source = facts.get("init_from")
    return {
        "name": words.stage_name(stage),
        "control": stage in run.controls,
        "status": run.status(stage),
        "logged": run.last_step(stage),
        "objectives": words.objectives(run, stage) or numbers.DASH,
        "source": words.stage_name(str(source))
        if source
        else "scratch"
        if source == ""
        else numbers.DASH,
        "parameters": total,
        "trainable": moving / total if total and moving is not None else None,
        "steps": facts.get("steps"),
        "tokens": facts.get("tokens"),
        "seconds": facts.get("seconds"),
        "tokens_per_second": facts.get("tokens_per_second"),
    }


def _total(run: Run, stages: tuple[str, ...]) -> float | None:
    tokens = [
        value
        for stage in stages
        if (value := numbers.number(run.section("stages", stage).get("tokens"))) is not None
    ]
    return sum(tokens) if tokens else None


def _whole(value: Any, symbol: str) -> str:
    return symbol if numbers.number(value) is None else numbers.count(value)


def _date(value: Any) -> str:
    """Format an ISO time as a date for people; other text is unchanged."""
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or "")
    return f"{moment.day} {moment:%B %Y}, {moment:%H:%M}"
