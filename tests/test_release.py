"""What a release is made of: the wheel and the sdist, the workflows, and the citation."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import memjax

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
PACKAGED = ("memjax", "setup.py", "pyproject.toml", "README.md", "LICENSE")

USE = """
import sys
from pathlib import Path
import memjax
assert Path(memjax.__file__).is_relative_to(sys.argv[1]), memjax.__file__
text = "It was late, and the last train had left without him."
model = memjax.load("small-en")
assert model.reconstruct(model.compress([text])) == [text]
from memjax.cli.main import main
Path(sys.argv[2]).write_text(text)
store = sys.argv[2] + ".store"
assert main(["compress", "small-en", sys.argv[2], f"--out={store}", "--eval_examples=0"]) == 0
assert main(["reconstruct", "small-en", store, f"--out={sys.argv[2]}.back"]) == 0
assert Path(sys.argv[2] + ".back").read_text() == text
"""


def run(*command, cwd, **env):
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(kind, source, folder):
    """The wheel or the sdist of a source tree, by the build backend that pyproject.toml names."""
    folder.mkdir(exist_ok=True)
    said = run(sys.executable, "-c", BUILD, f"build_{kind}", str(folder), cwd=source)
    return folder / said.splitlines()[-1]


@pytest.mark.slow
def test_the_wheel_of_the_sdist_runs_in_an_empty_folder(tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    for folder in (source, empty):
        folder.mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source)
    with tarfile.open(built("sdist", source, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    wheel = built("wheel", unpacked, tmp_path / "dist")
    assert wheel.name == f"memjax-{memjax.__version__}-py3-none-any.whl"

    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "memjax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == files
    site = str(tmp_path / "site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, f"--target={site}", str(wheel), cwd=empty)
    book = tmp_path / "book.txt"
    run(sys.executable, "-c", USE, site, str(book), cwd=empty, PYTHONPATH=site)
    assert not list(empty.iterdir())


def test_workflows_call_the_commands_of_the_makefile():
    files = list((ROOT / ".github" / "workflows").glob("*.yml"))
    jobs = [
        job
        for file in files
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
    ]
    ran = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    assert ran == {"make test", ".ci/run", "make docs"}
    assert all(job["timeout-minutes"] <= 120 for job in jobs)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == memjax.__version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert "2602.13466" in cited["preferred-citation"]["url"]
