"""Chunks that share a prefix have the states, and gradients, of chunks with slots of their own, and
share it wherever the quirks of the published code leave entries independent of chunks."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import MODEL_QUIRKS, REPEATS, Backbone, ConfigError, Model
from memjax.config.choices import READING_FEATURES
from memjax.layers import Backbone as Stack
from memjax.layers.shared_prefix import SharedPrefix
from memjax.models import MemoryModel, earlier_chunks
from memjax.models.reading_model import ReadingModel
from memjax.models.request import alone, join, next_chunks
from memjax.objectives import SpecialIds, make_request

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY = 4, 5, 24
STACK = Backbone(width=8, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(
    chunk_length=LENGTH,
    memory_vectors=2,
    readout="memory_tokens",
    encoder=dataclasses.replace(STACK, kind="mixer", width=4),
    decoder=STACK,
)


READING = {
    "heads": 4,
    "place_heads": 2,
    "output_gate": True,
    "qk_norm": True,
    "features": ("sigmoid_gate", "log_scale", "rotary_values"),
}


def with_decoder(layout="fixed", compat=(), memory=True, **settings):
    model = dataclasses.replace(
        MODEL,
        decoder=dataclasses.replace(STACK, **settings),
        layout=layout,
        compat=compat,
        chunk_positions=layout != "text",
    )
    return (ReadingModel if layout == "text" else MemoryModel)(model, CHUNKS, VOCABULARY, memory)


MODELS = {
    "fixed": with_decoder(),
    "variable": with_decoder("variable"),
    "grouped heads": with_decoder(kv_heads=1, output_gate=True),
    "attended padding": with_decoder(compat=("attended_padding",)),
    "text": with_decoder("text", **READING),
    "text, blind": with_decoder("text", **READING | {"features": READING_FEATURES}),
    "mixer": with_decoder(kind="mixer", channel_kernel=3),
    "flat mixer": with_decoder(kind="mixer", heads=0),
    **{kind: with_decoder(kind=kind, decay_length=3.0) for kind in REPEATS},
    "no memory": with_decoder(memory=False),
    "variable, no memory": with_decoder("variable", memory=False),
    "mixer, no memory": with_decoder(kind="mixer", memory=False),
    "row_repeat, no memory": with_decoder(kind="row_repeat", memory=False),
}
# Rows without padding, with a chunk of padding and a chunk's end, and with padding at the start.
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (3, CHUNKS, LENGTH)).astype(np.int32)
TOKENS[1, 1], TOKENS[1, 3, 2:] = IDS.pad, IDS.pad
TOKENS[2, 0], TOKENS[2, 1, :2] = IDS.pad, IDS.pad
NAMES = ("next_token", "copy", "blank_copy", "plain_copy")


def requests_of(compat=()):
    return [make_request(name, jnp.asarray(TOKENS), IDS, compat) for name in NAMES]


def read_memories(model, encoded):
    """Memories and where there are any, with holes where chunks are padding."""
    valid = encoded != IDS.pad
    return model.encode(encoded, valid) if model.memory else None, valid.any(axis=-1)


def states(model, asked, encoded, shared):
    """The states, or those of slots."""
    memories, valid = read_memories(model, encoded)
    shown = asked.inputs != IDS.pad
    if shared:
        return model.joined_states(asked, memories, valid, shown)
    return model.states(asked.inputs, memories, asked.slots, asked.place, asked.task, valid, shown)


@pytest.mark.quick_cases(
    slow=(
        "published-variable",
        "published-fixed",
        "start-attended padding",
        "start-grouped heads",
        "start-mixer",
        "start-text",
        "start-text, blind",
        "start-combined_repeat",
    ),
)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compat", [(), ("unscored_first_tokens",)], ids=["start", "published"])
def test_shared_states_are_those_of_slots_and_so_are_gradients(name, compat, draw, quick):
    module = MODELS[name]
    if compat and module.config.layout == "text":
        return
    variables = draw(module, TOKENS)
    asked, encoded = join(requests_of(compat), jnp.asarray(TOKENS))
    shown = (asked.inputs != IDS.pad)[..., None]
    weight = np.random.default_rng(1).normal(size=(*asked.inputs.shape, 8))

    def loss(variables, shared):
        given = module.apply(variables, asked, encoded.tokens, shared, method=states)
        given = jnp.where(shown, given, 0)
        return jnp.sum(given * weight), given

    shared, slots = (
        quick(jax.value_and_grad(functools.partial(loss, shared=form), has_aux=True))(variables)
        for form in (True, False)
    )
    np.testing.assert_allclose(shared[0][1], slots[0][1], atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (shared[1], slots[1])), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


def of_every_path(model):
    """States and logits of next tokens by every method, the first of them with slots."""
    tokens = jnp.asarray(TOKENS)
    valid = tokens != IDS.pad
    memories, has_text = read_memories(model, tokens[:, :-1])
    state = model.fold(tokens[:, :-1], valid[:, :-1])
    request = next_chunks(tokens, tokens)
    rest = {"memory_valid": has_text, "token_valid": valid}
    slots = model.states(tokens, memories, slots=earlier_chunks(CHUNKS), **rest)
    whole = model.states(tokens, memories, **rest)
    states = [slots, whole, model.joined_states(alone(request), memories, *rest.values())]
    logits = [model.head(slots), model.decode(tokens, memories, **rest), model(tokens, valid)]
    # Without the padding of tokens.
    read = [whole[0], model.hidden(state, request)[0]]
    return states, logits, read


@pytest.mark.quick_cases("variable")
@pytest.mark.parametrize("name", ["fixed", "variable", "mixer", "no memory", "text"])
def test_every_method_shares_the_prefix(name, draw, quick):
    module = MODELS[name]
    variables, readings = draw(module, TOKENS), []

    def spy(call, args, kwargs, context):
        here = context.module.path == ("backbone",) and context.method_name == "__call__"
        if here and isinstance(context.module, Stack):
            # Slots of its own make a chunk a sequence of its own.
            shared = isinstance(args[2], SharedPrefix) and len(args[0]) == len(TOKENS)
            readings.append(shared)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        found = quick(lambda v: module.apply(v, method=of_every_path))(variables)
    assert readings == [False, True, True, True, True, True]
    valid = IDS.pad != TOKENS
    for first, *others in found:
        at = valid if len(first) == len(TOKENS) else ...
        for other in others:
            np.testing.assert_allclose(other[at], first[at], atol=1e-5)


SEPARATE = {
    "slots_of_ones": ("transformer", "mixer", "row_repeat"),
    "slots_of_zeros": ("transformer", "mixer", "row_repeat"),
    "dense_mixing_gradient": ("mixer",),
}
"""Decoders of which each quirk gives every chunk slots of its own."""


@pytest.mark.parametrize("kind", ["transformer", "mixer", "row_repeat"])
def test_quirks_that_make_entries_depend_on_the_chunk_keep_slots(kind):
    for quirk in MODEL_QUIRKS:
        shares = with_decoder(compat=(quirk,), kind=kind).shares_prefixes
        assert shares == (kind not in SEPARATE.get(quirk, ())), quirk
    assert not with_decoder(kind=kind, causal=False).shares_prefixes


@pytest.mark.parametrize("name", ["mixer", "row_repeat, no memory"])
def test_weights_per_position_need_full_chunks(name):
    module = MODELS[name]
    with pytest.raises(ConfigError, match="tokens: chunks of 3, expected 5 for a "):
        jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.asarray(TOKENS[:, :, :3]), method="decode")
        )
