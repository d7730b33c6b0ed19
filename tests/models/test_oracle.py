"""Oracle: what its decoder is given in each combination, and that the future reaches it through the
memory only."""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.layers import Backbone as BackboneModule
from memjax.layers import Embed
from memjax.models import Encoder, Oracle
from memjax.objectives import Batch, SpecialIds, score, total
from memjax.testing.families import weights_of

IDS = SpecialIds()
LENGTH, VOCABULARY = 4, 24
SMALL = {"layers": 2, "heads": 2, "mlp_ratio": 1}
KINDS = {
    "mixer": {
        "kind": "mixer",
        "channel_kernel": 2,
        "mlp": "gelu",
        "norm": "layer",
        "final_norm": False,
    },
    "transformer": {"kind": "transformer"},
}


def make(combine, encoder, decoder, width=8, **settings):
    return Model(
        chunk_length=LENGTH,
        memory_injection=combine,
        encoder=Backbone(width=8, **SMALL, **KINDS[encoder]),
        decoder=Backbone(width=width, **SMALL, **KINDS[decoder]),
        **settings,
    )


TWO = {"readout": "memory_tokens", "memory_vectors": 2}
MODELS = {
    "token": make("token", "mixer", "mixer", bottleneck=3),
    "token-bridge-vectors": make("token", "mixer", "transformer", width=12, **TWO),
    "embedding": make("embedding", "transformer", "transformer", width=12),
    "embedding-bottleneck-vectors": make("embedding", "transformer", "mixer", bottleneck=3, **TWO),
    "add": make("add", "transformer", "mixer"),
    "add-bottleneck-vectors": make("add", "mixer", "transformer", width=12, bottleneck=3, **TWO),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (3, LENGTH))
SHOWN = RNG.integers(6, VOCABULARY, (3, LENGTH))
ALL = np.ones(TOKENS.shape, bool)


QUICK = ("token-bridge-vectors", "embedding", "add-bottleneck-vectors")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS
    ],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, draw):
    module = Oracle(MODELS[name], VOCABULARY)
    return module, draw(module, TOKENS)


# Parameters and shapes


def tree(model):
    variables = jax.eval_shape(
        Oracle(model, VOCABULARY).init, jax.random.key(0), jnp.asarray(TOKENS)
    )
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


@pytest.mark.quick_cases("token-mixer-mixer", "add-mixer-transformer")
@pytest.mark.parametrize("decoder", KINDS)
@pytest.mark.parametrize("encoder", KINDS)
@pytest.mark.parametrize("combine", ["token", "embedding", "add"])
def test_a_combination_has_the_parameters_it_reads_and_no_other(combine, encoder, decoder):
    bottleneck = 3 if encoder == "mixer" else 0
    model = make(combine, encoder, decoder, width=12, bottleneck=bottleneck)
    found = tree(model)
    parts = {"encoder", "embed", "backbone", "head"} | (
        {"bridge"} if combine != "embedding" else set()
    )
    assert {path.split("/")[0] for path in found} == parts
    squeeze = {"down", "up"} if combine != "embedding" else {"down"}
    inside = {path.split("/")[1] for path in found if path.startswith("encoder/")}
    assert inside == {"embed", "backbone"} | (squeeze if bottleneck else set())
    beside = {(True, 0): 8, (True, 3): 3}.get((combine == "embedding", bottleneck), 0)
    assert found["embed/embedding"] == (VOCABULARY, 12 - beside)
    assert found["head/kernel"] == (12, VOCABULARY)
    if combine != "embedding":
        assert found["bridge/kernel"] == (8, 12) and found["bridge/bias"] == (12,)
    if bottleneck:
        assert found["encoder/down/kernel"] == (8, 3)
    lengths = {"encoder/backbone": 4, "backbone": 5 if combine == "token" else 4}
    for path, kind in (("encoder/backbone", encoder), ("backbone", decoder)):
        mixing = found.get(f"{path}/blocks/mix/mixing")
        assert mixing == ((2, 2, 2, lengths[path], lengths[path]) if kind == "mixer" else None)


def test_memory_as_tokens_needs_no_bridge_at_equal_width_and_adding_always_has_one():
    assert not any(path.startswith("bridge") for path in tree(MODELS["token"]))
    assert tree(MODELS["add"])["bridge/kernel"] == (8, 8)


def test_vectors_are_tokens_or_lie_side_by_side():
    assert tree(make("token", "mixer", "mixer", **TWO))["backbone/blocks/mix/mixing"] == (
        2,
        2,
        2,
        6,
        6,
    )
    assert tree(MODELS["embedding-bottleneck-vectors"])["embed/embedding"] == (
        VOCABULARY,
        8 - 2 * 3,
    )
    assert tree(make("add", "mixer", "mixer", width=12, **TWO))["bridge/kernel"] == (16, 12)


