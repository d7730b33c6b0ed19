"""The attention kernel compiled for TPUs on a machine without one: what it holds, how it is split,
and whole training steps on it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from memjax.config import Backbone, Data, Mesh, Model, Optimizer, Stage
from memjax.config.choices import READING_FEATURES
from memjax.layers.attend import LONGEST_BLOCK, WIDEST_AUTO, attend, block_length
from memjax.layers.shared_prefix import SharedPrefix, attend_shared
from memjax.objectives import Batch
from memjax.sharding import batch_sharding, make_mesh
from memjax.testing import tiny_config
from memjax.training.compiled_steps import StageSteps

FORWARD, BACKWARD = (
    "%splash_mha_fwd_segmented",
    ("%splash_mha_dq_segmented", "%splash_mha_dkv_segmented"),
)


@pytest.fixture(scope="module")
def topology():
    """Devices of a TPU topology, from libtpu's compiler; no TPU is looked for."""
    pytest.importorskip("libtpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        # Tests that run side by side each load it.
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield (
            lambda name, **options: (
                topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
            )
        )


def compile_attention(mesh, implementation, length, heads, kv_heads, width, dtype):
    """Forward and backward of one row a device, or a row for those that share one."""
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = mesh.shape["data"] * mesh.shape["fsdp"]

    def tensor(n):
        return jax.ShapeDtypeStruct((batch, length, n, width), dtype, sharding=rows)

    def loss(query, key, value, valid):
        return jnp.sum(
            attend(query, key, value, valid, True, implementation).astype(jnp.float32) ** 2
        )

    valid = jax.ShapeDtypeStruct((batch, length), bool, sharding=rows)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    with jax.set_mesh(mesh):
        return step.lower(tensor(heads), tensor(kv_heads), tensor(kv_heads), valid).compile()


def kernels(compiled):
    """The lines of a compiled program that call each kernel, by its name."""
    lines = [line.strip() for line in compiled.as_text().splitlines() if "tpu_custom_call" in line]
    return {
        name: [line for line in lines if line.startswith(name)] for name in (FORWARD, *BACKWARD)
    }


@pytest.mark.slow
def test_scores_are_never_held(topology):
    mesh = make_mesh(Mesh(), topology("v5e:2x2"))
    reference, kernel = (
        compile_attention(mesh, name, 2048, 8, 8, 128, jnp.bfloat16) for name in ("xla", "auto")
    )
    assert not any(kernels(reference).values())
    assert all(kernels(kernel).values())
    scores = 8 * 2048 * 2048 * 4
    held, needed = (
        compiled.memory_analysis().temp_size_in_bytes for compiled in (reference, kernel)
    )
    assert held >= scores
    assert needed < held / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width", "query_shape", "key_shape"),
    [
        (40, 4, 4, 16, (2, 128, 16), (2, 128, 16)),
        (515, 8, 1, 64, (4, 640, 64), (1, 640, 64)),
        (1300, 3, 1, 128, (3, 1536, 128), (1, 1536, 128)),
    ],
)
def test_each_device_has_its_heads_padded_to_whole_blocks(
    topology, length, heads, kv_heads, width, query_shape, key_shape
):
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2), topology("v5e:2x2"))
    compiled = compile_attention(mesh, "splash", length, heads, kv_heads, width, jnp.float32)
    found = kernels(compiled)
    for name, shape in zip(
        (FORWARD, *BACKWARD), (query_shape, query_shape, key_shape), strict=True
    ):
        (line,) = found[name]
        outputs = line.split("custom-call(")[0]
        assert f"f32[{','.join(map(str, shape))}]" in outputs
    assert "all-gather" not in compiled.as_text()


