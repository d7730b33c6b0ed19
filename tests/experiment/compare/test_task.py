"""The task of `memjax compare`: what is asked was written, and nothing else gives it away."""

import numpy as np

from memjax.experiment.compare.task import FIRST, Task, ask, draw_rows, prefixes
from memjax.objectives import SpecialIds

TASK = Task(vocab_size=96, chunk_length=8, written=4, values=4, keys=16)


def test_a_batch_is_a_function_of_its_seed():
    one, same = (draw_rows(TASK, 3, 4, 0, 7) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(one, same, strict=True))
    assert not np.array_equal(one.tokens, draw_rows(TASK, 3, 4, 0, 8).tokens)


def test_every_asked_value_stands_behind_its_key_at_the_stated_distance():
    for written in (4, 8):
        rows = draw_rows(TASK, 3, written, 1)
        assert rows.query.shape == (3, 4, 8)
        for row in range(3):
            for number, visible in enumerate(prefixes(written)):
                pairs = rows.query[row, number].reshape(-1, 2)
                for (key, value), distance in zip(pairs, rows.distance[row, number], strict=True):
                    chunk = rows.tokens[row, visible - distance]
                    (at,) = np.flatnonzero(chunk == key)
                    assert 1 <= distance <= visible
                    assert chunk[at + 1] == value
                    assert (rows.tokens[row] == key).sum() == 1


def test_keys_values_and_other_tokens_differ():
    rows = draw_rows(TASK, 64, 4, 2)
    keys, values = rows.query[..., ::2], rows.query[..., 1::2]
    assert keys.min() >= FIRST
    assert keys.max() < FIRST + 16 <= values.min()
    assert values.max() < FIRST + 20
    assert np.bincount(values.ravel() - FIRST - 16).min() > 100


def test_a_request_scores_values_alone():
    rows = draw_rows(TASK, 2, 4, 3)
    request = ask(rows, SpecialIds())
    assert np.array_equal(request.visible, [1, 2, 3, 4])
    assert np.array_equal(request.weight[0, 0], [0, 1] * 4)
    # The input at a value's position is its key.
    assert np.array_equal(request.inputs[..., 1::2], rows.query[..., ::2])
