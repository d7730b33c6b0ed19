"""A process that imports once and forks: its children run commands without the seconds of imports.

A script. Each line of its input is the JSON of a child: `commands`, the `out` file of its answers,
the file `said` of what it prints, and variables `env`. The script prints the child's process id
and, when the child has ended, its status: a signal's number is negative. A command is what follows
`memjax`, or one of READS and a path. Each adds a line to `out`: its name and status, what it
printed, and what was read. JAX starts in the children.
"""

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot  # noqa: F401
import numpy as np
from tensorboardX.proto import event_pb2  # noqa: F401

import memjax
from memjax.checkpoints.reading import absolute, finished_steps, load_arrays
from memjax.cli import compress, measure, report, train  # noqa: F401
from memjax.cli.main import main
from memjax.config import to_json
from memjax.errors import MemjaxError
from memjax.evaluation.instruments import suite  # noqa: F401
from memjax.experiment.report import plots
from memjax.experiment.report.run import read_run
from memjax.experiment.run import run_experiment  # noqa: F401
from memjax.files import regular

TEXT = "a memory holds what the chunk said and the decoder reads it in place of words. " * 3


def digest(tree: Any) -> str:
    """A checksum of all arrays in a tree."""
    found = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def load(path: str) -> Any:
    """What `memjax.load` reads: weights, config, and the ids of a text."""
    model = memjax.load(path)
    ids = model.required_tokenizer.encode(TEXT)
    return [digest(model.params), to_json(model.config), np.asarray(ids).tolist()]


def end(path: str) -> Any:
    """What a run ends with: the arrays of all stages, and numbers that no clock changes."""
    found = {}
    for stage in sorted((Path(path) / "stages").iterdir()):
        step = finished_steps(absolute(stage / "checkpoints"))[-1]
        last = absolute(stage / "checkpoints" / str(step))
        found[stage.name] = [
            step,
            *(digest(load_arrays(last / x)) for x in ("params", "optimizer")),
        ]
    results = json.loads(regular(Path(path) / "results.json").read_text())
    return found | {key: results[key] for key in ("models", "passages", "data")}


def page(path: str) -> Any:
    """A checksum of the page that `memjax report` wrote, and of the curves on its plots."""
    html = regular(Path(path) / "report.html").read_bytes()
    return hashlib.sha256(html + repr(read_run(Path(path)).curves).encode()).hexdigest()


def omit_plots() -> None:
    """Leaves the plots out of all reports, which take longer than all else."""
    plots.draw_all = lambda run, folder: ([], [])


READS = {"load": load, "end": end, "page": page, "omit_plots": omit_plots}


def answer(command: list[str], said: Path) -> dict[str, Any]:
    """Runs a command, and returns its line of `out`."""
    before, status, value = said.stat().st_size, 0, None
    try:
        if command[0] in READS:
            value = READS[command[0]](*command[1:])
        else:
            status = main(command)
    except MemjaxError as error:
        status = error.status
        print(f"memjax: {error}")
    except BaseException:
        status = -1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    text = said.read_bytes()[before:].decode(errors="replace")
    return {"command": command[0], "status": status, "said": text, "value": value}


def run(child: dict[str, Any]) -> None:
    """What a child does."""
    said = Path(child["said"])
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(child["env"])
    with open(child["out"], "w", buffering=1) as out:
        for command in child["commands"]:
            out.write(json.dumps(answer(command, said)) + "\n")


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                run(json.loads(line))
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
