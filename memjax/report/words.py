"""What the report calls things, and in which colour it shows them."""

from __future__ import annotations

from memjax.report import numbers
from memjax.report.run import CAUSAL_CONTROL, NO_MEMORY, Run

TERM_NAMES = {"reconstruction": "Reconstruction", "blank_copy": "Blank copy", "copy": "Copy", "next_token": "Next token"}
TERM_CAPTIONS = {
    "reconstruction": "All tokens of a chunk from its memory, by the autoencoder's own decoder.",
    "blank_copy": "A chunk repeated from its memory, every token blanked out.",
    "copy": "A chunk repeated from its memory, given the true tokens before each one.",
    "next_token": "The usual language-model loss, with memories of earlier chunks in view.",
}
BLUE, ORANGE, GREY, GREEN, PURPLE = "#0072b2", "#d55e00", "#767676", "#009e73", "#aa4499"
"""Okabe and Ito's palette, told apart with any kind of colour vision; grey and purple are darker than theirs."""
TERM_COLOURS = {"reconstruction": GREEN, "blank_copy": PURPLE, "copy": BLUE, "next_token": BLUE}
MODEL_COLOURS = {CAUSAL_CONTROL: ORANGE, NO_MEMORY: GREY, "autoencoder": GREEN, "blank_copy": PURPLE, "copy": "#5b7fa6"}


def stage_name(stage: str) -> str:
    """A stage as text: `blank copy`."""
    return stage.replace("_", " ")


def model_name(run: Run, stage: str) -> str:
    """What the model that a stage left is called."""
    if stage == run.final:
        return "memory model"
    return {CAUSAL_CONTROL: "next-token control", NO_MEMORY: "no memory"}.get(stage, f"after {stage_name(stage)}")


def model_colour(run: Run, stage: str) -> str:
    """The colour of a model in every plot."""
    return BLUE if stage == run.final else MODEL_COLOURS.get(stage, GREY)


def objectives(run: Run, stage: str) -> str:
    """A stage's objectives with their weights: `next token × 1 + copy × 1`."""
    parts = run.section("stages", stage, "objectives")
    weights = [
        f"{TERM_NAMES.get(name, stage_name(name)).lower()}\u00a0×\u00a0{numbers.decimal(weight, 3).rstrip('0').rstrip('.')}"
        for name, weight in parts.items()
    ]
    return " + ".join(weights)
