"""Chunks of lengths that are drawn: a short chunk is a padded one, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.config.choices import READING_FEATURES
from memjax.models import Autoencoder
from memjax.models.cutting import drawn_cut, halvings
from memjax.models.reading_model import ReadingModel
from memjax.models.request import Asking, Batch, alone, next_chunks
from memjax.objectives import SpecialIds, build_requests, score
from memjax.objectives.requests import shift_right
from memjax.testing.settings import message_of

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY = 4, 8, 24
STACK = Backbone(width=8, layers=1, heads=2, mlp_ratio=1)
MIXER = dataclasses.replace(STACK, kind="mixer")
MODEL = Model(
    chunk_length=LENGTH,
    memory_vectors=2,
    readout="memory_tokens",
    expansion="unroll_each",
    encoder=MIXER,
    reconstructor=MIXER,
    decoder=dataclasses.replace(STACK, heads=4, place_heads=2, features=READING_FEATURES),
    layout="text",
    chunk_positions=False,
)
READING = ReadingModel(MODEL, CHUNKS, VOCABULARY)
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (4, CHUNKS * LENGTH)).astype(np.int32)
SHORTER = Stage(dials={"shortest_chunk": 2})
NAMES = ("next_token", "recall", "blank_recall")
KEY = jax.random.key(0)


def asking(rows=ROWS, stage=SHORTER, key=KEY, module=READING):
    return Asking(module, Batch(jnp.asarray(rows)), IDS, stage, key)


def lengths_of(chunks):
    """The tokens of each chunk, whose padding is behind them."""
    real = np.asarray(chunks) != IDS.pad
    assert (real[..., :-1] >= real[..., 1:]).all()
    return real.sum(axis=-1)


def cut_at(rows, own):
    """The chunks of so many tokens from the beginning of rows, padded."""
    first = rows[:, : CHUNKS * own].reshape(len(rows), CHUNKS, own)
    return np.pad(first, ((0, 0), (0, 0), (0, LENGTH - own)))


@pytest.fixture(scope="module")
def reader(draw):
    params = draw(READING, ROWS.reshape(4, CHUNKS, LENGTH))["params"]
    # The last matrices of a block begin at zero with `zero_outputs`.
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.3 * noise.normal(size=x.shape).astype(x.dtype), params)
    return {"params": params}


def test_lengths_are_halved_as_long_as_they_are_whole():
    assert halvings(32) == (32, 16, 8, 4, 2, 1)
    assert halvings(32, 8) == (32, 16, 8)
    assert halvings(12) == (12, 6, 3)
    assert halvings(7) == (7,)


def test_no_token_is_in_two_chunks_and_none_is_lost_between():
    rows = np.arange(1, 1 + CHUNKS * LENGTH, dtype=np.int32)[None].repeat(300, axis=0)
    real = np.full(len(rows), CHUNKS * LENGTH)
    chunks = np.asarray(drawn_cut(jnp.asarray(rows), real, LENGTH, 2, KEY, 0))
    assert chunks.shape == (300, CHUNKS, LENGTH)
    starts = {2: set(), 4: set(), 8: set()}
    for own, row in zip(lengths_of(chunks), chunks, strict=True):
        assert (own == own[0]).all()
        found = row[row != 0]
        assert np.array_equal(found, found[0] + np.arange(CHUNKS * own[0]))
        starts[own[0]].add(found[0] - 1)
    # Multiples of L, up to where the chunks end with the row.
    assert starts == {2: {0, 8, 16, 24}, 4: {0, 8, 16}, 8: {0}}


def test_parts_of_a_row_that_are_padding_are_not_drawn():
    rows = np.tile(np.arange(1, 1 + CHUNKS * LENGTH, dtype=np.int32), (200, 1))
    rows[:, 20:] = 0
    chunks = np.asarray(drawn_cut(jnp.asarray(rows), np.full(200, 20), LENGTH, 2, KEY, 0))
    whole = lengths_of(chunks)[:, 0] == LENGTH
    count = (chunks != 0).sum(axis=(1, 2))
    assert (count[whole] == 20).all() and set(count[~whole]) == {8, 16}
    assert set(chunks[count == 8, 0, 0]) == {1, 9} and set(chunks[count == 16, 0, 0]) == {1}


def test_draws_are_uniform_and_a_function_of_the_key():
    rows = np.tile(ROWS, (750, 1))
    drawn = lengths_of(asking(rows).chunks)[:, 0]
    shares = np.bincount(drawn)[[2, 4, 8]] / len(drawn)
    assert shares.sum() == 1 and np.abs(shares - 1 / 3).max() < 0.05
    assert np.array_equal(asking().chunks, asking().chunks)
    assert (asking(rows, key=jax.random.key(1)).chunks != asking(rows).chunks).any()


@pytest.mark.parametrize(("shortest", "key"), [(0, KEY), (LENGTH, KEY), (2, None)])
def test_chunks_are_whole_in_evaluation_and_where_the_dial_draws_none(shortest, key):
    stage = Stage(dials={"shortest_chunk": shortest})
    assert np.array_equal(asking(stage=stage, key=key).chunks, ROWS.reshape(4, CHUNKS, LENGTH))


def test_all_objectives_of_a_step_have_one_cut():
    chunks = np.asarray(asking().chunks)
    assert len(set(lengths_of(chunks)[:, 0])) > 1
    requests = build_requests(READING, Batch(ROWS), NAMES, IDS, SHORTER, KEY)
    assert np.array_equal(requests["next_token"].labels, chunks)
    for name in NAMES[1:]:
        assert np.array_equal(requests[name].labels, chunks[:, :-1])
    for request in requests.values():
        assert np.array_equal(request.weight, request.labels != IDS.pad)
    for name in ("reconstruction", "random_reconstruction"):
        module = Autoencoder(MODEL, VOCABULARY)
        labels = build_requests(module, Batch(ROWS), [name], IDS, SHORTER, KEY)[name].labels
        assert np.array_equal(labels == IDS.pad, chunks == IDS.pad)
        assert np.array_equal(labels, chunks) == (name == "reconstruction")


def test_an_autoencoder_is_trained_on_padded_chunks(draw, quick):
    module = Autoencoder(MODEL, VOCABULARY)
    chunks = np.asarray(asking().chunks).reshape(-1, LENGTH)
    variables = draw(module, chunks)

    @quick
    def both():
        trained = score(module, variables, ROWS, ["reconstruction"], IDS, SHORTER, KEY)
        own = module.apply(variables, chunks, chunks != IDS.pad, method="score")
        # What stands in place of padding has no effect.
        other = jnp.where(chunks == IDS.pad, 7, chunks)
        return trained, own, module.apply(variables, other, chunks != IDS.pad, method="score")

    trained, own, other = both()
    nats, real = trained["reconstruction"].nats.reshape(chunks.shape), chunks != IDS.pad
    np.testing.assert_allclose(nats, own[0], atol=1e-5)
    np.testing.assert_allclose(nats[real], other[0][real], atol=1e-5)
    assert np.array_equal(trained["reconstruction"].weight.reshape(chunks.shape), real)


@pytest.mark.quick_cases("2")
@pytest.mark.parametrize("own", [2, 4])
def test_a_padded_chunk_is_read_as_the_short_one(reader, quick, own):
    padded = jnp.asarray(cut_at(ROWS, own))

    @quick
    def run(variables):
        def read(module):
            memories = module.encode(padded, padded != IDS.pad)
            found = []
            for chunks in (padded, padded[..., :own]):
                shown = shift_right(chunks, IDS.bos, IDS.pad)
                joined = alone(next_chunks(shown, chunks))
                valid = shown != IDS.pad
                hidden = module.joined_states(joined, memories, token_valid=valid)
                found.append((hidden, module.token_losses(hidden, chunks)[0]))
            return memories, module.encode(padded[..., :own]), *found

        return READING.apply(variables, method=read)

    memories, of_short, (whole, nats), (short, short_nats) = run(reader)
    assert np.array_equal(memories, of_short)
    np.testing.assert_allclose(whole[:, :, :own], short, atol=1e-5)
    np.testing.assert_allclose(nats[:, :, :own], short_nats, atol=1e-5)


def test_a_token_changes_no_loss_before_it(reader, quick):
    """In the order of the text, from the first token of the part that a row's chunks are of."""
    run = quick(lambda rows: score(READING, reader, rows, ["next_token"], IDS, SHORTER, KEY))
    chunks = np.asarray(asking().chunks)
    before = run(ROWS)["next_token"].nats
    for row, own in enumerate(lengths_of(chunks)[:, 0]):
        text = chunks[row][chunks[row] != IDS.pad]
        first = int(np.flatnonzero(ROWS[row, ::LENGTH] == text[0])[0]) * LENGTH
        assert np.array_equal(ROWS[row, first : first + len(text)], text)
        changed = ROWS.copy()
        at = own + 1
        changed[row, first + at] = 6 + (changed[row, first + at] - 5) % (VOCABULARY - 6)
        differs = run(changed)["next_token"].nats != before
        assert not np.delete(differs, row, axis=0).any()
        flat = differs[row, :, :own].reshape(-1)
        assert not flat[:at].any() and flat[at]
        # The next chunks read its memory.
        assert differs[row, 2:, :own].any(axis=1).all()


