"""Compress and recall with small-en on eight devices, its parameters whole on each and split over
them: test_trained_model.py runs it in a process of its own.

Prints, as JSON for both, the share of its parameters that a device holds, and what comes out.
"""

import json

import jax
import numpy as np

import memjax
from memjax.sharding import rules

TEXT = "The letter came on a Tuesday, when the rain had stopped and the road was only mud."


def run() -> dict[str, object]:
    model = memjax.load("small-en")
    leaves = jax.tree.leaves(model.params)
    held = sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)
    store = model.compress([TEXT])
    return {
        "held": held,
        "memories": np.asarray(store.memories.leaves["vectors"], float).tolist(),
        "chunk": model.recall(store, [1])[0],
    }


def main() -> None:
    assert jax.device_count() == 8
    whole = run()
    rules.WHOLE = 0.0
    print(json.dumps([whole, run()]))


if __name__ == "__main__":
    main()
