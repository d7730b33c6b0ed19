"""Rounded memories: values worked out by other means, both places, and what rounding costs a
trained model."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from memjax.config import Stage
from memjax.evaluation.instruments.quantisation import (
    KINDS,
    QuantisationError,
    bits_a_number,
    places_of,
    quantisation,
    quantise,
)
from memjax.inference.codec import make_codec
from memjax.inference.texts import TextsError
from memjax.models import Autoencoder, MemoryModel, Oracle
from memjax.objectives import SpecialIds
from memjax.testing import tiny_model

IDS, VOCABULARY, LENGTH = SpecialIds(), 40, 8
MEMORY = np.random.default_rng(0).normal(0, 2, (3, 4, 16)).astype(np.float32)


def in_numpy(x: np.ndarray, kind: str) -> np.ndarray:
    """The same by ml_dtypes and float64."""
    casts = {
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
    }
    if kind in casts:
        return x.astype(casts[kind]).astype(np.float32)
    levels = {"int8": 127, "int4": 7}[kind[:4]]
    largest = (
        np.abs(x)
        .max(axis=(-2, -1) if kind.endswith("tensor") else -1, keepdims=True)
        .astype(np.float64)
    )
    return np.rint(x / largest * levels) * largest / levels


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_that_of_numpy_and_survives_compilation(kind) -> None:
    rounded = np.asarray(jax.jit(quantise, static_argnums=1)(MEMORY, kind))
    assert rounded.dtype == np.float32 and not np.array_equal(rounded, MEMORY)
    np.testing.assert_allclose(rounded, in_numpy(MEMORY, kind), rtol=1e-6)


def test_levels_by_hand() -> None:
    x = jnp.asarray([[7.0, -3.4, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(quantise(x, "int4_vector"), [[7, -3, 0, 2], [0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(
        quantise(x[::-1] + jnp.asarray([[14.0], [0.0]]), "int8_tensor")[1, 0],
        63 * 14 / 127 + 14 / 127,
    )


def test_large_numbers_stay_finite() -> None:
    x = jnp.asarray([[1e6, -1e6, 460.0, 448.0]])
    assert quantise(x, "float8_e4m3").tolist() == [[448, -448, 448, 448]]
    assert quantise(x, "float8_e5m2").tolist() == [[57344, -57344, 448, 448]]


def test_one_text_says_nothing_about_the_scale_of_another() -> None:
    large = MEMORY * np.array([1, 1, 100], np.float32)[:, None, None]
    for kind in KINDS:
        np.testing.assert_array_equal(quantise(MEMORY, kind)[:2], quantise(large, kind)[:2])


def test_bits_count_the_scales() -> None:
    assert [bits_a_number(kind, (4, 16)) for kind in KINDS] == [16, 8, 8, 8 + 32 / 64, 8 + 2, 4 + 2]
    with pytest.raises(QuantisationError, match=r"kind: 'int2', expected one of .*int4_vector"):
        bits_a_number("int2", (4, 16))


def squeezing(family, draw, compat=()):
    model = tiny_model(bottleneck=4, compat=compat)
    if family is MemoryModel:
        module, shape = MemoryModel(model, 4, VOCABULARY), (1, 4, LENGTH)
    else:
        module, shape = family(model, VOCABULARY), (1, LENGTH)
    return make_codec(module, IDS, "blank_copy" if family is MemoryModel else ""), draw(
        module, jnp.zeros(shape, jnp.int32)
    )["params"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "compat"),
    [(Autoencoder, ()), (Autoencoder, ("residual_noise",)), (MemoryModel, ())],
    ids=str,
)
def test_both_places_are_where_they_are_said_to_be(family, compat, draw, quick) -> None:
    """Against the encoder taken apart: what leaves `down`, rounded by numpy, times the weights of
    `up`."""
    system, params = squeezing(family, draw, compat)
    texts = np.random.default_rng(1).integers(6, VOCABULARY, (3, system.length)).astype(np.int32)
    kinds = ("float8_e5m2", "int4_vector", "int8_tensor")
    found = quantisation(system, params, texts, kinds, batch=2)
    assert [(x.place, x.kind) for x in found.rounded] == [
        (place, kind) for place in ("memory", "bottleneck") for kind in kinds
    ]
    memory = quick(system.encode)(params, texts)
    up = jax.tree.map(np.asarray, params["encoder"]["up"])
    chunks = texts.reshape(-1, *((1, LENGTH) if family is MemoryModel else (LENGTH,)))
    watched = {"capture_intermediates": True, "mutable": ["intermediates"]}
    _, caught = quick(
        lambda params: system.module.apply({"params": params}, chunks, method="encode", **watched)
    )(params)
    narrow = np.asarray(caught["intermediates"]["encoder"]["down"]["__call__"][0]).reshape(3, -1, 4)
    residual = memory - (narrow @ up["kernel"] + up["bias"]) if compat else 0

    score = quick(system.score)

    def nats(memory):
        return float(score(params, memory.astype(np.float32), texts).nats.mean())

    assert found.nats.value == pytest.approx(nats(memory), rel=1e-5)
    for rounded in found.rounded:
        if rounded.place == "memory":
            again = in_numpy(memory, rounded.kind)
        else:
            again = in_numpy(narrow, rounded.kind) @ up["kernel"] + up["bias"] + residual
        assert rounded.nats.value == pytest.approx(nats(again), rel=1e-4)
        assert rounded.difference.value == pytest.approx(
            rounded.nats.value - found.nats.value, abs=1e-5
        )
    numbers = narrow[0].size
    assert found.rounded[3].bits_a_text == 8 * numbers
    assert found.rounded[5].bits_a_text == 8 * numbers + 32


def test_an_oracle_that_reads_the_narrow_vector_has_one_place() -> None:
    assert places_of(
        make_codec(Oracle(tiny_model(bottleneck=4, memory_injection="embedding"), VOCABULARY), IDS)
    ) == ("memory",)
    assert places_of(make_codec(Oracle(tiny_model(bottleneck=4), VOCABULARY), IDS)) == (
        "memory",
        "bottleneck",
    )
    assert places_of(make_codec(Oracle(tiny_model(), VOCABULARY), IDS)) == ("memory",)


@pytest.mark.slow
def test_few_bits_hurt_a_narrow_memory_and_many_do_not(chain, learn) -> None:
    """Three numbers for eight tokens; the second call of two that compare models would be this one
    with other parameters."""
    texts = chain(1024, seed=1)
    wide = dataclasses.replace(tiny_model().encoder, width=32)
    module = Autoencoder(tiny_model(encoder=wide, reconstructor=wide, bottleneck=3), VOCABULARY)
    stage = Stage(
        family="autoencoder",
        objectives={"reconstruction": 1.0},
        batch_size=64,
        steps=150,
        warmup_steps=10,
        learning_rate=1e-2,
    )
    params = learn(module, stage, texts[:512])
    found = quantisation(
        make_codec(module, IDS),
        params,
        texts[512:],
        ("bfloat16", "float8_e5m2", "int4_vector"),
        512,
        places=("bottleneck",),
    )
    assert found.nats.high < math.log(34), "it has learned"
    many, few, fewest = (x.difference for x in found.rounded)
    assert abs(many.value) < 1e-3
    assert few.low > 0 and fewest.low > 0


@pytest.mark.slow
def test_the_trained_model_is_hurt_more_by_fewer_bits(trained_autoencoder) -> None:
    system, params, _, held_out = trained_autoencoder
    found = quantisation(system, params, held_out, KINDS, 32)
    cost = {x.kind: x.difference.value for x in found.rounded}
    assert abs(cost["bfloat16"]) < abs(cost["int4_vector"])
    assert abs(cost["bfloat16"]) < 1e-3
    assert all(x.accuracy.value > 0.5 for x in found.rounded)


@pytest.mark.slow
def test_what_is_not_there_is_refused(trained_autoencoder) -> None:
    system, params, _, held_out = trained_autoencoder
    with pytest.raises(QuantisationError, match="kind: 'int3', expected"):
        quantisation(system, params, held_out, ["int3"])
    with pytest.raises(QuantisationError, match="kind: 'int3', expected"):
        quantise(MEMORY, "int3")
    with pytest.raises(
        QuantisationError, match=r"place: 'bottleneck', expected one of memory in this system$"
    ):
        quantisation(system, params, held_out, places=["bottleneck"])
    with pytest.raises(QuantisationError, match="kinds: none, expected some of"):
        quantisation(system, params, held_out, [])
    with pytest.raises(TextsError, match="8 tokens"):
        quantisation(system, params, held_out[:, :4])
