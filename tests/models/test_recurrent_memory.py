"""Recurrent memory: a loop over chunks, what reaches what and through how many chunks, padding, and
the published form.

Outputs that must not change are compared exactly, in one compiled function run on both inputs.
"""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.layers import Backbone as BackboneModule
from memjax.models import RecurrentMemory

CHUNKS, LENGTH, VOCABULARY = 4, 4, 24
TRANSFORMER = Backbone(width=8, layers=2, heads=2, mlp_ratio=1)
MIXER = Backbone(kind="mixer", width=8, layers=2, heads=2, mlp_ratio=1)
FLAT = Backbone(
    kind="mixer",
    width=8,
    layers=2,
    heads=0,
    channel_kernel=2,
    mlp_ratio=1,
    mlp="gelu",
    norm="layer",
    final_norm=False,
)
MODELS = {
    "transformer": Model(chunk_length=LENGTH, decoder=TRANSFORMER, memory_vectors=2),
    "mixer": Model(chunk_length=LENGTH, decoder=MIXER),
    "flat": Model(chunk_length=LENGTH, decoder=FLAT, memory_vectors=2),
}
PUBLISHED = {
    "transformer": Model(
        chunk_length=LENGTH, decoder=TRANSFORMER, compat=("overwritten_write_slot",)
    ),
    "mixer": Model(chunk_length=LENGTH, decoder=FLAT, compat=("overwritten_write_slot",)),
}
# Every token of the row is another one, so that a row of the embedding is one token's.
TOKENS = np.stack(
    [np.random.default_rng(row).permutation(np.arange(1, 17)) for row in range(2)]
).reshape(2, CHUNKS, LENGTH)
VALID = np.ones(TOKENS.shape, bool)
VALID[0, 0, 0] = VALID[0, 1, 2:] = VALID[1, 2] = VALID[1, 3, 1] = False


def make(model, draw):
    module = RecurrentMemory(model, CHUNKS, VOCABULARY)
    return module, draw(module, TOKENS)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, quick, draw):
    """A module, its variables and its compiled call."""
    module, variables = make(MODELS[name], draw)
    return module, variables, quick(lambda tokens, valid: module.apply(variables, tokens, valid))


def other_tokens(chunk, position=slice(None)):
    tokens = TOKENS.copy()
    tokens[:, chunk, position] = 17 + tokens[:, chunk, position] % 7
    return tokens


def loop(module, variables, tokens, valid):
    """Logits chunk by chunk, each sequence laid out by hand."""
    params, count = variables["params"], module.config.memory_vectors
    batch, chunks, length = tokens.shape
    backbone = BackboneModule(module.config.decoder, 2 * count + length)
    state = jnp.stack([params["start"]] * batch)
    logits = []
    for c in range(chunks):
        mask, positions, sources = [], [], []
        for row in valid[:, c]:
            mask.append([True] * count + list(row) + [True] * count)
            passed, last = count - 1, count - 1
            positions.append(list(range(count)))
            sources.append([])
            for t, real in enumerate(row):
                sources[-1].append(last)
                passed, last = (passed + 1, count + t) if real else (passed, last)
                positions[-1].append(passed)
            positions[-1] += [passed + k + 1 for k in range(count)]
        sequence = jnp.concatenate(
            [state, params["embed"]["embedding"][tokens[:, c]], state], axis=1
        )
        out = backbone.apply(
            {"params": params["backbone"]}, sequence, jnp.array(positions), jnp.array(mask)
        )
        logits.append(
            jnp.stack([out[b, jnp.array(source)] for b, source in enumerate(sources)])
            @ params["head"]["kernel"]
        )
        written = [
            out[b, count + length :] if valid[b, c].any() else state[b] for b in range(batch)
        ]
        state = jnp.stack(written)
    return jnp.stack(logits, axis=1)


@pytest.mark.quick_cases("mixer")
def test_a_row_is_a_loop_over_its_chunks(model, quick):
    module, variables, call = model

    @quick
    def everything(tokens):
        loops = [loop(module, variables, tokens, valid) for valid in (np.ones_like(VALID), VALID)]
        return module.apply(variables, tokens), *loops

    unmasked, expected, expected_masked = everything(TOKENS)
    np.testing.assert_allclose(unmasked, expected, atol=1e-5)
    np.testing.assert_allclose(call(TOKENS, np.ones_like(VALID)), expected, atol=1e-5)
    np.testing.assert_allclose(call(TOKENS, VALID), expected_masked, atol=1e-5)


