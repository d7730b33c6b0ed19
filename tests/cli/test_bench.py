"""`memjax bench`: flags, what is printed and what is written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memjax.cli import bench
from memjax.cli.arguments import parse
from memjax.cli.main import main
from memjax.performance.bench.efficiency import Efficiency, Point, Side
from memjax.testing import tiny_config, write_config


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file."""
    path = tmp_path_factory.mktemp("bench") / "tiny.py"
    write_config(path, tiny_config("unused"))
    return path


@pytest.mark.night
def test_a_comparison_is_printed_and_written(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    args = [
        "bench",
        f"--config={file}",
        "--stage=combined",
        "--program=encode",
        "--steps=2",
        "--warmup=1",
        "--profile=1",
        f"--out={out}",
    ]
    other = ["--against.model.encoder.width=32", "--against.model.encoder.heads=4"]
    # In a process of its own: what records steps does not go with the TPU compiler, which others
    # may have loaded.
    command = [sys.executable, "-m", "memjax.cli.main", *args, *other]
    said = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"COLUMNS": "200"}
    ).stdout
    told = json.loads(out.read_text())
    labels = [report["label"] for report in told["reports"]]
    assert labels == [str(file), f"{file} model.encoder.width=32 model.encoder.heads=4"]
    narrow, wide = (report["model_flops"] for report in told["reports"])
    assert told["comparisons"][0]["allowed"] == wide / narrow > 2
    (name, profile), *others = told["profiles"].items()
    assert (name, profile["steps"], others) == ("encode", 1, [])
    assert 0 < profile["products"] < 1
    assert profile["operations"][0]["source"]
    assert re.search(
        rf"^encode: {re.escape(labels[0])} is \d+\.\d{{3}} times as fast as {re.escape(labels[1])}"
        r" \(95 %",
        said,
        re.M,
    )
    assert re.search(r"model FLOPs allow \d\.\d{3}, of which that is \d+\.\d%$", said, re.M)
    assert "encode, by kind of operation" in said and re.search(
        r"matrix products .* \d+\.\d%", said
    )
    assert re.search(
        r"^peak memory since the process began, compiling included: resident \d+\.\d\d GiB",
        said,
        re.M,
    )
    shown = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    assert "stage combined combined" in shown and "MFU – –" in shown


def test_against_is_a_config_of_its_own_or_this_one_with_changes() -> None:
    def rival(*args: str) -> tuple[str, list[tuple[str, str]]] | None:
        return bench.rival(parse(bench.ARGUMENTS, args))

    own = ["--config=a.py:x", "--config.seed=1", "--steps=3"]
    assert rival(*own) is None
    assert rival(*own, "--against=two_passes") == ("a.py:x", [("seed", "1")])
    assert rival(*own, "--against=b.py") == ("b.py", [])
    changed = rival(*own, "--against.seed=2")
    assert changed == ("a.py:x", [("seed", "1"), ("seed", "2")])
    other = rival("--against=b.py:y", "--against.model.memory_vectors=2", "--config=a.py")
    assert other == ("b.py:y", [("model.memory_vectors", "2")])
    assert bench.label(*other) == "b.py:y model.memory_vectors=2"


WRONG = {
    "no config": ([], "--config: missing, expected FILE. For example: memjax bench"),
    "against without a value": (["--against"], "--against: no value, expected --against=VALUE."),
    "a file that is not there": (["--against=absent.py"], "--against=absent.py cannot be loaded"),
    "a setting that is not there": (["--against.sead=1"], "config.sead is not a setting"),
    "a stage that is not there": (
        ["--stage=none"],
        "--stage: got 'none', expected a stage of this config",
    ),
    "a program that is not there": (
        ["--program=serve"],
        "--program: 'serve', expected one of train, gradients, evaluate,",
    ),
    "passes of one objective": (
        ["--stage=causal_control", "--against=two_passes"],
        "two_passes: got another stage, expected a memory_model",
    ),
    "a mesh that is none": (
        ["--mesh=round"],
        "--mesh: 'round', expected ddp, fsdp, fsdp_tp, or axes",
    ),
    "a batch size of its own": (["--batch_size=2"], "--batch_size: 2, expected none without"),
    "a profile from a later step": (
        ["--profile=2:4"],
        "--profile: 2:4, expected a number of steps.",
    ),
    "more devices than there are": (["--mesh=data=2,fsdp=64"], "which needs 128 devices, expected"),
}


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_timed_is_one_clear_line(
    file: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [f"--config={file}"] if args else []
    assert main(["bench", *config, *args]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert said.count("memjax:") == 1 and "Traceback" not in said


def test_memories_against_full_context_is_a_line_for_each_and_their_ratios(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is timed is tested in tests/performance/bench: here the numbers are given."""
    memory = Side(3_000_000, 500_000, 2**20, 10, 4e6, (0.5, 0.5), False, (0.01, 0.01, 0.01))
    full = Side(3_000_000, 0, 4 * 2**20, 40, 6e6, (1.5, 1.5), False, (0.02, 0.02, 0.02))
    calls = []

    def measured(*args: object) -> Efficiency:
        calls.append(args[1:-1])
        return Efficiency("1 x cpu", [Point(1024, 2, memory, full)])

    monkeypatch.setattr("memjax.performance.bench.efficiency.measure_efficiency", measured)
    out = tmp_path / "contexts.json"
    args = ["--stage=combined", "--context_lengths=1024,4096", "--batch_size=2", "--steps=3"]
    assert main(["bench", f"--config={file}", *args, f"--out={out}"]) == 0
    assert calls == [("combined", [1024, 4096], 2, 3)]
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "memories against full context, on 1 x cpu",
        "1,024 memories 0.5 10 200.0 – 1.00 4.0",
        "full context 1.5 20 100.0 – 4.00 6.0",
        "1,024 tokens: with memories the cache is 4.0 times smaller, tokens per second are 2.00"
        " times as many (95 % interval 2.00 to 2.00; model FLOPs allow 1.50), and the prompt is"
        " read 3.0 times as fast",
        "the same 3.0 M decoder parameters; encoder, bridge and positions are 0.5 M more",
    ):
        assert text in said, text
    (point,) = json.loads(out.read_text())["points"]
    assert (point["context"], point["smaller"], point["allowed_by_bytes"]) == (1024, 4, 4)