@pytest.mark.slow
def test_the_widest_heads_auto_takes_fit_the_smallest_chip(topology):
    mesh = make_mesh(Mesh(), topology("v4:2x2x1", chip_config_name="megacore"))
    compiled = compile_attention(mesh, "auto", 2 * LONGEST_BLOCK, 2, 2, WIDEST_AUTO, jnp.float32)
    assert all(kernels(compiled).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention", "remat"),
    [("causal_lm", "auto", "nothing_saveable"), ("memory_model", "splash", "none")],
)
def test_a_training_step_runs_on_the_kernel(topology, family, attention, remat):
    stage = Stage(family=family, batch_size=8, objectives={"next_token": 1.0}, grad_accum_steps=2)
    config = tiny_config("unused", optimizer=Optimizer(), mesh=Mesh(data=1, fsdp=2, tensor=2))
    model = dataclasses.replace(
        config.model,
        chunk_length=64,
        attention=attention,
        remat=remat,
        dtype="bfloat16",
        decoder=dataclasses.replace(config.model.decoder, layers=2, width=64),
    )
    config = dataclasses.replace(
        config, model=model, data=dataclasses.replace(config.data, sequence_length=256)
    )
    mesh = make_mesh(config.mesh, topology("v5e:2x2"))
    steps = StageSteps(dataclasses.replace(config, stages={"only": stage}), "only", mesh)
    batch = Batch(tokens=jax.ShapeDtypeStruct((8, 256), jnp.int32, sharding=batch_sharding(mesh)))
    with jax.set_mesh(mesh):
        compiled = steps.jit_train_step().lower(steps.state, batch).compile()
    # A stack has a copy of its block per layer; one that keeps nothing is a loop with one copy, and
    # runs its forward pass again before the backward pass. A prefix of memories attends by a call
    # of its own.
    calls = (2 if family == "memory_model" else 1) * (2 if remat == "none" else 1)
    counts = {name: len(lines) for name, lines in kernels(compiled).items()}
    assert counts == {FORWARD: calls + (remat != "none"), BACKWARD[0]: calls, BACKWARD[1]: calls}


def has_scores(program, length, keys):
    """Whether an array of a program, as text, has an axis of queries and one of keys."""
    shapes = re.findall(r"(?:tensor<|\[)(\d+(?:[,x]\d+)+)", program)
    axes = ({int(size) for size in re.split("[,x]", shape)} for shape in set(shapes))
    return any(length in sizes and sizes & keys for sizes in axes)


@pytest.mark.slow
def test_chunks_that_share_a_prefix_hold_neither_scores_nor_a_mask(topology):
    chunks, length = 4, 256
    stage = Stage(
        batch_size=8,
        objectives={"recall": 1.0, "next_token": 1.0},
        scored_chunks={"recall": 2, "next_token": 2},
        trainable=(("^encoder/", False), (".*", True)),
    )
    config = tiny_config(
        "unused",
        optimizer=Optimizer(),
        mesh=Mesh(data=1, fsdp=-1),
        stages={"only": stage},
        data=Data(vocab_size=64, sequence_length=chunks * length),
        model=Model(
            chunk_length=length,
            layout="text",
            chunk_positions=False,
            encoder=Backbone(kind="mixer", width=32, layers=1, heads=4),
            decoder=Backbone(
                width=64,
                layers=1,
                heads=2,
                output_gate=True,
                qk_norm=True,
                place_heads=1,
                features=READING_FEATURES,
            ),
            dtype="bfloat16",
        ),
    )
    mesh = make_mesh(config.mesh, topology("v5e:2x4"))
    batch = Batch(
        tokens=jax.ShapeDtypeStruct((8, chunks * length), jnp.int32, sharding=batch_sharding(mesh))
    )
    steps = StageSteps(config, "only", mesh)
    with jax.set_mesh(mesh):
        compiled = steps.jit_train_step().lower(steps.state, batch).compile()
    assert all(kernels(compiled).values())
    # Entries and tokens, and the same as a whole block of the kernel.
    keys = {chunks - 1 + length, block_length(chunks - 1 + length)}
    assert not has_scores(compiled.as_text(), length, keys)
    assert has_scores(scored_by_xla(chunks - 1, length), length, keys)


def scored_by_xla(entries, length):
    """The program of one chunk that reads a prefix, with scores in HBM."""
    valid = jnp.ones((1, entries + length), bool)
    reading = SharedPrefix(valid, (jnp.full((1, 1), entries),), (entries,), length, blind=True)
    tensor = jnp.ones((1, entries + length, 1, 8))
    return str(jax.make_jaxpr(lambda x: attend_shared(x, x, x, reading, "xla"))(tensor))