@pytest.mark.slow
def test_losses_without_the_dial_are_those_of_today_and_with_it_others(reader, quick):
    cases = [(None, KEY), (0, KEY), (LENGTH, KEY), (2, KEY), (None, None), (2, None)]

    def nats(shortest, key):
        stage = Stage(dials={} if shortest is None else {"shortest_chunk": shortest})
        found = score(READING, reader, ROWS, NAMES[:2], IDS, stage, key)
        return jnp.concatenate([found[name].nats for name in NAMES[:2]], axis=1)

    today, zero, whole, shorter, held_out, held_out_shorter = quick(
        lambda: [nats(*case) for case in cases]
    )()
    assert np.array_equal(today, zero) and np.array_equal(today, whole)
    assert (today != shorter).any() and np.array_equal(held_out, held_out_shorter)


@pytest.mark.parametrize("family", ["auto", "main"])
@pytest.mark.parametrize("shortest", [-1, 3, 24, 64])
def test_a_length_that_is_no_halving_is_refused(family, shortest):
    message = message_of({f"stages.{family}.dials": {"shortest_chunk": shortest}})
    assert message == (
        f"config.stages.{family}.dials.shortest_chunk: {shortest}, expected 0 (always the 32 of"
        " config.model.chunk_length) or one of 32, 16, 8, 4, 2, 1. Change one of them"
    )


TEXT = {"model.layout": "text", "model.chunk_positions": False}


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("main", {}, "expected 0 with config.model.layout='fixed'"),
        ("auto", {"data.packing": "per_document_left"}, "config.data.packing='per_document_left'"),
        ("main", TEXT | {"data.memories": "folder"}, "config.data.memories='folder'"),
        (
            "auto",
            {
                "model.expansion": "repeat",
                "model.memory_vectors": 2,
                "model.readout": "memory_tokens",
            },
            "config.model.expansion='repeat'",
        ),
    ],
)
def test_what_reads_no_short_chunks_is_refused(stage, changes, words):
    message = message_of({f"stages.{stage}.dials": {"shortest_chunk": 16}} | changes)
    assert message.startswith(f"config.stages.{stage}.dials.shortest_chunk: 16, expected 0")
    assert words in message
