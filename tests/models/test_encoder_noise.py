"""Noise on what an encoder returns: where it enters, how it is distributed, and when there is
none."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models import Encoder, Oracle
from memjax.objectives import SpecialIds, score, total

LENGTH, VOCABULARY, Q = 4, 24, 0.25
PLAIN = Model(
    chunk_length=LENGTH, encoder=Backbone(width=8, layers=1, heads=2, mlp_ratio=1), noise=Q
)
MODELS = {
    "memory": PLAIN,
    "bottleneck": dataclasses.replace(PLAIN, bottleneck=3),
    "vectors": dataclasses.replace(PLAIN, readout="memory_tokens", memory_vectors=2),
}
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (400, LENGTH))
KEYS = jax.random.key(1), jax.random.key(2)


def quirk(model, *compat):
    return dataclasses.replace(model, compat=compat)


@functools.cache
def compiled(model, expand, quick):
    encoder = Encoder(model, VOCABULARY, expand)
    return quick(
        lambda variables, key: (
            encoder.apply(variables, TOKENS),
            encoder.apply(variables, TOKENS, rngs={"noise": key}),
        )
    )


def runs(model, variables, quick, expand=True):
    """Memories without noise, and with that of a key."""
    return functools.partial(compiled(model, expand, quick), variables)


@pytest.fixture
def noise_of(quick, draw):
    """The noise that a model adds, as it enters."""

    def noise(model, key=KEYS[0], expand=True):
        variables = draw(Encoder(model, VOCABULARY, expand), TOKENS)
        clean, noisy = runs(model, variables, quick, expand)(key)
        difference = noisy - clean
        if model.bottleneck and expand:
            # Down has more columns than up has rows: what entered is told from what left.
            up = np.asarray(variables["params"]["up"]["kernel"])
            entered = difference @ np.linalg.pinv(up)
            np.testing.assert_allclose(entered @ up, difference, atol=1e-5)
            return entered
        return difference

    return noise


@pytest.mark.parametrize("name", MODELS)
def test_noise_is_uniform_and_centred(name, noise_of):
    noise = noise_of(MODELS[name])
    assert (
        noise.shape
        == {"memory": (400, 1, 8), "bottleneck": (400, 1, 3), "vectors": (400, 2, 8)}[name]
    )
    assert -Q - 1e-5 <= noise.min() < -0.98 * Q
    assert 0.98 * Q < noise.max() < Q + 1e-5
    # Four standard errors of the mean and of the share in the inner half.
    assert abs(noise.mean()) < 4 * Q / np.sqrt(3 * noise.size)
    assert abs((np.abs(noise) < Q / 2).mean() - 0.5) < 4 * 0.5 / np.sqrt(noise.size)


@pytest.mark.parametrize("name", MODELS)
def test_every_element_has_its_own_noise(name, noise_of):
    noise = noise_of(MODELS[name]).reshape(400, -1)
    correlation = np.corrcoef(noise, rowvar=False)
    assert np.all(np.abs(correlation[~np.eye(len(correlation), dtype=bool)]) < 0.25)
    assert len(np.unique(noise.round(6), axis=0)) == 400


@pytest.mark.quick_cases("memory")
@pytest.mark.parametrize("name", ["memory", "bottleneck"])
def test_one_sided_noise_is_the_same_noise_half_its_range_higher(name, noise_of):
    one_sided, centred = noise_of(quirk(MODELS[name], "one_sided_noise")), noise_of(MODELS[name])
    assert -1e-5 <= one_sided.min() < 0.04 * Q
    assert 1.96 * Q < one_sided.max() < 2 * Q + 1e-5
    np.testing.assert_allclose(one_sided - Q, centred, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_noise_is_a_function_of_the_key(name, quick, draw):
    variables = draw(Encoder(MODELS[name], VOCABULARY), TOKENS)
    run = runs(MODELS[name], variables, quick)
    (clean, first), (_, again), (_, other) = run(KEYS[0]), run(KEYS[0]), run(KEYS[1])
    assert np.array_equal(first, again)
    assert np.all(np.any(first != other, axis=-1))
    assert np.all(np.any(first != clean, axis=-1))


@pytest.mark.parametrize("name", MODELS)
def test_there_is_no_noise_without_a_key_or_without_a_range(name, quick, draw):
    noisy = Encoder(MODELS[name], VOCABULARY)
    quiet = Encoder(dataclasses.replace(MODELS[name], noise=0.0), VOCABULARY)
    variables = draw(noisy, TOKENS)

    @quick
    def memories(key):
        plain = quiet.apply(variables, TOKENS)
        return (
            plain,
            noisy.apply(variables, TOKENS),
            quiet.apply(variables, TOKENS, rngs={"noise": key}),
        )

    plain, without_key, without_range = memories(KEYS[0])
    assert np.array_equal(plain, without_key)
    assert np.array_equal(plain, without_range)


def test_a_memory_that_is_not_expanded_leaves_the_bottleneck_with_its_noise(noise_of, quick, draw):
    model = MODELS["bottleneck"]
    narrow, wide = Encoder(model, VOCABULARY, expand=False), Encoder(model, VOCABULARY)
    variables = draw(wide, TOKENS)
    shapes = jax.eval_shape(narrow.init, jax.random.key(0), TOKENS)["params"]
    assert set(variables["params"]) - set(shapes) == {"up"}
    up = variables["params"]["up"]
    without = {"params": {name: variables["params"][name] for name in shapes}}

    @quick
    def both():
        return narrow.apply(without, TOKENS) @ up["kernel"] + up["bias"], wide.apply(
            variables, TOKENS
        )

    np.testing.assert_allclose(*both(), atol=1e-5)
    noise = noise_of(model, expand=False)
    assert noise.shape == (400, 1, 3)
    assert -Q - 1e-5 <= noise.min() < -0.98 * Q and 0.98 * Q < noise.max() < Q + 1e-5
    assert jax.tree.map(
        jnp.shape, draw(Encoder(PLAIN, VOCABULARY, expand=False), TOKENS)
    ) == jax.tree.map(jnp.shape, draw(Encoder(PLAIN, VOCABULARY), TOKENS))


def test_residual_noise_enters_before_the_bottleneck_and_the_clean_memory_is_added(quick, draw):
    model = quirk(MODELS["bottleneck"], "residual_noise")
    variables = draw(Encoder(model, VOCABULARY), TOKENS)
    params = jax.device_get(variables["params"])
    memory = quick(lambda: Encoder(PLAIN, VOCABULARY).apply(variables, TOKENS))()
    clean, noisy = runs(model, variables, quick)(KEYS[0])
    squeezed = (memory @ params["down"]["kernel"] + params["down"]["bias"]) @ params["up"][
        "kernel"
    ] + params["up"]["bias"]
    np.testing.assert_allclose(clean, memory + squeezed, atol=1e-4)
    # That of the memory itself, for the same key: it is as wide as the memory and passes both maps.
    _, disturbed = runs(PLAIN, {"params": {k: params[k] for k in ("embed", "backbone")}}, quick)(
        KEYS[0]
    )
    noise = disturbed - memory
    assert np.abs(noise).max() > 0.9 * Q
    np.testing.assert_allclose(
        noisy - clean, noise @ params["down"]["kernel"] @ params["up"]["kernel"], atol=1e-4
    )


@pytest.mark.parametrize(
    ("model", "expand"),
    [(PLAIN, True), (MODELS["bottleneck"], False)],
    ids=["none", "not-expanded"],
)
def test_residual_noise_without_a_way_back_is_refused(model, expand):
    with pytest.raises(ValueError, match=r"'residual_noise' .* needs config\.model\.bottleneck"):
        jax.eval_shape(
            Encoder(quirk(model, "residual_noise"), VOCABULARY, expand).init,
            jax.random.key(0),
            TOKENS,
        )


@pytest.mark.parametrize("name", MODELS)
def test_noise_changes_no_type_and_no_parameter(name):
    model = dataclasses.replace(MODELS[name], dtype="bfloat16")
    quiet = Encoder(dataclasses.replace(model, noise=0.0), VOCABULARY)
    rngs = {"params": KEYS[0], "noise": KEYS[1]}
    memory, variables = jax.eval_shape(
        lambda: Encoder(model, VOCABULARY).init_with_output(rngs, TOKENS)
    )
    assert memory.dtype == jnp.bfloat16
    expected = jax.eval_shape(quiet.init, jax.random.key(0), TOKENS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )


def test_noise_is_constant_to_the_gradient(quick, draw):
    """d noisy / d memory is the identity: the gradient is that without noise wherever what follows
    is linear."""
    encoder = Encoder(MODELS["bottleneck"], VOCABULARY)
    variables = draw(encoder, TOKENS[:4])

    def loss(variables, rngs):
        return jnp.sum(encoder.apply(variables, TOKENS[:4], rngs=rngs)[..., 0])

    clean, noisy = quick(
        lambda v, key: (jax.grad(loss)(v, None), jax.grad(loss)(v, {"noise": key}))
    )(variables, KEYS[0])
    for part in ("embed", "backbone", "down"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            clean["params"][part],
            noisy["params"][part],
        )
    # Up reads what is noisy.
    assert np.any(clean["params"]["up"]["kernel"] != noisy["params"]["up"]["kernel"])


def test_noise_is_on_in_training_and_off_in_evaluation(quick, draw):
    quiet = Oracle(dataclasses.replace(PLAIN, noise=0.0, decoder=PLAIN.encoder), VOCABULARY)
    noisy = Oracle(dataclasses.replace(quiet.config, noise=Q), VOCABULARY)
    variables = draw(quiet, TOKENS)

    def loss(module, key=None):
        return total(
            score(module, variables, TOKENS[:4], ["next_token"], SpecialIds(), key=key)[
                "next_token"
            ]
        ).nats

    losses = quick(lambda key: (loss(quiet), loss(noisy), loss(noisy, key)))
    first, again, second = (losses(key) for key in (KEYS[0], *KEYS))
    assert first == again
    assert first[0] == first[1] == second[0]
    assert len({float(first[1]), float(first[2]), float(second[2])}) == 3


# Padding, where it is read like text


@pytest.mark.parametrize("readout", ["last", "second_to_last", "memory_tokens"])
def test_encoder_takes_padding_for_text_where_asked(readout, quick, draw):
    model = dataclasses.replace(PLAIN, readout=readout)
    encoder, published = (
        Encoder(model, VOCABULARY),
        Encoder(quirk(model, "attended_padding"), VOCABULARY),
    )
    variables = draw(encoder, TOKENS)
    valid = np.broadcast_to(np.array([False, True, True, False]), TOKENS.shape)
    run = quick(
        lambda valid: (
            encoder.apply(variables, TOKENS, valid),
            published.apply(variables, TOKENS, valid),
        )
    )
    (masked, attended), (unpadded, same) = run(valid), run(np.ones_like(valid))
    assert np.array_equal(attended, same)
    np.testing.assert_allclose(attended, unpadded, atol=1e-6)
    assert (np.abs(attended - masked).max(-1) > 1e-3).mean() > 0.9
