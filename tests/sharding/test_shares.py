"""Shares of work: nothing is lost or done twice, and results come back bit by bit."""

import jax
import numpy as np
import pytest

from memjax.sharding import alone, divide, gather, leads, own, share, shares, sharing, wait


@pytest.fixture
def processes(monkeypatch):
    """Makes this process one of several, which are not there."""

    def make(number, count):
        monkeypatch.setattr(jax, "process_index", lambda: number)
        monkeypatch.setattr(jax, "process_count", lambda: count)

    return make


@pytest.mark.parametrize("count", [0, 1, 3, 10, 100])
@pytest.mark.parametrize("among", [1, 2, 3, 7])
def test_every_row_is_in_one_share(count, among, processes):
    rows, items = [], []
    for number in range(among):
        processes(number, among)
        with sharing():
            rows += share(count)
            items += own(range(count))
            assert abs(len(share(count)) - count / among) < 1
            assert leads() == (number == 0)
    assert rows == list(range(count)) == sorted(items)


@pytest.mark.parametrize("among", [1, 2, 3, 7])
def test_every_task_is_done_by_one_process_alone(among, processes, monkeypatch):
    done, sent = [], []

    def send(mine):
        sent.append(mine)
        return [[*mine, *range(5)]] * among

    for number in range(among):
        processes(number, among)
        monkeypatch.setattr(shares, "gather", send)
        with sharing():
            divide([lambda i=i: done.append((i, share(9))) or i for i in range(5)])
    assert sorted(done) == [(i, range(9)) for i in range(5)]
    monkeypatch.setattr(shares, "gather", lambda own: sent)
    with sharing():
        assert divide([lambda: None] * 5) == [0, 1, 2, 3, 4]


def test_outside_a_block_a_process_does_all(processes):
    processes(1, 4)
    assert share(5) == range(5) and own([1, 2]) == [1, 2] and leads()
    value = {"a": np.arange(3.0)}
    assert gather(value)[0] is value
    wait("nobody")
    with sharing(), alone():
        assert share(5) == range(5)
    with sharing(), alone(), sharing():
        assert share(5) == range(1, 2)


def test_values_of_any_size_and_dtype_come_back(processes, monkeypatch):
    """Three processes in turn: what each would send is recorded, and then received by all."""
    values = [
        {"sums": np.array([1 / 3, 2.0**60 + 1]), "counts": np.array([2**62 + 1])},
        None,
        {"sums": np.random.default_rng(0).normal(size=(7, 5)), "text": "é"},
    ]
    monkeypatch.setattr(shares, "_AT_ONCE", 50)
    sent = [[], [], []]

    def send(data):
        sent[jax.process_index()].append(data)
        sizes = [len(shares.pickle.dumps(value, protocol=5)) for value in values]
        if len(sent[jax.process_index()]) == 1:
            return [size.to_bytes(8, "little") for size in sizes]
        return [data] * 3

    monkeypatch.setattr(shares, "_all_bytes", send)
    for number in range(3):
        processes(number, 3)
        with sharing(), pytest.MonkeyPatch.context() as patched:
            patched.setattr(shares.pickle, "loads", lambda data: None)
            gather(values[number])
    assert len({len(own) for own in sent}) == 1, "as many messages"
    assert all(len({len(x) for x in row}) == 1 for row in zip(*sent, strict=True)), "as long ones"
    messages = list(map(list, zip(*sent, strict=True)))
    monkeypatch.setattr(shares, "_all_bytes", lambda data: messages.pop(0))
    with sharing():
        found = gather(values[2])
    assert found[1] is None and found[2]["text"] == "é"
    for ours, theirs in ((found[0], values[0]), (found[2], values[2])):
        for name in ours.keys() - {"text"}:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
