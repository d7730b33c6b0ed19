"""Chunks that are recalled are the argmax of the per-chunk form on their own tokens, asked together
or alone; and one clear error where a chunk or a store cannot be read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax
from memjax.checkpoints.store_records import StoreError
from memjax.config import Backbone, Model
from memjax.inference import GenerationError, TrainedModel
from memjax.inference.compression import document_of, provenance_of
from memjax.inference.recall import recall_tokens
from memjax.models import Encoder, build, example
from memjax.models.memory import bank
from memjax.models.reading_model import ReadingModel
from memjax.models.request import RECALL
from memjax.objectives import SpecialIds
from memjax.objectives.requests import shift_right
from memjax.testing import WORDS, tiny_model

IDS = SpecialIds()
LENGTH, CHUNKS, VOCABULARY, STORED = 4, 4, 40, 9
SMALL = {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 1.0}
BASE = Model(
    chunk_length=LENGTH,
    encoder=Backbone(kind="mixer", **SMALL),
    decoder=Backbone(
        output_gate=True,
        place_heads=1,
        features=("rotary_values", "log_scale"),
        qk_norm=True,
        **SMALL,
    ),
    layout="text",
    chunk_positions=False,
)
NARROW = {
    "memory_vectors": 2,
    "readout": "memory_tokens",
    "encoder": Backbone(kind="mixer", **SMALL | {"width": 8}),
    "decoder": dataclasses.replace(
        BASE.decoder,
        heads=4,
        place_heads=2,
        kv_heads=2,
        features=("rotary_values", "log_scale", "blind_memories"),
    ),
}
MODULES = {
    "causal": ReadingModel(BASE, CHUNKS, VOCABULARY),
    "blind, 2 narrow vectors, shared heads": ReadingModel(
        dataclasses.replace(BASE, **NARROW), CHUNKS, VOCABULARY
    ),
}
ASKED = [5, 0, 8, 5]


@pytest.fixture(scope="module")
def drawn(draw):
    """(module, parameters, store of more memories than a sequence of its training has)."""
    made = {}

    def make(name):
        if name not in made:
            module = MODULES[name]
            params = draw(module, jnp.zeros((1, CHUNKS, LENGTH), jnp.int32))["params"]
            # So large that the place decides what is read.
            params = jax.tree.map(lambda x: 2 * x, params)
            encoder = Encoder(module.config, VOCABULARY)
            mark = ("memory_model", "reading", 7, "0" * 16)
            shape = STORED, module.config.memory_vectors, module.config.encoder.width
            vectors = np.random.default_rng(1).normal(size=shape).astype(np.float32)
            store = document_of(bank(vectors), provenance_of(encoder, params["encoder"], *mark))
            made[name] = module, params, store
        return made[name]

    return make


def per_chunk(quick, module, params, tokens, vectors, place, blank):
    """The most likely tokens [X, L] of chunks that were shown `tokens`, each with slots of its own
    for all `vectors`."""
    shown = np.full_like(tokens, IDS.blank) if blank else tokens
    slots = np.tile(np.arange(len(vectors)), (len(tokens), 1))

    def decode(params, shown, vectors):
        inputs = shift_right(shown[None], IDS.delimiter, -1)
        rest = slots, np.array(place), np.full(len(place), RECALL)
        return module.apply({"params": params}, inputs, vectors[None], *rest, method="decode")

    return quick(decode)(params, shown, vectors)[0].argmax(axis=-1)


@pytest.mark.quick_cases("shown-blind, 2 narrow vectors, shared heads")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("blank", [False, True], ids=["shown", "blank"])
def test_recall_is_the_argmax_of_the_per_chunk_form_on_its_own_tokens(quick, drawn, name, blank):
    module, params, store = drawn(name)
    found = recall_tokens(module, params, IDS, blank, store, ASKED, 4)
    vectors = store.memories.leaves["vectors"]
    expected = per_chunk(quick, module, params, found, vectors, ASKED, blank)
    np.testing.assert_array_equal(found, expected)
    # Weights are drawn so that place and memories matter.
    assert len({tuple(row) for row in found}) == 3 and np.array_equal(found[0], found[3])
    other = recall_tokens(module, params, IDS, blank, store[::-1], ASKED, 4)
    assert (other != found).any()


@pytest.mark.slow
def test_chunks_are_the_same_together_and_alone(drawn):
    model = drawn("causal")
    module, params, store = model
    together = recall_tokens(module, params, IDS, False, store, range(STORED), STORED)
    for batch in (1, 4):
        found = recall_tokens(module, params, IDS, False, store, range(STORED), batch)
        np.testing.assert_array_equal(found, together)
    assert recall_tokens(module, params, IDS, False, store, [], 4).shape == (0, LENGTH)


@pytest.mark.slow
def test_a_memory_alone_is_the_prefix(quick, drawn):
    module, params, store = drawn("causal")
    found = recall_tokens(module, params, IDS, False, store, range(STORED), 4, alone=True)
    for chunk in (0, 7):
        vectors = store[[chunk]].memories.leaves["vectors"]
        alone = recall_tokens(module, params, IDS, False, store[[chunk]], [0], 1)
        expected = per_chunk(quick, module, params, alone, vectors, [0], False)
        np.testing.assert_array_equal(found[[chunk]], expected)


# A trained model


@pytest.fixture(scope="module")
def reading(made, draw):
    """A model of drawn weights, as one that was trained on recall."""
    other = memjax.load(made, "combined")
    model = tiny_model(layout="text", chunk_positions=False)
    decoder = dataclasses.replace(model.decoder, place_heads=1, features=("rotary_values",))
    stage = dataclasses.replace(
        other.settings, objectives={"next_token": 1.0, "recall": 1.0}, init_from=""
    )
    config = dataclasses.replace(
        other.config,
        model=dataclasses.replace(model, decoder=decoder),
        stages=other.config.stages | {"reading": stage},
    )
    module = build(config, stage)
    params = draw(module, example(module, config))["params"]
    return TrainedModel(module, params, config, other.tokenizer, "reading", path="here")


TEXTS = [" ".join(WORDS), "and the decoder reads it"]


def test_recall_returns_the_text_of_the_chunks(reading):
    store = reading.compress(TEXTS, dtype="float32")
    last = int(np.flatnonzero(store.spans[:, 0] == 0)[-1])
    assert store.spans[last, 2] < 8, "not full"
    tokens = reading.recall_tokens(store, [last, 1])
    assert (tokens[0] != IDS.pad).sum() == store.spans[last, 2]
    decode = reading.tokenizer.decode
    assert reading.recall(store, [last, 1]) == [decode(tokens[0]), decode(tokens[1])]
    assert reading.recall(store, np.array([1])) == [decode(tokens[1])]
    assert reading.recall(store, []) == []
    full = store[store.full_chunks]
    assert reading.recall(full.memories, [3]) == reading.recall(full, [3])


@pytest.mark.slow
def test_find_ranks_what_every_memory_alone_gives_back(reading, made):
    """By recall, or by the reconstructor of a stage that was not trained on it."""
    store = reading.compress(TEXTS)
    tokens = reading.recall_tokens(store, range(len(store)), alone=True)
    phrase = reading.tokenizer.decode(tokens[2:4].ravel())
    (chunk, overlap), *_ = reading.find(store, phrase)
    assert (chunk, overlap) == (2, 1.0) and len(reading.find(store, phrase, top=1)) == 1
    autoencoder = memjax.load(made, "autoencoder")
    store = autoencoder.compress(TEXTS)
    pieces = autoencoder.reconstruct_tokens(store)
    phrase = autoencoder.tokenizer.decode(pieces[1:3].ravel())
    assert autoencoder.find(store, phrase)[0] == (1, 1.0)


def test_what_cannot_be_recalled_is_one_clear_error(reading, made, tmp_path):
    store = reading.compress(TEXTS)
    count = len(store)
    for chunk in (count, -1, 10**9):
        expected = f"chunk {chunk}: not in the store, expected one of its {count} chunks"
        with pytest.raises(StoreError, match=expected):
            reading.recall(store, [0, chunk])
    for chunks in (3, [0.5], ["1"], [[1]], [True], [10**30]):
        with pytest.raises(StoreError, match=r"chunks: .*, expected whole numbers\. Pass a list"):
            reading.recall(store, chunks)
    with pytest.raises(StoreError, match="not in the store, expected one of its 0 chunks"):
        reading.recall(store[:0], [0])
    other = memjax.load(made, "combined")
    with pytest.raises(StoreError, match=r"the store: .*Use stage combined \(.*\), which compr"):
        reading.recall(other.compress(TEXTS), [0])
    with pytest.raises(StoreError, match=r"expected a store\. Open it by memjax\.open_store"):
        reading.recall(tmp_path / "a.store", [0])
    with pytest.raises(StoreError, match="phrase: no text, expected some"):
        reading.find(store, " ")
    assert reading.find(store[:0], "the") == []


def test_a_stage_that_was_not_trained_on_recall_names_those_that_were(reading, made):
    other = memjax.load(made, "combined")
    store = other.compress(TEXTS)
    trained = "stage combined: trained on copy, next_token, expected recall or blank_recall. "
    with pytest.raises(GenerationError, match=f"{trained}Train a stage on it"):
        other.recall(store, [0])
    config = dataclasses.replace(other.config, stages=reading.config.stages)
    with pytest.raises(GenerationError, match=f"{trained}Use stage reading"):
        dataclasses.replace(other, config=config).recall(store, [0])
    with pytest.raises(GenerationError, match=r"expected blank_recall\. Train a stage on it"):
        reading.recall_tokens(store, [0], objective="blank_recall")


def test_more_memories_than_max_memories_are_refused(reading):
    """In recall and in generation, before anything is computed."""
    model = dataclasses.replace(reading.config.model, max_memories=5)
    config = dataclasses.replace(reading.config, model=model)
    few = dataclasses.replace(reading, config=config, module=build(config, reading.settings))
    store = few.compress(TEXTS, dtype="float32")
    assert len(store) > len(store.full_chunks) > 5
    with pytest.raises(GenerationError, match=f"{len(store)} memories, expected at most the 5 of"):
        few.recall(store, [0])
    assert few.recall(store[-5:], [4]) == reading.recall(store[-5:], [4])
    full = store[store.full_chunks]
    message = (
        rf"memories of row 0: {len(full)} before a prompt of 0 tokens and max_new_tokens=1,"
        r" expected at most 5 of the 5 of config\.model\.max_memories\. Pass fewer, such as"
        r" store\[-5:\]\.$"
    )
    with pytest.raises(GenerationError, match=message):
        few.generate("", 1, store)
    assert list(few.generate("", 0, full[-5:])) == []
    # A state that is read alone, with chunks of the prompt among those that are kept.
    generator, length = few.generator(), few.module.config.chunk_length
    prompt = np.full(2 * length, 7)
    assert generator.prefill([prompt], memories=[full[-3:]]).context.count.tolist() == [5]
    for memories, message in (
        (full[-4:], rf"row 0: 4 before a prompt of {2 * length} tokens, expected at most 3 of"),
        (
            None,
            rf"prompt 0: {6 * length} tokens, expected at most the {6 * length} tokens of which",
        ),
    ):
        tokens = prompt if memories else np.full(6 * length, 7)
        with pytest.raises(GenerationError, match=message):
            generator.prefill([tokens], memories=[memories])
