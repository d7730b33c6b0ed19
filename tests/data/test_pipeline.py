import itertools

import numpy as np
import pytest

from memjax.data import RowsError, TrainBatches, evaluation_batches, open_attributions, open_rows, write_rows


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
    assert order(TrainBatches(numbered_rows, 2, seed=3), 40) == order(TrainBatches(numbered_rows, 8, seed=3), 10)
    assert (
        order(TrainBatches(numbered_rows, 2, seed=3, first_row=50), 10)
        == order(TrainBatches(numbered_rows, 2, seed=3), 35)[50:]
    )


def test_attributions_come_with_their_rows(numbered_rows, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(37.0)[:, None] + np.array([0.0, 0.25, 0.5, 0.75]))
    batches = TrainBatches(numbered_rows, 5, 1, attributions=open_attributions(str(path)))
    for step in (0, 9):
        batch = batches.batch(step)
        assert batch["attribution"].dtype == np.float32
        np.testing.assert_array_equal(batch["attribution"][:, 2], batch["tokens"][:, 0] + 0.5)


def test_attributions_that_do_not_fit_are_refused(numbered_rows, tmp_path):
    with pytest.raises(RowsError, match=r"config\.data\.attributions='.*' cannot be read"):
        open_attributions(str(tmp_path / "none.npy"))
    np.save(tmp_path / "ids.npy", np.zeros((37, 4), int))
    with pytest.raises(RowsError, match=r"holds int64 \(37, 4\)"):
        open_attributions(str(tmp_path / "ids.npy"))
    with pytest.raises(RowsError, match=r"shape \(36, 4\), the training rows \(37, 4\)"):
        TrainBatches(numbered_rows, 5, 1, attributions=np.zeros((36, 4)))


def test_evaluation_reads_in_order_and_pads_the_last_batch(numbered_rows):
    batches = list(evaluation_batches(numbered_rows, 4, limit=10, pad_id=0))
    assert [batch.shape for batch in batches] == [(4, 4)] * 3
    assert np.concatenate(batches)[:, 0].tolist() == [*(place * 37 // 10 for place in range(10)), 0, 0]
    everything = np.concatenate(list(evaluation_batches(numbered_rows, 5, limit=999, pad_id=99)))
    assert everything[:, 3].tolist() == [*range(37), 99, 99, 99]
    assert list(itertools.islice(evaluation_batches(numbered_rows, 4, limit=0, pad_id=0), 1)) == []


def test_no_rows(tmp_path, tokenizer):
    write_rows(tmp_path, "train", [np.arange(3)], 4, tokenizer)
    with pytest.raises(RowsError, match=r"no rows to train on.*config\.data\.row_tokens"):
        TrainBatches(open_rows(tmp_path, "train", tokenizer.fingerprint), 2, seed=0)
