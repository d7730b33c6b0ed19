"""Instruments: they measure what memories hold.

Names that need JAX are imported at their first use: `suite` lists the instruments without it.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from memjax.inference.regenerate import regenerate
    from memjax.objectives.accuracy import Accuracy, measure

__all__ = ["Accuracy", "measure", "regenerate"]
