"""When a checkpoint is due, by a clock that the test moves."""

from memjax.checkpoints import Schedule


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_every_so_many_steps_whatever_the_clock_says() -> None:
    clock = Clock()
    schedule = Schedule(steps=3, clock=clock)
    clock.seconds += 1e9
    assert [step for step in range(1, 10) if schedule.due(step)] == [3, 6, 9]


def test_minutes_count_from_the_last_save_whatever_its_reason() -> None:
    clock = Clock()
    schedule = Schedule(steps=1000, minutes=2.0, clock=clock)
    clock.seconds += 119.0
    assert not schedule.due(1)
    clock.seconds += 1.0
    assert schedule.due(2) and schedule.due(3), "due until it is saved"
    schedule.saved()
    assert not schedule.due(4)
    clock.seconds += 60.0
    schedule.saved()
    clock.seconds += 60.0
    assert not schedule.due(5)
    clock.seconds += 60.0
    assert schedule.due(6)


def test_the_clock_is_looked_at_every_so_many_steps() -> None:
    clock = Clock()
    schedule = Schedule(steps=5, minutes=1.0, clock=clock, clock_every=3)
    clock.seconds += 60.0
    assert [step for step in range(1, 10) if schedule.due(step)] == [3, 5, 6, 9]


def test_every_process_follows_the_first_ones_clock_at_every_step() -> None:
    """Two processes whose clocks differ; `agree` hands the second what the first said."""
    fast, slow, said = Clock(), Clock(), []

    def first(late: bool) -> bool:
        said.append(late)
        return late

    leader = Schedule(steps=4, minutes=1.0, clock=fast, agree=first)
    follower = Schedule(steps=4, minutes=1.0, clock=slow, agree=lambda late: said[-1])
    decisions = []
    for step in range(1, 9):
        fast.seconds += 25.0
        decisions.append((leader.due(step), follower.due(step)))
        if decisions[-1][0]:
            leader.saved()
        if decisions[-1][1]:
            follower.saved()
    assert [ours for ours, _ in decisions] == [theirs for _, theirs in decisions]
    # Late at step 3 (75 s); step 4 is due by its number; late again at step 7; step 8 by its
    # number.
    assert [step for step, (ours, _) in enumerate(decisions, 1) if ours] == [3, 4, 7, 8]
    assert len(said) == 8, "asked at every step, at those that are due by their number too"
