"""The files of launch/ as such: shell that shellcheck passes, an image whose parts exist, a README
that tells the truth."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
README = (LAUNCH / "README.md").read_text(encoding="utf-8")


def program(name: str) -> str:
    """A program of this environment, or of this machine."""
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if not found:
        pytest.skip(f"there is no {name} here")
    return found


def test_shellcheck_passes():
    assert len(SCRIPTS) == 7
    done = subprocess.run(
        [program("shellcheck"), "--external-sources", *SCRIPTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_scripts_stop_at_the_first_error():
    for script in SCRIPTS:
        text = script.read_text()
        if script.name == "settings.sh":
            assert not os.access(script, os.X_OK), "it is sourced"
            continue
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
        assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def instructions() -> list[list[str]]:
    """(instruction, rest) of every line of the Dockerfile."""
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def test_the_image_has_both_targets_and_runs_memjax_as_no_root():
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            image, name = rest.split(" AS ")
            stages[name] = list(stages.get(image, [(word, image)]))
        else:
            stages[name].append((word, rest))
    assert {"cpu", "tpu"} <= set(stages)
    for name in ("cpu", "tpu"):
        assert stages[name][0] == ("FROM", "python:3.11-slim")
        assert ("USER", "1000") in stages[name]
        assert stages[name][-1] == ("ENTRYPOINT", '["memjax"]')
        installs = [rest for word, rest in stages[name] if word == "RUN" and "pip install" in rest]
        # Every version is that of requirements.txt; the last brings only memjax itself.
        assert all("--constraint requirements.txt" in install for install in installs[:-1])
        assert "--no-deps" in installs[-1]
    assert ("ENV", "JAX_PLATFORMS=tpu,cpu") in stages["tpu"]


def test_what_the_image_copies_is_there_and_is_let_through():
    let_through = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for word, rest in instructions():
        if word == "COPY":
            copied |= set(shlex.split(rest)[:-1])
    assert {"memjax", "configs", "requirements.txt"} <= copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in let_through, f".dockerignore keeps {source} out"


def test_what_is_installed_is_offered(monkeypatch):
    """pip and uv only warn of an extra that there is none of."""
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    runpy.run_path(str(ROOT / "setup.py"))
    named = re.findall(
        r"\.\[([a-z,]+)\]",
        "".join((LAUNCH / name).read_text() for name in ("Dockerfile", "README.md")),
    )
    named += re.findall(r"/src\[([a-z,]+)\]", (LAUNCH / "worker.sh").read_text())
    assert len(named) >= 3
    assert {extra for extras in named for extra in extras.split(",")} <= set(
        given["extras_require"]
    )


def test_hadolint_passes():
    done = subprocess.run(
        [program("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_readme_has_every_setting_with_its_default():
    defaults = dict(
        re.findall(
            r'^: "\$\{([A-Z_]+):=(.*)\}"$', (LAUNCH / "settings.sh").read_text(), re.MULTILINE
        )
    )
    assert len(defaults) > 20
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? *\|", README, re.MULTILINE))
    assert table == defaults


def test_the_readme_names_commands_that_there_are():
    used = set(
        re.findall(
            r"launch/(\S+\.sh|slurm\.sbatch)(?: ([a-z]+))?",
            "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)),
        )
    )
    assert {name for name, _ in used} == {
        "tpu_vm.sh",
        "gke.sh",
        "device_check.sh",
        "local_multiprocess.sh",
        "slurm.sbatch",
    }
    for name, command in used:
        if name in ("tpu_vm.sh", "gke.sh"):
            usage = subprocess.run(
                [LAUNCH / name, "help"], capture_output=True, text=True, check=True
            ).stdout
            assert re.search(rf"^  {command}\b", usage, re.MULTILINE), f"{name} {command}"
