"""Memories of fewer vectors: what a decoder reads of the first k is what training shows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.config.choices import READING_FEATURES
from memjax.models import Autoencoder
from memjax.models.elastic import draw_kept, whole
from memjax.models.memory import VECTORS
from memjax.models.reading_model import ReadingModel
from memjax.models.request import Asking, Batch, alone, next_chunks
from memjax.objectives import SpecialIds, score
from memjax.testing.settings import message_of

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY, VECTORS_OF = 4, 8, 24, 4
STACK = Backbone(width=8, layers=1, heads=2, mlp_ratio=1)
MIXER = dataclasses.replace(STACK, kind="mixer")
MODEL = Model(
    chunk_length=LENGTH,
    memory_vectors=VECTORS_OF,
    readout="memory_tokens",
    expansion="unroll_each",
    encoder=MIXER,
    reconstructor=MIXER,
    decoder=dataclasses.replace(
        STACK,
        heads=4,
        place_heads=2,
        output_gate=True,
        qk_norm=True,
        features=READING_FEATURES,
    ),
    layout="text",
    chunk_positions=False,
)
CAUSAL = dataclasses.replace(
    MODEL,
    decoder=dataclasses.replace(
        MODEL.decoder, features=("sigmoid_gate", "log_scale", "rotary_values")
    ),
)
AUTOENCODER = Autoencoder(MODEL, VOCABULARY)
READERS = {
    "blind": ReadingModel(MODEL, CHUNKS, VOCABULARY),
    "causal": ReadingModel(CAUSAL, CHUNKS, VOCABULARY),
}
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (2, CHUNKS * LENGTH)).astype(np.int32)
IN_CHUNKS = ROWS.reshape(2, CHUNKS, LENGTH)
ELASTIC = Stage(dials={"fewest_vectors": 1})
NAMES = ("next_token", "recall")


def asking(module, stage=ELASTIC, key=0):
    key = None if key is None else jax.random.key(key)
    return Asking(module, Batch(jnp.asarray(ROWS)), IDS, stage, key)


@pytest.fixture(scope="module", params=READERS)
def reader(request, draw):
    module = READERS[request.param]
    params = draw(module, IN_CHUNKS)["params"]
    # The last matrices of a block begin at zero with `zero_outputs`.
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.3 * noise.normal(size=x.shape).astype(x.dtype), params)
    return module, {"params": params}


def states(module, variables, memories, **more):
    joined = alone(next_chunks(jnp.asarray(IN_CHUNKS), jnp.asarray(IN_CHUNKS)))
    return module.apply(variables, joined, memories, method="joined_states", **more)


def test_draws_are_uniform_from_the_fewest_to_all_and_a_function_of_the_key():
    stage = Stage(dials={"fewest_vectors": 2})
    drawn = np.asarray(draw_kept(asking(AUTOENCODER, stage), 3000))
    counts = np.bincount(drawn)
    assert len(counts) == VECTORS_OF + 1 and counts[:2].sum() == 0
    assert np.abs(counts[2:] / 3000 - 1 / 3).max() < 0.05
    assert np.array_equal(drawn, draw_kept(asking(AUTOENCODER, stage), 3000))
    assert (drawn != draw_kept(asking(AUTOENCODER, stage, key=1), 3000)).any()


@pytest.mark.parametrize(("fewest", "key"), [(0, 0), (VECTORS_OF, 0), (1, None)])
def test_nothing_is_dropped_in_evaluation_or_where_the_dial_keeps_all(fewest, key):
    stage = Stage(dials={"fewest_vectors": fewest})
    assert draw_kept(asking(AUTOENCODER, stage, key), 5) is None


def test_dropped_vectors_are_zeros_as_absent_ones_are():
    memory = np.random.default_rng(0).normal(size=(3, VECTORS_OF, 2)).astype(np.float32)
    masked = np.asarray(whole(memory, VECTORS_OF, jnp.array([1, 4, 2])))
    for row, kept in zip(range(3), (1, 4, 2), strict=True):
        assert np.array_equal(masked[row], np.asarray(whole(memory[row : row + 1, :kept], 4))[0])


def test_first_vectors_do_not_depend_on_later_ones(draw, quick):
    """The encoder is causal: fewer memory tokens give the same first vectors."""
    variables = draw(AUTOENCODER, IN_CHUNKS[0])
    encoder = variables["params"]["encoder"]
    changed = jax.tree.map(lambda x: x, encoder)
    changed["memory_tokens"] = np.array(encoder["memory_tokens"])
    changed["memory_tokens"][2:] += 1

    @quick
    def memories(encoder):
        given = {"params": {**variables["params"], "encoder": encoder}}
        return AUTOENCODER.apply(given, IN_CHUNKS[0], method="encode")

    before, after = memories(encoder), memories(changed)
    assert np.array_equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("expansion", ["unroll", "unroll_each", "repeat"])
def test_an_autoencoder_decodes_a_store_of_fewer_vectors_as_it_was_trained(draw, quick, expansion):
    module = Autoencoder(dataclasses.replace(MODEL, expansion=expansion), VOCABULARY)
    variables = draw(module, IN_CHUNKS[0])

    def hidden(memory, kept=None):
        return module.apply(variables, memory, kept, method="hidden")

    memory = np.random.default_rng(2).normal(size=(3, VECTORS_OF, 8)).astype(np.float32)
    everything = quick(hidden)(memory)
    assert np.array_equal(everything, quick(hidden)(memory, jnp.full(3, VECTORS_OF)))
    for kept in (1, 2, 3):
        trained = quick(hidden)(memory, jnp.full(3, kept))
        np.testing.assert_allclose(quick(hidden)(memory[:, :kept]), trained, atol=1e-6)
        if expansion != "unroll":
            assert (trained != everything).any(axis=(1, 2)).all()


def test_one_vector_unrolled_by_itself_is_the_unrolled_memory(draw, quick):
    one = dataclasses.replace(MODEL, memory_vectors=1)
    modules = [
        Autoencoder(dataclasses.replace(one, expansion=expansion), VOCABULARY)
        for expansion in ("unroll", "unroll_each")
    ]
    variables = draw(modules[0], IN_CHUNKS[0])
    first, other = (quick(module.apply)(variables, IN_CHUNKS[0]) for module in modules)
    assert np.array_equal(first, other)


@pytest.mark.parametrize("vector", range(VECTORS_OF))
def test_every_vector_is_read_at_every_position_where_each_is_unrolled(draw, quick, vector):
    variables = draw(AUTOENCODER, IN_CHUNKS[0])
    memory = np.random.default_rng(2).normal(size=(1, VECTORS_OF, 8)).astype(np.float32)
    other = memory.copy()
    other[:, vector] += 1
    hidden = quick(lambda m: AUTOENCODER.apply(variables, m, method="hidden"))
    assert (hidden(memory) != hidden(other)).any(axis=-1).all()


@pytest.mark.quick_cases("causal")
def test_a_decoder_reads_a_store_of_fewer_vectors_as_it_was_trained(reader, quick):
    module, variables = reader
    memories = np.random.default_rng(3).normal(size=(2, CHUNKS, VECTORS_OF, 8)).astype(np.float32)
    run = quick(lambda memories, kept=None: states(module, variables, memories, kept=kept))
    everything = run(memories)
    assert np.array_equal(everything, run(memories, jnp.full(2, VECTORS_OF)))
    for kept in (1, 2, 3):
        trained = run(memories, jnp.full(2, kept))
        np.testing.assert_allclose(run(memories[:, :, :kept]), trained, atol=1e-5)
        # The first chunk reads no memory, and all others do.
        changed = (trained != everything).any(axis=(2, 3))
        assert changed.tolist() == [[False] + [True] * (CHUNKS - 1)] * 2


@pytest.mark.quick_cases("causal")
def test_vectors_that_are_dropped_reach_no_state_and_have_no_gradient(reader, quick):
    module, variables = reader
    memories = np.random.default_rng(3).normal(size=(2, CHUNKS, VECTORS_OF, 8)).astype(np.float32)
    kept = jnp.array([1, 3])

    def total(memories):
        return jnp.sum(states(module, variables, memories, kept=kept) ** 2)

    gradient = quick(jax.grad(total))(memories)
    read = np.arange(VECTORS_OF) < np.array([1, 3])[:, None]
    # The last chunk's memory is read by none.
    assert ((gradient[:, :-1] != 0).any(axis=(1, 3)) == read).all()


@pytest.mark.quick_cases("causal-3")
@pytest.mark.parametrize("kept", [1, 3])
def test_generation_from_memories_of_fewer_vectors_appends_as_many(reader, quick, kept):
    """A memory that is appended token by token is one that was there from the start."""
    module, variables = reader
    vectors = np.random.default_rng(4).normal(size=(2, 2, kept, 8)).astype(np.float32)
    tokens = jnp.asarray(IN_CHUNKS[:, 0])

    @quick
    def run(vectors, tokens):
        def both(module):
            state = module.given(vectors, jnp.full(2, 2))
            nothing = jnp.zeros((2, 0), jnp.int32)
            _, cache = module.prefill(state, nothing, jnp.zeros(2, jnp.int32))
            after, cache = module.append(state, cache, tokens)
            bare = dataclasses.replace(after, leaves={"valid": after.leaves["valid"]})
            first, at = jnp.full(2, IDS.bos), jnp.zeros(2, jnp.int32)
            step, _ = module.decode_step(bare, cache, first, at)
            new = module.encode(tokens[:, None])[:, :, :kept]
            read = module.given(jnp.concatenate([vectors, new], axis=1), jnp.full(2, 3))
            whole, _ = module.prefill(read, first[:, None], jnp.ones(2, jnp.int32))
            folded = module.fold(tokens[:, None], None, state)
            return step, whole, after.leaves[VECTORS], folded.leaves[VECTORS]

        return module.apply(variables, method=both)

    step, whole_states, appended, folded = run(vectors, tokens)
    np.testing.assert_allclose(step, whole_states, atol=1e-5)
    assert appended.shape == folded.shape == (2, 3, kept, 8)


@pytest.mark.quick_cases("blind")
def test_losses_of_a_step_without_the_dial_are_those_of_today_and_with_it_others(reader, quick):
    module, variables = reader
    key = jax.random.key(0)

    cases = [(0, key), (VECTORS_OF, key), (1, key), (0, None), (1, None)]

    def nats(fewest, key):
        stage = Stage(dials={"fewest_vectors": fewest} if fewest else {})
        found = score(module, variables, ROWS, NAMES, IDS, stage, key)
        return jnp.concatenate([found[name].nats for name in NAMES], axis=1)

    plain, whole, fewer, held_out, held_out_fewer = quick(lambda: [nats(*x) for x in cases])()
    assert np.array_equal(plain, whole) and (plain != fewer).any()
    assert np.array_equal(held_out, held_out_fewer)


@pytest.mark.parametrize("fewest", [-1, 2])
def test_a_number_of_vectors_that_a_model_lacks_is_refused(fewest):
    message = message_of({"stages.auto.dials": {"fewest_vectors": fewest}})
    assert message == (
        f"config.stages.auto.dials.fewest_vectors: {fewest}, expected a number from 0 (all) to the"
        " 1 of config.model.memory_vectors. Change one of them"
    )


def test_slots_have_all_vectors():
    message = message_of({"stages.main.dials": {"fewest_vectors": 1}})
    assert message.startswith("config.stages.main.dials.fewest_vectors: 1, expected 0 with config")


@pytest.mark.quick_cases("causal")
def test_stored_memories_are_dropped_as_those_of_the_encoder(reader, quick):
    module, variables = reader
    key = jax.random.key(3)

    @quick
    def both(variables):
        memories = module.apply(variables, IN_CHUNKS, method="encode")
        batches = Batch(jnp.asarray(ROWS)), Batch(jnp.asarray(ROWS), memories=memories)
        return [score(module, variables, x, NAMES, IDS, ELASTIC, key) for x in batches]

    written, stored = both(variables)
    for name in NAMES:
        np.testing.assert_allclose(stored[name].nats, written[name].nats, atol=1e-5)
