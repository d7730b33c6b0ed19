"""The README is right: its Python runs, its commands are ones that there are, and its layout is the package's."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from memjax.cli.arguments import read_flags
from memjax.cli.main import COMMANDS
from memjax.cli.train import EXAMPLE, define_flags
from memjax.data import prepare
from memjax.testing import tiny_config, write_corpus
from memjax.training import Reporter, Run, train_stage
from memjax.training.curriculum import claim_workdir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORKDIR = "runs/quickstart"


def blocks(language: str) -> list[tuple[int, str]]:
    """(line, code) of the README's blocks in a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [(README.count("\n", 0, match.start(1)), match[1]) for match in found]


def commands() -> list[list[str]]:
    lines = [line for _, code in blocks("sh") for line in code.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def trained(tmp_path):
    """A folder where `runs/quickstart` holds a model that two steps have trained."""
    config = tiny_config(write_corpus(tmp_path / "corpus.jsonl"), steps=2)
    stages = {name: config.stages[name] for name in config.curriculum}
    config = dataclasses.replace(config, stages=stages, controls=())
    workdir = tmp_path / WORKDIR
    claim_workdir(config, workdir)
    run = Run(config, workdir, prepare(config.data, workdir / "data"), Reporter())
    for name in config.curriculum:
        train_stage(run, name)
    return tmp_path


def test_python_blocks_run_one_after_another(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    names: dict = {}
    found = blocks("python")
    assert len(found) >= 3
    for line, code in found:
        # The empty lines give errors the line of the README.
        exec(compile("\n" * line + code, str(ROOT / "README.md"), "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(\w+\.shape\)  # (\([\d, ]+\))", README)
    assert printed[: len(promised)] == promised
    assert len(promised) == 2
    assert 0 <= float(names["copy_accuracy"]) <= 1
    assert len(names["held"]) > 0
    assert names["said"].size == len(names["row"]) // 2


def test_memjax_commands_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = [words[1:] for words in commands() if words[0] == "memjax"]
    assert {args[0] for args in seen} == set(COMMANDS), "the README shows every command, and no other"
    for args in seen:
        if args[0] == "train":
            read_flags(args, EXAMPLE, define_flags, ("workdir",))


def test_shell_blocks_hold_nothing_untested():
    assert {words[0] for words in commands()} == {"make", "memjax", "."}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_targets_exist_and_quickstart_is_the_command_shown():
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert targets[:2] == ["quickstart", "test"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = {
        target: subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for target in (*targets, "env", "test-all", "clean", "help")
    }
    train = next(words for words in commands() if words[:2] == ["memjax", "train"] and f"--workdir={WORKDIR}" in words)
    assert shlex.join(train) in dry["quickstart"]
    last = dry["test"].rstrip().splitlines()[-1]
    assert " -m pytest " in last and last.endswith(' -m "not slow"'), "pytest's closing line must come last"


def test_layout_names_every_folder():
    layout = README.split("## Layout")[1].split("```")[1]
    named = set(re.findall(r"^  (\w+)/", layout, re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "memjax").glob("*/__init__.py")}
    assert named == folders
