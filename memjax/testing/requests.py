"""Tables of slots, by which tests read a request.

Shapes: X decoded chunk, S slot.
"""

import numpy as np
from jaxtyping import Int

from memjax.models import EMPTY, Request


def slot_table(request: Request, count: int) -> Int[np.ndarray, "X S"]:
    """Return the chunk whose memory stands in each of `count` slots, or `EMPTY`."""
    width = max(count, len(request.written))
    written = np.full(width, EMPTY)
    written[: len(request.written)] = request.written
    visible = np.asarray(request.visible)[:, None]
    return np.where(np.arange(width) < visible, written, EMPTY)[:, :count]
