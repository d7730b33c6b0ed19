"""The contract of families that remember: all forms of writing and of reading agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.config.choices import READING_FEATURES
from memjax.models import FAMILIES, MemoryModel, RecurrentMemory
from memjax.models.memory import KINDS
from memjax.models.reading_model import ReadingModel
from memjax.objectives import SpecialIds, build_requests

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY = 4, 5, 24
STACK = Backbone(width=8, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(
    chunk_length=LENGTH,
    memory_vectors=2,
    readout="memory_tokens",
    encoder=STACK,
    decoder=STACK,
    reconstructor=STACK,
)
VARIABLE = dataclasses.replace(MODEL, layout="variable")
ONES = dataclasses.replace(MODEL, compat=("slots_of_ones",))
TEXT = dataclasses.replace(
    MODEL,
    layout="text",
    chunk_positions=False,
    decoder=dataclasses.replace(
        STACK,
        heads=4,
        kv_heads=2,
        output_gate=True,
        qk_norm=True,
        features=("sigmoid_gate", "log_scale", "rotary_values"),
        place_heads=2,
    ),
)
BLIND = dataclasses.replace(
    TEXT, decoder=dataclasses.replace(TEXT.decoder, features=READING_FEATURES)
)
MODULES = {
    "reading model": ReadingModel(TEXT, CHUNKS, VOCABULARY),
    "reading model, blind": ReadingModel(BLIND, CHUNKS, VOCABULARY),
    "reading model without memory": ReadingModel(TEXT, CHUNKS, VOCABULARY, memory=False),
    "memory model": MemoryModel(MODEL, CHUNKS, VOCABULARY),
    "memory model, variable layout": MemoryModel(VARIABLE, CHUNKS, VOCABULARY),
    "memory model, slots of ones": MemoryModel(ONES, CHUNKS, VOCABULARY),
    "memory model without memory": MemoryModel(MODEL, CHUNKS, VOCABULARY, memory=False),
    "recurrent memory": RecurrentMemory(MODEL, CHUNKS, VOCABULARY),
}
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (3, CHUNKS, LENGTH)).astype(np.int32)
COUNT = np.array([0, 2, 3], np.int32)


@pytest.fixture(params=MODULES.values(), ids=MODULES.keys(), scope="module")
def bound(request, draw):
    return request.param, draw(request.param, TOKENS)


def entries(module, state):
    """The part of a state that is read: of a bank, entries before its count."""
    found = {}
    for name, leaf in state.leaves.items():
        if module.KIND == "bank":
            # A bank that grows has room for as many as there are.
            leaf = leaf[:, : np.max(state.count)]
            real = np.arange(leaf.shape[1]) < np.asarray(state.count)[:, None]
            leaf = np.where(real.reshape(*real.shape, *(1,) * (leaf.ndim - 2)), leaf, 0)
        found[name] = np.asarray(leaf)
    return found


def assert_same(module, one, other):
    assert np.array_equal(one.count, other.count)
    for name, leaf in entries(module, one).items():
        np.testing.assert_allclose(leaf, entries(module, other)[name], atol=1e-5)


@pytest.mark.quick_cases(
    "recurrent memory",
    slow=("reading model", "reading model, blind", "memory model", "memory model, variable layout"),
)
def test_a_fold_is_successive_writes(bound, quick):
    module, variables = bound

    def run(model):
        prefixes, state = model.fold(TOKENS[:, :-1]), model.empty(3)
        states = [state]
        for chunk in range(CHUNKS - 1):
            state = model.write(state, TOKENS[:, chunk])
            states.append(state)
        return [model.at(prefixes, jnp.full(3, n)) for n in range(CHUNKS)], states

    folded, written = quick(lambda v: module.apply(v, method=run))(variables)
    for one, other in zip(folded, written, strict=True):
        assert_same(module, one, other)


@pytest.mark.quick_cases(
    "memory model",
    slow=(
        "reading model",
        "reading model, blind",
        "memory model, variable layout",
        "recurrent memory",
    ),
)
def test_a_fold_goes_on_from_a_state(bound, quick):
    module, variables = bound

    def run(model):
        whole = model.at(model.fold(TOKENS[:, :3]), jnp.full(3, 3))
        first = model.at(model.fold(TOKENS[:, :1]), jnp.full(3, 1))
        return whole, model.at(model.fold(TOKENS[:, 1:3], state=first), jnp.full(3, 3))

    assert_same(module, *quick(lambda v: module.apply(v, method=run))(variables))


@pytest.mark.quick_cases(
    "memory model",
    "recurrent memory",
    slow=("reading model", "reading model, blind", "memory model, variable layout"),
)
def test_padding_is_no_memory(bound, quick):
    module, variables = bound
    valid = np.ones(TOKENS.shape, bool)
    valid[:, 1] = False

    def run(model):
        prefixes, state = model.fold(TOKENS[:, :3], valid[:, :3]), model.empty(3)
        for chunk in range(3):
            state = model.write(state, TOKENS[:, chunk], valid[:, chunk])
        return model.at(prefixes, jnp.full(3, 3)), state

    folded, written = quick(lambda v: module.apply(v, method=run))(variables)
    assert_same(module, folded, written)
    if "valid" in folded.leaves:
        assert np.asarray(folded.leaves["valid"])[:, :3].tolist() == [[True, False, True]] * 3


@pytest.mark.quick_cases(
    "memory model, variable layout",
    slow=("reading model", "reading model, blind", "memory model", "recurrent memory"),
)
def test_prefill_and_decode_steps_are_the_parallel_form(bound, quick):
    """Every position of every chunk, from states after different numbers of chunks."""
    module, variables = bound
    stage = Stage(family=next(n for n, a in FAMILIES.items() if isinstance(module, a.module)))

    def run(model):
        request = build_requests(module, TOKENS.reshape(3, -1), ["next_token"], IDS, stage)
        request = request["next_token"]
        prefixes = model.fold(TOKENS)
        parallel = model.hidden(prefixes, request)
        state = model.at(prefixes, jnp.asarray(COUNT))
        inputs = jnp.asarray(request.inputs)[jnp.arange(3), COUNT]
        # A decoder that starts from its state has read nothing when it scores the first token.
        started = 1 if module.KIND == "bank" else 0
        steps = []
        hidden, cache = model.prefill(state, inputs[:, :2], jnp.full(3, 1 + started))
        steps.append(hidden)
        if not started:
            hidden, _ = model.prefill(state, inputs[:, :2], jnp.full(3, 0))
            steps.insert(0, hidden)
        for position in range(2 if started else 1, LENGTH - (not started)):
            hidden, cache = model.decode_step(
                state, cache, inputs[:, position], jnp.full(3, position)
            )
            steps.append(hidden)
        return parallel[jnp.arange(3), COUNT], jnp.stack(steps, axis=1)

    parallel, steps = quick(lambda v: module.apply(v, method=run))(variables)
    start = LENGTH - steps.shape[1]
    np.testing.assert_allclose(steps, parallel[:, start:], atol=1e-5)


@pytest.mark.quick_cases(
    "recurrent memory",
    slow=("reading model", "reading model, blind", "memory model", "memory model, variable layout"),
)
def test_parallel_form_is_the_models_own_forward_pass(bound, quick):
    module, variables = bound

    def run(model):
        request = build_requests(module, TOKENS.reshape(3, -1), ["next_token"], IDS, Stage())[
            "next_token"
        ]
        return model.head(model.hidden(model.fold(TOKENS), request)), request.inputs

    logits, inputs = quick(lambda v: module.apply(v, method=run))(variables)
    if module.KIND == "chain":
        expected = quick(lambda v: module.apply(v, TOKENS))(variables)
    else:
        expected = quick(
            lambda v: module.apply(
                v,
                inputs,
                module.apply(v, TOKENS, method="encode") if module.memory else None,
                method="decode",
            )
        )(variables)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.quick_cases(
    "memory model",
    slow=(
        "reading model",
        "reading model, blind",
        "memory model, variable layout",
        "recurrent memory",
    ),
)
def test_an_appended_chunk_is_a_written_one_and_its_cache_is_of_the_memory(bound, quick):
    module, variables = bound

    def run(model):
        state = model.at(model.fold(TOKENS), jnp.asarray(COUNT))
        _, cache = model.prefill(state, TOKENS[:, 0], jnp.full(3, LENGTH))
        appended, memory_cache = model.append(state, cache, TOKENS[:, 3])
        written = model.write(state, TOKENS[:, 3])
        one = model.decode_step(appended, memory_cache, TOKENS[:, 0, 0], jnp.zeros(3, jnp.int32))
        other = model.prefill(written, TOKENS[:, 0, :1], jnp.ones(3, jnp.int32))
        return (appended, written), (one[0], other[0])

    states, hidden = quick(lambda v: module.apply(v, method=run))(variables)
    assert_same(module, *states)
    np.testing.assert_allclose(*hidden, atol=1e-5)


def test_the_oldest_memory_leaves_a_full_bank(draw, quick):
    module = MODULES["memory model"]
    variables = draw(module, TOKENS)

    def run(model):
        full = model.at(model.fold(TOKENS[:, :3]), jnp.full(3, 3))
        return model.write(full, TOKENS[:, 3]), model.at(model.fold(TOKENS), jnp.full(3, 4))

    assert_same(module, *quick(lambda v: module.apply(v, method=run))(variables))


@pytest.mark.parametrize("name", MODULES)
def test_the_ledger_counts_a_state(name, draw):
    module = MODULES[name]
    assert module.KIND in KINDS
    ledger = module.ledger(CHUNKS - 1)
    if not getattr(module, "memory", True):
        return
    variables = draw(module, TOKENS)
    count = jnp.full(1, CHUNKS - 1)
    state = jax.eval_shape(
        lambda v: module.apply(v, method=lambda m: m.at(m.fold(TOKENS[:1, :-1]), count)), variables
    )
    extra = module.config.compat == ("slots_of_ones",)  # It has one slot more, never filled.
    for leaf, (numbers, bits) in ledger.items():
        found = state.leaves[leaf]
        assert found.size == numbers * (CHUNKS if extra else CHUNKS - 1) // (CHUNKS - 1)
        assert found.dtype.itemsize * 8 == bits
