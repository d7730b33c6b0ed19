"""Saving, restoring, and what is left when a save or a disk fails."""

import contextlib
import errno
import json
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.checkpoints import CheckpointError, Checkpoints, load_params, transplant

pytestmark = [
    # A restore that fails leaves coroutines of Orbax behind; they complain when they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("quick_collection"),
]

PARAMS = {"encoder": {"kernel": jnp.arange(600.0).reshape(20, 30)}, "head": {"bias": jnp.ones(7)}}
OPTIMIZER = {"opt_state": optax.adamw(1e-3).init(PARAMS), "step": jnp.int32(0)}


def save(folder: Path, *steps: int) -> None:
    with Checkpoints(folder, keep=5) as checkpoints:
        for step in steps:
            params = jax.tree.map(lambda x, s=step: x + s, PARAMS)
            checkpoints.save(step, params, OPTIMIZER | {"step": jnp.int32(step)}, {"seconds": 1.5})


def abstract(tree: object) -> object:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def restore(folder: Path) -> tuple[tuple | None, list[str]]:
    said: list[str] = []
    with Checkpoints(folder, keep=5, report=said.append) as checkpoints:
        return checkpoints.restore_latest(abstract(PARAMS), abstract(OPTIMIZER)), said


def test_the_last_checkpoint_comes_back_bitwise(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    found, said = restore(tmp_path)
    assert found is not None and not said
    step, params, optimizer, meta = found
    assert step == 4 and int(optimizer["step"]) == 4 and meta["seconds"] == 1.5
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 4), params, PARAMS)
    assert jax.tree.structure(optimizer) == jax.tree.structure(OPTIMIZER)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert restore(tmp_path / "new") == (None, [])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, PARAMS, OPTIMIZER, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate_weights(path: Path) -> None:
    file = largest_file(path / "params")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "weights cut short": truncate_weights,
    "manifest gone": lambda path: (path / "params" / "manifest.ocdbt").unlink(),
    "params gone": lambda path: shutil.rmtree(path / "params"),
    "optimizer gone": lambda path: shutil.rmtree(path / "optimizer"),
    "meta empty": lambda path: (path / "meta" / "metadata").write_text(""),
    "meta gone": lambda path: shutil.rmtree(path / "meta"),
    "metrics empty": lambda path: (path / "metrics" / "metrics").write_text(""),
    "closing mark gone": lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
    "closing mark of another shape": lambda path: (path / "_CHECKPOINT_METADATA").write_text(
        '{"commit_timestamp_nsecs": "1"}'
    ),
    "empty folder": lambda path: [shutil.rmtree(path), path.mkdir()][0],
}


@pytest.mark.quick_cases("weights cut short")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 2, 4)
    damage(tmp_path / "4")
    found, said = restore(tmp_path)
    assert found is not None and found[0] == 2
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 2), found[1], PARAMS)
    assert len(said) == 1 and str(tmp_path / "4") in said[0] and "damaged-4" in said[0]
    assert (tmp_path / "damaged-4").is_dir(), "what was written is kept"
    # And the step can be saved again.
    save(tmp_path, 4)
    assert restore(tmp_path)[0][0] == 4


def test_when_the_only_one_is_damaged_the_stage_starts_again(tmp_path: Path) -> None:
    save(tmp_path, 2)
    truncate_weights(tmp_path / "2")
    found, said = restore(tmp_path)
    assert found is None and "training this stage from its beginning" in said[0]


def test_what_a_kill_left_of_a_checkpoint_that_was_being_removed_is_removed(
    tmp_path: Path,
) -> None:
    save(tmp_path, 8)
    for step in (10, 12):
        shutil.copytree(tmp_path / "8", tmp_path / str(step))
    (tmp_path / "8" / "_CHECKPOINT_METADATA").unlink()
    said: list[str] = []
    with Checkpoints(tmp_path, keep=2, report=said.append) as checkpoints:
        assert checkpoints.steps() == [10, 12]
    assert said == [f"{tmp_path / '8'}: the removal of this checkpoint was cut short; removed"]
    assert {path.name for path in tmp_path.iterdir()} == {"10", "12"}


@pytest.mark.slow
def test_when_several_are_damaged_nothing_is_moved_and_the_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    truncate_weights(tmp_path / "2")
    truncate_weights(tmp_path / "4")
    with pytest.raises(
        CheckpointError, match="none of the checkpoints can be read; that of step 4"
    ):
        restore(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"2", "4"}


