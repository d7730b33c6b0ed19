"""Chunks that share a prefix have the states, and gradients, of chunks with slots of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import REPEATS, Backbone, Model
from memjax.config.choices import FEATURES
from memjax.models import MemoryModel
from memjax.models.reading_model import ReadingModel
from memjax.models.request import join
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


def with_decoder(layout="fixed", compat=(), **settings):
    model = dataclasses.replace(
        MODEL,
        decoder=dataclasses.replace(STACK, **settings),
        layout=layout,
        compat=compat,
        chunk_positions=layout != "text",
    )
    return (ReadingModel if layout == "text" else MemoryModel)(model, CHUNKS, VOCABULARY)


MODELS = {
    "fixed": with_decoder(),
    "variable": with_decoder("variable"),
    "grouped heads": with_decoder(kv_heads=1, output_gate=True),
    "attended padding": with_decoder(compat=("attended_padding",)),
    "text": with_decoder("text", **READING),
    "text, blind": with_decoder("text", **READING | {"features": FEATURES}),
    "mixer": with_decoder(kind="mixer", channel_kernel=3),
    "flat mixer": with_decoder(kind="mixer", heads=0),
    **{kind: with_decoder(kind=kind, decay_length=3.0) for kind in REPEATS},
}
# Rows without padding, with a chunk of padding and a chunk's end, and with padding at the start.
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (3, CHUNKS, LENGTH)).astype(np.int32)
TOKENS[1, 1], TOKENS[1, 3, 2:] = IDS.pad, IDS.pad
TOKENS[2, 0], TOKENS[2, 1, :2] = IDS.pad, IDS.pad
NAMES = ("next_token", "copy", "blank_copy", "plain_copy")


def requests_of(compat=()):
    return [make_request(name, jnp.asarray(TOKENS), IDS, compat) for name in NAMES]


def states(model, asked, encoded, shared):
    """The shared states, or those of slots."""
    valid, shown = encoded != IDS.pad, asked.inputs != IDS.pad
    memories = model.encode(encoded, valid) if model.memory else None
    if shared:
        return model.shared_states(asked, memories, valid.any(axis=-1), shown)
    rest = asked.slots, asked.place, asked.task, valid.any(axis=-1), shown
    return model.states(asked.inputs, memories, *rest)


@pytest.mark.quick_cases(
    "published-variable",
    slow=(
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
