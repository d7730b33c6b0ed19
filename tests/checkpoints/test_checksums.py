"""Files of a checkpoint are verified before they are used, and every finished save is readable."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import memjax
from memjax.checkpoints import CheckpointError, Checkpoints, load_params
from memjax.checkpoints.checksums import CHECKSUMS, seal, verify
from memjax.checkpoints.inspect import inspect_checkpoint
from memjax.interop.stage import open_stage

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("quick_collection"),
]

PARAMS = {"kernel": jnp.arange(60.0).reshape(6, 10)}


def save(folder: Path, *steps: int) -> None:
    with Checkpoints(folder, keep=5) as checkpoints:
        for step in steps:
            params = jax.tree.map(lambda x, s=step: x + s, PARAMS)
            checkpoints.save(step, params, {"step": jnp.int32(step)}, {"seconds": 1.5})


def restore(folder: Path) -> tuple[tuple | None, list[str]]:
    said: list[str] = []
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (PARAMS, {"step": jnp.int32(0)}),
    )
    with Checkpoints(folder, keep=5, report=said.append) as checkpoints:
        return checkpoints.restore_latest(*wanted), said


NAMES = ["run[1]", "[!a]*?", "{a,b} 100% größe-λ\n#;&$'\""]


@pytest.mark.parametrize("name", NAMES)
def test_a_save_is_readable_whatever_its_folder_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "checkpoints"
    save(folder, 2)
    found, said = restore(folder)
    assert found is not None and found[0] == 2 and not said
    np.testing.assert_array_equal(load_params(folder)[0]["kernel"], PARAMS["kernel"] + 2)


def test_a_save_that_cannot_be_read_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    monkeypatch.setattr(type(epath.Path()), "glob", lambda self, pattern: iter(()))
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: a save failed \(.*Run the same"):
        save(tmp_path, 4)
    monkeypatch.undo()
    assert restore(tmp_path)[0][0] == 2


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def test_a_flipped_bit_in_any_file_is_found(tmp_path: Path) -> None:
    save(tmp_path, 2)
    path = tmp_path / "2"
    below = [file for file in path.rglob("*") if file.is_file() and file.parent != path]
    assert len(below) > 15
    for file in below:
        whole = file.read_bytes()
        flip(file)
        with pytest.raises(ValueError, match=rf"^{file.relative_to(path)}: sha256 "):
            verify(epath.Path(path))
        file.write_bytes(whole)
    verify(epath.Path(path))


def largest(path: Path) -> Path:
    return max((path / "params").rglob("d/*"), key=lambda file: file.stat().st_size)


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    flip(largest(tmp_path / "4"))
    verify(epath.Path(tmp_path / "4"), reader=1, readers=2)  # It is the share of process 0.
    found, said = restore(tmp_path)
    assert found is not None and found[0] == 2
    assert len(said) == 1 and "sha256" in said[0] and "resuming from step 2" in said[0]


def unseal(path: Path, **changes: object) -> None:
    """Make a checkpoint one of a memjax that wrote no checksums, with other metadata."""
    (path / CHECKSUMS).unlink()
    file = path / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sealed": False} | changes))


def test_a_checkpoint_of_an_earlier_memjax_is_read_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run\x1b[2J"
    save(folder, 2)
    unseal(folder / "2")
    for _ in range(2):
        assert restore(folder)[0][0] == 2
        assert load_params(folder)[1]["step"] == 2
    (said,) = [line for line in caplog.messages if "not verified" in line]
    assert said.startswith(f"{tmp_path}/run\\x1b[2J/2: no {CHECKSUMS} (an earlier memjax wrote it)")
    caplog.clear()
    save(folder, 4)
    assert restore(folder)[0][0] == 4
    assert not caplog.messages, "the advice works"


@pytest.mark.slow
def test_a_checkpoint_that_lost_its_checksums_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    (tmp_path / "4" / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/4: .*\({CHECKSUMS} is missing\)"):
        load_params(tmp_path)
    found, said = restore(tmp_path)
    assert found is not None and found[0] == 2
    assert f"{CHECKSUMS} is missing" in said[0]
    (tmp_path / "2" / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match=rf"\({CHECKSUMS} is missing\)"):
        load_params(tmp_path)


META = {
    "next_row": [[8], "8", 8.0, True],
    "stage": [["combined"], 3, None],
    "step": [3, "2", None],
    "seconds": ["1.5", [1.5]],
    "metrics": [[], 3],
    "config": [{}, 1],
}


@pytest.mark.quick_cases("stage")
@pytest.mark.parametrize("key", META)
def test_metadata_of_another_class_are_damage(tmp_path: Path, key: str) -> None:
    save(tmp_path, 2)
    path = tmp_path / "2"
    (path / CHECKSUMS).unlink()
    file = path / "meta" / "metadata"
    meta = json.loads(file.read_text())
    for value in META[key]:
        file.write_text(json.dumps(meta | {key: value}))
        with pytest.raises(CheckpointError, match=rf"{path}: .*\b{key}\b.*, expected "):
            load_params(tmp_path)
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="metadata: \\[\\], expected an object"):
        load_params(tmp_path)


def twice(workdir: Path) -> Path:
    """Give a stage a second checkpoint, damaged, behind its own; returns the damaged one."""
    folder = workdir / "stages" / "combined" / "checkpoints"
    shutil.copytree(folder / "8", folder / "9")
    meta = folder / "9" / "meta" / "metadata"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"step": 9}))
    (folder / "9" / CHECKSUMS).unlink()
    seal(epath.Path(folder / "9"))
    assert open_stage(workdir).step == 9
    flip(largest(folder / "9"))
    return folder / "9"


def test_a_stage_is_opened_at_its_last_whole_checkpoint(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = open_stage(workdir).read(None)
    damaged = twice(workdir)
    with pytest.raises(CheckpointError, match=f"{damaged}: .* cannot be read .params/.*sha256"):
        load_params(damaged.parent)
    found = open_stage(workdir)
    assert found.step == 8
    jax.tree.map(np.testing.assert_array_equal, found.read(None), whole)
    (said,) = caplog.messages
    assert said.startswith(f"{damaged}: ") and said.endswith("that of step 8 is used")
    flip(largest(damaged.parent / "8"))
    with pytest.raises(CheckpointError, match=f"{damaged}: .* cannot be read .params/.*sha256"):
        open_stage(workdir)


def test_a_stage_is_opened_at_a_step_or_at_its_best(workdir: Path) -> None:
    last = workdir / "stages" / "combined" / "checkpoints" / "9"
    shutil.copytree(last.parent / "8", last)
    for path, nats in ((last.parent / "8", 2.0), (last, 3.0)):
        file = path / "meta" / "metadata"
        meta = json.loads(file.read_text())
        config = json.loads(meta["config"]) | {"checkpoint_best": "next_token/nats"}
        meta |= {"step": int(path.name), "config": json.dumps(config)}
        file.write_text(json.dumps(meta | {"metrics": {"next_token/nats": nats}}))
        (path / CHECKSUMS).unlink()
        seal(epath.Path(path))
    for step, found in ((None, 9), (9, 9), (8, 8), ("best", 8)):
        for path in (workdir, workdir / "stages" / "combined"):
            assert open_stage(path, step=step).step == found
    assert memjax.load(workdir, step="best").step == 8
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .*steps there: 8, 9"):
        open_stage(workdir, step=7)
    flip(largest(last))
    assert open_stage(workdir).step == 8
    with pytest.raises(CheckpointError, match=f"{last}: .* cannot be read .params/.*sha256"):
        open_stage(workdir, step=9)
    memjax.load(workdir).save(workdir / "export")
    assert open_stage(workdir / "export", step=8).step == 8
    with pytest.raises(CheckpointError, match="export: step 8, expected 9"):
        open_stage(workdir / "export", step=9)


def test_files_in_a_bucket_are_sealed_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = pytest.importorskip("fsspec.implementations.local")

    class Bucket(local.LocalFileSystem):
        """Its own paths have no `gs://`, as those of gcsfs."""

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.replace("gs://bucket", str(tmp_path)))

    path = epath.Path("gs://bucket/run/8")
    monkeypatch.setattr(type(path._backend), "_get_filesystem", lambda self, name: Bucket())
    (tmp_path / "run" / "8" / "params" / "d").mkdir(parents=True)
    for name in ("mark", "params/a", "params/d/b"):
        (path / name).write_text(name)
    seal(path)
    sums = json.loads((path / CHECKSUMS).read_text())["sha256"]
    assert sorted(sums) == ["params/a", "params/d/b"]
    verify(path)
    flip(tmp_path / "run" / "8" / "params" / "d" / "b")
    verify(path, ("params/a",))
    with pytest.raises(ValueError, match=r"^params/d/b: sha256 "):
        verify(path)


@pytest.mark.quick_cases("changes0")
@pytest.mark.parametrize("changes", [{"config": "{"}, {"stage": "other"}, {"config": "[]"}])
def test_inspect_names_the_checkpoint_whose_metadata_contradict(
    workdir: Path, changes: dict[str, str]
) -> None:
    """Even where they have no checksums."""
    for stage in ("autoencoder", "causal_control", "combined"):
        path = workdir / "stages" / stage / "checkpoints" / "8"
        unseal(path, **changes)
    with pytest.raises(CheckpointError, match=rf"^{workdir}/stages/\w+/checkpoints/8: "):
        inspect_checkpoint(workdir)
    with pytest.raises(CheckpointError, match=rf"^{path}: "):
        inspect_checkpoint(path)


def test_inspect_verifies_what_it_reads(workdir: Path) -> None:
    path = workdir / "stages" / "combined" / "checkpoints" / "8"
    file = path / "params" / "_METADATA"
    text = file.read_text()
    assert text.count("kernel")
    file.write_text(text.replace("kernel", "kernes"))
    with pytest.raises(CheckpointError, match=f"{path}: "):
        inspect_checkpoint(path)
