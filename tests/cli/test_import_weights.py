"""`memjax import` and `memjax export --format=reference`: there and back, and every wrong input in
one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import memjax
from memjax.cli.main import main

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STATE, SPEC = (
    GOLDEN / "memory_transformer_fixed.a.safetensors",
    GOLDEN / "memory_transformer_fixed.a.json",
)
REFERENCE = "--format=reference"


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    status = main([str(arg) for arg in args])
    said = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in said
    assert said.count("memjax:") == 1 and said.strip().count("\n") == 0
    return said


def test_weights_go_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "imported", tmp_path / "new" / "out.safetensors"
    assert main(["import", str(STATE), f"--spec={SPEC}", f"--out={folder}"]) == 0
    said = capsys.readouterr().out
    assert f"{folder}: memory_model of 12,944 parameters; 2 unused tensors are kept aside" in said
    assert f"init_from={folder}/stages/reference" in said
    assert memjax.load(folder).tokenizer is None
    assert main(["export", f"--out={out}", str(folder), REFERENCE]) == 0
    assert "45 tensors" in capsys.readouterr().out
    assert out.read_bytes() == STATE.read_bytes()


def test_a_conversion_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(STATE)
    tensors["wte.weight"] = tensors["wte.weight"].astype(np.float16)
    save_file(tensors, tmp_path / "half.safetensors")
    args = [str(tmp_path / "half.safetensors"), f"--spec={SPEC}", f"--out={tmp_path / 'imported'}"]
    assert main(["import", *args]) == 0
    assert "1 tensors were converted to float32" in capsys.readouterr().out


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_wrong_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out={tmp_path / 'imported'}"
    absent, noise = tmp_path / "absent", text(tmp_path / "noise", "these are no tensors, but words")
    listed, broken = (
        text(tmp_path / "list.json", "[]"),
        text(tmp_path / "broken.json", "{'kind': 1}"),
    )
    wrong = {
        (absent, SPEC): "absent cannot be read (",
        (noise, SPEC): "noise is no safetensors file",
        (tmp_path, SPEC): f"{tmp_path} cannot be read",
        (STATE, absent): "absent: no such file, expected JSON",
        (STATE, broken): "broken.json: no JSON",
        (STATE, noise): "noise: no JSON",
        (STATE, STATE): ": no JSON (",
        (STATE, listed): "list.json: [], expected an object",
    }
    for (state, spec), message in wrong.items():
        assert message in fails(capsys, "import", state, f"--spec={spec}", out)
    assert not (tmp_path / "imported").exists()


def test_files_that_do_not_fit_are_named_with_key_or_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"--out={tmp_path / 'imported'}"
    spec = json.loads(SPEC.read_text())
    for changes, message in (
        ({"kind": "llama"}, "spec.json: kind='llama' is unknown"),
        ({"chunks": None}, "spec.json: the spec has no 'chunks'"),
        (
            {"compression": 2},
            f"{STATE.name}: the state dict has no tensor 'down.bias', of shape (4,)",
        ),
        (
            {"vocab": 60},
            f"{STATE.name}: tensor 'decoder_wte.weight' has shape (61, 16); the spec's model has"
            " (60, 16)",
        ),
        (
            {"layers": 1},
            f"{STATE.name}: the state dict holds 'decoder.layers.1.input_layernorm.weight', ",
        ),
    ):
        changed = {key: value for key, value in (spec | changes).items() if value is not None}
        file = text(tmp_path / "spec.json", json.dumps(changed))
        assert message in fails(capsys, "import", STATE, f"--spec={file}", out)
    assert not (tmp_path / "imported").exists()


def test_wrong_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    shutil.copytree(GOLDEN, taken)
    said = fails(capsys, "import", STATE, f"--spec={SPEC}", f"--out={taken}")
    assert "taken: is there already" in said
    out = tmp_path / "out.safetensors"
    assert "taken has no reference.json" in fails(
        capsys, "export", taken, f"--out={out}", REFERENCE
    )
    assert "absent has no reference.json" in fails(
        capsys, "export", tmp_path / "absent", f"--out={out}", REFERENCE
    )
    text(taken / "reference.json", SPEC.read_text())
    assert "taken: holds no model, expected a workdir" in fails(
        capsys, "export", taken, f"--out={out}", REFERENCE
    )
    assert not out.exists()


COMMAND_LINES = {
    "no state": (
        ["import", "--spec=s", "--out=o"],
        "FILE: missing, expected FILE. For example: memjax import",
    ),
    "two states": (["import", "a", "b", "--spec=s", "--out=o"], "'b': unexpected argument"),
    "no spec": (["import", "a", "--out=o"], "--spec: missing"),
    "no folder to write": (["import", "a", "--spec=s"], "--out: missing"),
    "a flag that is none": (
        ["import", "a", "--spec=s", "--out=o", "--sped=1"],
        "--sped: unknown flag, expected a flag of `memjax import --help`. Did you mean --spec?",
    ),
    "no folder": (["export", "--out=o", "--format=reference"], "PATH: missing, expected PATH."),
    "no file to write": (["export", "folder", "--format=reference"], "--out: missing"),
}


@pytest.mark.parametrize(("args", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line_is_explained(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert message in fails(capsys, *args)
