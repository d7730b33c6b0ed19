"""Safetensors files: the permissions, the order of the metadata, and the header."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from memjax.files.tensors import read_header, save_tensors

TENSORS = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.float32([0.5])}


@pytest.mark.parametrize("metadata", [None, {"z": "last", "\u00e9": "\u00e9", "a": '"first"'}])
def test_what_is_saved_is_loaded(tmp_path, metadata):
    path = tmp_path / "weights"
    save_tensors(path, TENSORS, metadata)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == metadata
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    files = set()
    for number in range(8):  # Safetensors orders metadata at random.
        save_tensors(tmp_path / str(number), TENSORS, metadata)
        files.add((tmp_path / str(number)).read_bytes())
    assert files == {path.read_bytes()}


def test_a_header_is_the_bytes_before_the_tensors(tmp_path):
    path = tmp_path / "weights"
    save_tensors(path, TENSORS)
    head = read_header(path)
    assert len(head) == path.stat().st_size - 6 - 4
    assert json.loads(head[8:])["a"]["shape"] == [2, 3]
    with pytest.raises(ValueError, match=f"a header of {len(head) - 8} bytes, of which 9 are"):
        read_header(path, 9)
    path.write_bytes(head[:20])
    assert read_header(path) == head[:20]
