"""How many parameters a model has, of what shape and type, and that a gradient reaches all of
them."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import Autoencoder, MemoryModel, build
from memjax.objectives import SpecialIds, score

SMALL = {"layers": 2, "heads": 2, "mlp_ratio": 1}
MIXER, TRANSFORMER = (
    Backbone(kind="mixer", width=8, **SMALL),
    Backbone(width=12, output_gate=True, **SMALL),
)
GELU = {"mlp": "gelu", "norm": "layer"}
FLAT = Backbone(kind="mixer", width=8, layers=2, heads=0, channel_kernel=2, mlp_ratio=1, **GELU)
BASE = Model(chunk_length=4, encoder=MIXER, decoder=TRANSFORMER, reconstructor=MIXER)


def shapes(module, *args):
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Dead weights

PRESETS = {
    "vectors-bottleneck-variable": dataclasses.replace(
        BASE,
        encoder=Backbone(width=8, kv_heads=1, **SMALL, **GELU),
        readout="memory_tokens",
        memory_vectors=2,
        bottleneck=4,
        layout="variable",
    ),
    "mixer": dataclasses.replace(
        BASE,
        encoder=FLAT,
        decoder=Backbone(kind="mixer", width=8, output_gate=True, **SMALL),
    ),
    "autoencoder": dataclasses.replace(BASE, reconstructor=TRANSFORMER),
    "autoencoder-repeat": dataclasses.replace(
        BASE,
        encoder=FLAT,
        reconstructor=FLAT,
        expansion="repeat",
        readout="memory_tokens",
        memory_vectors=2,
        bottleneck=3,
    ),
}


@pytest.mark.quick_cases("autoencoder-repeat")
@pytest.mark.parametrize("name", PRESETS)
def test_a_gradient_reaches_every_parameter_of_every_layer(name, quick, draw):
    rows = np.random.default_rng(0).integers(6, 20, (4, 16))
    rows[:, 1] = np.arange(4)
    if name.startswith("autoencoder"):
        module, names = Autoencoder(PRESETS[name], 20), ["reconstruction"]
        variables = draw(module, rows[:, :4])
    else:
        module, names = MemoryModel(PRESETS[name], 4, 20), ["next_token", "copy"]
        variables = draw(module, rows.reshape(4, 4, 4))

    def loss(variables):
        scores = score(module, variables, jnp.asarray(rows), names, SpecialIds())
        return sum(jnp.sum(s.nats * s.weight) for s in scores.values())

    gradients = flax.traverse_util.flatten_dict(quick(jax.grad(loss))(variables)["params"], sep="/")
    for path, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), path
        # Each layer of a stack, each row of a table of positions, marks or memory tokens, each part
        # of anything else.
        by_row = "blocks/" in path or path.split("/")[-1] in (
            "token_position",
            "chunk_position",
            "task_mark",
            "memory_tokens",
        )
        parts = gradient.reshape(len(gradient), -1) if by_row else gradient.reshape(1, -1)
        assert np.all(np.any(parts != 0, axis=1)), path
    assert sum("blocks/" in path for path in gradients) > 10


def test_blocks_are_stacked_and_nothing_else_is():
    for module, args in (
        (MemoryModel(PRESETS["mixer"], 4, 20), (jnp.zeros((1, 4, 4), int),)),
        (Autoencoder(PRESETS["autoencoder"], 20), (jnp.zeros((1, 4), int),)),
    ):
        flat = flax.traverse_util.flatten_dict(shapes(module, *args), sep="/")
        stacked = {path for path in flat if "blocks/" in path}
        assert {flat[path].shape[0] for path in stacked} == {2}
        assert {path.split("/")[0] for path in stacked} <= {"encoder", "backbone"}
        assert all(flat[path].ndim == 1 for path in flat if path.endswith("backbone/norm/scale"))
        assert flat["head/kernel"].shape[-1] == 20


def test_settings_add_the_parameters_they_name():
    tokens = jnp.zeros((1, 4, 4), int)
    whole = shapes(MemoryModel(PRESETS["vectors-bottleneck-variable"], 4, 20), tokens)
    assert whole["token_position"].shape == (4, 12)
    assert whole["chunk_position"].shape == (4, 12)
    assert whole["task_mark"].shape == (2, 12)
    assert whole["bridge"]["kernel"].shape == (8, 12)
    assert whole["encoder"]["memory_tokens"].shape == (2, 8)
    assert whole["encoder"]["down"]["kernel"].shape == (8, 4)
    assert whole["encoder"]["up"]["kernel"].shape == (4, 8)
    bare = dataclasses.replace(
        BASE, decoder=MIXER, token_positions=False, chunk_positions=False, task_embedding=False
    )
    assert set(shapes(MemoryModel(bare, 4, 20), tokens)) == {"encoder", "embed", "backbone", "head"}
    assert set(shapes(MemoryModel(bare, 4, 20), tokens)["encoder"]) == {"embed", "backbone"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_logits_are_float32_whatever_is_computed_in(dtype):
    module = MemoryModel(
        dataclasses.replace(PRESETS["vectors-bottleneck-variable"], dtype=dtype), 4, 20
    )
    tokens = jnp.zeros((1, 4, 4), int)

    def everything():
        logits, variables = module.init_with_output(jax.random.key(0), tokens)
        memories = module.apply(variables, tokens, method="encode")
        return (
            variables,
            logits,
            memories,
            module.apply(variables, tokens, tokens, memories, method="score")[0],
        )

    variables, logits, memories, nats = jax.eval_shape(everything)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == nats.dtype == jnp.float32
    assert memories.dtype == jnp.dtype(dtype)


# Counts of the reference implementation

LLAMA = Backbone(width=512, layers=16)
MASKED = {"kind": "mixer", "heads": 0, "mlp": "gelu", "norm": "layer", "final_norm": False}
BARE = {"token_positions": False, "chunk_positions": False, "task_embedding": False}


def test_control_is_as_large_as_the_causal_models_of_the_reference():
    tokens = jax.ShapeDtypeStruct((1, 4, 256), jnp.int32)
    transformer = MemoryModel(Model(chunk_length=256, decoder=LLAMA, **BARE), 4, 8000, memory=False)
    assert size(shapes(transformer, tokens)) == 75_317_760
    mixer = Model(chunk_length=511, decoder=Backbone(width=512, layers=16, **MASKED), **BARE)
    tokens = jax.ShapeDtypeStruct((1, 2, 511), jnp.int32)
    assert size(shapes(MemoryModel(mixer, 2, 8000, memory=False), tokens)) == 46_022_656


@pytest.mark.parametrize(("width", "parameters"), [(256, 100_427_008), (512, 154_731_520)])
def test_memory_model_is_as_large_as_the_reference_without_its_dead_tables(width, parameters):
    """The reference carries the unused token tables of both its Llama models."""
    model = Model(
        chunk_length=256, encoder=dataclasses.replace(LLAMA, width=width), decoder=LLAMA, **BARE
    )
    tokens = jax.ShapeDtypeStruct((1, 4, 256), jnp.int32)
    assert size(shapes(MemoryModel(model, 4, 8000), tokens)) == parameters - 8000 * (width + 512)


@pytest.mark.parametrize(
    ("kernel", "heads", "parameters"),
    [(1, 0, 155_476_992), (16, 0, 218_391_552), (1, 4, 201_671_680)],
)
def test_mixer_autoencoder_is_as_large_as_the_reference(kernel, heads, parameters):
    backbone = Backbone(width=1024, layers=8, channel_kernel=kernel, **MASKED | {"heads": heads})
    module = Autoencoder(Model(chunk_length=512, encoder=backbone, reconstructor=backbone), 8000)
    assert size(shapes(module, jax.ShapeDtypeStruct((1, 512), jnp.int32))) == parameters


def test_a_model_of_a_billion_parameters_is_described_without_being_built():
    large = Backbone(width=2048, layers=18, heads=16, kv_heads=4)
    config = Config(
        data=Data(vocab_size=32768, sequence_length=4096),
        model=Model(
            chunk_length=1024,
            encoder=dataclasses.replace(large, width=1024),
            decoder=large,
            dtype="bfloat16",
        ),
    )
    module = build(config, Stage())
    assert isinstance(module, MemoryModel)
    tokens = jax.ShapeDtypeStruct((8, 4, 1024), jnp.int32)
    logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), tokens)
    assert 1.2e9 < size(variables) < 2e9
    assert logits.shape == (8, 4, 1024, 32768)
    assert variables["params"]["backbone"]["blocks"]["mlp"]["up"]["kernel"].shape == (
        18,
        2048,
        8192,
    )


def test_build_makes_what_the_stage_names():
    config = Config(data=Data(vocab_size=400, sequence_length=128), model=Model(chunk_length=32))
    memory, control = build(config, Stage()), build(config, Stage(memory=False))
    assert (memory.chunks, memory.vocab_size, memory.memory, control.memory) == (
        4,
        400,
        True,
        False,
    )
    autoencoder = build(config, Stage(family="autoencoder"))
    assert isinstance(autoencoder, Autoencoder)
    assert autoencoder.vocab_size == 400
    assert autoencoder.config == memory.config == config.model