@pytest.mark.parametrize(("width", "settings"), [(8, {}), (6, {"bottleneck": 3, **TWO})], ids=str)
def test_memory_that_leaves_tokens_no_channel_is_refused(width, settings):
    with pytest.raises(
        ValueError, match=rf"config\.model\.decoder\.width={width} .* use more than {width}"
    ):
        tree(make("embedding", "mixer", "mixer", width=width, **settings))


@pytest.mark.parametrize(
    "name", ["token-bridge-vectors", "embedding-bottleneck-vectors", "add-bottleneck-vectors"]
)
def test_parameters_and_logits_are_float32_whatever_is_computed_in(name):
    module = Oracle(dataclasses.replace(MODELS[name], dtype="bfloat16"), VOCABULARY)

    def everything():
        logits, variables = module.init_with_output(jax.random.key(0), TOKENS)
        memory = module.apply(variables, TOKENS, method="encode")
        return (
            variables,
            logits,
            memory,
            module.apply(variables, TOKENS, TOKENS, memory, method="score")[0],
        )

    variables, logits, memory, nats = jax.eval_shape(everything)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == nats.dtype == jnp.float32
    assert memory.dtype == jnp.bfloat16
    assert logits.shape == (3, LENGTH, VOCABULARY)


MASKED = {"kind": "mixer", "heads": 0, "mlp": "gelu", "norm": "layer", "final_norm": False}


@pytest.mark.parametrize(
    ("combine", "length", "bottleneck", "encoder", "decoder", "parameters"),
    [
        # Its transformers carry the unused token table of the decoder, and one that puts the memory
        # beside tokens an unused map up.
        (
            "token",
            1024,
            64,
            {"width": 256, "layers": 16},
            {"width": 512, "layers": 16},
            98_412_096 - 8000 * 512,
        ),
        ("token", 1024, 0, {"width": 1024, "layers": 8}, None, 301_238_272 - 8000 * 1024),
        (
            "token",
            512,
            0,
            MASKED | {"width": 1024, "layers": 8, "channel_kernel": 8},
            None,
            192_569_416,
        ),
        (
            "embedding",
            1024,
            64,
            MASKED | {"width": 256, "layers": 16},
            MASKED | {"width": 1024, "layers": 16},
            194_330_944 - 65 * 256,
        ),
    ],
    ids=["transformer-bottleneck", "transformer", "mixer", "mixer-embedding"],
)
def test_an_oracle_is_as_large_as_that_of_the_reference_without_its_dead_weights(
    combine, length, bottleneck, encoder, decoder, parameters
):
    backbones = {"encoder": Backbone(**encoder), "decoder": Backbone(**(decoder or encoder))}
    module = Oracle(
        Model(chunk_length=length, memory_injection=combine, bottleneck=bottleneck, **backbones),
        8000,
    )
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, length), jnp.int32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


# What the decoder reads


@pytest.fixture(scope="module")
def runs(model, quick):
    module, variables = model

    @quick
    def whole(tokens, shown, labels, valid, shown_valid):
        memory = module.apply(variables, tokens, valid, method="encode")
        return {
            "memory": memory,
            "called": module.apply(variables, tokens, valid),
            "decoded": module.apply(variables, tokens, memory, valid, method="decode"),
            "shown": module.apply(variables, shown, memory, shown_valid, method="decode"),
            "all": module.apply(variables, shown, memory, shown_valid, True, method="decode"),
            "score": module.apply(variables, shown, labels, memory, shown_valid, method="score"),
        }

    return whole


@pytest.mark.quick_cases("token-bridge-vectors")
def test_call_encodes_and_decodes_the_same_tokens(runs):
    found = runs(TOKENS, SHOWN, TOKENS, ALL, ALL)
    np.testing.assert_allclose(found["called"], found["decoded"], atol=1e-5)
    assert np.abs(found["called"] - found["shown"]).max() > 1e-2


def test_logits_at_memory_positions_are_dropped_unless_asked_for(runs, name):
    found = runs(TOKENS, SHOWN, TOKENS, ALL, ALL)
    extra = {"token": 1, "token-bridge-vectors": 2}.get(name, 0)
    assert found["shown"].shape == (3, LENGTH, VOCABULARY)
    assert found["all"].shape == (3, extra + LENGTH, VOCABULARY)
    assert np.array_equal(found["all"][:, extra:], found["shown"])


def test_score_is_the_cross_entropy_of_decode(runs):
    found = runs(TOKENS, SHOWN, TOKENS, ALL, ALL)
    logits, (nats, correct) = found["shown"], found["score"]
    at_label = np.take_along_axis(logits, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, np.log(np.exp(logits).sum(-1)) - at_label, atol=2e-5)
    assert np.array_equal(correct, logits.argmax(-1) == TOKENS)


