"""Attributions are what closed forms and one backward pass a token give, stand at their tokens, and
train what is weighed by them."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Stage
from memjax.data import RowsError, TrainBatches, open_attributions, prepare
from memjax.evaluation.instruments.attribution import (
    MEASURES,
    AttributionError,
    attribute,
    normalise,
    scored,
    write_attributions,
)
from memjax.evaluation.instruments.token_entropy import EntropyError
from memjax.inference.codec import make_codec
from memjax.inference.texts import TextsError
from memjax.models import build, example
from memjax.objectives import Batch, SpecialIds, make_request
from memjax.testing import tiny_config, write_corpus
from memjax.testing.requests import slot_table
from memjax.training.optimizer import make_optimizer
from memjax.training.step import TrainState, train_step

CONFIG = tiny_config("unused")
IDS = SpecialIds()
FAMILIES = {
    "autoencoder": (
        "autoencoder",
        "",
        {"reconstructor": dataclasses.replace(CONFIG.model.reconstructor, final_norm=False)},
    ),
    "oracle": ("oracle", "", {}),
    "memory model": ("memory_model", "copy", {"memory_vectors": 2, "readout": "memory_tokens"}),
}
OCCLUSIONS = ("occlusion_l1", "occlusion_cosine", "occlusion_loss")


def make(draw, family, ask="", compat=(), **changes):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **changes))
    module = build(config, Stage(family=family))
    return make_codec(module, IDS, ask, compat), draw(module, example(module, config))["params"]


def texts_of(system, count=3):
    tokens = (
        np.random.default_rng(0)
        .integers(IDS.first_content, 320, (count, system.length))
        .astype(np.int32)
    )
    tokens[0, -3:] = IDS.pad
    return tokens


def changed(params, change):
    """Parameters with `change(path, array)` in place of each array."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return flax.traverse_util.unflatten_dict(
        {path: change(path, x) for path, x in flat.items()}, sep="/"
    )


@pytest.fixture(scope="module")
def linear(draw):
    """An autoencoder whose logits are linear in its memory, and the map and its offset: logits [T,
    V] = tensordot(m [E], W [E, T, V]) + b.

    Its blocks are switched off, so that what is left is windows of the memory, a projection and the
    head.
    """
    family, ask, changes = FAMILIES["autoencoder"]
    system, params = make(draw, family, ask, **changes)
    params = changed(params, lambda path, x: x * 0 if path.startswith("backbone/blocks/") else x)
    projection, kernel = (
        params["unroll_projection"],
        np.asarray(params["head"]["kernel"], np.float64),
    )
    windows = np.zeros((16, system.length, 8))
    for t in range(system.length):
        for j in range(8):
            windows[(t + j) % 16, t, j] = 1
    jacobian = windows @ np.asarray(projection["kernel"], np.float64) @ kernel
    return system, params, jacobian, np.asarray(projection["bias"], np.float64) @ kernel


def softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def nats_of(z, labels):
    return -np.log(np.take_along_axis(softmax(z), labels[..., None], axis=-1)[..., 0])


def test_gradient_times_input_of_a_linear_decoder_is_its_closed_form(linear):
    system, params, jacobian, offset = linear
    tokens = texts_of(system)
    memory = np.asarray(system.encode(params, tokens), np.float64)[:, 0]
    p = softmax(np.einsum("be,etv->btv", memory, jacobian) + offset)
    p[np.arange(3)[:, None], np.arange(8), tokens] -= 1
    expected = np.abs(np.einsum("btv,etv->bte", p, jacobian) * memory[:, None]).sum(axis=-1) * (
        tokens != IDS.pad
    )
    found = attribute(system, params, tokens, "gradient")
    assert found.dtype == np.float32 and found.shape == tokens.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_occlusion_of_a_linear_decoder_is_its_closed_form(linear):
    system, params, jacobian, offset = linear
    tokens = texts_of(system)
    memory = np.asarray(system.encode(params, tokens), np.float64)[:, 0]
    z = np.einsum("be,etv->btv", memory, jacobian) + offset
    z0 = np.broadcast_to(offset, z.shape)
    cosine = (z * z0).sum(-1) / np.linalg.norm(z, axis=-1) / np.linalg.norm(z0, axis=-1)
    expected = {
        "occlusion_l1": np.abs(z - z0).sum(axis=-1),
        "occlusion_cosine": 1 - cosine,
        "occlusion_loss": np.abs(nats_of(z, tokens) - nats_of(z0, tokens)),
    }
    for measure, values in expected.items():
        found = attribute(system, params, tokens, measure)
        np.testing.assert_allclose(
            found, values * (tokens != IDS.pad), rtol=1e-4, atol=1e-4, err_msg=measure
        )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "ask", "changes"), FAMILIES.values(), ids=FAMILIES.keys())
