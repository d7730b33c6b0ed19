"""Files of earlier versions open: a store and an export of 0.2.0, written once.

`python tests/checkpoints/test_export_reading_formats.py` writes those of this version; they stay
as they are once it is released.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

import memjax
from memjax.checkpoints.store import open_store
from memjax.testing.stores import ENCODER, filled
from memjax.testing.workdir import write_workdir

DATA = Path(__file__).parent / "data"
VERSIONS = ("0.2.0",)
DTYPES = ("bfloat16", "int4")
TEXT = "a memory holds what the chunk said and the decoder reads it in place of words"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_store_opens(version, dtype):
    store = open_store(DATA / version / f"{dtype}.store", expected=ENCODER)
    ours = filled(dtype)
    np.testing.assert_array_equal(store.spans, ours.spans)
    assert (store.documents, store.dtype) == (ours.documents, dtype)
    np.testing.assert_allclose(
        store.memories.leaves["vectors"], ours.memories.leaves["vectors"], atol=1e-6
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_an_export_opens_and_gives_what_it_gave(version):
    found = json.loads((DATA / version / "export.json").read_text(encoding="utf-8"))
    model = memjax.load(DATA / version / "export")
    assert model.reconstructor.family == "autoencoder"
    numbers = numbers_of(model)
    assert numbers.pop("reconstructed") == found.pop("reconstructed")
    for key, values in found.items():
        np.testing.assert_allclose(numbers[key], values, rtol=1e-3, atol=1e-4)


def numbers_of(model):
    """What a model makes of a text."""
    store = model.compress([TEXT], dtype="float32")
    return {
        "reconstructed": model.reconstruct_tokens(store).tolist(),
        "memory": store.memories.leaves["vectors"][0, 0].tolist(),
        "nats": np.asarray(model.score(TEXT).nats).tolist(),
    }


def write(folder):
    """Write the files of this version."""
    shutil.rmtree(folder, ignore_errors=True)
    for dtype in DTYPES:
        filled(dtype).save(folder / f"{dtype}.store")
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):

        def draw(module, inputs, seed):
            return module.init(jax.random.key(seed), inputs)

        model = memjax.load(write_workdir(Path(), draw), "combined")
        model.save(folder / "export", dtype="bfloat16")
    numbers = numbers_of(memjax.load(folder / "export"))
    (folder / "export.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(DATA / memjax.__version__)
