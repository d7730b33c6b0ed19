"""The claims of Badger 2026 (arXiv 2602.13466) trained and measured anew, at a scale of one's choice."""

from memjax.reproduce.claims import CLAIMS, Claim, Verdict, judge
from memjax.reproduce.page import write_page
from memjax.reproduce.plan import SCALES, Scale, configs
from memjax.reproduce.run import reproduce

__all__ = ["CLAIMS", "SCALES", "Claim", "Scale", "Verdict", "configs", "judge", "reproduce", "write_page"]
