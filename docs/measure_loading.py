"""Measure the memory that loading a Hugging Face folder takes (Linux).

    python docs/measure_loading.py FOLDER

Prints JSON: `files`, the bytes of the weights' files; `peak` and `after`, by how many bytes the
anonymous memory of the process rose at most while it loaded them, and to the end; `held`, the bytes
of the parameters; `seconds`.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

import memjax
from memjax.testing.memory import anonymous, rise


def measure(folder: Path) -> dict[str, float]:
    """Return the numbers of a folder."""
    jax.numpy.zeros(8).block_until_ready()  # JAX starts.
    before, began = anonymous(), time.monotonic()
    with rise() as highest:
        params = memjax.load(f"hf:{folder}").params
        jax.block_until_ready(params)
    return {
        "files": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "peak": highest[0],
        "after": anonymous() - before,
        "held": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected FOLDER")
    print(json.dumps(measure(Path(sys.argv[1]))))
