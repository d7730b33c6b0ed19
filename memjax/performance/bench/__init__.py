"""Timing of programs on local devices.

Measures steps per second, model FLOPs, memory, ratios of two programs, and a step's time by
operation.
"""

from memjax.performance.bench.measure import BenchCase, Comparison, Result, measure
from memjax.performance.bench.profile import PRODUCTS, Profile
from memjax.performance.bench.programs import PROGRAMS, Report

__all__ = [
    "PRODUCTS",
    "PROGRAMS",
    "BenchCase",
    "Comparison",
    "Profile",
    "Report",
    "Result",
    "measure",
]
