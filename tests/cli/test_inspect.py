"""`memjax inspect`: a page for people, JSON for programs, and one line for a wrong path."""

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from etils import epath
from etils.epath.testing import mock_epath

from memjax.checkpoints import Checkpoints
from memjax.cli.main import main
from memjax.config import to_json
from memjax.testing import tiny_config
from memjax.training.status import Progress, Session, Status, status_json


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage's folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "stages" / "combined"
    params = {
        "encoder": {"embed": {"embedding": jnp.ones((300, 16))}},
        "head": {"kernel": jnp.ones((16, 300))},
    }
    said = {
        "stage": "combined",
        "tokenizer": "0123456789abcdef",
        "next_row": 1600,
        "seconds": 3723.4,
    }
    config = tiny_config("corpus.jsonl", steps=400)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        metrics = {"copy/nats": 1.25, "copy/accuracy": 0.5}
        checkpoints.save(
            200,
            params,
            {"step": jnp.int32(200)},
            said | {"config": to_json(config), "metrics": metrics},
        )
    return folder


def test_people_see_what_it_is_and_holds(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(stage)]) == 0
    said = capsys.readouterr().out
    shown = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    assert f"checkpoint {stage}/checkpoints/200" in shown
    assert "stage combined (memory_model)" in shown
    assert "step 200 of 400 (there are 200)" in shown
    assert "objectives 1 copy, 1 next_token" in shown
    assert "held out copy/nats 1.2500, copy/accuracy 0.5000" in shown
    assert "trained for 1:02:03" in shown
    assert "tokenizer 0123456789abcdef" in shown
    assert "format 1" in shown
    assert "written on one device" in shown
    assert "parameters 9,600 numbers, 38.4 kB" in shown
    assert "trainable 4,800 numbers, 19.2 kB" in shown
    assert "frozen 4,800 numbers, 19.2 kB" in shown
    assert "optimizer 1 numbers, 4 bytes" in shown
    assert "encoder/embed 19.2 kB" in shown, "the part and its sum"
    assert "embedding 300×16 float32 19.2 kB frozen whole" in shown
    assert "kernel 16×300 float32 19.2 kB yes whole" in shown
    assert "config.model.decoder.width=16" in shown and 'config.data.corpus="corpus.jsonl"' in shown
    assert not [line for line in shown if line.startswith("config.model.layout")], "the default"


def test_programs_read_json(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(stage / "checkpoints" / "200"), "--out=-"]) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed)
    assert told["step"] == 200 and told["metrics"]["copy/nats"] == 1.25
    assert told["parameters"]["frozen"] == {"count": 4800, "bytes": 19200}
    assert (
        told["config"]["model"]["layout"] == "fixed"
        and told["changed"]["stages.combined.steps"] == 400
    )
    out = tmp_path / "contents.json"
    assert main(["inspect", str(stage / "checkpoints" / "200"), f"--out={out}"]) == 0
    assert out.read_text() == printed and "step 200 of 400" in " ".join(
        capsys.readouterr().out.split()
    )


BEGAN = 1_800_000_000.0
"""2027-01-15 08:00:00 UTC."""


def preempted() -> list[Session]:
    """A session that was killed, and lost two of its steps, and one that trains."""
    killed = Session(BEGAN, BEGAN + 100, 4, 16, "TPU v5 lite", "killed", "while training a")
    killed.saves, killed.apart = 2, {"saves": 1.0, "compilation": 19.0}
    killed.stages = {
        "auto": Progress(0, 50, 50, 50, 20.0, 50_000, 0.2),
        "combined": Progress(0, 10, 8, 400, 40.0, 80_000, 2.0),
    }
    running = Session(BEGAN + 150, BEGAN + 200, 2, 8, "TPU v5 lite", reason="training combined")
    running.stages = {"combined": Progress(8, 12, 12, 400, 30.0, 16_000, 3.0)}
    return [killed, running]


def shown(args: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that the command prints, without frames."""
    assert main(["inspect", *args]) == 0
    said = capsys.readouterr().out
    return [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]


def test_the_status_of_a_run_comes_first_and_needs_no_checkpoint(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: BEGAN + 265)
    (tmp_path / "status.json").write_text(json.dumps(status_json(preempted())))
    early = shown([str(tmp_path)], capsys)
    assert early[:3] == [
        "run running, 0:01:05 ago: training combined",
        "goodput 41.0% of 0:03:20",
        "time steps 41.0%, steps that were lost 4.0%, saves 0.5%, compilation 9.5%, starting 20.0%,"
        " between sessions 25.0%",
    ]
    sessions = [
        "2027-01-15 08:00:00 0:01:40 16 x TPU v5 lite auto 0 to 50 of 50 2,500 50.0% 2, 0.5 s each"
        " killed: while training a",
        "combined 0 to 10 of 400, 2 lost 2,000 50.0%",
        "2027-01-15 08:02:30 0:00:50 8 x TPU v5 lite combined 8 to 12 of 400 533 40.0%"
        " running: training combined",
    ]
    assert [line for line in early[3:] if "of" in line] == sessions
    shutil.copytree(stage.parent, tmp_path / "stages")
    later = shown([str(tmp_path)], capsys)
    assert later[: len(early)] == early
    assert f"checkpoint {tmp_path}/stages/combined/checkpoints/200" in later


def test_programs_read_the_status(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.loads(json.dumps(status_json(preempted())))
    (tmp_path / "status.json").write_text(json.dumps(written))
    for step in (None, 200):
        assert main(["inspect", str(tmp_path), "--out=-"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["status"] == written and found.get("step") == step
        if not step:
            shutil.copytree(stage.parent, tmp_path / "stages")
    assert found["status"]["goodput"] == pytest.approx(0.41)


def test_a_damaged_status_is_one_line_before_the_checkpoint(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "status.json").write_text("{}")
    said = f"{tmp_path}/status.json: no format, expected it there. The next start of the run"
    assert shown([str(tmp_path)], capsys) == [f"{said} replaces it"]
    shutil.copytree(stage.parent, tmp_path / "stages")
    first, second, *_ = shown([str(tmp_path)], capsys)
    assert first == f"{said} replaces it" and second.startswith("checkpoint ")


def test_the_status_of_a_run_in_a_bucket_is_read_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def beside(original: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
        return original(os.fspath(path).replace("gs://", f"{tmp_path}/"), *args, **kwargs)

    with mock_epath(exists=beside, isdir=beside, open=beside, listdir=beside):
        with Status(epath.Path("gs://bucket/run")) as status:
            status.begin_stage("combined", 0, 400)
        lines = shown(["gs://bucket/run"], capsys)
    assert lines[0].startswith("run finished, 0:00:0")
    assert [path.name for path in (tmp_path / "bucket" / "run").iterdir()] == ["status.json"]


WRONG = {
    "no folder": (
        [],
        "PATH: missing, expected PATH. For example: memjax inspect runs/quickstart",
    ),
    "two folders": (["a", "b"], "'b': unexpected argument, expected PATH."),
    "a folder that is not there": (
        ["nowhere"],
        "nowhere: no finished checkpoint here; give a workdir of `memjax train`, a stage's",
    ),
    "a flag of another command": (["a", "--config=some"], "--config: unknown flag, expected"),
}


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line_is_one_clear_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *args]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("memjax:") == 1 and "Traceback" not in said
