"""Memory model: what reaches what between chunks, slots and tokens.

Outputs that must not change are compared exactly, in one compiled function run on both inputs.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from memjax import objectives
from memjax.config import Backbone, Model
from memjax.models import EMPTY, PREDICT, RETAIN, Encoder, MemoryModel, earlier_chunks
from memjax.testing import tiny_model

CHUNKS, LENGTH, VOCABULARY = 4, 4, 24
SLOTS = CHUNKS - 1
SMALL = {"heads": 2, "mlp_ratio": 1}
MIXER = Backbone(kind="mixer", width=8, layers=1, **SMALL)
TRANSFORMER = Backbone(width=8, layers=2, output_gate=True, **SMALL)
MODELS = {
    "default": Model(chunk_length=LENGTH, encoder=MIXER, decoder=TRANSFORMER),
    "vectors-bridge-variable": Model(
        chunk_length=LENGTH,
        encoder=Backbone(width=8, layers=1, **SMALL),
        decoder=Backbone(width=12, layers=1, **SMALL),
        readout="memory_tokens",
        memory_vectors=2,
        bottleneck=4,
        layout="variable",
    ),
    "mixer": Model(
        chunk_length=LENGTH,
        encoder=MIXER,
        decoder=Backbone(kind="mixer", width=8, layers=1, heads=0, channel_kernel=2, mlp_ratio=1),
    ),
    "plain": Model(
        chunk_length=LENGTH,
        encoder=MIXER,
        decoder=TRANSFORMER,
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, VOCABULARY, (2, CHUNKS, LENGTH))
NO_PADDING = np.ones((2, SLOTS), bool)
READING_ON = np.array([[-1, -1, -1], [0, -1, -1], [0, 1, -1], [0, 1, 2]])


class Compiled:
    """A model with random weights and its methods, each compiled once."""

    def __init__(self, name, quick, draw):
        self.module = MemoryModel(MODELS[name], CHUNKS, VOCABULARY)
        variables = draw(self.module, TOKENS)
        self.variables = variables
        self.call = quick(lambda tokens: self.module.apply(variables, tokens))
        self.encode = quick(lambda tokens: self.module.apply(variables, tokens, method="encode"))
        self._decode = quick(lambda *args: self.module.apply(variables, *args, method="decode"))

    def decode(
        self,
        tokens,
        memories,
        slots=READING_ON,
        chunk=None,
        task=None,
        memory_valid=NO_PADDING,
        token_valid=None,
    ):
        n = tokens.shape[1]
        chunk = np.arange(n) if chunk is None else chunk
        task = np.full(n, PREDICT) if task is None else task
        token_valid = np.ones(tokens.shape, bool) if token_valid is None else token_valid
        return self._decode(tokens, memories, slots, chunk, task, memory_valid, token_valid)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, quick, draw):
    return Compiled(name, quick, draw)


@pytest.fixture(scope="module")
def memories(model):
    return model.encode(TOKENS[:, :-1])


def same_chunks(a, b):
    """Which chunks are exactly equal in all rows."""
    return [np.array_equal(a[:, c], b[:, c]) for c in range(a.shape[1])]


def other_tokens(chunk, position=slice(None)):
    tokens = TOKENS.copy()
    tokens[:, chunk, position] = (tokens[:, chunk, position] + 7) % VOCABULARY
    return tokens


def test_default_slot_table_holds_all_earlier_chunks():
    assert np.array_equal(earlier_chunks(CHUNKS), READING_ON)
    assert EMPTY == -1


@pytest.mark.quick_cases("vectors-bridge-variable")
def test_call_encodes_and_decodes_and_defaults_are_reading_on(model, memories):
    np.testing.assert_allclose(model.call(TOKENS), model.decode(TOKENS, memories), atol=1e-5)


@pytest.mark.quick_cases("default", "vectors-bridge-variable")
def test_all_chunks_at_once_are_each_chunk_alone(model, memories):
    for c in range(SLOTS):
        np.testing.assert_allclose(
            model.encode(TOKENS[:, c : c + 1])[:, 0], memories[:, c], atol=1e-5
        )
    together = model.decode(TOKENS, memories)
    for c in range(CHUNKS):
        alone = model.decode(TOKENS[:, c : c + 1], memories, READING_ON[c : c + 1], np.array([c]))
        np.testing.assert_allclose(alone[:, 0], together[:, c], atol=1e-5)


def test_memories_fixed_a_token_is_seen_only_by_its_own_chunk_and_only_from_it_on(model, memories):
    before = model.decode(TOKENS, memories)
    for c in range(CHUNKS):
        for t in range(LENGTH):
            after = model.decode(other_tokens(c, t), memories)
            assert same_chunks(before, after) == [other != c for other in range(CHUNKS)]
            assert np.array_equal(before[:, c, :t], after[:, c, :t])
            assert np.all(np.any(before[:, c, t:] != after[:, c, t:], axis=-1))


def test_memories_are_those_of_their_own_chunk(model, memories):
    for c in range(SLOTS):
        assert same_chunks(memories, model.encode(other_tokens(c)[:, :-1])) == [
            other != c for other in range(SLOTS)
        ]


def test_a_memory_is_seen_by_all_tokens_of_later_chunks_and_by_no_other(model, memories):
    before = model.decode(TOKENS, memories)
    for m in range(SLOTS):
        for vector in range(model.module.config.memory_vectors):
            other = memories.copy()
            other[:, m, vector] += 1
            after = model.decode(TOKENS, other)
            assert same_chunks(before, after) == [c <= m for c in range(CHUNKS)]
            assert np.all(np.any(before[:, m + 1 :] != after[:, m + 1 :], axis=-1))


def test_last_chunk_is_seen_by_itself_alone_and_the_first_by_all(model):
    before = model.call(TOKENS)
    assert same_chunks(before, model.call(other_tokens(CHUNKS - 1))) == [True, True, True, False]
    assert same_chunks(before, model.call(other_tokens(0))) == [False] * 4


def test_last_chunk_is_not_encoded(model):
    encoded = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, Encoder) and context.method_name == "__call__":
            encoded.append(args[0].shape)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(model.module.apply, model.variables, TOKENS)
    assert encoded == [(2 * SLOTS, LENGTH)]


def test_what_stands_in_no_slot_is_never_read(model, memories):
    broken = memories.copy()
    broken[:, 1] = np.nan
    before, after = model.decode(TOKENS, memories), model.decode(TOKENS, broken)
    assert same_chunks(before, after) == [True, True, False, False]
    assert np.all(np.isnan(after[:, 2:]))


def test_invalid_memory_is_an_empty_slot(model, memories):
    broken = memories.copy()
    broken[0, 1] = np.nan
    valid = NO_PADDING.copy()
    valid[0, 1] = False
    found = model.decode(TOKENS, broken, memory_valid=valid)
    slots = np.where(READING_ON == 1, EMPTY, READING_ON)
    assert np.array_equal(found[0], model.decode(TOKENS, memories, slots)[0])
    assert np.array_equal(found[1], model.decode(TOKENS, memories)[1])
    assert not np.array_equal(found[0], found[1])


def test_a_slot_may_hold_any_memory(model, memories):
    swapped = model.decode(TOKENS, memories[:, [1, 0, 2]])
    table = np.array([[-1, -1, -1], [1, -1, -1], [1, 0, -1], [1, 0, 2]])
    found = model.decode(TOKENS, memories, table)
    assert np.array_equal(found, swapped)
    assert same_chunks(found, model.decode(TOKENS, memories)) == [True, False, False, False]


def test_place_and_task_matter_where_the_decoder_is_told(model, memories, name):
    before = model.decode(TOKENS, memories)
    moved = model.decode(TOKENS, memories, chunk=np.array([0, 1, 3, 2]))
    asked = model.decode(TOKENS, memories, task=np.array([PREDICT, RETAIN, PREDICT, RETAIN]))
    if name == "plain":
        assert same_chunks(before, moved) == same_chunks(before, asked) == [True] * 4
    else:
        assert same_chunks(before, moved) == [True, True, False, False]
        assert same_chunks(before, asked) == [True, False, True, False]


@pytest.mark.parametrize("name", ["default", "mixer"])
def test_place_of_a_chunk_is_on_its_tokens_and_on_its_slot(name, quick, draw):
    module = MemoryModel(MODELS[name], CHUNKS, VOCABULARY)
    variables = draw(module, TOKENS)
    table = variables["params"].pop("chunk_position")
    call = quick(
        lambda table: module.apply(
            {"params": variables["params"] | {"chunk_position": table}}, TOKENS
        )
    )
    before = call(table)
    for place in range(CHUNKS):
        after = call(table.at[place, 0].add(1.0))
        assert same_chunks(before, after) == [chunk < place for chunk in range(CHUNKS)]


def test_padded_tokens_reach_nothing(model, memories):
    valid = np.ones(TOKENS.shape, bool)
    valid[:, 1, 1] = valid[:, 2, 0] = False
    before = model.decode(TOKENS, memories, token_valid=valid)
    after = model.decode(np.where(valid, TOKENS, 0), memories, token_valid=valid)
    assert np.array_equal(before[valid], after[valid])
    unmasked = model.decode(TOKENS, memories)
    assert np.any(before[:, 1, 2:] != unmasked[:, 1, 2:])


def test_score_is_the_cross_entropy_of_decode(model, memories, quick):
    labels = RNG.integers(0, VOCABULARY, TOKENS.shape)
    logits = model.decode(TOKENS, memories)
    args = (TOKENS, labels, memories, READING_ON)
    nats, correct = quick(lambda *args: model.module.apply(model.variables, *args, method="score"))(
        *args
    )
    at_label = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, np.log(np.exp(logits).sum(-1)) - at_label, atol=2e-5)
    assert np.array_equal(correct, logits.argmax(-1) == labels)


# The control


@pytest.fixture(scope="module")
def control(quick, draw):
    module = MemoryModel(MODELS["vectors-bridge-variable"], CHUNKS, VOCABULARY, memory=False)
    variables = draw(module, TOKENS)
    return module, variables, quick(lambda tokens: module.apply(variables, tokens))


def test_control_has_neither_encoder_nor_bridge_and_says_so(control):
    module, variables, _ = control
    tables = {"token_position", "chunk_position", "task_mark"}
    assert set(variables["params"]) == {"embed", "backbone", "head"} | tables
    with pytest.raises(ValueError, match="memory=False"):
        module.apply(variables, TOKENS, method="encode")


def test_chunks_of_the_control_are_independent(control):
    *_, call = control
    before = call(TOKENS)
    for c in range(CHUNKS):
        assert same_chunks(before, call(other_tokens(c))) == [other != c for other in range(CHUNKS)]


def test_control_is_the_model_with_every_slot_empty(control, quick, draw):
    module, control_variables, _ = control
    full = MemoryModel(module.config, CHUNKS, VOCABULARY)
    variables = draw(full, TOKENS)
    shared = {key: variables["params"][key] for key in control_variables["params"]}
    empty = np.full_like(READING_ON, EMPTY)

    @quick
    def both(memories):
        given = full.apply(variables, TOKENS, memories, empty, method="decode")
        none = full.apply(variables, TOKENS, method="decode")
        return given, none, module.apply({"params": shared}, TOKENS)

    given, none, without = both(np.full((2, SLOTS, 2, 8), np.nan, np.float32))
    np.testing.assert_allclose(given, none, atol=1e-6)
    assert np.array_equal(none, without)


@pytest.mark.quick_cases("False")
@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_scores_tokens_alike(draw, quick, left):
    """Rotary positions count real tokens and the start token stands before the first one; nothing
    else tells places apart."""
    config = tiny_model(
        token_positions=False,
        encoder=tiny_model().decoder,
        decoder=dataclasses.replace(tiny_model().decoder, output_gate=False),
    )
    model = MemoryModel(config, 2, 40)
    tokens = np.random.default_rng(0).integers(6, 40, (2, 2, 8)).astype(np.int32)
    variables = draw(model, tokens)
    short = np.where(np.arange(8) < 5, tokens, 0)
    padded = np.roll(short, 3, axis=-1) if left else short
    found = quick(
        lambda v, rows: objectives.score(
            model, v, rows, ["next_token", "copy"], objectives.SpecialIds()
        )
    )
    plain, moved = found(variables, short.reshape(2, 16)), found(variables, padded.reshape(2, 16))
    for name in plain:
        one, other = (x[name].nats[x[name].weight > 0] for x in (plain, moved))
        np.testing.assert_allclose(one, other, atol=2e-5)
