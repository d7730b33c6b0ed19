"""One damaged file in a workdir: every command that reads it ends in one line that names it, or
has the values of the undamaged one.

A case is a number, which determines the file and the kind of damage. The damaged workdir is a
finished run, or one that was killed in its second stage.
"""

import collections
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

EVALUATORS = ("validation",)
PARTS, CASES = 13, 30
"""Tests, and cases of each."""
OUTPUTS = {"results.json", "report.html", "config.json", "seconds", ".lock", "plots"}
"""What training writes anew."""


def flip(path: Path, draw: random.Random, other: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[draw.randrange(len(contents))] ^= 1 << draw.randrange(8)
    path.write_bytes(contents)


def truncate(path: Path, draw: random.Random, other: Path) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def double(path: Path, draw: random.Random, other: Path) -> None:
    contents = path.read_bytes()
    start, end = sorted(draw.choices(range(len(contents) + 1), k=2))
    path.write_bytes(contents[:end] + contents[start:])


def swap(path: Path, draw: random.Random, other: Path) -> None:
    shutil.copyfile(other, path)


def become(make: Callable[[Path], object]) -> Callable[[Path, random.Random, Path], None]:
    """In the place of a file there is something else."""

    def damage(path: Path, draw: random.Random, other: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES = {
    "flip": flip,
    "truncate": truncate,
    "double": double,
    "swap": swap,
    "empty": become(Path.touch),
    "remove": become(lambda path: None),
    "folder": become(Path.mkdir),
    "pipe": become(os.mkfifo),
    "zeros": become(lambda path: path.symlink_to("/dev/zero")),
}
if os.geteuid():
    DAMAGES["forbid"] = lambda path, draw, other: path.chmod(0)


def kind_of(file: str) -> str:
    """The kind of a file, whatever its step or hash."""
    file = re.sub(r"/[0-9a-f]{32}$", "/HASH", re.sub(r"checkpoints/\d+", "checkpoints/STEP", file))
    return re.sub(r"tfevents.*", "tfevents", re.sub("stages/[a-z]+", "stages/STAGE", file))


def label_of(file: str) -> str:
    """A file's path without what another run of the same config would name otherwise."""
    return re.sub(r"tfevents.*", "tfevents", re.sub(r"/[0-9a-f]{32}$", "/HASH", file))


def files_in(folder: Path) -> dict[str, list[str]]:
    """The files of a workdir by their labels, small ones first."""
    found: dict[str, list[str]] = {}
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.stat().st_size, path)):
        file = str(path.relative_to(folder))
        found.setdefault(label_of(file), []).append(file)
    return found


def cases(place) -> list[tuple[str, str]]:
    """Of both workdirs, every file once (four hashes per folder), and those outside checkpoints
    often; of the run that was killed, which takes longer, the checkpoints of its last stage."""
    found = []
    for name in ("finished", "killed"):
        for label, files in sorted(files_in(place.workdir.with_name(name)).items()):
            if "checkpoints/" in label:
                kept = name == "finished" or "second" in label
                numbers = range((4 if "HASH" in label else 1) * kept)
            else:
                numbers = range(10 if name == "finished" else 3)
            found += [(name, label, files[number % len(files)]) for number in numbers]
    random.Random("cases").shuffle(found)
    return [(name, file) for name, _, file in found]


class Whole:
    """Both workdirs, and what is read of them undamaged."""

    def __init__(self, place):
        self.place, run = place, str(place.workdir)
        finished, killed = (place.workdir.with_name(name) for name in ("finished", "killed"))
        shutil.copytree(place.undisturbed, place.workdir)
        done = place.forks.run(self.measure(run, f"{run}/stages/second/instruments.json"))
        assert done.answers[0]["status"] == 0, done.said
        shutil.copytree(place.workdir, finished)
        for name in ("results.json", "report.html", "plots", "stages/second/checkpoints/8"):
            path = place.workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (place.workdir / "stages" / "second" / "instruments.json").unlink()
        (place.workdir / ".lock").write_text("")
        place.workdir.rename(killed)
        self.values = {}
        for name in ("finished", "killed"):
            shutil.copytree(place.workdir.with_name(name), place.workdir)
            done = place.forks.run(*self.commands(name, 0))
            assert done.status == 0, done
            self.values[name] = {a["command"]: a["value"] for a in done.answers}
            assert self.values[name]["end"] == place.end, done.said
            shutil.rmtree(place.workdir)
            shutil.rmtree(f"{place.workdir}-out")

    def measure(self, run: str, out: str) -> list[str]:
        return ["measure", run, "--limit=8", "--instruments=recall", f"--out={out}"]

    def commands(self, name: str, number: int) -> list[list[str]]:
        run, out = str(self.place.workdir), f"{self.place.workdir}-out"
        commands = [["omit_plots"], ["load", run]]
        if name == "finished":
            commands += [["report", run], ["page", run]]
        if number % 10 == 0:
            corpus = str(self.place.workdir.with_name("corpus.jsonl"))
            store = [f"--out={out}/store", "--limit=8", "--eval_examples=0"]
            commands += [self.measure(run, f"{out}/numbers"), ["compress", run, corpus, *store]]
        return [*commands, self.place.train, ["end", run]]


