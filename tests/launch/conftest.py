"""A cloud without machines: programs in place of gcloud and uv, and a folder for every worker they
speak of.

Everything else is real: the scripts, git, and what runs on a worker, with a small program in
memjax's place.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2

# Commands are appended to calls.jsonl. What the queue does is in queue.json: `left` are the states
# of the queued resource that is there, one for each time it is asked for, of which the last one
# stays, and `lives` those of the resources still to come. A state is QUEUE or QUEUE/NODES; RUNNING
# stands for an ACTIVE that stays until memjax was started on every worker; `!` is a call that
# fails.
GCLOUD = f"""#!{sys.executable} -IS
import json, os, pathlib, shutil, signal, subprocess, sys

cloud, args = pathlib.Path(os.environ["CLOUD"]), sys.argv[1:]
with open(cloud / "calls.jsonl", "a") as file:
    file.write(json.dumps(args) + "\\n")
assert args[:2] == ["compute", "tpus"] and {{"--project=tests", "--zone=here-1"}} <= set(args), args
flags = dict(arg[2:].split("=", 1) for arg in args if arg.startswith("--") and "=" in arg)
kind, verb, *rest = (arg for arg in args[2:] if not arg.startswith("--"))
queue = json.loads((cloud / "queue.json").read_text())
left = queue["left"]


def workers(node):
    if left is None or queue["now"].split("/")[0] not in ("ACTIVE", ""):
        sys.exit(f"{{node}} is not there")
    number = flags["worker"]
    folders = [cloud / node / str(i) for i in ([0, 1] if number == "all" else [int(number)])]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


status = 0
if (kind, verb) == ("queued-resources", "list"):
    assert flags["filter"] == "name~/tiny$"
    if left:
        if left[0] == "!":
            status = 1
        else:
            queue["now"] = left[0].replace("RUNNING", "ACTIVE")
            print(queue["now"].split("/")[0])
        starts = [len(path.read_text().splitlines()) for path in cloud.glob("started-*")]
        if left[0] != "RUNNING" or starts == [len(queue["nodes"]) * queue["created"]] * {WORKERS}:
            queue["left"] = left[1:] or left
elif (kind, verb) == ("queued-resources", "create"):
    assert left is None, "it is there already"
    queue["left"] = queue["lives"].pop(0)
    queue["created"] += 1
    several = [f"{{rest[0]}}-{{i}}" for i in range(int(flags.get("node-count", 0)))]
    queue["nodes"] = [rest[0]] if "node-id" in flags else several
elif (kind, verb) == ("queued-resources", "delete"):
    assert left is not None and "--force" in args
    for node in queue["nodes"]:
        for pid in (cloud / node).glob("*/memjax/pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(cloud / node, ignore_errors=True)
    queue["left"] = None
elif (kind, verb) == ("tpu-vm", "list"):
    assert flags["filter"] == f'name~"/({{"|".join(queue["nodes"])}})$"'
    for node in queue["nodes"]:
        print((queue["now"].split("/") + ["READY"])[1])
elif (kind, verb) == ("tpu-vm", "describe"):
    print({WORKERS})
elif (kind, verb) == ("tpu-vm", "scp"):
    source, target = rest
    for folder in workers((source if ":" in source else target).split(":")[0]):
        there = lambda path: folder / path.split(":")[1] if ":" in path else path
        shutil.copy(there(source), there(target))
elif (kind, verb) == ("tpu-vm", "ssh"):
    for folder in workers(rest[0]):
        env = os.environ | {{"HOME": str(folder)}}
        done = subprocess.run(["bash", "-c", flags["command"]], cwd=folder, env=env)
        status = status or done.returncode
else:
    sys.exit(f"what is {{kind}} {{verb}}?")
if kind == "queued-resources":  # the other calls come several at once, and change nothing
    (cloud / "queue.json").write_text(json.dumps(queue))
sys.exit(status)
"""

UV = """#!/usr/bin/env bash
set -e
case $1 in
  venv) mkdir -p .venv/bin ;;
  pip) cp "$CLOUD/memjax" .venv/bin/memjax ;;
esac
"""


@dataclasses.dataclass
class Cloud:
    """The folder of a cloud, and the checkout that uses it."""

    folder: Path
    checkout: Path
    env: dict[str, str]

    def __call__(self, *args: str, status: int = 0, **env: str) -> str:
        """What `launch/tpu_vm.sh ARGS` says, on both outputs; its exit status must be as given."""
        done = subprocess.run(
            [self.checkout / "launch" / "tpu_vm.sh", *args],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            timeout=120,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def queue(self, *lives: list[str], left: list[str] | None = None) -> None:
        """States of resources to come, and of the one that is there."""
        (self.folder / "queue.json").write_text(
            json.dumps({"left": left, "now": "", "lives": lives, "nodes": ["tiny"], "created": 0})
        )

    def memjax(self, script: str) -> None:
        """The program that the next installation installs in memjax's place. It notes its
        arguments."""
        path = self.folder / "memjax"
        path.write_text(
            f'#!/usr/bin/env bash\necho "$*" >>"$CLOUD/started-$(basename "$HOME")"\n{script}\n'
        )
        path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """Arguments of gcloud, of all calls so far."""
        path = self.folder / "calls.jsonl"
        return (
            [json.loads(line)[2:] for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def changes(self) -> list[str]:
        """What was done, in order, of all that is not only looking."""
        names = {
            "queued-resources create": "create",
            "queued-resources delete": "delete",
            "tpu-vm scp": "copy",
        }
        found = []
        for call in self.calls():
            commands = [arg for arg in call if arg.startswith("--command=")]
            verbs = [
                verb
                for verb in ("install", "run")
                if commands and f"worker.sh {verb} " in commands[0]
            ]
            found += verbs or [names[name] for name in [" ".join(call[:2])] if name in names]
        return found

    def started(self, worker: int = 0) -> list[str]:
        """Command lines that memjax was started with on a worker, of all slices."""
        path = self.folder / f"started-{worker}"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cloud(tmp_path):
    """A cloud with an empty queue."""
    for program in ("flock", "git", "setsid"):
        if not shutil.which(program):
            pytest.skip(f"there is no {program} here")
    checkout, folder, programs = tmp_path / "checkout", tmp_path / "cloud", tmp_path / "bin"
    for path in (folder, programs, checkout / "memjax", checkout / "configs"):
        path.mkdir(parents=True)
    shutil.copytree(ROOT / "launch", checkout / "launch")
    files = (
        "LICENSE",
        "README.md",
        "configs/tiny.py",
        "memjax/__init__.py",
        "pyproject.toml",
        "requirements.txt",
        "setup.py",
    )
    for file in files:
        (checkout / file).write_text(f"# {file}\n")
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    for name, text in (("gcloud", GCLOUD), ("uv", UV)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    settings = {
        "PROJECT": "tests",
        "ZONE": "here-1",
        "RUN_NAME": "tiny",
        "BUCKET": "gs://bucket",
        "CONFIG": "configs/tiny.py",
    }
    system = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "CLOUD": str(folder), "POLL_SECONDS": "0"}
    cloud = Cloud(folder, checkout, system | path | settings)
    cloud.queue()
    cloud.memjax("exit 0")
    yield cloud
    # End what a failed test has left.
    for pid in folder.glob("*/*/memjax/pid"):
        if (pid.parent / "ended").exists():
            continue
        subprocess.run(
            ["kill", "-KILL", pid.read_text().strip()], check=False, stderr=subprocess.DEVNULL
        )
