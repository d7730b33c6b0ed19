"""Who runs when, and what is made of the times."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.performance.bench.timing import quartiles, ratio, take_turns


class Clock:
    """Stands still but for what steps take."""

    def __init__(self):
        self.now, self.ran = 100.0, []

    def __call__(self):
        return self.now

    def step(self, name, *seconds):
        """A step that takes those seconds, one after another."""
        left = iter(seconds)

        def run():
            self.ran.append(name)
            self.now += next(left)
            return {"result": jnp.zeros(())}

        return run


def test_steps_take_turns_and_warm_up_untimed():
    clock = Clock()
    steps = [clock.step("a", 50, 50, 1, 2, 3), clock.step("b", 70, 70, 10, 20, 30)]
    assert take_turns(steps, rounds=3, warmup=2, clock=clock) == [[1, 2, 3], [10, 20, 30]]
    assert "".join(clock.ran) == "ababababab"


def test_a_step_ends_when_its_arrays_are_there(monkeypatch):
    clock, waited = Clock(), []

    def wait(tree):
        waited.append(tree.keys())
        clock.now += 5

    monkeypatch.setattr("memjax.performance.bench.timing.jax.block_until_ready", wait)
    assert take_turns([clock.step("a", 1, 1)], rounds=1, warmup=1, clock=clock) == [[6]]
    assert waited == [{"result"}] * 2


def test_spread_is_least_quartiles_and_greatest():
    assert list(quartiles([5.0, 1.0, 2.0, 4.0, 3.0]).items()) == [
        ("least", 1.0),
        ("lower_quartile", 2.0),
        ("median", 3.0),
        ("upper_quartile", 4.0),
        ("greatest", 5.0),
    ]


def test_a_ratio_is_of_medians_and_above_one_where_ours_take_less():
    found = ratio([1.0, 1.0, 9.0], [3.0, 3.0, 3.0])
    assert found.value == 3.0
    assert (found.low, found.high) == (pytest.approx(1 / 3), 3.0)


def test_slow_rounds_that_hit_both_do_not_widen_the_interval():
    ours = np.random.default_rng(0).lognormal(size=9)
    found = ratio(ours, 2 * ours)
    assert dataclasses.astuple(found) == pytest.approx((2.0, 2.0, 2.0))
    shuffled = ratio(ours, 2 * np.roll(ours, 4))
    assert shuffled.value == pytest.approx(2.0)
    assert shuffled.high - shuffled.low > 1


def test_one_round_has_no_interval():
    assert dataclasses.astuple(ratio([2.0], [5.0])) == (2.5, 2.5, 2.5)
