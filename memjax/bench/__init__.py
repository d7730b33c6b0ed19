"""Programs timed on the devices that are here: steps a second, model FLOPs, memory, ratios of two, and where a step's time goes."""

from memjax.bench.measure import Comparison, Report, Result, Subject, measure
from memjax.bench.profile import PRODUCTS, Profile
from memjax.bench.programs import PROGRAMS

__all__ = ["PRODUCTS", "PROGRAMS", "Comparison", "Profile", "Report", "Result", "Subject", "measure"]
