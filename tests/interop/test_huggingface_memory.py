"""Memory that loading a folder takes, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memjax.testing.huggingface import KINDS, write_folder

LARGEST_RISE = 1.3
"""Times the bytes of the files."""
LOAD = """
import json, sys
import jax
import memjax
from memjax.testing.memory import anonymous, rise
jax.numpy.zeros(8).block_until_ready()
before = anonymous()
with rise() as highest:
    model = memjax.load("hf:" + sys.argv[1])
    jax.block_until_ready(model.params)
held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
print(json.dumps({"peak": highest[0], "after": anonymous() - before, "held": held}))
"""


def loaded(folder: Path) -> dict[str, int]:
    """Return the rise of anonymous memory while a folder is loaded, that after it, and the bytes of
    its parameters.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_files(tmp_path: Path) -> None:
    settings = KINDS["llama"] | {"hidden_size": 1024, "num_attention_heads": 16}
    settings |= {"intermediate_size": 4096, "num_hidden_layers": 14, "vocab_size": 16_000}
    folder = write_folder(tmp_path / "folder", settings)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = loaded(folder)
    assert found["held"] == pytest.approx(size, rel=0.001)
    assert found["peak"] < LARGEST_RISE * size, (found, size)
