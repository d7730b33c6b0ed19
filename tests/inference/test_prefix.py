"""Going on from memories: what a store holds of a text's chunks stands for these chunks, token for
token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.checkpoints.rounding import DTYPES
from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import StoredDocument, StoreError
from memjax.config import Backbone, Model
from memjax.inference import GenerationError, Generator, Sampling
from memjax.inference.compression import provenance_of
from memjax.inference.prefix import last_memories
from memjax.models import CausalLM, Encoder, MemoryModel, RecurrentMemory, find
from memjax.models.memory import bank
from memjax.objectives import SpecialIds, score, total

LENGTH, CHUNKS, VOCABULARY, NEW = 4, 4, 40, 13
SMALL = {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 1.0}
MIXER = Backbone(kind="mixer", **SMALL)
BASE = Model(chunk_length=LENGTH, encoder=MIXER, decoder=Backbone(**SMALL))
NARROW = {
    "layout": "variable",
    "memory_vectors": 2,
    "readout": "memory_tokens",
    "encoder": Backbone(kind="mixer", **SMALL | {"width": 8}),
}
SHOWN = {"compat": ("slots_of_ones", "attended_padding"), "chunk_positions": False}
MODULES = {
    "fixed": MemoryModel(BASE, CHUNKS, VOCABULARY),
    "variable, 2 narrow vectors": MemoryModel(
        dataclasses.replace(BASE, **NARROW), CHUNKS, VOCABULARY
    ),
    "attended slots": MemoryModel(dataclasses.replace(BASE, **SHOWN), CHUNKS, VOCABULARY),
    "mixer": MemoryModel(dataclasses.replace(BASE, decoder=MIXER), CHUNKS, VOCABULARY),
}
TEXTS = [
    np.random.default_rng(row).integers(6, VOCABULARY, n)
    for row, n in enumerate((3, 9, 12, 22, 8, 33))
]
"""Nothing, two chunks, three that end at a border, five, two, and eight chunks, of which three are
kept."""
GIVEN = [0, 1, 3, 4, 2, 2]
"""Chunks of each text that come as memories; of the others more or fewer are whole, and none are
left of the last row's."""


def encoder_of(module, params):
    """Returns the provenance of a module's encoder, as a function of a generator."""
    encoder = Encoder(module.config, module.vocab_size)
    mark = ("memory_model", "combined", 7, "0" * 16)
    return lambda: provenance_of(encoder, jax.device_put(params["encoder"]), *mark)


@pytest.fixture(scope="module")
def generator(draw):
    made = {}

    def make(name="fixed", **kwargs):
        module = MODULES[name]
        if name not in made:
            made[name] = draw(module, jnp.zeros((1, CHUNKS, LENGTH), jnp.int32))["params"]
        encoder = {"encoder": encoder_of(module, made[name])}
        return Generator(module, made[name], SpecialIds(), **encoder | kwargs)

    return make


def encoded(quick, generator, text, chunks):
    """Memories [N, K, E] of a text's first chunks, by the module's own call."""
    if not chunks:
        config = generator.module.config
        return np.zeros((0, config.memory_vectors, config.encoder.width), np.float32)
    tokens = text[: chunks * LENGTH].reshape(1, chunks, LENGTH)
    return quick(lambda p, x: generator.module.apply({"params": p}, x, method="encode"))(
        generator.params, tokens
    )[0]


def store_of(provenance, memories, tokens, dtype="float32"):
    """A document of `tokens` tokens, the last chunk of which may not be full; a token is a byte."""
    store = MemoryStore(provenance, dtype)
    first = np.arange(len(memories)) * LENGTH
    last = np.minimum(first + LENGTH, tokens)
    store.append(
        StoredDocument("book", tokens, tokens),
        bank(memories),
        np.stack([first, last - first, first, last], axis=1),
    )
    return store


