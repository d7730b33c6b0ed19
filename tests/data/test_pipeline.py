import itertools

import numpy as np
import pytest

from memjax.data import (
    RowsError,
    TrainBatches,
    evaluation_batches,
    open_attributions,
    open_rows,
)


def order(batches: TrainBatches, steps: int) -> list[int]:
    """Row numbers in the order they are trained on."""
    return np.concatenate([batches.batch(step)["tokens"][:, 0] for step in range(steps)]).tolist()


def test_each_epoch_holds_every_row_once_in_another_order(numbered_rows):
    seen = order(TrainBatches(numbered_rows, 5, seed=1), 23)
    epochs = [seen[start : start + 37] for start in (0, 37, 74)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_batch_is_a_function_of_seed_and_step(numbered_rows):
    batches = TrainBatches(numbered_rows, 4, seed=3)
    assert batches.batch(0).keys() == {"tokens"}
    assert batches.batch(0)["tokens"].shape == (4, 4)
    assert batches.batch(0)["tokens"].dtype == np.int32
    late, early = batches.batch(1000)["tokens"], batches.batch(2)["tokens"]
    again = TrainBatches(numbered_rows, 4, seed=3)
    np.testing.assert_array_equal(again.batch(2)["tokens"], early)
    np.testing.assert_array_equal(again.batch(1000)["tokens"], late)
    assert order(TrainBatches(numbered_rows, 4, seed=4), 9) != order(again, 9)


@pytest.mark.parametrize("start", [0, 3, 50])
def test_reading_ahead_gives_the_same_batches_after_any_restart(numbered_rows, start):
    batches = TrainBatches(numbered_rows, 4, seed=3)
    restarted = TrainBatches(numbered_rows, 4, seed=3).from_step(start, threads=2)
    for step, batch in zip(range(start, start + 12), restarted, strict=False):
        np.testing.assert_array_equal(batch["tokens"], batches.batch(step)["tokens"])


def test_the_order_does_not_depend_on_how_it_is_batched(numbered_rows):
    assert order(TrainBatches(numbered_rows, 2, seed=3), 40) == order(
        TrainBatches(numbered_rows, 8, seed=3), 10
    )
    assert (
        order(TrainBatches(numbered_rows, 2, seed=3, data_offset=50), 10)
        == order(TrainBatches(numbered_rows, 2, seed=3), 35)[50:]
    )


def test_attributions_come_with_their_rows(numbered_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = "~/a.npy"
    np.save(tmp_path / "a.npy", np.arange(37.0)[:, None] + np.array([0.0, 0.25, 0.5, 0.75]))
    batches = TrainBatches(numbered_rows, 5, 1, attributions=open_attributions(path))
    for step in (0, 9):
        batch = batches.batch(step)
        assert batch["attribution"].dtype == np.float32
        np.testing.assert_array_equal(batch["attribution"][:, 2], batch["tokens"][:, 0] + 0.5)


def test_attributions_that_do_not_fit_are_refused(numbered_rows, tmp_path):
    with pytest.raises(RowsError, match=r"config\.data\.attributions='.*' cannot be read"):
        open_attributions(str(tmp_path / "none.npy"))
    np.save(tmp_path / "ids.npy", np.zeros((37, 4), int))
    with pytest.raises(RowsError, match=r"int64 \(37, 4\), expected floats"):
        open_attributions(str(tmp_path / "ids.npy"))
    with pytest.raises(RowsError, match=r"shape \(36, 4\), expected \(37, 4\)"):
        TrainBatches(numbered_rows, 5, 1, attributions=np.zeros((36, 4)))


def test_evaluation_reads_in_order_and_pads_the_last_batch(numbered_rows):
    batches = list(evaluation_batches(numbered_rows, 4, limit=10, pad_id=0))
    assert [batch.shape for batch in batches] == [(4, 4)] * 3
    assert np.concatenate(batches)[:, 0].tolist() == [
        *(place * 37 // 10 for place in range(10)),
        0,
        0,
    ]
    everything = np.concatenate(list(evaluation_batches(numbered_rows, 5, limit=999, pad_id=99)))
    assert everything[:, 3].tolist() == [*range(37), 99, 99, 99]
    assert list(itertools.islice(evaluation_batches(numbered_rows, 4, limit=0, pad_id=0), 1)) == []


def test_no_rows(tmp_path, tokenizer, write_rows):
    write_rows(tmp_path, "train", [np.arange(3)], 4, tokenizer)
    with pytest.raises(RowsError, match=r"no rows to train on.*config\.data\.sequence_length"):
        TrainBatches(open_rows(tmp_path, "train", tokenizer.fingerprint), 2, seed=0)


# Mixtures


class Numbers:
    """Rows that say which they are; those in `damaged` cannot be read."""

    row_tokens = 2

    def __init__(self, first, rows, damaged=()):
        self.numbers, self.damaged = range(first, first + rows), set(damaged)

    def __len__(self):
        return len(self.numbers)

    def read(self, indices):
        for index in indices:
            if self.numbers[index] in self.damaged:
                raise RowsError(f"train-00000-of-00001.arrayrecord: record {index} cannot be read")
        return np.array([[self.numbers[index]] * 2 for index in indices], np.int32)


class Mixture:
    """What is used of MixedRows."""

    row_tokens = 2

    def __init__(self, parts, weights):
        self.parts, self.weights = parts, weights

    def __len__(self):
        return sum(map(len, self.parts))

    def read(self, indices):
        first, second = self.parts
        return np.concatenate(
            [
                first.read([index]) if index < len(first) else second.read([index - len(first)])
                for index in indices
            ]
        )


class Memories:
    """What is used of RowMemories; a row's are its number."""

    def __init__(self, numbers):
        self.numbers = numbers

    def check_rows(self, rows):
        assert len(rows) == len(self.numbers)

    def read(self, indices):
        return self.numbers[indices]


def mixture(weights=(3.0, 1.0), damaged=()):
    return Mixture([Numbers(0, 40, damaged), Numbers(1000, 10, damaged)], weights)


def test_parts_of_a_mixture_take_turns_by_weight_and_each_is_shuffled_by_itself():
    seen = np.array(order(TrainBatches(mixture(), 8, seed=3), 100))
    second = seen >= 1000
    shares = np.cumsum(second) / np.arange(1, 801)
    assert np.abs(shares * np.arange(1, 801) - np.arange(1, 801) / 4).max() <= 1, (
        "of any first n rows one in four"
    )
    for part, size, first in ((seen[~second], 40, 0), (seen[second], 10, 1000)):
        epochs = part[: len(part) // size * size].reshape(-1, size)
        assert len(epochs) >= 15
        assert (np.sort(epochs, axis=1) == first + np.arange(size)).all(), (
            "an epoch of a part holds each of its rows once"
        )
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    equal = np.array(
        order(TrainBatches(Mixture([Numbers(0, 30), Numbers(1000, 30)], (1, 1)), 8, seed=3), 30)
    )
    assert equal[equal < 1000].tolist() != (equal[equal >= 1000] - 1000).tolist(), (
        "each part has a seed of its own"
    )


def test_a_batch_of_a_mixture_is_a_function_of_seed_and_step_on_any_hosts():
    batches = TrainBatches(mixture(), 8, seed=3)
    late = batches.batch(10**6)["tokens"]
    assert late.shape == (8, 2) and late.dtype == np.int32
    np.testing.assert_array_equal(
        next(TrainBatches(mixture(), 8, seed=3).from_step(10**6))["tokens"], late
    )
    own = [
        TrainBatches(mixture(), 8, seed=3, part=part).batch(10**6)["tokens"]
        for part in np.split(np.arange(8), 4)
    ]
    np.testing.assert_array_equal(np.concatenate(own), late)
    later = TrainBatches(mixture(), 8, seed=3, data_offset=80)
    np.testing.assert_array_equal(later.batch(10**6 - 10)["tokens"], late)
    assert order(TrainBatches(mixture(), 8, seed=4), 5) != order(batches, 5)


def test_a_mixture_of_one_part_is_that_part():
    alone = Numbers(0, 40)
    assert order(TrainBatches(Mixture([alone], [2.0]), 4, seed=3), 30) == order(
        TrainBatches(alone, 4, seed=3), 30
    )


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(RowsError, match="expected 2 positive ones, one per corpus"):
        TrainBatches(mixture(weights), 4, seed=0)


def test_a_part_without_rows_is_refused():
    with pytest.raises(RowsError, match="no rows to train on"):
        TrainBatches(Mixture([Numbers(0, 4), Numbers(0, 0)], (1, 1)), 4, seed=0)


def test_what_belongs_to_rows_of_a_mixture_comes_with_them():
    numbers = np.array([*range(40), *range(1000, 1010)])
    memories = Memories(numbers)
    batches = TrainBatches(
        mixture(), 10, seed=3, attributions=np.stack([numbers, numbers], 1), memories=memories
    )
    for step in range(20):
        batch = batches.batch(step)
        np.testing.assert_array_equal(batch["attribution"], batch["tokens"])
        np.testing.assert_array_equal(batch["memories"], batch["tokens"][:, 0])


# Damage


def test_a_row_that_cannot_be_read_is_named():
    batches = TrainBatches(Numbers(0, 40, damaged={11}), 40, seed=3)
    with pytest.raises(RowsError, match="record 11 cannot be read"):
        batches.batch(0)


def test_damaged_rows_are_replaced_by_the_next_and_counted(caplog):
    damaged = {11, 12, 39, 1009}
    plain, skipping = (
        TrainBatches(mixture(damaged=d), 10, seed=3, skip_damaged=True) for d in ((), damaged)
    )
    instead = {
        11: 13,
        12: 13,
        39: 0,
        1009: 1000,
    }  # The next that can be read, in its own part, from its end at its beginning.
    replaced = 0
    for step in range(12):
        whole, found = (
            plain.batch(step)["tokens"][:, 0].tolist(),
            skipping.batch(step)["tokens"][:, 0].tolist(),
        )
        assert found == [instead.get(row, row) for row in whole]
        replaced += sum(row in instead for row in whole)
        assert skipping.skipped == replaced
    assert replaced > 6 and plain.skipped == 0
    assert "record 11 cannot be read; row 13 replaces it" in caplog.text


def test_what_belongs_to_the_row_that_is_read_instead_comes_with_it():
    given = np.arange(80.0).reshape(40, 2)
    batches = TrainBatches(
        Numbers(0, 40, damaged={5, 6, 7}), 40, seed=3, attributions=given, skip_damaged=True
    )
    batch = batches.batch(0)
    np.testing.assert_array_equal(batch["attribution"][:, 0], 2 * batch["tokens"][:, 0])
    # After 5 come 6, 7 and, as the distance doubles, 9.
    assert sorted(batch["tokens"][:, 0].tolist()) == sorted(
        [*(set(range(40)) - {5, 6, 7}), 9, 8, 8]
    )


def test_rows_that_are_damaged_throughout_are_not_replaced_for_ever():
    with pytest.raises(RowsError, match="more than single records are damaged"):
        TrainBatches(Numbers(0, 40, damaged=range(40)), 4, seed=3, skip_damaged=True).batch(0)


def test_batches_hold_document_numbers_if_asked(numbered_rows):
    batches = TrainBatches(
        numbered_rows, 5, 1, documents=lambda tokens: np.cumsum(tokens == 3, axis=1)
    )
    batch = batches.batch(0)
    assert (
        batch["documents"].shape == batch["tokens"].shape and batch["documents"].dtype == np.int32
    )
    np.testing.assert_array_equal(batch["documents"], np.cumsum(batch["tokens"] == 3, axis=1))


def test_the_order_is_that_of_earlier_releases():
    batches = TrainBatches(Numbers(0, 37), 5, seed=3, data_offset=2)
    found = [batches.batch(step)["tokens"][:, 0].tolist() for step in (0, 7, 1000)]
    assert found == [[31, 7, 26, 3, 18], [36, 24, 15, 7, 26], [12, 1, 9, 21, 17]], (
        "runs would go on with other rows"
    )
