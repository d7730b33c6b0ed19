"""The identity of an encoder: the settings and the parameters that fix its function."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from memjax.config import Model

ENCODER_SETTINGS = ("chunk_length", "memory_vectors", "readout", "bottleneck")
"""Settings of the model that fix, with the encoder's backbone, the function of its parameters."""


def encoder_settings(model: Model) -> dict[str, Any]:
    """Return the settings, as JSON, that fix an encoder's function beside its parameters."""
    stack = dataclasses.asdict(model.encoder)
    compat = sorted({"residual_noise"}.intersection(model.compat))
    return json.loads(
        json.dumps(
            {key: getattr(model, key) for key in ENCODER_SETTINGS}
            | {"encoder": stack, "compat": compat}
        )
    )


def fingerprint(params: Mapping[str, Any]) -> str:
    """Return the sha256 over paths, shapes, dtypes and bytes of all parameters, sharded or not."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