def test_a_token_is_seen_by_all_that_follow_and_scored_before_it_is_seen(model):
    *_, call = model
    nothing = np.ones_like(VALID)
    before = call(TOKENS, nothing)
    for c in range(CHUNKS):
        for t in range(LENGTH):
            after = call(other_tokens(c, t), nothing)
            changed = np.any(before != after, axis=-1).reshape(2, -1)
            assert np.array_equal(
                changed, np.broadcast_to(np.arange(CHUNKS * LENGTH) > c * LENGTH + t, changed.shape)
            )


def test_a_chunk_is_traced_once_for_all_chunks(model):
    module, variables, _ = model
    calls = []

    def count(call, args, kwargs, context):
        calls.append((type(context.module), context.method_name))
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(module.apply, variables, TOKENS)
    assert calls.count((BackboneModule, "__call__")) == 1


def test_score_is_the_cross_entropy_of_the_logits(model, quick):
    module, variables, call = model
    nats, correct = quick(
        lambda tokens, valid: module.apply(variables, tokens, valid, method="score")
    )(TOKENS, VALID)
    logits = call(TOKENS, VALID)
    at_label = np.take_along_axis(logits, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, np.log(np.exp(logits).sum(-1)) - at_label, atol=2e-5)
    assert np.array_equal(correct, logits.argmax(-1) == TOKENS)


def test_states_end_in_what_the_next_chunk_starts_from(model, quick):
    """Chunks 2 and 3 alone, started from what chunk 1 wrote, are chunks 2 and 3 of the row."""
    module, variables, _ = model
    count = module.config.memory_vectors

    @quick
    def whole_and_rest(tokens):
        whole = module.apply(variables, tokens, method="states")
        params = variables["params"] | {"start": whole[0, 1, -count:]}
        return whole, module.apply({"params": params}, tokens[:, 2:], method="states")

    whole, rest = whole_and_rest(TOKENS[:1])
    assert whole.shape == (1, CHUNKS, LENGTH + 2 * count, 8)
    np.testing.assert_allclose(rest, whole[:, 2:], atol=1e-5)


# Gradients between chunks


def reach(module, variables, quick, tokens):
    """Which chunk's loss [C] has a gradient by the embedding of which token [N], and by the learned
    start."""

    def losses(params):
        return module.apply({"params": params}, tokens, method="score")[0].sum(axis=(0, 2))

    gradients = quick(jax.jacrev(losses))(variables["params"])
    by_token = np.any(gradients["embed"]["embedding"][:, tokens.reshape(-1)] != 0, axis=-1)
    return by_token, np.any(gradients["start"] != 0, axis=-1), gradients


ONE_LAYER = {
    "transformer": Model(
        chunk_length=LENGTH, decoder=dataclasses.replace(TRANSFORMER, layers=1), memory_vectors=2
    ),
    "mixer": Model(chunk_length=LENGTH, decoder=dataclasses.replace(MIXER, layers=1)),
}


@pytest.mark.quick_cases("2-first2-transformer")
@pytest.mark.parametrize("kind", ONE_LAYER)
@pytest.mark.parametrize(
    ("truncate", "first"),
    [(0, [0, 0, 0, 0]), (1, [0, 1, 2, 3]), (2, [0, 0, 2, 2]), (3, [0, 0, 0, 3])],
)
def test_a_loss_reaches_back_to_the_last_cut_and_no_further(kind, truncate, first, quick, draw):
    module, variables = make(dataclasses.replace(ONE_LAYER[kind], bptt_chunks=truncate), draw)
    by_token, by_start, _ = reach(module, variables, quick, TOKENS[:1])
    token = np.arange(CHUNKS * LENGTH)
    for c in range(CHUNKS):
        # Its own last token is read by the memory alone.
        expected = (token >= first[c] * LENGTH) & (token < (c + 1) * LENGTH - 1)
        assert np.array_equal(by_token[c], expected)
        assert by_start[c].tolist() == [first[c] == 0] * module.config.memory_vectors


@pytest.mark.slow
def test_truncation_changes_no_score_and_within_the_cut_no_gradient(quick, draw):
    full, variables = make(ONE_LAYER["transformer"], draw)
    cut = RecurrentMemory(dataclasses.replace(full.config, bptt_chunks=2), CHUNKS, VOCABULARY)

    @quick
    def both(tokens):
        return full.apply(variables, tokens), cut.apply(variables, tokens)

    assert np.array_equal(*both(TOKENS))
    *_, whole = reach(full, variables, quick, TOKENS[:1])
    *_, truncated = reach(cut, variables, quick, TOKENS[:1])
    for c in (0, 1):
        jax.tree.map(
            lambda a, b, c=c: np.testing.assert_allclose(a[c], b[c], atol=1e-6), whole, truncated
        )
    assert not np.allclose(
        whole["embed"]["embedding"][2], truncated["embed"]["embedding"][2], atol=1e-4
    )


