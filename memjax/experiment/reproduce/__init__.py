"""Reproduction of the claims of Badger 2026 (arXiv 2602.13466) at a chosen scale."""

from memjax.experiment.reproduce.run import reproduce

__all__ = ["reproduce"]
