"""Standard questions put to a model that writes on: log-likelihoods of texts, and facts to be recalled from long ones.

Nothing here knows of an evaluation harness; memjax/interop/lm_eval.py hands one's requests to `TextModel`.
"""

from memjax.evals.errors import EvalError
from memjax.evals.likelihood import Likelihood, Scorer
from memjax.evals.long_recall import LongRecall, long_recall
from memjax.evals.text_model import TextModel, open_text_model

__all__ = ["EvalError", "Likelihood", "LongRecall", "Scorer", "TextModel", "long_recall", "open_text_model"]