def test_the_jacobian_is_one_backward_pass_for_each_token(draw, family, ask, changes):
    system, params = make(draw, family, ask, **changes)
    tokens = texts_of(system)
    memory = system.encode(params, tokens)

    def of_token(b, t):
        def nats(one):
            return system.score(params, one[None], tokens[b][None]).nats[0, 0, t]

        return jnp.sum(jnp.abs(jax.grad(nats)(memory[b]) * memory[b]))

    each = jax.jit(
        lambda: jax.lax.map(
            lambda b: jax.lax.map(lambda t: of_token(b, t), jnp.arange(system.length)),
            jnp.arange(3),
        )
    )
    tokens = jnp.asarray(tokens)
    expected = np.asarray(each()) * (np.asarray(tokens) != IDS.pad)
    assert (expected > 0).sum() > system.length
    np.testing.assert_allclose(
        attribute(system, params, np.asarray(tokens), "gradient"), expected, rtol=2e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_that_ignores_its_memory_owes_it_nothing(draw, family):
    kind, ask, changes = FAMILIES[family]
    system, params = make(draw, kind, ask, **changes)
    deaf = "unroll_projection/kernel" if kind == "autoencoder" else "backbone/blocks/mix/out/kernel"
    deafened = changed(params, lambda path, x: x * 0 if path == deaf else x)
    tokens = texts_of(system)
    for measure in (
        (*OCCLUSIONS, "noise", "gradient")
        if kind == "autoencoder"
        else ("occlusion_l1", "gradient")
    ):
        # Sums over the vocabulary of what rounding leaves: without memories there is no prefix.
        owed = attribute(system, deafened, tokens, measure)
        np.testing.assert_allclose(owed, 0, atol=1e-4, err_msg=measure)
        found = attribute(system, params, tokens, measure)
        assert (found[tokens != IDS.pad] > 0).mean() > 0.9, measure
        assert not found[tokens == IDS.pad].any(), measure


@pytest.mark.slow
def test_an_occluded_memory_model_is_one_without_memories(draw, quick):
    system, params = make(draw, "memory_model", "copy", **FAMILIES["memory model"][2])
    tokens = texts_of(system)
    length, module = CONFIG.model.chunk_length, system.module
    half = jnp.asarray(tokens).reshape(len(tokens), -1, length)
    row = jnp.concatenate([half, jnp.full_like(half, IDS.pad)], axis=1)
    request = make_request("copy", row, IDS)
    given = system.encode(params, tokens).reshape(*half.shape[:2], -1, system.shape[1])
    rest = (slot_table(request, module.chunks - 1), request.place, request.task)
    real = (half != IDS.pad).any(axis=-1)

    def nats(memories):
        return module.apply(
            {"params": params},
            *(request.inputs, request.labels, memories, *rest, real),
            method="score",
        )[0].reshape(tokens.shape)

    expected = quick(lambda memories: jnp.abs(nats(memories) - nats(None)))(given) * (
        tokens != IDS.pad
    )
    np.testing.assert_allclose(
        attribute(system, params, tokens, "occlusion_loss"), expected, rtol=1e-4, atol=1e-5
    )


def test_an_occluded_oracle_is_its_decoder_alone(draw, quick):
    """Rotary positions being relative, a decoder that masks out the memory's position is one that
    has none."""
    system, params = make(draw, "oracle")
    tokens = texts_of(system)
    memory = system.encode(params, tokens)
    shown = np.where(
        tokens == IDS.pad,
        IDS.pad,
        np.concatenate([np.full((3, 1), IDS.bos), tokens[:, :-1]], axis=1),
    )

    def alone(params, shown):
        return system.module.apply(
            {"params": params},
            shown,
            method=lambda m, x: m.head(m.backbone(m.embed(x), valid=x != 0)),
        )

    z, z0 = quick(lambda params: (system.logits(params, memory, tokens), alone(params, shown)))(
        params
    )
    found = attribute(system, params, tokens, "occlusion_l1")
    np.testing.assert_allclose(
        found, np.abs(z - z0).sum(axis=-1) * (tokens != IDS.pad), rtol=1e-3, atol=1e-3
    )


def test_noise_is_a_texts_own_whatever_the_batch(linear):
    system, params, jacobian, _ = linear
    tokens = texts_of(system, 5)
    found = attribute(system, params, tokens, "noise", batch=3)
    np.testing.assert_allclose(
        attribute(system, params, tokens, "noise", batch=5), found, rtol=1e-4, atol=1e-5
    )
    other = attribute(system, params, tokens, "noise", batch=3, seed=1)
    assert (other != found)[tokens != IDS.pad].all()
    # All numbers of the memory move, by at most a quarter.
    assert (found <= 0.25 * np.abs(jacobian).sum(axis=(0, 2)) + 1e-4).all()
    same = attribute(system, params, np.repeat(tokens[1:2], 3, axis=0), "noise")
    assert (same[0] != same[1]).all()


def test_where_nothing_is_inserted_values_are_moved_to_their_tokens(draw, quick):
    system, params = make(draw, "oracle", compat=("unscored_first_tokens",))
    tokens = texts_of(system)
    scores = quick(lambda tokens: system.score(params, system.encode(params, tokens), tokens))(
        tokens
    )
    weight, labels = scores.weight[:, 0], scores.labels[:, 0]
    counted = scored(system, tokens)
    assert not counted[:, 0].any()
    np.testing.assert_array_equal(counted[:, 1:], weight[:, :-1])
    found = attribute(system, params, tokens, "occlusion_loss")
    shown = tokens  # As it stands: position t says token t + 1.
    alone = quick(
        lambda params: system.module.apply(
            {"params": params},
            shown,
            method=lambda m, x: m.head(m.backbone(m.embed(x), valid=x != 0)),
        )
    )(params)
    moved = np.abs(scores.nats[:, 0] - nats_of(np.asarray(alone, np.float64), labels)) * weight
    np.testing.assert_allclose(found[:, 1:], moved[:, :-1], rtol=1e-3, atol=1e-4)
    assert not found[:, 0].any()


def test_what_is_scored_is_what_has_weight(draw, quick):
    for kind, ask, changes in FAMILIES.values():
        system, params = make(draw, kind, ask, **changes)
        tokens = texts_of(system)
        weight = quick(
            lambda tokens, s=system, p=params: s.score(p, s.encode(p, tokens), tokens).weight
        )(tokens)
        np.testing.assert_array_equal(scored(system, tokens), weight.reshape(tokens.shape) > 0)


def test_texts_are_scaled_from_their_least_to_their_largest():
    values = np.array(
        [[2.0, 4.0, 3.0, 0.0], [0.0, 7.0, 5.0, 5.0], [3.0, 3.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0]]
    )
    counted = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    expected = [[0, 1, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = normalise(values, counted)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


@pytest.mark.slow
def test_a_trained_memory_is_what_its_text_comes_from(trained_autoencoder):
    system, params, _, held_out = trained_autoencoder
    texts = held_out[:32]
    loss = attribute(system, params, texts, "occlusion_loss")
    assert loss.mean() > 1.0
    # Tokens that the decoder guesses without any memory owe it less than those it does not.
    zeros = jnp.zeros((len(texts), *system.shape))
    without = np.asarray(system.score(params, zeros, texts).nats)[:, 0]
    easy = without < np.median(without)
    assert loss[easy].mean() < 0.5 * loss[~easy].mean()
    assert attribute(system, params, texts, "gradient").min() > 0


# The file of training rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attribution")
    return prepare(
        tiny_config(write_corpus(folder / "corpus.jsonl")).data, folder / "data", lambda _: None
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalised", [True, False])
def test_a_causal_model_trains_on_the_file(draw, data, tmp_path, normalised):
    system, params = make(draw, "oracle")
    path = tmp_path / "attributions.npy"
    write_attributions(path, system, params, data.train, "noise", 20, normalised)
    assert [file.name for file in tmp_path.iterdir()] == ["attributions.npy"]
    assert len(data.train) % 5, "the last batch is not full"
    attributions = open_attributions(str(path))
    rows = np.stack([data.train[i] for i in range(len(data.train))])
    texts = rows.reshape(-1, system.length)
    expected = attribute(system, params, texts, "noise", batch=20)
    expected = normalise(expected, scored(system, texts)) if normalised else expected
    np.testing.assert_allclose(attributions, expected.reshape(rows.shape), rtol=1e-4, atol=1e-5)
    if not normalised:
        return
    stage = Stage(
        family="causal_lm", objectives={"complement_weighted": 1.0}, batch_size=4, warmup_steps=0
    )
    module = build(CONFIG, stage)
    weights = draw(module, rows[:1])["params"]
    optimizer = make_optimizer(CONFIG.optimizer, stage, weights)
    batch = Batch(**TrainBatches(data.train, 4, seed=0, attributions=attributions).batch(0))
    state = TrainState(jnp.int32(0), weights, {}, optimizer.init(weights))
    step = jax.jit(
        lambda state, batch: train_step(
            state, batch, module=module, stage=stage, optimizer=optimizer, ids=IDS
        )
    )
    _, metrics = step(state, batch)
    shown = np.concatenate([np.full((4, 1), IDS.bos), batch.tokens[:, :-1]], axis=1)
    nats = nats_of(
        np.asarray(module.apply({"params": weights}, shown), np.float64), np.asarray(batch.tokens)
    )
    assert float(metrics.loss) == pytest.approx(((1 - batch.attribution) * nats).mean(), rel=1e-4)
    _, plain = step(state, Batch(batch.tokens, jnp.zeros_like(batch.attribution)))
    assert float(metrics.loss) < 0.95 * float(plain.loss)


def test_a_file_is_there_when_it_is_whole(draw, data, tmp_path):
    class Torn:
        folder, row_tokens = data.train.folder, data.train.row_tokens

        def __len__(self):
            return len(data.train)

        def __getitem__(self, i):
            if i > 5:
                raise RowsError("row 6 cannot be read")
            return data.train[i]

    system, params = make(draw, "autoencoder")
    with pytest.raises(RowsError, match="row 6"):
        write_attributions(tmp_path / "a.npy", system, params, Torn(), "occlusion_loss", batch=8)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_named(draw, data, tmp_path):
    system, params = make(draw, "autoencoder")
    tokens = texts_of(system)
    with pytest.raises(
        AttributionError, match=r"measure: 'saliency', expected one of occlusion_l1, .*entropy"
    ):
        attribute(system, params, tokens, "saliency")
    with pytest.raises(EntropyError, match=r"family autoencoder, expected oracle"):
        attribute(system, params, tokens, "entropy")
    with pytest.raises(TextsError, match="texts of 8 tokens"):
        attribute(system, params, tokens[:, :4], "gradient")
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, chunk_length=12))
    module = build(config, Stage(family="autoencoder"))
    with pytest.raises(
        AttributionError,
        match=r"rows-32: \d+ rows of 32 tokens, expected rows of a multiple of 12",
    ):
        write_attributions(tmp_path / "a.npy", make_codec(module, IDS), {}, data.train, "gradient")
    assert not list(tmp_path.iterdir())
    assert set(MEASURES) == {*OCCLUSIONS, "noise", "gradient", "entropy"}
