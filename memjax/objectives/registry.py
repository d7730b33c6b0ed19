"""The objectives: one line per file.

To add an objective, write one file with an `Objective`, and add one line here. The order of the
objectives is the order in which documents and messages name them.
"""

from memjax.objectives import (
    copying,
    corrupted_copy,
    next_token,
    recall,
    reconstruction,
    regression,
    retrieval,
    weighted,
)
from memjax.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        *next_token.OBJECTIVES,
        *copying.OBJECTIVES,
        *recall.OBJECTIVES,
        *corrupted_copy.OBJECTIVES,
        *weighted.OBJECTIVES,
        *reconstruction.OBJECTIVES,
        *retrieval.OBJECTIVES,
        *regression.OBJECTIVES,
    )
}
"""Objectives by name, the keys of `config.stages.NAME.objectives`."""
