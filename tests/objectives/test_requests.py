"""What each objective asks for, on a row of eight tokens in four chunks of two, written out by
hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.models import EMPTY, PREDICT, RETAIN
from memjax.models.request import Request, join
from memjax.objectives import REQUESTS, SpecialIds
from memjax.objectives.requests import make_request, shift_right
from memjax.testing.requests import slot_table

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
    assert slot_table(request, 3).tolist() == expected["slots"]
    assert request.place.tolist() == expected["chunk"]
    assert request.task.tolist() == expected["task"]
    assert request.weight[0].tolist() == [[1.0, 1.0]] * len(expected["labels"])
    assert request.weight.dtype == np.float32


@pytest.mark.parametrize("name", BY_HAND)
def test_padding_weighs_nothing_and_nothing_else_does(name):
    row = np.array(
        [[[11, 0], [13, 14], [15, 16], [0, 0]], [[2, 4], [5, 1], [15, 16], [17, 18]]], np.int32
    )
    expected = {"next_token": [[1, 0], [1, 1], [1, 1], [0, 0]]}.get(name, [[1, 0], [1, 1]])
    weight = REQUESTS[name](row, IDS).weight
    assert weight[0].tolist() == expected
    assert np.all(weight[1] == 1)


def test_other_ids_are_used_where_given():
    ids = SpecialIds(pad=11, bos=7, blank=8, delimiter=9)
    assert REQUESTS["next_token"](ROW, ids).inputs[0, :2].tolist() == [[11, 7], [7, 13]]
    assert REQUESTS["blank_copy"](ROW, ids).inputs[0, 0].tolist() == [9, 8]
    assert REQUESTS["copy"](ROW, ids).weight[0].tolist() == [[0, 1], [1, 1]]


def test_odd_number_of_chunks_copies_the_smaller_half_right_after_it():
    request = REQUESTS["copy"](np.arange(10, 20, dtype=np.int32).reshape(1, 5, 2), IDS)
    assert request.labels[0].tolist() == [[10, 11], [12, 13]]
    assert request.place.tolist() == [2, 3]
    assert slot_table(request, 4).tolist() == [[0, 1, E, E], [0, 1, 0, E]]


def test_no_chunk_is_asked_with_its_own_place_in_a_slot_or_a_later_one():
    for name, request in (
        (name, REQUESTS[name](np.zeros((1, 6, 3), np.int32), IDS)) for name in REQUESTS
    ):
        for slots, chunk in zip(slot_table(request, 5), request.place, strict=True):
            assert all(slots[chunk:] == EMPTY), name


def test_shift_puts_the_start_first_and_drops_the_last():
    assert np.array_equal(shift_right(np.array([[[7, 8, 9]]]), 3, 0), [[[3, 7, 8]]])


def test_join_lays_requests_side_by_side():
    parts = [REQUESTS[name](ROW, IDS) for name in ("blank_copy", "next_token")]
    both, encoded = join(parts, ROW)
    assert (
        both.inputs[0].tolist() == BY_HAND["blank_copy"]["inputs"] + BY_HAND["next_token"]["inputs"]
    )
    assert (
        both.labels[0].tolist() == BY_HAND["blank_copy"]["labels"] + BY_HAND["next_token"]["labels"]
    )
    assert both.slots.tolist() == BY_HAND["blank_copy"]["slots"] + BY_HAND["next_token"]["slots"]
    assert both.place.tolist() == [2, 3, 0, 1, 2, 3]
    assert both.task.tolist() == [RETAIN] * 2 + [PREDICT] * 4
    assert np.array_equal(encoded.tokens, ROW[:, :3])
    assert not encoded.has_extra


@pytest.mark.parametrize(
    ("names", "needed"),
    [(["next_token"], 3), (["copy"], 2), (["blank_copy"], 2), (["copy", "next_token"], 3)],
)
def test_as_many_chunks_are_encoded_as_some_slot_holds(names, needed):
    asked, encoded = join([REQUESTS[name](ROW, IDS) for name in names], ROW)
    assert np.array_equal(encoded.tokens, ROW[:, :needed])
    assert asked.slots.max() == needed - 1


def test_one_chunk_needs_no_memory():
    row = ROW[:, :1]
    assert join([REQUESTS["next_token"](row, IDS)], row)[1].tokens.shape == (1, 0, 2)


PUBLISHED = ("unscored_first_tokens", "overwritten_delimiter")
LONG = np.arange(10, 42, dtype=np.int32).reshape(1, 4, 8)
D, B = DELIMITER, BLANK
BY_HAND_PUBLISHED = {
    # name: inputs, labels where they count (0 elsewhere) and slots of the chunks that are decoded;
    # extra chunks are 4, 5, ...
    "plain_copy": (
        LONG[0, :2].tolist(),
        [[*range(11, 18), 0], [*range(19, 26), 0]],
        [[0, 1, E], [0, 1, 4]],
    ),
    "copy": (
        [[D, D, D, 13, 14, 15, 16, 17], [*range(18, 26)]],
        [[0, 12, 13, 14, 15, 16, 17, 0], [*range(19, 26), 0]],
        [[0, 1, E], [0, 1, 4]],
    ),
    "blank_copy": (
        [[D, D, D, B, B, B, B, B], [B] * 8],
        [[0, 12, 13, 14, 15, 16, 17, 0], [*range(19, 26), 0]],
        [[0, 1, E], [0, 1, 4]],
    ),
}


@pytest.mark.parametrize("name", BY_HAND_PUBLISHED)
def test_published_copies_are_those_by_hand(name):
    request = make_request(name, LONG, IDS, PUBLISHED)
    inputs, labels, slots = BY_HAND_PUBLISHED[name]
    assert request.inputs[0].tolist() == inputs
    assert (request.labels * request.weight)[0].astype(int).tolist() == labels
    assert slot_table(request, 3).tolist() == slots
    assert request.extra[0].tolist() == inputs[:1]
    asked, encoded = join([request], LONG)
    assert encoded.has_extra
    assert encoded.tokens[0].tolist() == [*LONG[0, :2].tolist(), inputs[0]]
    assert asked.slots.tolist() == [[0, 1, E], [0, 1, 2]]


def test_published_rows_have_so_many_targets():
    """254 + 255 of a delimited copy of 256-token chunks, 255 + 255 of a plain one."""
    row = np.arange(10, 1034, dtype=np.int32).reshape(1, 4, 256)
    targets = {
        name: make_request(name, row, IDS, PUBLISHED).weight.sum(axis=2)[0].tolist()
        for name in ("copy", "plain_copy")
    }
    assert targets == {"copy": [254, 255], "plain_copy": [255, 255]}


def test_published_reading_on_is_shown_whole_chunks():
    request = make_request("next_token", ROW, IDS, PUBLISHED)
    assert request.inputs[0].tolist() == ROW[0].tolist()
    assert (request.labels * request.weight)[0].tolist() == [[12, 0], [14, 0], [16, 0], [18, 0]]


def test_extra_chunks_of_several_requests_stay_apart():
    requests = [
        make_request(name, LONG, IDS, PUBLISHED) for name in ("copy", "next_token", "blank_copy")
    ]
    asked, encoded = join(requests, LONG)
    slots = asked.slots
    assert encoded.tokens.shape[1] == 3 + 1 + 1
    assert slots[1].tolist() == [0, 1, 3]
    assert slots[-1].tolist() == [0, 1, 4]
    assert slots[5].tolist() == [0, 1, 2]


def test_requests_of_the_same_entries_share_a_prefix():
    names = ["copy", "next_token", "blank_copy", "plain_copy"]
    asked, _ = join([REQUESTS[name](ROW, IDS) for name in names], ROW)
    assert [prefix.entries.tolist() for prefix in asked.prefixes] == [[0, 1, 0], [0, 1, 2]]
    assert [prefix.visible.tolist() for prefix in asked.prefixes] == [
        [2, 3, 2, 2, 2, 3],
        [*range(4)],
    ]
    assert asked.order == (0, 2, 3, 1)
    found = asked.split(np.asarray(asked.labels))
    for name, labels in zip(names, found, strict=True):
        assert labels[0].tolist() == BY_HAND[name]["labels"]


def test_an_entry_that_no_chunk_sees_is_left_out():
    asked, _ = join([REQUESTS["blank_copy"](ROW, IDS)], ROW)
    assert asked.prefixes[0].entries.tolist() == [0, 1]
    drawn = dataclasses.replace(REQUESTS["next_token"](ROW, IDS), visible=jnp.full((1, 4), 1))
    asked, _ = join([drawn], ROW)
    assert asked.prefixes[0].entries.tolist() == [0, 1, 2]


def test_a_start_token_stands_right_before_the_first_token():
    rows = np.array([[[0, 0, 7, 8], [7, 8, 0, 0], [0, 0, 0, 0], [0, 7, 0, 8]]])
    expected = [[0, 0, 3, 7], [3, 7, 8, 0], [3, 0, 0, 0], [0, 3, 7, 3]]
    assert np.asarray(shift_right(rows, 3, 0))[0].tolist() == expected


def slots_of_first_edition(name: str, chunks: int, published: bool) -> list[list[int]]:
    """The slot tables before they were derived from `written` and `visible`, written out."""
    half, slot = chunks // 2, np.arange(chunks - 1)
    earlier = np.where(slot < np.arange(chunks)[:, None], slot, E)
    if name == "next_token":
        return earlier.tolist()
    if published:
        again = earlier[half : 2 * half]
        return np.where(again < half, again, again - half + chunks).tolist()
    if name == "blank_copy":
        return np.where(slot < half, slot, E)[None].repeat(half, axis=0).tolist()
    chunk = half + np.arange(half)[:, None]
    return np.where(slot < half, slot, np.where(slot < chunk, slot - half, E)).tolist()


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("chunks", range(1, 9))
@pytest.mark.parametrize("name", BY_HAND)
def test_slots_derived_from_written_and_visible_are_the_tables_of_the_first_edition(
    name, chunks, published
):
    tokens = np.arange(10, 10 + 4 * chunks, dtype=np.int32).reshape(1, chunks, 4)
    request = make_request(name, tokens, IDS, PUBLISHED[:1] if published else ())
    assert slot_table(request, chunks - 1).tolist() == slots_of_first_edition(
        name, chunks, published
    )
    assert len(request.written_at) == len(request.written)


def test_tables_of_a_request_are_static_and_drawn_ones_are_traced():
    request = REQUESTS["copy"](ROW, IDS)
    leaves, tree = jax.tree.flatten(request)
    assert len(leaves) == 3 + 1 * (request.extra is not None)
    assert tree == jax.tree.structure(REQUESTS["copy"](ROW + 1, IDS))
    again = jax.jit(lambda r: r)(request)
    assert isinstance(again, Request)
    assert again.written.tolist() == [0, 1, 0]
    assert again.visible.tolist() == [2, 3]
    drawn = dataclasses.replace(request, visible=jnp.array([1, 2]))
    assert len(jax.tree.leaves(drawn)) == len(leaves) + 1
