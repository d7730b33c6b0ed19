"""Killed with SIGKILL at any moment and started again, a run ends bitwise where it ends
undisturbed; nothing that was saved is lost, and nothing but the command is needed.

The moments are drawn by the number of a part, over the whole run: preparation, training, saves,
evaluation and report.
"""

import random
import shutil
import signal
from pathlib import Path

import pytest

from memjax.checkpoints.reading import absolute, trained_stages

EVALUATORS = ("validation", "accuracy")
PARTS, KILLS = 10, 10
"""Tests, and kills of each."""


def saved(workdir: Path) -> dict[str, int]:
    """The last saved step of every stage."""
    return {name: steps[-1] for name, steps in trained_stages(absolute(workdir)).items()}


@pytest.mark.night
@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_killed_again_and_again_ends_bitwise_the_same(place, part):
    draw, kills, before = random.Random(f"kills {part}"), 0, {}
    while True:
        last = kills == KILLS
        moment = {} if last else {"kill_after": draw.uniform(0, place.seconds)}
        done = place.forks.run(place.train, ["end", str(place.workdir)], **moment)
        assert "Traceback" not in done.said and "memjax:" not in done.said, done.said
        after = saved(place.workdir)
        assert all(after.get(name, 0) >= step for name, step in before.items()), (before, after)
        assert not list(place.workdir.rglob("damaged-*")), done.said
        before = after
        if done.status == -signal.SIGKILL:
            assert not last, f"hangs after {kills} kills: {done.said}"
            kills += 1
            continue
        assert done.status == 0 and [answer["status"] for answer in done.answers] == [0, 0]
        assert done.answers[1]["value"] == place.end
        assert not list(place.workdir.rglob(".*")), "what killed processes left is removed"
        shutil.rmtree(place.workdir)
        before = {}
        if last:
            break
