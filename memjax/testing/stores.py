"""A small store of memories, and files like that of a store whatever they hold.

Shapes: N chunk, K = 2 vectors, E = 4.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import EncoderProvenance, StoredDocument
from memjax.models.memory import bank

ENCODER = EncoderProvenance(
    "autoencoder",
    "ae",
    7,
    {"encoder": {"width": 4, "mlp_ratio": 2.0}, "compat": []},
    "ab" * 32,
    "0" * 16,
    300,
    8,
    {"vectors": (2, 4)},
)
FIRST, SECOND = StoredDocument("a.txt#0", 20, 40, 5), StoredDocument("naïve 日本.txt", 8, 16)
SPANS = np.array([[0, 8, 5, 20], [8, 8, 20, 33], [16, 4, 33, 45]])


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Return random vectors of `count` chunks, [N, K, E]."""
    return np.random.default_rng(seed).normal(0, 2, (count, 2, 4)).astype(np.float32)


def filled(dtype: str = "float32") -> MemoryStore:
    """Return a store of three chunks of one document and one of another."""
    store = MemoryStore(ENCODER, dtype)
    store.append(FIRST, bank(vectors(3)), SPANS)
    store.append(SECOND, bank(vectors(1, seed=1)), np.array([[0, 8, 0, 16]]))
    return store


def contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the metadata of a store's file and its tensors."""
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["memjax"]), load_file(path)


def seal(path: Path, metadata: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file whose checksum is right, with any metadata: a string, or what JSON takes."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(whole.items()):
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode() + tensor.tobytes())
    save_file(whole, path, {"memjax": text, "sha256": digest.hexdigest()})