@pytest.mark.quick_cases("published mixer")
@pytest.mark.parametrize(
    "model",
    [*MODELS.values(), *PUBLISHED.values()],
    ids=[*MODELS, *(f"published {k}" for k in PUBLISHED)],
)
def test_a_gradient_reaches_every_parameter_of_every_layer(model, quick, draw):
    module = RecurrentMemory(model, 3, VOCABULARY)
    variables = draw(module, TOKENS[:, :3])

    def loss(variables):
        return module.apply(variables, TOKENS[:, :3], method="score")[0][..., 1:].mean()

    gradients = flax.traverse_util.flatten_dict(quick(jax.grad(loss))(variables)["params"], sep="/")
    assert {path.split("/")[0] for path in gradients} == {
        "embed",
        "backbone",
        "head",
        *([] if model.compat else ["start"]),
    }
    for path, gradient in gradients.items():
        by_row = "blocks/" in path or path == "start"
        parts = gradient.reshape(len(gradient), -1) if by_row else gradient.reshape(1, -1)
        assert np.all(np.isfinite(parts)), path
        assert np.all(np.any(parts != 0, axis=1)), path


@pytest.mark.parametrize("compat", [(), ("dense_mixing_gradient",)], ids=["plain", "dense"])
def test_the_dead_triangle_has_a_gradient_only_as_published(compat, quick, draw):
    module, variables = make(dataclasses.replace(ONE_LAYER["mixer"], compat=compat), draw)
    gradient = quick(jax.grad(lambda v: module.apply(v, TOKENS, method="score")[0].mean()))(
        variables
    )
    dead = gradient["params"]["backbone"]["blocks"]["mix"]["mixing"][
        ..., *np.triu_indices(LENGTH + 2, 1)
    ]
    assert np.any(dead != 0) == bool(compat)


# Padding


def test_what_stands_in_padding_is_never_read(model):
    *_, call = model
    before = call(TOKENS, VALID)
    assert np.array_equal(before, call(np.where(VALID, TOKENS, 0), VALID))
    assert not np.allclose(before, call(TOKENS, np.ones_like(VALID)), atol=1e-3)


def test_a_chunk_of_padding_leaves_the_state_as_it_was(model, quick):
    module, variables, call = model

    @quick
    def without(tokens):
        return module.apply(variables, tokens[:, [0, 2, 3]]), module.apply(variables, tokens[:, 2:])

    later, last = without(TOKENS)
    valid = np.ones_like(VALID)
    valid[:, 1] = False
    np.testing.assert_allclose(call(TOKENS, valid)[:, [0, 2, 3]], later, atol=1e-5)
    valid[:, 0] = False
    np.testing.assert_allclose(call(TOKENS, valid)[:, 2:], last, atol=1e-5)


@pytest.mark.parametrize("pads", [(1, 0), (0, 1)], ids=["left", "right"])
def test_a_transformer_scores_three_tokens_alike_in_chunks_of_three_and_of_four(pads, quick, draw):
    of_four, variables = make(MODELS["transformer"], draw)
    of_three = RecurrentMemory(
        dataclasses.replace(of_four.config, chunk_length=3), CHUNKS, VOCABULARY
    )
    short, at = TOKENS[:, :, :3], ((0, 0), (0, 0), pads)
    valid = np.pad(np.ones(short.shape, bool), at)

    @quick
    def both(short):
        return of_four.apply(variables, jnp.pad(short, at), valid), of_three.apply(variables, short)

    found, expected = both(short)
    np.testing.assert_allclose(found[valid], expected.reshape(-1, VOCABULARY), atol=1e-5)


def test_attended_padding_is_text(quick, draw):
    module, variables = make(
        dataclasses.replace(MODELS["transformer"], compat=("attended_padding",)), draw
    )

    @quick
    def both(tokens, valid):
        return module.apply(variables, tokens, valid), module.apply(variables, tokens)

    assert np.array_equal(*both(TOKENS, VALID))


# As published