def test_embeddings_and_memory_are_combined_as_named(model, name, quick):
    """The decoder's input, written out in numpy."""
    module, variables = model
    memory = RNG.normal(
        size=jax.eval_shape(lambda: module.apply(variables, TOKENS, method="encode")).shape
    ).astype(np.float32)

    @quick
    def what_is_read(memory):
        read = []

        def spy(call, args, kwargs, context):
            if isinstance(context.module, BackboneModule) and context.method_name == "__call__":
                read.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(spy):
            module.apply(variables, SHOWN, memory, method="hidden")
        return read

    read = what_is_read(memory)
    params = jax.device_get(variables["params"])
    embedded = params["embed"]["embedding"][SHOWN]
    expected = []
    for b in range(3):
        if name.startswith("token"):
            bridged = memory[b]
            if "bridge" in name:
                bridged = bridged @ params["bridge"]["kernel"] + params["bridge"]["bias"]
            expected.append(np.concatenate([bridged, embedded[b]]))
            continue
        flat = memory[b].reshape(-1)
        if name.startswith("add"):
            expected.append(
                embedded[b] + flat @ params["bridge"]["kernel"] + params["bridge"]["bias"]
            )
        else:
            expected.append(
                np.array([np.concatenate([flat, embedded[b, t]]) for t in range(LENGTH)])
            )
    assert len(read) == 1
    np.testing.assert_allclose(read[0], expected, atol=1e-5)


@pytest.mark.quick_cases("token-bridge-vectors")
def test_future_reaches_a_position_through_the_memory_only(model, name, quick):
    """Gradients of the outputs at each position [t] by a factor on the embedding at each position
    [s], in encoder and decoder."""
    module, variables = model
    weight = jnp.asarray(RNG.normal(size=VOCABULARY))

    def outputs(encoder_gain, decoder_gain, *memory):
        def scaled(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if not isinstance(context.module, Embed) or context.method_name != "__call__":
                return y
            gain = encoder_gain if isinstance(context.module.parent, Encoder) else decoder_gain
            return y * gain[:, None]

        with nn.intercept_methods(scaled):
            logits = module.apply(
                variables, TOKENS, *memory, method="decode" if memory else "__call__"
            )
        return jnp.sum(logits[0] * weight, axis=-1)

    @quick
    def gradients(gain):
        memory = module.apply(variables, TOKENS, method="encode")
        through_encoder, through_decoder = jax.jacrev(outputs, (0, 1))(gain, gain)
        constant = jax.jacrev(lambda gain: outputs(gain, gain, memory))(gain)
        return through_encoder, through_decoder, constant

    through_encoder, through_decoder, constant = gradients(np.ones(LENGTH, np.float32))
    seen = np.tril(np.ones((LENGTH, LENGTH), bool))
    assert np.all(through_encoder != 0)
    assert np.array_equal(through_decoder != 0, seen)
    assert np.array_equal(constant != 0, seen)
    np.testing.assert_allclose(constant, through_decoder, atol=1e-5)


# Padding


@pytest.mark.parametrize("valid", [[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]], ids=str)
def test_content_of_padding_is_never_read(runs, valid):
    valid = np.broadcast_to(np.array(valid, bool), TOKENS.shape)
    before = runs(TOKENS, SHOWN, TOKENS, valid, valid)
    after = runs(np.where(valid, TOKENS, 0), np.where(valid, SHOWN, 0), TOKENS, valid, valid)
    for key in ("called", "shown"):
        assert np.array_equal(before[key][valid], after[key][valid])
    unmasked = runs(TOKENS, SHOWN, TOKENS, ALL, ALL)
    assert np.abs(before["called"][valid] - unmasked["called"][valid]).max() > 1e-3


@pytest.mark.quick_cases("token")
@pytest.mark.parametrize("combine", ["token", "embedding", "add"])
def test_padding_changes_no_logits_of_a_transformer(combine, quick, draw):
    module = Oracle(make(combine, "transformer", "transformer", width=12), VOCABULARY)
    variables = draw(module, TOKENS)
    short = TOKENS[:, :3]
    padded = np.concatenate([np.pad(short, ((0, 0), (1, 0))), np.pad(short, ((0, 0), (0, 1)))])

    @quick
    def logits(padded, short):
        return module.apply(variables, padded, padded > 0), module.apply(variables, short)

    found, expected = logits(padded, short)
    np.testing.assert_allclose(found[:3, 1:], expected, atol=2e-5)
    np.testing.assert_allclose(found[3:, :3], expected, atol=2e-5)


def test_padding_is_read_like_text_where_asked(quick, draw):
    quirk = dataclasses.replace(MODELS["token-bridge-vectors"], compat=("attended_padding",))
    module = Oracle(quirk, VOCABULARY)
    plain = Oracle(MODELS["token-bridge-vectors"], VOCABULARY)
    variables = draw(module, TOKENS)
    valid = np.broadcast_to(np.array([False, True, True, False]), TOKENS.shape)
    run = quick(
        lambda valid: (
            module.apply(variables, TOKENS, valid),
            plain.apply(variables, TOKENS, valid),
        )
    )
    (attended, masked), (_, unpadded) = run(valid), run(ALL)
    np.testing.assert_allclose(attended, unpadded, atol=1e-6)
    assert np.abs(masked - unpadded)[valid].max() > 1e-3


# Training


def loss_of(module):
    rows = jnp.concatenate([TOKENS, SHOWN], axis=1)
    return lambda variables: (
        total(score(module, variables, rows, ["next_token"], IDS)["next_token"]).nats
    )


@pytest.mark.quick_cases("embedding-3")
@pytest.mark.parametrize("bottleneck", [0, 3])
@pytest.mark.parametrize("combine", ["token", "embedding", "add"])
def test_a_gradient_reaches_every_parameter_of_every_layer(combine, bottleneck, quick, draw):
    kinds = ("mixer", "transformer") if bottleneck else ("transformer", "mixer")
    module = Oracle(make(combine, *kinds, width=12, bottleneck=bottleneck), VOCABULARY)
    variables = draw(module, TOKENS)
    gradients = flax.traverse_util.flatten_dict(
        quick(jax.grad(loss_of(module)))(variables)["params"], sep="/"
    )
    assert sum("blocks/" in path for path in gradients) > 10
    for path, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), path
        parts = gradient.reshape(len(gradient) if "blocks/" in path else 1, -1)
        assert np.all(np.any(parts != 0, axis=1)), path


