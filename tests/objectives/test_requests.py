"""What each objective asks for, on a row of eight tokens in four chunks of two, written out by hand."""

import numpy as np
import pytest

from memjax.models import EMPTY, PREDICT, RETAIN
from memjax.objectives import REQUESTS, SpecialIds
from memjax.objectives.requests import join, memories_needed, shift_right

IDS = SpecialIds()
PAD, BOS, BLANK, DELIMITER = 0, 2, 4, 5
ROW = np.array([[[11, 12], [13, 14], [15, 16], [17, 18]]], np.int32)
E = EMPTY

BY_HAND = {
    "next_token": {
        "inputs": [[BOS, 11], [BOS, 13], [BOS, 15], [BOS, 17]],
        "labels": [[11, 12], [13, 14], [15, 16], [17, 18]],
        "slots": [[E, E, E], [0, E, E], [0, 1, E], [0, 1, 2]],
        "chunk": [0, 1, 2, 3],
        "task": [PREDICT] * 4,
    },
    "copy": {
        "inputs": [[DELIMITER, 11], [DELIMITER, 13]],
        "labels": [[11, 12], [13, 14]],
        "slots": [[0, 1, E], [0, 1, 0]],
        "chunk": [2, 3],
        "task": [RETAIN] * 2,
    },
    "plain_copy": {
        "inputs": [[BOS, 11], [BOS, 13]],
        "labels": [[11, 12], [13, 14]],
        "slots": [[0, 1, E], [0, 1, 0]],
        "chunk": [2, 3],
        "task": [PREDICT] * 2,
    },
    "blank_copy": {
        "inputs": [[DELIMITER, BLANK], [DELIMITER, BLANK]],
        "labels": [[11, 12], [13, 14]],
        "slots": [[0, 1, E], [0, 1, E]],
        "chunk": [2, 3],
        "task": [RETAIN] * 2,
    },
}


def test_special_ids_are_those_of_the_tokenizer():
    assert (IDS.pad, IDS.bos, IDS.blank, IDS.delimiter) == (PAD, BOS, BLANK, DELIMITER)
    assert set(REQUESTS) == set(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
def test_request_is_the_one_by_hand(name):
    request, expected = REQUESTS[name](ROW, IDS), BY_HAND[name]
    assert request.inputs[0].tolist() == expected["inputs"]
    assert request.labels[0].tolist() == expected["labels"]
    assert request.slots.tolist() == expected["slots"]
    assert request.chunk.tolist() == expected["chunk"]
    assert request.task.tolist() == expected["task"]
    assert request.weight[0].tolist() == [[1.0, 1.0]] * len(expected["labels"])
    assert request.weight.dtype == np.float32


@pytest.mark.parametrize("name", BY_HAND)
def test_padding_weighs_nothing_and_nothing_else_does(name):
    row = np.array([[[11, 0], [13, 14], [15, 16], [0, 0]], [[2, 4], [5, 1], [15, 16], [17, 18]]], np.int32)
    expected = {"next_token": [[1, 0], [1, 1], [1, 1], [0, 0]]}.get(name, [[1, 0], [1, 1]])
    weight = REQUESTS[name](row, IDS).weight
    assert weight[0].tolist() == expected
    assert np.all(weight[1] == 1)


def test_other_ids_are_used_where_given():
    ids = SpecialIds(pad=11, bos=7, blank=8, delimiter=9)
    assert REQUESTS["next_token"](ROW, ids).inputs[0, 0].tolist() == [7, 11]
    assert REQUESTS["blank_copy"](ROW, ids).inputs[0, 0].tolist() == [9, 8]
    assert REQUESTS["copy"](ROW, ids).weight[0].tolist() == [[0, 1], [1, 1]]


def test_odd_number_of_chunks_copies_the_smaller_half_right_after_it():
    request = REQUESTS["copy"](np.arange(10, 20, dtype=np.int32).reshape(1, 5, 2), IDS)
    assert request.labels[0].tolist() == [[10, 11], [12, 13]]
    assert request.chunk.tolist() == [2, 3]
    assert request.slots.tolist() == [[0, 1, E, E], [0, 1, 0, E]]


def test_no_chunk_is_asked_with_its_own_place_in_a_slot_or_a_later_one():
    for name, request in ((name, REQUESTS[name](np.zeros((1, 6, 3), np.int32), IDS)) for name in REQUESTS):
        for slots, chunk in zip(request.slots, request.chunk, strict=True):
            assert all(slots[chunk:] == EMPTY), name


def test_shift_puts_the_start_first_and_drops_the_last():
    assert np.array_equal(shift_right(np.array([[[7, 8, 9]]]), 3), [[[3, 7, 8]]])


def test_join_lays_requests_side_by_side():
    parts = [REQUESTS[name](ROW, IDS) for name in ("blank_copy", "next_token")]
    both = join(parts)
    assert both.inputs[0].tolist() == BY_HAND["blank_copy"]["inputs"] + BY_HAND["next_token"]["inputs"]
    assert both.labels[0].tolist() == BY_HAND["blank_copy"]["labels"] + BY_HAND["next_token"]["labels"]
    assert both.slots.tolist() == BY_HAND["blank_copy"]["slots"] + BY_HAND["next_token"]["slots"]
    assert both.chunk.tolist() == [2, 3, 0, 1, 2, 3]
    assert both.task.tolist() == [RETAIN] * 2 + [PREDICT] * 4
    assert both.weight.shape == (1, 6, 2)


@pytest.mark.parametrize(
    ("names", "needed"), [(["next_token"], 3), (["copy"], 2), (["blank_copy"], 2), (["copy", "next_token"], 3)]
)
def test_as_many_chunks_are_encoded_as_some_slot_holds(names, needed):
    assert memories_needed(join([REQUESTS[name](ROW, IDS) for name in names])) == needed


def test_one_chunk_needs_no_memory():
    assert memories_needed(REQUESTS["next_token"](ROW[:, :1], IDS)) == 0
