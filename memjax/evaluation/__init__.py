"""Evaluations of language models: log-likelihoods of texts, and recall of facts from long texts.

Only memjax/evaluation/harness.py depends on an evaluation harness; it passes requests to
`TextScorer`.
"""