def cut(quick, generator, dtype="float32"):
    """(stores of the first chunks, what is left of the texts)."""
    stores = [
        store_of(
            generator.provenance, encoded(quick, generator, text, given), given * LENGTH, dtype
        )
        for text, given in zip(TEXTS, GIVEN, strict=True)
    ]
    return stores, [text[given * LENGTH :] for text, given in zip(TEXTS, GIVEN, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_memories_of_a_text_stand_for_the_text(quick, generator, name):
    """Greedy and by chance, past borders of chunks and past the last slot, whatever of a row comes
    as memories."""
    found = generator(name)
    stores, rest = cut(quick, found)
    for sampling in (Sampling(), Sampling(temperature=1.0, top_p=0.9)):
        whole = found.generate(TEXTS, NEW, sampling, seed=2)
        assert all(
            map(np.array_equal, found.generate(rest, NEW, sampling, seed=2, memories=stores), whole)
        )
        others = [-store.memories.leaves["vectors"] for store in stores]
        assert not all(
            map(np.array_equal, found.generate(rest, NEW, sampling, seed=2, memories=others), whole)
        )
    state, expected = found.prefill(rest, memories=stores), found.prefill(TEXTS)
    np.testing.assert_allclose(state.logits, expected.logits, atol=2e-5)
    assert np.array_equal(state.context.count, [0, 2, 3, 3, 2, 3]) and np.array_equal(
        state.position, expected.position
    )


@pytest.mark.slow
def test_rows_are_the_same_together_and_alone_and_as_arrays(quick, generator):
    found, sampling = generator(), Sampling(temperature=1.0)
    stores, rest = cut(quick, found)
    together = found.generate(rest, NEW, sampling, memories=stores)
    (alone,) = found.generate([rest[3]], NEW, sampling, first_row=3, memories=[stores[3]])
    assert np.array_equal(alone, together[3])
    arrays = [store.memories.leaves["vectors"] if len(store) else None for store in stores]
    unknown = generator(encoder=None)
    assert all(
        map(np.array_equal, unknown.generate(rest, NEW, sampling, memories=arrays), together)
    )
    assert all(
        map(np.array_equal, found.generate(rest, 3, memories=[None] * 6), found.generate(rest, 3))
    )


@pytest.mark.slow
def test_the_oldest_leave_first(quick, generator):
    """A book of six chunks: three slots keep its end, or less of it where the prompt has chunks of
    its own."""
    found, book = generator(), np.random.default_rng(9).integers(6, VOCABULARY, 6 * LENGTH)
    store = store_of(found.provenance, encoded(quick, found, book, 6), 6 * LENGTH)
    prompts = [TEXTS[0], TEXTS[4], TEXTS[3]]
    kept = [3, 1, 0]
    whole = found.generate(prompts, 5, memories=[store] * 3)
    ends = found.generate(prompts, 5, memories=[store[6 - number :] for number in kept])
    texts = found.generate([np.concatenate([book, prompt]) for prompt in prompts], 5)
    assert all(map(np.array_equal, whole, ends)) and all(map(np.array_equal, whole, texts))
    assert np.array_equal(
        found.prefill(prompts, memories=[store] * 3).context.leaves["vectors"][0],
        store.memories.leaves["vectors"][3:],
    )
    strict = generator(overflow="error")
    assert len(strict.generate(prompts[:1] * 3, 5, memories=[store[4:]] * 3)[0]) == 5
    message = (
        r"memories of row 0: 6 before a prompt of 3 tokens and max_new_tokens=5, expected at most 2"
        r" of the 3 before .*\. Pass fewer, such as store\[-2:\], or overflow='evict'\.$"
    )
    with pytest.raises(GenerationError, match=message):
        strict.generate([TEXTS[0]], 5, memories=[store])
    with pytest.raises(
        GenerationError,
        match="row 0: 2 before a prompt of 3 tokens and max_new_tokens=6, expected at most 1 of",
    ):
        strict.generate([TEXTS[0]], 6, memories=[store[4:]])


def test_a_chunk_that_is_not_full_is_left_out(quick, generator):
    found, memories = (
        generator(),
        np.random.default_rng(0).normal(0, 1, (3, 1, 16)).astype(np.float32),
    )
    partly, fully = (
        store_of(found.provenance, memories, 10),
        store_of(found.provenance, memories[:2], 8),
    )
    assert partly.full_chunks.tolist() == [0, 1]
    state = found.prefill([TEXTS[0]] * 3, memories=[partly, fully, partly[2:]])
    assert state.context.count.tolist() == [2, 2, 0]
    assert np.array_equal(state.logits[0], state.logits[1]) and not np.allclose(
        state.logits[0], state.logits[2]
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_memories_are_read(quick, generator, dtype):
    found = generator()
    stores, rest = cut(quick, found, dtype)
    exact = np.asarray(found.prefill(TEXTS).logits)
    logits = np.asarray(found.prefill(rest, memories=stores).logits)
    error = np.abs(logits - exact)[1:5].max() / exact.std()
    assert np.isfinite(logits).all()
    limits = {"float32": 1e-4, "bfloat16": 0.2, "float8_e4m3": 1.5, "int8": 0.3, "int4": 3}
    assert error < limits[dtype]
    assert (dtype == "float32") == (error < 1e-4)
    assert [len(row) for row in found.generate(rest, 6, memories=stores)] == [6] * len(TEXTS)


def test_bfloat16_memories_are_read_as_float32():
    given = jnp.asarray([[[0.5, -2.0]]], jnp.bfloat16)
    (found,) = last_memories([given], 3, (1, 2), None)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[[0.5, -2.0]]])
    with pytest.raises(GenerationError, match="this model reads floats"):
        last_memories([np.ones((1, 1, 2), np.int32)], 3, (1, 2), None)


def test_what_cannot_be_read_says_so(quick, generator):
    found = generator()
    (store, *_), _ = cut(quick, found)[0][1:], None
    for kind in (CausalLM(BASE, 12, VOCABULARY), RecurrentMemory(BASE, CHUNKS, VOCABULARY)):
        with pytest.raises(
            GenerationError,
            match=f"family {find(kind).name} reads no memories; models of family memory_model do",
        ):
            Generator(kind, {}, SpecialIds()).generate([[7]], 1, memories=[store])
    module = dataclasses.replace(MODULES["fixed"], memory=False)
    control = Generator(module, {}, SpecialIds())
    with pytest.raises(GenerationError, match="memory=False: it reads no memories"):
        _ = control.provenance
    provenance = found.provenance
    for change, message in (
        ({"tokenizer": "1" * 16}, "memories of row 1: tokenizer 1111"),
        (
            {"sha256": "ab" * 32},
            "memories of row 1: made by the encoder of stage combined .* sha256 is abab",
        ),
        (
            {"settings": provenance.settings | {"memory_vectors": 2}},
            "config.model.memory_vectors is 2, expected 1",
        ),
    ):
        other = store_of(
            dataclasses.replace(provenance, **change), store.memories.leaves["vectors"], LENGTH
        )
        with pytest.raises(StoreError, match=message):
            found.generate([[7], [7]], 1, memories=[None, other])
    with pytest.raises(GenerationError, match="whose encoder this model has is not known"):
        generator(encoder=None).generate([[7]], 1, memories=[store])
    for memories, message in (
        ([], "memories are given for 0 rows, and there are 1 prompts"),
        (
            [np.zeros((2, 1, 15))],
            r"memories of row 0 are of shape \(2, 1, 15\) and float64; this model reads floats"
            r" \[memories, 1, 16\]",
        ),
        ([np.zeros((2, 1, 16), int)], "row 0 are of shape .* and int64"),
        ([np.full((1, 1, 16), np.nan)], "memories of row 0 hold NaN or infinity"),
    ):
        with pytest.raises(GenerationError, match=message):
            found.generate([[7]], 1, memories=memories)


# Trained

CASES = 8


@pytest.fixture(scope="module")
def trained(quick, draw):
    """A model of rows that say one word all over: what the word is, a chunk's first token can only
    know from memories."""
    module, ids = MODULES["fixed"], SpecialIds()
    params = quick(module.init)(jax.random.key(0), jnp.zeros((1, CHUNKS, LENGTH), jnp.int32))[
        "params"
    ]
    optimizer = optax.adam(1e-2)

    def loss(params, rows):
        (scores,) = score(module, {"params": params}, rows, ("next_token",), ids).values()
        term = total(scores)
        return term.nats / term.count

    def steps(params, key):
        def step(carry, key):
            params, state = carry
            words = jax.random.randint(key, (32, 1), 6, 6 + CASES)
            gradient = jax.grad(loss)(params, jnp.broadcast_to(words, (32, CHUNKS * LENGTH)))
            change, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 60))[0][0]

    params = quick(steps)(params, jax.random.key(1))
    return Generator(module, params, ids, encoder=encoder_of(module, params))


@pytest.mark.slow
def test_a_trained_model_says_what_its_memories_hold(quick, trained):
    words = 6 + np.arange(CASES)
    stores = [
        store_of(trained.provenance, encoded(quick, trained, np.full(8, word), 2), 8)
        for word in words
    ]
    said = np.stack(trained.generate([[]] * CASES, 6, memories=stores))
    assert (said == words[:, None]).mean() > 0.9
    others = np.stack(trained.generate([[]] * CASES, 6, memories=stores[1:] + stores[:1]))
    assert (others == np.roll(words, -1)[:, None]).mean() > 0.9
    assert (others == words[:, None]).mean() < 0.1