@pytest.mark.slow
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(quick, draw):
    modules = [
        Oracle(dataclasses.replace(MODELS["token-bridge-vectors"], remat=remat), VOCABULARY)
        for remat in ("none", "nothing_saveable")
    ]
    variables = draw(modules[0], TOKENS)
    first, second = quick(lambda v: [jax.value_and_grad(loss_of(m))(v) for m in modules])(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), first, second)


ROW = np.array([[10, 11, 12, 13, 14, 15, 0, 0]])


def asked(module, variables, stage):
    """What one row makes the objective give the encoder and the decoder, its scores and its
    weights."""

    def run(row):
        given = {}

        def spy(call, args, kwargs, context):
            if isinstance(context.module, Oracle) and context.method_name in ("encode", "score"):
                given[context.method_name] = args
            return call(*args, **kwargs)

        with nn.intercept_methods(spy):
            scores = score(module, variables, row, ["next_token"], IDS, stage)
        return (
            given,
            scores["next_token"],
            weights_of(module, Batch(row), ["next_token"], IDS, stage)["next_token"],
        )

    return run


@pytest.mark.parametrize(
    ("compat", "inputs", "labels", "weight"),
    [
        (
            (),
            [[2, 10, 11, 12], [2, 14, 15, 0]],
            [[10, 11, 12, 13], [14, 15, 0, 0]],
            [[1, 1, 1, 1], [1, 1, 0, 0]],
        ),
        (
            ("unscored_first_tokens",),
            [[10, 11, 12, 13], [14, 15, 0, 0]],
            [[11, 12, 13, 0], [15, 0, 0, 0]],
            [[1, 1, 1, 0], [1, 0, 0, 0]],
        ),
    ],
    ids=["bos", "unscored_first_tokens"],
)
def test_a_row_of_eight_tokens_is_asked_as_two_blocks(quick, draw, compat, inputs, labels, weight):
    module = Oracle(MODELS["token"], VOCABULARY)
    variables, stage = draw(module, TOKENS), Stage(family="oracle", compat=compat)
    given, scores, counted = quick(asked(module, variables, stage))(ROW)
    tokens, valid = given["encode"]
    assert tokens.tolist() == [[10, 11, 12, 13], [14, 15, 0, 0]]
    assert valid.tolist() == [[True] * 4, [True, True, False, False]]
    shown, scored, memory, shown_valid = given["score"]
    assert shown.tolist() == inputs
    assert shown_valid.tolist() == (np.array(inputs) != 0).tolist()
    assert scored.tolist() == labels
    assert memory.shape == (2, 1, 8)
    assert scores.labels.tolist() == [labels]
    assert scores.weight.tolist() == counted.tolist() == [weight]
    assert scores.nats.shape == scores.is_argmax.shape == (1, 2, 4)