def published_loop(module, variables, tokens, constant):
    """Logits of positions 1..L-1 of every chunk, and those of the last chunk with its read slot."""
    params, (batch, chunks, length) = variables["params"], tokens.shape
    backbone = BackboneModule(module.config.decoder, length + 1)
    state = jnp.full((batch, 8), constant)
    scored, last = [], None
    for c in range(chunks):
        text = params["embed"]["embedding"][tokens[:, c]].at[:, length - 1].set(state)
        out = backbone.apply(
            {"params": params["backbone"]}, jnp.concatenate([state[:, None], text], axis=1)
        )
        state = out[:, length]
        last = out @ params["head"]["kernel"]
        scored.append(last[:, 1:length])
    return jnp.stack(scored, axis=1), last


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, draw):
    constant = {"transformer": 1.0, "mixer": 0.0}[request.param]
    return *make(PUBLISHED[request.param], draw), constant


def test_published_form_writes_over_the_last_token_and_starts_from_a_constant(published, quick):
    module, variables, constant = published
    assert set(variables["params"]) == {"embed", "backbone", "head"}

    @quick
    def everything(tokens):
        states = module.apply(variables, tokens, method="states")
        last = states[:, -1] @ variables["params"]["head"]["kernel"]
        return (
            module.apply(variables, tokens, VALID),
            last,
            *published_loop(module, variables, tokens, constant),
        )

    logits, last, expected, expected_last = everything(TOKENS)
    np.testing.assert_allclose(logits[:, :, 1:], expected, atol=1e-5)
    np.testing.assert_allclose(last, expected_last, atol=1e-5)
    assert last.shape == (2, LENGTH + 1, VOCABULARY)


def test_published_form_never_reads_a_last_token(published, quick):
    module, variables, _ = published
    call = quick(lambda tokens: module.apply(variables, tokens))
    before = call(TOKENS)
    assert np.array_equal(before, call(other_tokens(slice(None), LENGTH - 1)))
    assert np.all(np.any(before != call(other_tokens(0, LENGTH - 2)), axis=-1)[:, 1:])


def test_published_form_has_one_vector(draw):
    with pytest.raises(ValueError, match="overwritten_write_slot needs memory_vectors=1, not 2"):
        make(dataclasses.replace(PUBLISHED["mixer"], memory_vectors=2), draw)


@pytest.mark.parametrize(
    ("decoder", "parameters"),
    [
        (Backbone(width=512, layers=16), 79_413_760 - 8000 * 512),
        (
            dataclasses.replace(FLAT, width=1024, layers=16, channel_kernel=8, mlp_ratio=4.0),
            159_207_568,
        ),
    ],
    ids=["transformer", "mixer"],
)
def test_published_form_is_as_large_as_the_reference_without_its_dead_table(decoder, parameters):
    model = Model(chunk_length=256, decoder=decoder, compat=("overwritten_write_slot",))
    tokens = jax.ShapeDtypeStruct((1, 4, 256), jnp.int32)
    shapes = jax.eval_shape(RecurrentMemory(model, 4, 8000).init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


# How it is computed


def test_start_has_all_vectors_and_a_mixer_weights_for_all_slots(draw):
    _, variables = make(MODELS["flat"], draw)
    assert variables["params"]["start"].shape == (2, 8)
    assert variables["params"]["backbone"]["blocks"]["mix"]["mixing"].shape == (
        2,
        1,
        2,
        LENGTH + 4,
        LENGTH + 4,
    )


@pytest.mark.slow
def test_compiled_is_eager(draw, quick):
    module, variables = make(ONE_LAYER["transformer"], draw)
    tokens, valid = TOKENS[:, :2], VALID[:, :2]
    compiled = quick(lambda tokens: module.apply(variables, tokens, valid))(tokens)
    np.testing.assert_allclose(compiled, module.apply(variables, tokens, valid), atol=1e-5)


def test_recomputed_gradients_are_those_of_what_was_kept(draw, quick):
    module, variables = make(ONE_LAYER["mixer"], draw)
    other = RecurrentMemory(
        dataclasses.replace(module.config, remat="nothing_saveable"), CHUNKS, VOCABULARY
    )

    @quick
    def both(variables):
        def gradient(m):
            return jax.grad(lambda v: m.apply(v, TOKENS, VALID, method="score")[0].mean())(
                variables
            )

        return gradient(module), gradient(other)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both(variables))


def test_bfloat16_computes_in_it_and_scores_in_float32(draw, quick):
    module, variables = make(MODELS["transformer"], draw)
    low = RecurrentMemory(dataclasses.replace(module.config, dtype="bfloat16"), CHUNKS, VOCABULARY)
    states = jax.eval_shape(lambda: low.apply(variables, TOKENS, method="states"))
    assert states.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(make(low.config, draw)[1])} == {jnp.dtype("float32")}

    @quick
    def both(tokens):
        return [m.apply(variables, tokens, VALID, method="score")[0] for m in (module, low)]

    exact, found = both(TOKENS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=0.15)
    assert not np.array_equal(found, exact)
