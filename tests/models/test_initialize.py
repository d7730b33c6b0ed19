"""First weights are drawn as the published code draws them: against its own tensors, by
distribution, and by what a fresh model scores."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.config import REPEATS, Backbone, Config, ConfigError, Data, Model, Stage
from memjax.interop.reference import forward
from memjax.interop.reference.spec import STAGE, to_config
from memjax.interop.reference.weights import export_state_dict
from memjax.models import FAMILIES, build, example
from memjax.models.initialize import reference_init

UNIFORM = math.sqrt(3)
"""Largest entry of a uniform distribution around 0, in standard deviations."""


def shapes_of(config, stage):
    module = build(config, stage)
    return module, jax.eval_shape(
        functools.partial(module.init, jax.random.key(0)), example(module, config)
    )["params"]


def drawn_for(config, stage, quick, paths="", seed=0):
    """A module and its first weights, those whose path holds the regex `paths`."""
    module, shapes = shapes_of(config, stage)
    flat = {path: x for path, x in flatten_dict(shapes, sep="/").items() if re.search(paths, path)}
    shapes = unflatten_dict(flat, sep="/")

    def draw(key):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return reference_init(zeros, config, stage, key)

    return module, quick(draw)(jax.random.key(seed))


# Against published tensors


def entries(name, tensor):
    """What is compared: of mixing weights the triangle that is used, which is all a file has."""
    return (
        tensor[np.tril(np.ones(tensor.shape[:2], bool))]
        if ".conv" in name and tensor.ndim == 3
        else tensor.ravel()
    )


PUBLISHED = [
    "llama_lm.a",
    "memory_transformer_bottleneck.a",
    "memory_mixer_heads_bottleneck.a",
    "autoencoder_mixer_repeat_k8.a",
    "autoencoder_transformer_repeat.a",
    "autoencoder_transformer_unroll.a",
    "oracle_mixer_embedding.a",
    "oracle_transformer_token.a",
    "recurrent_memory_mixer.a",
]


@pytest.mark.quick_cases("autoencoder_mixer_repeat_k8.a")
@pytest.mark.parametrize("name", PUBLISHED)
def test_matrices_are_distributed_as_in_published_state_dicts(name, golden, quick):
    """Norms and biases were moved in these files, matrices are as they were drawn."""
    case = golden(name)
    config = to_config(case.spec)
    _, params = drawn_for(config, config.stages[STAGE], quick)
    for tensor_name, tensor in export_state_dict({"params": params}, case.spec).items():
        if tensor.ndim == 1:
            continue
        ours, theirs = entries(tensor_name, tensor), entries(tensor_name, case.tensors[tensor_name])
        assert ours.std() == pytest.approx(theirs.std(), rel=5 / math.sqrt(theirs.size)), (
            tensor_name
        )
        if theirs.size >= 400:
            # A normal sample of this size has an entry beyond, but for one time in 10^10.
            uniform, uniform_there = (
                np.abs(x).max() < 1.1 * UNIFORM * x.std() for x in (ours, theirs)
            )
            assert uniform == uniform_there, tensor_name


# By distribution

WIDE = Config(
    data=Data(corpus="", vocab_size=500, sequence_length=64),
    model=Model(
        chunk_length=16,
        bottleneck=12,
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
        encoder=Backbone(
            kind="mixer",
            width=64,
            layers=2,
            heads=4,
            channel_kernel=2,
            mlp="gelu",
            norm="layer",
            final_norm=True,
        ),
        decoder=Backbone(width=96, layers=2, heads=4),
    ),
)
MEMORY = Stage(family="memory_model")


def uniform(fan_in):
    return ("uniform", 1 / math.sqrt(fan_in))


NORMAL, SMALL = ("normal", 1.0), ("normal", 0.02)
EXPECTED = {
    "backbone/blocks/mix/key/kernel": SMALL,
    "backbone/blocks/mix/out/kernel": SMALL,
    "backbone/blocks/mix/query/kernel": SMALL,
    "backbone/blocks/mix/value/kernel": SMALL,
    "backbone/blocks/mix_norm/scale": ("constant", 1.0),
    "backbone/blocks/mlp/down/kernel": SMALL,
    "backbone/blocks/mlp/gate/kernel": SMALL,
    "backbone/blocks/mlp/up/kernel": SMALL,
    "backbone/blocks/mlp_norm/scale": ("constant", 1.0),
    "backbone/norm/scale": ("constant", 1.0),
    "bridge/bias": uniform(64),
    "bridge/kernel": uniform(64),
    "embed/embedding": NORMAL,
    "encoder/backbone/blocks/mix/in/bias": uniform(64),
    "encoder/backbone/blocks/mix/in/kernel": uniform(64),
    "encoder/backbone/blocks/mix/mixing": uniform(16 * 2),
    "encoder/backbone/blocks/mix/mixing_bias": uniform(16 * 2),
    "encoder/backbone/blocks/mix/out/bias": uniform(64),
    "encoder/backbone/blocks/mix/out/kernel": uniform(64),
    "encoder/backbone/blocks/mix_norm/bias": ("constant", 0.0),
    "encoder/backbone/blocks/mix_norm/scale": ("constant", 1.0),
    "encoder/backbone/blocks/mlp/down/bias": uniform(256),
    "encoder/backbone/blocks/mlp/down/kernel": uniform(256),
    "encoder/backbone/blocks/mlp/up/bias": uniform(64),
    "encoder/backbone/blocks/mlp/up/kernel": uniform(64),
    "encoder/backbone/blocks/mlp_norm/bias": ("constant", 0.0),
    "encoder/backbone/blocks/mlp_norm/scale": ("constant", 1.0),
    "encoder/backbone/norm/bias": ("constant", 0.0),
    "encoder/backbone/norm/scale": ("constant", 1.0),
    "encoder/down/bias": uniform(64),
    "encoder/down/kernel": uniform(64),
    "encoder/embed/embedding": NORMAL,
    "encoder/up/bias": uniform(12),
    "encoder/up/kernel": uniform(12),
    "head/kernel": uniform(96),
}


def agrees(x, kind, scale):
    """Whether a sample is of this distribution, within five standard errors; uniform ones never
    leave their bounds."""
    x = np.asarray(x, np.float64).ravel()
    if kind == "constant":
        return bool(np.all(x == scale))
    bound, std = (scale, scale / UNIFORM) if kind == "uniform" else (6 * scale, scale)
    near = abs(x.mean()) < 5 * std / math.sqrt(x.size) and abs(x.std() / std - 1) < 5 / math.sqrt(
        2 * x.size
    )
    filled = kind == "normal" or np.abs(x).max() > bound * (1 - 14 / x.size)
    return bool(near and filled and np.abs(x).max() <= bound)


@pytest.fixture(scope="module")
def wide(quick):
    return flatten_dict(drawn_for(WIDE, MEMORY, quick)[1], sep="/")


@pytest.mark.slow
def test_every_parameter_of_a_memory_model_has_its_distribution(wide):
    assert wide.keys() == EXPECTED.keys()
    wrong = [
        path for path, (kind, scale) in EXPECTED.items() if not agrees(wide[path], kind, scale)
    ]
    assert not wrong


def test_every_parameter_has_its_own_numbers(wide):
    drawn = {path: x.ravel()[:4] for path, x in wide.items() if EXPECTED[path][0] != "constant"}
    unit = {path: x / np.abs(x).max() for path, x in drawn.items()}
    for path, x in unit.items():
        assert [other for other, y in unit.items() if np.array_equal(x, y)] == [path]
    # And every layer.
    mixing = wide["encoder/backbone/blocks/mix/mixing"]
    assert not np.any(mixing[0] == mixing[1])


def test_numbers_depend_on_the_key_and_on_nothing_else_of_the_model(quick, wide):
    _, shapes = shapes_of(WIDE, MEMORY)
    deeper = dataclasses.replace(
        WIDE.model, decoder=dataclasses.replace(WIDE.model.decoder, layers=1)
    )
    draw = quick(
        lambda key: reference_init(
            {"head": shapes["head"]}, dataclasses.replace(WIDE, model=deeper), MEMORY, key
        )
    )
    assert np.array_equal(draw(jax.random.key(0))["head"]["kernel"], wide["head/kernel"])
    assert not np.any(draw(jax.random.key(1))["head"]["kernel"] == wide["head/kernel"])


def stage_of(family):
    return Stage(family=family)


LLAMA = {
    "causal_lm": {"embed/embedding": 0.02, "head/kernel": 0.02},
    "oracle": {"encoder/embed/embedding": 0.02, "embed/embedding": 1.0},
    "autoencoder": {"encoder/embed/embedding": 0.02},
    "memory_model": {"encoder/embed/embedding": 1.0, "embed/embedding": 1.0},
    "recurrent_memory": {"embed/embedding": 1.0},
}


@pytest.mark.quick_cases("causal_lm", "memory_model")
@pytest.mark.parametrize("family", LLAMA)
def test_the_token_table_of_a_whole_llama_is_small_and_all_others_are_not(family, quick):
    transformer = Backbone(width=32, layers=1, heads=4)
    model = dataclasses.replace(
        WIDE.model, encoder=transformer, decoder=transformer, reconstructor=transformer
    )
    config = dataclasses.replace(WIDE, model=model)
    flat = flatten_dict(drawn_for(config, stage_of(family), quick, "embed|head")[1], sep="/")
    for path, scale in LLAMA[family].items():
        assert agrees(flat[path], "normal", scale), path
    if family != "causal_lm":
        assert agrees(flat["head/kernel"], *uniform(32))


def test_the_token_table_before_a_stack_without_its_norm_is_not_small(quick):
    transformer = Backbone(width=32, layers=1, heads=4, final_norm=False)
    model = dataclasses.replace(WIDE.model, encoder=transformer, reconstructor=transformer)
    _, params = drawn_for(
        dataclasses.replace(WIDE, model=model), stage_of("autoencoder"), quick, "embed|unroll"
    )
    assert agrees(params["encoder"]["embed"]["embedding"], "normal", 1.0)
    assert agrees(params["unroll_projection"]["bias"], *uniform(16))


def test_a_repeat_mixer_is_drawn_for_rectifiers(quick):
    backbone = Backbone(
        kind="diagonal_repeat",
        width=64,
        layers=4,
        heads=4,
        mlp="silu",
        norm="layer",
        decay_length=2.0,
    )
    config = dataclasses.replace(WIDE, model=dataclasses.replace(WIDE.model, decoder=backbone))
    _, params = drawn_for(config, stage_of("causal_lm"), quick)
    mix = params["backbone"]["blocks"]["mix"]
    scales = {"row": 64, "diagonal": 64, "in/kernel": 64, "out/kernel": 64}
    flat = flatten_dict(mix, sep="/")
    assert flat["row"].shape == (4, 4, 63)
    for path, fan_in in scales.items():
        assert agrees(flat[path], "normal", math.sqrt(2 / fan_in)), path
    assert agrees(
        params["backbone"]["blocks"]["mlp"]["down"]["kernel"], "normal", math.sqrt(2 / 256)
    )
    assert np.all(flat["decay"] == 1)
    for path in ("mixing_bias", "in/bias", "out/bias"):
        assert not np.any(flat[path]), path
    assert agrees(params["embed"]["embedding"], "normal", 1.0)


# What is known


def variants():
    small = {"width": 16, "layers": 1, "heads": 2}
    transformer = Backbone(**small, output_gate=True)
    mixer = Backbone(kind="mixer", **small, mlp="gelu", norm="layer", output_gate=True)
    model = Model(chunk_length=16, encoder=mixer, decoder=transformer, reconstructor=mixer)
    for family in FAMILIES:
        yield family, model
        yield (
            family,
            dataclasses.replace(
                model,
                readout="memory_tokens",
                memory_vectors=2,
                encoder=transformer,
                expansion="repeat",
            ),
        )
    for kind in REPEATS:
        yield (
            "causal_lm",
            dataclasses.replace(
                model, decoder=Backbone(kind=kind, **small, mlp="silu", decay_length=1.0)
            ),
        )


@pytest.mark.slow
def test_every_parameter_of_every_family_is_known():
    for family, model in variants():
        config, stage = Config(data=WIDE.data, model=model), stage_of(family)
        _, shapes = shapes_of(config, stage)
        drawn = jax.eval_shape(
            functools.partial(reference_init, config=config, stage=stage, key=jax.random.key(0)),
            shapes,
        )
        assert jax.tree.structure(drawn) == jax.tree.structure(shapes)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(drawn)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(shapes)
        ]


def test_learned_vectors_that_no_published_model_has_stay():
    given = {
        "token_position": jnp.full((16, 8), 3.0),
        "encoder": {"memory_tokens": jnp.full((2, 8), 5.0)},
    }
    drawn = reference_init(given, WIDE, MEMORY, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, drawn, given)


def test_a_parameter_of_no_known_kind_is_named():
    with pytest.raises(
        ConfigError,
        match=r"config\.model\.compat: 'reference_init' has no published.*'encoder/router/weights'",
    ):
        reference_init(
            {"encoder": {"router": {"weights": jnp.zeros(3)}}}, WIDE, MEMORY, jax.random.key(0)
        )


# What a fresh model scores

SMALLER = {"vocab": 8000, "layers": 8, "context": 32, "dim": 64}
TRANSFORMER, MIXER = SMALLER | {"heads": 4}, SMALLER | {"mixer": True}
CHUNKED = {"kind": "memory_model", "chunks": 4, "encoder_dim": 32}
FRESH = {
    # A final norm leaves states of variance 1 and so logits of variance 1/3, at any size: ln 8000 +
    # 1/6. Published: 9.16.
    "memory model, transformer": (TRANSFORMER | CHUNKED, 9.14, 9.17),
    # Without it they keep a third of the memory's variance. Published: 9.02.
    "autoencoder, transformer": (
        TRANSFORMER | {"kind": "autoencoder", "final_norm": False},
        9.0,
        9.06,
    ),
    # In mixers variance grows with depth, and at which depth the published numbers were measured is
    # not told: 9.43, 9.25, 9.68.
    "memory model, mixer": (MIXER | CHUNKED, 9.4, 9.52),
    "causal lm, mixer": (MIXER | {"kind": "causal_lm"}, 9.4, 9.52),
    "autoencoder, mixer": (MIXER | {"kind": "autoencoder"}, 9.36, 9.6),
}


@pytest.mark.quick_cases("causal lm, mixer")
@pytest.mark.parametrize(("spec", "least", "most"), FRESH.values(), ids=FRESH.keys())
def test_a_fresh_model_scores_about_what_the_published_one_does(spec, least, most, quick):
    """Cross entropy of ids that are drawn uniformly, in expectation, of 8 layers at the published
    vocabulary and an eighth of the width.

    At full width these models give 9.15, 9.07, 9.70 (16 layers), 9.69 (16 layers) and 9.43.
    """
    config = to_config(spec)
    module, params = drawn_for(config, config.stages[STAGE], quick)
    tokens = np.random.default_rng(0).integers(0, 8000, (4, config.data.sequence_length))
    logits = quick(lambda params, tokens: forward(module, {"params": params}, tokens, spec))(
        params, tokens
    )
    normaliser = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
    assert least < (normaliser - logits.mean(axis=-1)).mean() < most
