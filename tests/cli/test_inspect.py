"""`memjax inspect`: a page for people, JSON for programs, and one line for a wrong path."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from memjax.checkpoints import Checkpoints
from memjax.cli.main import main
from memjax.config import to_json
from memjax.testing import tiny_config


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