def test_what_a_killed_save_left_is_removed_and_reported(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "4.orbax-checkpoint-tmp-123").mkdir()
    (tmp_path / "4.orbax-checkpoint-tmp-123" / "half").write_text("x")
    found, said = restore(tmp_path)
    assert found is not None and found[0] == 2
    assert "step 4 was cut short" in said[0]
    assert not list(tmp_path.glob("*tmp*"))


def test_what_a_failed_save_left_is_removed_while_its_writers_end(tmp_path: Path) -> None:
    """As the threads of TensorStore do, which no one waits for when a save fails."""
    save(tmp_path, 2)
    left = tmp_path / "4.orbax-checkpoint-tmp-123"
    left.mkdir()
    for i in range(1000):  # So that the removal takes longer than a file is there.
        (left / f"{i}").touch()
    going, until = threading.Event(), time.monotonic() + 0.3

    def write() -> None:
        while time.monotonic() < until:
            for i in range(50):
                with contextlib.suppress(FileNotFoundError):
                    (left / f"{i}.__lock").touch()
            going.set()
            for i in range(50):
                (left / f"{i}.__lock").unlink(missing_ok=True)

    writer = threading.Thread(target=write)
    writer.start()
    going.wait()
    found, said = restore(tmp_path)
    writer.join()
    assert found is not None and found[0] == 2
    assert len(said) == 1 and "step 4 was cut short" in said[0]
    assert not left.exists()


def test_a_full_disk_ends_a_save_with_one_line_and_loses_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 2)
    # Several: those that are still being written when one fails must not be heard of.
    noise = {f"{i}": jax.random.normal(jax.random.key(i), (200, 200)) for i in range(30)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    told: list[str] = []

    def fail(late: bool) -> None:
        with Checkpoints(tmp_path, failed=told.append) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
            checkpoints.save(4, noise, OPTIMIZER, {})
            if late:
                checkpoints.save(6, noise, OPTIMIZER, {})

    for late in (False, True):
        try:
            with pytest.raises(OSError, match=f"File too large: '{tmp_path}'") as caught:
                fail(late)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert caught.value.errno == errno.EFBIG
        (why,) = set(told)
        assert why.startswith(f"{tmp_path}: File too large, expected room for it.")
    out, err = capfd.readouterr()
    assert not out and "Traceback" not in err and not [x for x in caplog.records if x.exc_info]
    found, said = restore(tmp_path)
    assert found is not None and found[0] == 2
    assert len(said) == 1 and "the save of step 4 was cut short; removed" in said[0]
    save(tmp_path, 4)
    assert restore(tmp_path)[0][0] == 4


def test_a_save_after_another_error_has_not_failed(tmp_path: Path) -> None:
    """As in a notebook, whose first try ended with that error."""
    told: list[str] = []
    try:
        raise KeyError("another")
    except KeyError:
        with Checkpoints(tmp_path, failed=told.append) as checkpoints:
            checkpoints.save(2, PARAMS, OPTIMIZER, {})
    assert not told


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 2)
    file = tmp_path / "2" / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        restore(tmp_path)
    with pytest.raises(CheckpointError, match="format 99"):
        load_params(tmp_path)


def test_params_are_read_without_module_or_mesh(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    params, meta = load_params(tmp_path)
    assert meta["step"] == 4
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 4), params, PARAMS)
    assert load_params(tmp_path, 2)[1]["step"] == 2
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of step 3 here \(steps there: 2, 4\)"
    ):
        load_params(tmp_path, 3)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_params(tmp_path / "absent")


def test_transplant_takes_the_named_part_and_leaves_the_rest() -> None:
    source = jax.tree.map(lambda x: x + 100, PARAMS)
    taken = transplant(PARAMS, source, "encoder", "there")
    np.testing.assert_array_equal(taken["encoder"]["kernel"], source["encoder"]["kernel"])
    np.testing.assert_array_equal(taken["head"]["bias"], PARAMS["head"]["bias"])
    everything = transplant(PARAMS, source, "", "there")
    np.testing.assert_array_equal(everything["head"]["bias"], source["head"]["bias"])


@pytest.mark.parametrize(
    ("source", "part", "message"),
    [
        (
            {"encoder": {"kernel": jnp.ones((2, 2))}},
            "encoder",
            r"there has parameter 'encoder/kernel' in shape \(2, 2\)",
        ),
        (
            {"head": {"bias": jnp.ones(7)}},
            "encoder",
            "there has no parameter 'encoder/kernel'; its parts are head",
        ),
        (PARAMS, "decoder", "'decoder' is no part of this model; its parts are encoder, head"),
    ],
)
def test_transplant_refuses_what_does_not_fit(source: dict, part: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        transplant(PARAMS, source, part, "there")
