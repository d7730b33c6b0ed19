"""One step of a family of models on one device and on eight, on every mesh: run by
test_many_devices.py in a process of its own.

    python many_devices.py FAMILY[:VARIANT] MESH,MESH

The variants of a memory model are `frozen`, with a frozen encoder, `reading`, with positions of
the text, and `microbatches`, with two of them.

Prints, as JSON for each of the meshes, the largest differences from one device and the collectives
of the compiled step.
"""

import collections
import dataclasses
import json
import math
import re
import sys
import warnings

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from memjax.config import FREEZING, Backbone, Config, Mesh, Optimizer, Stage
from memjax.config.choices import READING_FEATURES
from memjax.models import build, example
from memjax.objectives import Batch, SpecialIds
from memjax.performance.aot import collectives as aot
from memjax.performance.aot import hlo
from memjax.sharding import make_mesh, put_batch
from memjax.testing import tiny_config
from memjax.testing.families import FAMILY_OBJECTIVES
from memjax.training.compiled_steps import StageSteps, layouts
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import split
from memjax.training.step import TrainState

IDS = SpecialIds()
ROWS = 16
MESHES = {
    "ddp": Mesh(),
    "fsdp": Mesh(data=1, fsdp=-1),
    "fsdp_tp": Mesh(data=1, fsdp=-1, tensor=2),
    "data_fsdp": Mesh(data=2, fsdp=4),
    "data_fsdp_tp": Mesh(data=2, fsdp=2, tensor=2),
}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf"= (.*) ({KINDS})(?:-start)?\(")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")


READER = Backbone(
    width=16,
    layers=1,
    heads=4,
    mlp_ratio=2.0,
    output_gate=True,
    qk_norm=True,
    place_heads=2,
    features=READING_FEATURES,
)


def family_config(family: str, variant: str = "") -> Config:
    """All objectives that one call of the model scores; their gradients are summed over devices
    once.

    Adam's epsilon is so large that an update is proportional to its gradient.
    """
    config = tiny_config("unused", optimizer=Optimizer(epsilon=1e3, clip_norm=0.0))
    names, drawn = [x for x in FAMILY_OBJECTIVES[family] if not x.endswith("recall")], {}
    if family in ("retriever", "ranker"):
        drawn = {"dials": {"query_tokens": 3}}
    if variant == "reading":
        names = ["recall", "blank_recall", "next_token"]
        drawn = {"scored_chunks": {"recall": 2}, "dials": {"place_range": 64}}
        text = {"layout": "text", "chunk_positions": False, "decoder": READER}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **text))
    stage = Stage(
        family=family,
        objectives=dict.fromkeys(names if family == "memory_model" else names[:1], 1.0),
        batch_size=ROWS,
        steps=4,
        warmup_steps=0,
        learning_rate=100.0,
        trainable=FREEZING["frozen_all"] if variant == "frozen" else ((".*", True),),
        grad_accum_steps=2 if family == "autoencoder" or variant == "microbatches" else 1,
        **drawn,
    )
    return dataclasses.replace(config, stages={"only": stage}, curriculum=("only",), controls=())


def batch_of(config: Config) -> dict[str, np.ndarray]:
    """Rows of unequal true length, so that a mean of means is not the mean."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, config.data.vocab_size, (ROWS, config.data.sequence_length)).astype(
        np.int32
    )
    if config.stages["only"].family not in ("retriever", "ranker"):
        for row, real in enumerate(np.linspace(8, config.data.sequence_length, ROWS).astype(int)):
            tokens[row, real:] = IDS.pad
    return {"tokens": tokens, "attribution": rng.random(tokens.shape, np.float32)}


def drawn(config: Config) -> dict:
    """Parameters that a stage starts from, the same for every mesh."""
    module = build(config, config.stages["only"])
    init = jax.jit(lambda key: module.init(key, example(module, config))["params"])
    return jax.device_get(init(jax.random.key(0)))


def run(
    config: Config, params: dict, devices: list, optimizer_steps: int = 2
) -> tuple[list, dict, str]:
    """(metrics of every step, parameters after the last, the text of the compiled step)."""
    mesh = make_mesh(config.mesh, devices)
    steps = StageSteps(config, "only", mesh, IDS)
    wanted = steps.state
    trainable, frozen = split(params, steps.stage.trainable, "trainable")
    moments = jax.device_get(jax.jit(steps.optimizer.init)(trainable))
    with jax.set_mesh(mesh):
        state = jax.device_put(TrainState(np.int32(0), trainable, frozen, moments), layouts(wanted))
        batch = Batch(**put_batch(batch_of(config), mesh))
        step = steps.jit_train_step().lower(state, batch).compile()
        metrics = []
        for _ in range(optimizer_steps):
            state, found = step(state, batch)
            metrics.append(jax.device_get(found))
    return metrics, flatten_dict(jax.device_get(state.params), sep="/"), step.as_text()


def collectives(text: str) -> dict[str, list[int]]:
    """Of every kind of collective in a compiled program, the numbers that each one gives back."""
    found = collections.defaultdict(list)
    for match in map(COLLECTIVE.search, text.splitlines()):
        if match:
            shapes = (dims.split(",") for dims in SHAPE.findall(match[1]))
            found[match[2]].append(sum(math.prod(map(int, filter(None, dims))) for dims in shapes))
    return dict(found)


def trainable_size(config: Config) -> int:
    """Parameters that move."""
    stage = config.stages["only"]
    trainable, _ = split(
        abstract_params(build(config, stage), config), stage.trainable, "trainable"
    )
    return sum(leaf.size for leaf in jax.tree.leaves(trainable))


def largest(ours: object, theirs: object) -> float:
    """Largest difference between two trees, each leaf's over the largest entry of that leaf."""
    relative = jax.tree.map(
        lambda a, b: float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-6)), ours, theirs
    )
    return max(jax.tree.leaves(relative))


def main() -> None:
    family, _, variant = sys.argv[1].partition(":")
    config = family_config(family, variant)
    assert jax.device_count() == 8
    params = drawn(config)
    one_metrics, one_params, none = run(config, params, jax.devices()[:1])
    assert not collectives(none), none
    found, trainable = {}, trainable_size(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in sys.argv[2].split(","):
            there = dataclasses.replace(config, mesh=MESHES[name])
            metrics, after, text = run(there, params, jax.devices())
            found[name] = {
                "metrics": largest(metrics, one_metrics),
                "parameters": largest(after, one_params),
                "collectives": collectives(text),
                "runs": [
                    (one.kind, one.bytes, one.group, one.times)
                    for one in aot.collectives(hlo.parse(text))
                ],
                "trainable": trainable,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
