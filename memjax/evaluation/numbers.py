"""Formats of numbers in the report: one per unit, and an en dash for missing values."""

import math
from typing import Any

DASH = "–"


def number(value: Any) -> float | None:
    """Return `value` as a finite float, or None if it is absent, not a number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def percent(share: Any, digits: int = 1) -> str:
    """Format a share in [0, 1] as a percentage; never rounded up to 100% or down to 0%."""
    share = number(share)
    if share is None:
        return DASH
    text = f"{100 * share:.{digits}f}%"
    smallest = f"{10**-digits:.{digits}f}%"
    if text == f"{100:.{digits}f}%" and share < 1:
        return f"> {100 - 10**-digits:.{digits}f}%"
    return f"< {smallest}" if text == f"{0:.{digits}f}%" and share > 0 else text


def decimal(value: Any, digits: int = 2) -> str:
    """Format a number with fixed decimals (nats per token, bits per byte)."""
    value = number(value)
    return DASH if value is None else f"{value:.{digits}f}"


def count(value: Any) -> str:
    """Format an integer with thousands separated: 21,000."""
    value = number(value)
    return DASH if value is None else f"{value:,.0f}"


def short_count(value: Any) -> str:
    """Format a large number with three digits: 550 k, 2.05 M."""
    value = number(value)
    if value is None:
        return DASH
    if abs(value) < 1e4:
        return f"{value:,.0f}"
    value = float(f"{value:.3g}")  # 999,600 is 1 M.
    scale, unit = next(
        pair for pair in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= pair[0]
    )
    return f"{value / scale:.3g} {unit}"


def duration(seconds: Any) -> str:
    """Format seconds for people: 42 s, 9 min 20 s, 3 h 05 min."""
    seconds = number(seconds)
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def relative(ours: Any, theirs: Any) -> float | None:
    """Return (ours - theirs) / theirs, or None if either is missing or theirs is 0."""
    ours, theirs = number(ours), number(theirs)
    return None if ours is None or not theirs else ours / theirs - 1


def signed_percent(share: float | None) -> str:
    """Format a relative difference as +4.2%, with a real minus sign."""
    if share is None:
        return DASH
    if abs(share) < 5e-4:
        return "±0.0%"
    return f"{'+' if share > 0 else '−'}{100 * abs(share):.1f}%"
