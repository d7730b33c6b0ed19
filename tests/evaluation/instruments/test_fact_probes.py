"""Random access: what is asked has one right answer, and a reader finds it where memories hold
it."""

import numpy as np
import pytest

from memjax.evaluation.instruments.fact_probes import TASKS, Training, fact_probes
from memjax.inference.texts import TextsError

V, C, L = 30, 2, 4
CHUNKS = np.random.default_rng(0).integers(6, V, (400, C, L)).astype(np.int32)


def test_the_token_at_a_place():
    found = TASKS["token"](CHUNKS, V, 0)
    flat = CHUNKS.reshape(len(CHUNKS), -1)
    assert all(
        flat[i, place] == answer
        for i, ((place,), answer) in enumerate(zip(found.question, found.answer, strict=True))
    )
    assert set(found.question.ravel()) == set(range(C * L))


def holders(chunks, phrase):
    return [
        c
        for c, chunk in enumerate(chunks)
        if any((chunk[i : i + 3] == phrase).all() for i in range(L - 2))
    ]


def test_the_chunk_of_a_phrase_and_the_order_of_two():
    found = TASKS["where"](CHUNKS, V, 0)
    assert found.answers == C
    for chunks, phrase, answer in zip(found.chunks, found.question, found.answer, strict=True):
        assert holders(chunks, phrase) == [answer]
    found = TASKS["order"](CHUNKS, V, 0)
    assert 100 < len(found.answer) < 300, "phrases of one chunk have no order here"
    for chunks, phrases, answer in zip(found.chunks, found.question, found.answer, strict=True):
        places = [holders(chunks, phrases[:3]), holders(chunks, phrases[3:])]
        assert places == ([[1], [0]] if answer else [[0], [1]])


def test_a_phrase_in_two_chunks_is_not_asked_for():
    assert len(TASKS["where"](np.tile(CHUNKS[:, :1], (1, 2, 1)), V, 0).answer) == 0


def test_the_last_value_of_a_key():
    found = TASKS["update"](CHUNKS, V, 0)
    for chunks, (key,), answer in zip(found.chunks, found.question, found.answer, strict=True):
        pairs = chunks.reshape(-1, 2)
        assert [value for one, value in pairs if one == key][-1] == answer
    assert TASKS["update"](CHUNKS[:, :, :3], V, 0).chunks.shape == (400, C, 3)


@pytest.mark.slow
def test_held_out_questions_are_for_the_keys_of_training():
    encoded = []

    def encode(tokens):
        encoded.append(tokens)
        return one_hot(tokens)

    held_out = CHUNKS[:50] // 2 * 2 + 1  # Its smallest tokens are 7, 9, 11, 13.
    how = Training(steps=1, rows=8, width=16)  # The fewest: all of it is warmup.
    fact_probes(encode, CHUNKS, held_out, V, ("update",), how)
    texts = np.concatenate(encoded).reshape(-1, C, L)
    assert len(texts) > len(CHUNKS)
    assert set(texts.reshape(-1, 2)[:, 0]) == {6, 7, 8, 9}


def one_hot(tokens):
    """An encoder that forgets nothing: [B, 1, L * V]."""
    return np.eye(V, dtype=np.float32)[tokens].reshape(len(tokens), 1, -1)


@pytest.mark.slow
def test_a_memory_that_holds_all_is_read_and_a_constant_one_is_not():
    chunks = np.random.default_rng(1).integers(6, 14, (3000, 1, L)).astype(np.int32)
    how = Training(steps=250, rows=128, width=32)
    (found,) = fact_probes(one_hot, chunks[:2600], chunks[2600:], V, ("token",), how)
    assert found.accuracy.value > 0.9
    assert found.constant.value < 0.3, "one of eight tokens"
    assert found.gain.low > 0.5
    assert found.gain.value == pytest.approx(found.accuracy.value - found.constant.value)


def test_what_cannot_be_asked_is_named():
    how = Training(steps=1)
    with pytest.raises(
        TextsError, match="task: 'colour', expected one of token, where, order, update"
    ):
        fact_probes(one_hot, CHUNKS, CHUNKS, V, ("colour",), how)
    with pytest.raises(TextsError, match="task='order': texts of one chunk, expected two chunks"):
        fact_probes(one_hot, CHUNKS[:, :1], CHUNKS[:, :1], V, ("order",), how)
    same = np.tile(CHUNKS[:, :1], (1, 2, 1))
    with pytest.raises(TextsError, match="task='where': no text has a question"):
        fact_probes(one_hot, same, same, V, ("where",), how)
    with pytest.raises(TextsError, match="texts of 1 different tokens, expected at least 8"):
        fact_probes(one_hot, np.full_like(CHUNKS, 7), CHUNKS, V, ("update",), how)


@pytest.mark.night
def test_a_trained_encoder_keeps_which_token_stands_where(trained_autoencoder):
    system, params, train, held_out = trained_autoencoder
    how = Training(steps=400, rows=128, width=32)
    (found,) = fact_probes(
        lambda t: system.encode(params, t),
        train[:, None],
        held_out[:, None],
        system.vocabulary,
        ("token",),
        how,
    )
    assert found.gain.low > 0.05
    assert found.accuracy.low > found.constant.value