@pytest.fixture(scope="module")
def whole(place) -> Whole:
    return Whole(place)


def names(said: str, workdir: Path, file: str) -> bool:
    """Whether a text names a file, or the checkpoint that it belongs to."""
    folder = re.match(r".*checkpoints/\d+", file)
    places = [file] if folder is None else [file, folder[0]]
    text = re.sub(r"\s+", "", said)
    parent, name = str((workdir / file).parent), Path(file).name
    return any(str(workdir / path) in text for path in places) or (parent in text and name in text)


def faults(whole: Whole, number: int) -> tuple[list[str], dict]:
    """What is wrong with one case, and how its commands ended."""
    draw, workdir = random.Random(f"damage {number}"), whole.place.workdir
    every = cases(whole.place)
    name, file = every[number % len(every)]
    shutil.copytree(workdir.with_name(name), workdir)
    damage = draw.choice(list(DAMAGES))
    if not (workdir / file).stat().st_size:
        damage = draw.choice(("remove", "folder", "pipe", "zeros", "swap"))
    others = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
    other = draw.choice([path for path in others if path != workdir / file])
    DAMAGES[damage](workdir / file, draw, other)
    changed = content(workdir / file)
    case = f"case {number}: {name}, {damage} of {file}"
    done, wrong, ended = whole.place.forks.run(*whole.commands(name, number)), [], {}
    if done.status == -signal.SIGKILL:
        wrong.append(f"hangs after {[answer['command'] for answer in done.answers]}")
    elif done.status:
        wrong.append(f"ends with {done.status}")
    values, before = whole.values[name], whole.values["killed"]["load"]
    for answer in done.answers:
        command, said = answer["command"], answer["said"].strip()
        ended[command] = "refused" if answer["status"] else "equal"
        last = said[said.rfind("memjax:") :] if "memjax:" in said else ""
        named = names(said, workdir, file)
        unread = ended.get({"end": "train", "page": "report"}.get(command)) == "refused"
        # A device is written in place, as /dev/null is.
        if unread or (command, file, damage) == ("page", "report.html", "zeros"):
            del ended[command]
            continue
        if "Traceback" in said:
            wrong.append(f"{command}: a traceback")
        elif command == "end" and answer["value"] != values["end"]:
            wrong.append("train: ends elsewhere")
        elif answer["status"]:
            if "\n" in last or not last or answer["status"] not in (1, 2):
                wrong.append(f"{command}: no line of ours")
            if not named:
                wrong.append(f"{command}: the file is not named")
        elif command in values and answer["value"] != values[command]:
            earlier = command == "load" and answer["value"] == before
            shown = command == "page" and (
                names(done.answers[2]["said"], workdir, file)
                or (file.endswith("instruments.json") and damage == "remove")  # Not measured yet.
            )
            if not (shown or (earlier and named)):
                wrong.append(f"{command}: other values")
        if command == "train" and not named and file.partition("/")[0] not in OUTPUTS:
            now = content(workdir / file)
            appended = file.endswith("metrics.jsonl") and now.startswith(changed)
            if now != changed and not appended:
                wrong.append("train: the file is changed and not named")
    shutil.rmtree(workdir)
    shutil.rmtree(f"{workdir}-out", ignore_errors=True)
    if wrong:
        wrong = [f"{case}: {'; '.join(wrong)}\n{done.said}"]
    return wrong, {"file": kind_of(file), "damage": damage, **ended}


def content(path: Path) -> bytes:
    """What lies at a path."""
    if path.is_symlink() or not path.exists():
        return b"link" if path.is_symlink() else b"nothing"
    return path.read_bytes() if path.is_file() else b"another thing"


@pytest.mark.night
@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_file_is_named_or_makes_no_difference(whole, part, record_property):
    beside = content(whole.place.workdir.with_name("corpus.jsonl"))
    wrong, counts = [], collections.Counter()
    for number in range(part * CASES, (part + 1) * CASES):
        found, ended = faults(whole, number)
        wrong += found
        print(f"{number}: {ended}", *found, flush=True)
        refused = "refused" in ended.values()
        counts[ended["file"], "refused" if refused else "equal"] += 1
    print(*sorted(counts.items()), sep="\n")
    assert not wrong, f"{len(wrong)} of {CASES}\n" + "\n".join(wrong)
    assert content(whole.place.workdir.with_name("corpus.jsonl")) == beside
