"""Whose memories some are: the settings and the parameters of the encoder that wrote them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from memjax.config import Model

SETTINGS = ("chunk_length", "vectors", "readout", "bottleneck")
"""Of the model's settings those that say, with the encoder's stack, what the parameters of an encoder do."""


def encoder_settings(model: Model) -> dict[str, Any]:
    """The settings that, beside its parameters, say which function an encoder of packed rows is, as JSON has them."""
    # What was written before there were pretrained stacks does not say that it has none.
    stack = {key: value for key, value in dataclasses.asdict(model.encoder).items() if key != "pretrained" or value}
    compat = sorted({"residual_noise"}.intersection(model.compat))
    return json.loads(json.dumps({key: getattr(model, key) for key in SETTINGS} | {"encoder": stack, "compat": compat}))


def fingerprint(params: Mapping[str, Any]) -> str:
    """sha256 over paths, shapes, dtypes and bytes of all parameters, wherever they lie."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
