"""Layers rounded one at a time: every (path, depth) is the one that is named, and a trained model's
most sensitive layer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.evaluation.instruments.quantisation import QuantisationError
from memjax.evaluation.instruments.sensitivity import sensitivity
from memjax.inference.codec import make_codec, scores_of
from memjax.inference.texts import TextsError
from memjax.layers.backbone import Block
from memjax.models import Autoencoder, MemoryModel
from memjax.objectives import SpecialIds
from memjax.testing import tiny_model

IDS, VOCABULARY, LENGTH = SpecialIds(), 40, 8
TINY = tiny_model()
DEEP = tiny_model(reconstructor=dataclasses.replace(TINY.reconstructor, layers=2))
MODULE = Autoencoder(DEEP, VOCABULARY)
SYSTEM = make_codec(MODULE, IDS)
TEXTS = np.random.default_rng(0).integers(6, VOCABULARY, (5, LENGTH)).astype(np.int32)
IN_BLOCK = ("mix/in", "mix/out", "mlp/up", "mlp/down")


@pytest.fixture(scope="module")
def params(draw):
    return draw(MODULE, jnp.zeros((1, LENGTH), jnp.int32))["params"]


@pytest.fixture(scope="module")
def outputs(params):
    return sensitivity(SYSTEM, params, TEXTS, batch=2)


def cast(x):
    return jax.lax.optimization_barrier(x.astype(jnp.float8_e4m3fn)).astype(x.dtype)


def test_every_layer_that_runs_is_named_once(params, outputs) -> None:
    blocks = [
        f"{stack}/blocks/{name}" for stack in ("encoder/backbone", "backbone") for name in IN_BLOCK
    ]
    depth = {path: 2 if path.startswith("backbone") else 1 for path in blocks}
    expected = {f"{path}[{at}]" for path in blocks for at in range(depth[path])}
    assert set(outputs.changes) == expected | {"encoder/embed", "unroll_projection"}
    values = [change.value for change in outputs.changes.values()]
    assert values == sorted(values, reverse=True)


def test_an_output_is_rounded_in_the_block_that_is_named_only(params, outputs, quick) -> None:
    """Against the decoder's blocks run one by one, without a scan, one of them with its MLP's
    output cast."""

    def nats(rounded):
        def cast_down(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            return (
                cast(y)
                if context.module.name == "down" and context.method_name == "__call__"
                else y
            )

        def run(params, tokens):
            memory = SYSTEM.encode(params, tokens)
            caught = []

            def first_input(next_fun, args, kwargs, context):
                if context.module.path == ("backbone",) and context.method_name == "__call__":
                    caught.append(args[0])
                return next_fun(*args, **kwargs)

            with nn.intercept_methods(first_input):
                MODULE.apply({"params": params}, memory, method="hidden")
            x, block = caught[0], Block(DEEP.reconstructor, LENGTH, jnp.float32)
            positions, valid = (
                jnp.tile(jnp.arange(LENGTH), (len(x), 1)),
                jnp.ones(x.shape[:2], bool),
            )
            for depth in range(2):
                weights = jax.tree.map(
                    lambda w, depth=depth: w[depth], params["backbone"]["blocks"]
                )
                with nn.intercept_methods(
                    cast_down if depth == rounded else lambda f, a, k, c: f(*a, **k)
                ):
                    x, _ = block.apply({"params": weights}, x, positions, valid)
            h = MODULE.apply({"params": params}, x, method=lambda m, x: m.backbone.norm(x))
            logits = h @ params["head"]["kernel"]
            return -jnp.take_along_axis(
                jax.nn.log_softmax(logits), tokens[..., None], axis=-1
            ).mean()

        return float(quick(run)(params, TEXTS))

    plain = nats(None)
    assert outputs.nats.value == pytest.approx(plain, rel=1e-5)
    changes = [nats(depth) - plain for depth in range(2)]
    assert abs(changes[0] - changes[1]) > 1e-3, "the blocks must differ for this to say anything"
    for depth, change in enumerate(changes):
        assert outputs.changes[f"backbone/blocks/mlp/down[{depth}]"].value == pytest.approx(
            change, abs=1e-4
        )


def test_a_weight_is_rounded_at_the_depth_that_is_named(params, quick) -> None:
    found = sensitivity(SYSTEM, params, TEXTS, batch=5, target="weight")
    flat = {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}
    score = quick(lambda params, tokens: scores_of(SYSTEM, params, tokens).nats.mean())
    plain = float(score(params, TEXTS))
    for path, depth in (
        ("backbone/blocks/mlp/up/kernel", 1),
        ("backbone/blocks/mix/mixing", 0),
        ("head/kernel", None),
    ):
        changed, where = flat[path].copy(), ... if depth is None else depth
        changed[where] = changed[where].astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        expected = float(score(unflatten_dict(flat | {path: changed}, sep="/"), TEXTS)) - plain
        assert abs(expected) > 1e-5
        name = path if depth is None else f"{path}[{depth}]"
        assert found.changes[name].value == pytest.approx(expected, abs=2e-5)
    # Five matrices a block, in three blocks; a token table, the map from memory to positions, and
    # the head.
    assert len(found.changes) == 5 * 3 + 3


def test_a_token_table_and_what_is_looked_up_in_it_are_rounded_alike(params, outputs) -> None:
    weights = sensitivity(SYSTEM, params, TEXTS, batch=5, target="weight")
    assert weights.changes["encoder/embed/embedding"].value == pytest.approx(
        outputs.changes["encoder/embed"].value, abs=1e-6
    )
    assert weights.changes["encoder/embed/embedding"].value != 0


def test_a_memory_models_layers_are_found_in_encoder_and_decoder(draw) -> None:
    module = MemoryModel(TINY, 4, VOCABULARY)
    params = draw(module, jnp.zeros((1, 4, LENGTH), jnp.int32))["params"]
    texts = np.concatenate([TEXTS, TEXTS], axis=1)
    found = sensitivity(make_codec(module, IDS, "copy"), params, texts, batch=5)
    attention = {
        f"backbone/blocks/mix/{name}[0]" for name in ("query", "key", "value", "gate", "out")
    }
    assert attention | {"embed", "encoder/embed", "encoder/backbone/blocks/mix/in[0]"} <= set(
        found.changes
    )


@pytest.mark.slow
def test_coarse_weights_hurt_a_trained_model(trained_autoencoder) -> None:
    """On the text it was trained on, where weights are at their best."""
    system, params, train, _ = trained_autoencoder
    coarse = sensitivity(system, params, train, 256, "weight", "int4_vector")
    fine = sensitivity(system, params, train, 256, target="weight", kind="bfloat16")
    first = next(iter(coarse.changes.values()))
    assert first.low > 0
    assert first.value > 10 * max(abs(change.value) for change in fine.changes.values())
    assert coarse.nats == fine.nats


def test_what_is_unknown_is_refused(params) -> None:
    with pytest.raises(QuantisationError, match=r"target: 'input', expected one of output, weight"):
        sensitivity(SYSTEM, params, TEXTS, target="input")
    with pytest.raises(QuantisationError, match="kind: 'fp8', expected"):
        sensitivity(SYSTEM, params, TEXTS, kind="fp8")
    with pytest.raises(TextsError, match="8 tokens"):
        sensitivity(SYSTEM, params, TEXTS[:, :3])
