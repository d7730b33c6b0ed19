"""Generation on one device and on eight: test_generator_many_devices.py runs it in a process of its
own.

Prints, as JSON for each case and mesh, whether the tokens are the same, the largest difference of
logits, how often the step was compiled, and how large a part of the cache a device holds.
"""

import dataclasses
import json

import jax
import numpy as np

from memjax.config import Backbone, Mesh, Stage
from memjax.inference import Generator
from memjax.inference.programs import compiled
from memjax.models import build, example
from memjax.objectives import SpecialIds
from memjax.sharding import make_mesh, shardings
from memjax.testing import tiny_config, tiny_model

MESHES = {"ddp": Mesh(), "fsdp_tp": Mesh(data=1, fsdp=-1, tensor=2)}
REPEAT = Backbone(
    kind="combined_repeat", width=16, layers=1, heads=2, mlp_ratio=2.0, decay_length=2.0
)
CASES = {
    "memory_model": ("ddp", "fsdp_tp"),
    "memory_model from memories": ("fsdp_tp",),
    "causal_lm": ("fsdp_tp",),
    "causal_lm of repeat mixers": ("ddp", "fsdp_tp"),
    "recurrent_memory": ("ddp", "fsdp_tp"),
}
NEW = 12
PROMPTS = [np.random.default_rng(row).integers(6, 320, 2 * row) for row in range(8)]
"""Of 0 to 14 tokens, in chunks of 8."""
MEMORIES = [
    np.random.default_rng(row).normal(0, 1, (row % 4, 1, 16)).astype(np.float32) for row in range(8)
]


def run(
    generator: Generator, memories: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """(tokens, logits, share of the cache on one device)."""
    state, key, tokens, logits = (
        generator.prefill(PROMPTS, memories=memories),
        jax.random.key(0),
        [],
        [],
    )
    for _ in range(NEW):
        logits.append(np.asarray(state.logits))
        token, state = generator.step(state, key)
        tokens.append(np.asarray(token))
    cache = jax.tree.leaves(state.cache)[0]
    return np.stack(tokens), np.stack(logits), cache.addressable_shards[0].data.size / cache.size


def main() -> None:
    assert jax.device_count() == 8
    tiny, found = tiny_config("unused"), {}
    for case, layouts in CASES.items():
        family, _, how = case.partition(" ")
        config = (
            dataclasses.replace(tiny, model=tiny_model(decoder=REPEAT)) if "repeat" in how else tiny
        )
        memories = MEMORIES if "memories" in how else None
        module = build(config, Stage(family=family))
        shapes = jax.eval_shape(module.init, jax.random.key(0), example(module, config))["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda s, rng=rng: rng.normal(0, 0.4, s.shape).astype(s.dtype), shapes
        )
        one = Generator(module, jax.device_put(params, jax.devices()[0]), SpecialIds())
        tokens, logits, _ = run(one, memories)
        for name in layouts:
            layout, mesh = MESHES[name], make_mesh(MESHES[name])
            placed = jax.device_put(params, shardings(params, layout.rules, mesh))
            many = dataclasses.replace(one, params=placed, mesh=mesh)
            our_tokens, our_logits, share = run(many, memories)
            found[f"{case}, {name}"] = {
                "same": bool(np.array_equal(tokens, our_tokens)),
                "difference": float(np.max(np.abs(logits - our_logits)) / np.max(np.abs(logits))),
                "compiled": compiled(many.strategy, mesh).append.__wrapped__._cache_size(),
                "share": share,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
