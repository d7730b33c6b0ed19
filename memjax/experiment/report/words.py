"""Names and colours of stages, models and objectives in the report."""

import re

from memjax.evaluation import numbers
from memjax.experiment.report.run import CAUSAL_CONTROL, NO_MEMORY, Run

TERM_NAMES = {
    "reconstruction": "Reconstruction",
    "blank_copy": "Blank copy",
    "blank_recall": "Blank recall",
    "recall": "Recall",
    "copy": "Copy",
    "next_token": "Next token",
}
TERM_CAPTIONS = {
    "reconstruction": "All tokens of a chunk from its memory, by the autoencoder's own decoder.",
    "blank_copy": "A chunk reconstructed from its memory, with all input tokens blanked out.",
    "copy": "A chunk reconstructed from its memory, given the true tokens before each one.",
    "blank_recall": "A chunk recalled by its place, with all input tokens blanked out.",
    "recall": "A chunk recalled by its place, given the true tokens before each one.",
    "next_token": "The usual language-model loss, with memories of earlier chunks in view.",
}
BLUE, ORANGE, GREY, GREEN, PURPLE = "#0072b2", "#d55e00", "#767676", "#009e73", "#aa4499"
"""Palette of Okabe and Ito, distinct in any kind of colour vision; grey and purple are darker than
theirs."""
TERM_COLOURS = {
    "reconstruction": GREEN,
    "blank_copy": PURPLE,
    "copy": BLUE,
    "blank_recall": PURPLE,
    "recall": BLUE,
    "next_token": BLUE,
}
SCALE = ("#7db8da", "#3d94c4", BLUE, "#004f7c", "#002a42")
"""Colours of numbers of memories, the fewest first."""
MODEL_COLOURS = {
    CAUSAL_CONTROL: ORANGE,
    NO_MEMORY: GREY,
    "autoencoder": GREEN,
    "blank_copy": PURPLE,
    "copy": "#5b7fa6",
}


_DATA_SET = r"(?:hf|tfds):[\w-][\w.-]*/[\w.:-]+(?:\?[^\s+*/]*)?(?=[\s+*]|$)"
"""A data set of two names, or a relative folder that looks like one."""


def corpus_name(corpus: str) -> str:
    """Return a corpus, or all parts of a mixture, without folders.

    Data sets keep their whole name: `hf:OWNER/NAME`, `tfds:NAME/CONFIG`.
    """
    shown = re.sub(r"/+(?=\s*(\+|$))", "", corpus)
    return re.sub(rf"({_DATA_SET})|[^\s+*]*/", r"\1", shown)


def stage_name(stage: str) -> str:
    """Return the name of a stage as text: `blank copy`."""
    return stage.replace("_", " ")


def model_name(run: Run, stage: str) -> str:
    """Return the display name of the model that a stage trained."""
    if stage == run.final:
        return "memory model"
    other = stage_name(stage) if stage in run.controls else f"after {stage_name(stage)}"
    return {CAUSAL_CONTROL: "next-token control", NO_MEMORY: "no memory"}.get(stage, other)


def compared_controls(run: Run) -> list[str]:
    """Return the controls, that of next tokens alone first."""
    return sorted(run.controls, key=lambda control: control != CAUSAL_CONTROL)


def model_class(run: Run, stage: str) -> str:
    """Return the class of a model on the page, which has its colour."""
    return "ours" if stage == run.final else "causal" if stage == CAUSAL_CONTROL else "none"


def model_colour(run: Run, stage: str) -> str:
    """Return the colour of a model, the same in every plot."""
    return BLUE if stage == run.final else MODEL_COLOURS.get(stage, GREY)


def objectives(run: Run, stage: str) -> str:
    """Return a stage's objectives with their weights: `next token × 1 + copy × 1`."""
    parts = run.section("stages", stage, "objectives")
    weights = [
        f"{TERM_NAMES.get(name, stage_name(name)).lower()}\u00a0×\u00a0"
        f"{numbers.decimal(weight, 3).rstrip('0').rstrip('.')}"
        for name, weight in parts.items()
    ]
    return " + ".join(weights)
