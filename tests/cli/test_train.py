"""Every wrong input is one clear line that names the key or the file, never a bare traceback, and
nothing written is lost."""

import dataclasses
import fcntl
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from memjax.cli.main import main
from memjax.config import Config, from_json
from memjax.data import prepare
from memjax.experiment.run import check_workdir, run_experiment
from memjax.files import sealed, write_json
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_config, write_corpus


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and two config files."""
    folder = tmp_path_factory.mktemp("bad_input")
    corpus = write_corpus(folder / "corpus.jsonl")
    write_config(folder / "tiny.py", tiny_config(corpus, steps=4))
    write_config(folder / "short.py", short(corpus))
    return folder


def short(corpus: Path) -> Config:
    """The config of four steps of one stage."""
    return tiny_config(corpus, steps=4, curriculum=("autoencoder",), controls=())


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A finished workdir."""
    run_experiment(short(place / "corpus.jsonl"), place / "trained", Reporter(Console(quiet=True)))
    return place / "trained"


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status = main(args)
    said = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in said
    assert said.count("memjax:") == 1
    return " ".join(said.split())


KEYS = {
    "an unknown key": (
        "--config.data.corpse=x",
        "config.data.corpse is not a setting; did you mean config.data.corpus?",
    ),
    "an unknown stage": (
        "--config.stages.copie.steps=3",
        "config.stages.copie.steps is not a setting",
    ),
    "an unknown section": (
        "--config.optimiser.beta1=0.5",
        "config.optimiser.beta1 is not a setting",
    ),
    "a chunk that does not divide the row": (
        "--config.model.chunk_length=10",
        "config.model.chunk_length=10 does not divide",
    ),
    "heads that do not divide the width": (
        "--config.model.decoder.heads=5",
        "config.model.decoder.heads=5 does not divide",
    ),
    "a word for a number": ("--config.seed=many", "config.seed: expected int, got 'many'"),
    "a key without a value": (
        "--config.seed",
        "--config.seed: no value, expected --config.seed=VALUE",
    ),
    "an unknown flag": ("--confg.seed=1", "Did you mean --config.seed?"),
    "a stray word": ("fast", "'fast': unexpected argument"),
    "a negative seed": (
        "--config.seed=-1",
        "config.seed=-1, expected a number from 0 to",
    ),
    "a part no model has": (
        "--config.stages.combined.init_part=encodr",
        "'encodr' is no part of this model; its parts are",
    ),
    "a source that is not there": (
        "--config.stages.combined.init_from=/nowhere/at/all",
        "init_from='/nowhere/at/all': /nowhere/at/all: not found, expected a workdir",
    ),
    "muon for a vector": (
        "--config.optimizer.rules=(('.*', 'muon'),)",
        "to muon, which updates matrices only",
    ),
    "rows that do not divide": (
        "--config.stages.no_memory.grad_accum_steps=3",
        "config.stages.no_memory.grad_accum_steps=3 does not divide",
    ),
    "rules that leave nothing": (
        "--config.stages.no_memory.trainable=(('.*', False),)",
        "leaves no parameter to train",
    ),
    "an objective that is not there": (
        "--config.stages.combined.objectives.blank_cpy=1.0",
        "config.stages.combined.objectives: 'blank_cpy', expected one of next_token, copy",
    ),
    "an objective of another family": (
        "--config.stages.autoencoder.objectives={'copy': 1.0}",
        "config.stages.autoencoder.objectives: 'copy', expected one of reconstruction",
    ),
    "an evaluator of no kind": (
        "--config.evaluators.recall.kind=recal",
        "config.evaluators.recall.kind: 'recal', expected one of validation, accuracy, recall,",
    ),
    "a corpus that is not there": ("--config.data.corpus=absent/*.txt", "absent/*.txt"),
    "a mixture with a part without weight": ("--config.data.corpus=0.5*a.txt + b.txt", "no weight"),
    "a tokenizer that is not there": (
        "--config.data.tokenizer=absent.model",
        "absent.model: cannot",
    ),
    "mesh rules that match nothing": ("--config.mesh.rules=()", "config.mesh.rules: no rule"),
    "a model beyond all memory": (
        "--config.data.vocab_size=4000000,--config.model.decoder.width=65536",
        "bytes of parameters and ids per device, expected at most",
    ),
    "rows beyond all memory": (
        "--config.data.sequence_length=1000000000000",
        "config.data.sequence_length=1000000000000, expected a number from 1 to",
    ),
    "a key below a text": (
        "--config.data.tokenizer.foo=1",
        "config.data.tokenizer: text, expected no key 'foo' below it",
    ),
    "a value that is no UTF-8": ("--config.name=\udcff", "not UTF-8, expected UTF-8"),
    "a profile of no steps": ("--profile=20:10", "--profile: '20:10', expected START:STOP"),
    "a profile that is no window": ("--profile=all", "--profile: 'all', expected START:STOP"),
}


CONFIG_FILES = {
    "none": (
        "def get_config():\n    pass\n",
        "",
        "returned NoneType, expected settings",
    ),
    "a number": ("get_config = lambda: 3\n", "", "get_config() returned int, expected settings"),
    "no variant": ("get_config = lambda: {}\n", ":large", "cannot be loaded (TypeError"),
    "no function": ("config = 3\n", "", "cannot be loaded (KeyError"),
    "an error": ("raise RuntimeError('\\x1b[31mno')\n", "", "(RuntimeError: \\x1b[31mno)"),
    "an end": ("import sys\nsys.exit(0)\n", "", "cannot be loaded (SystemExit"),
    "no Python": ("def (", "", "cannot be loaded (SyntaxError"),
    "depth": (
        "def get_config():\n return get_config()\n",
        "",
        "cannot be loaded (RecursionError",
    ),
    "a placeholder": (
        "from ml_collections import config_dict as d\n"
        "get_config = lambda: d.ConfigDict({'seed': d.required_placeholder(int)})\n",
        "",
        "cannot be loaded (RequiredValueError",
    ),
    "another kind of key": ("get_config = lambda: {1: 2}\n", "", "config.1: a int, expected text"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_a_config_file_is_a_program_that_can_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    text, variant, message = CONFIG_FILES[case]
    (tmp_path / "own.py").write_text(text)
    command = ["train", f"--config={tmp_path / 'own.py'}{variant}", f"--workdir={tmp_path / 'run'}"]
    said = fails(command, capsys)
    assert message in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.py"]


@pytest.mark.parametrize("name", ["run \udcff", "\ud800"])
def test_names_that_are_no_utf_8_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command = ["train", f"--config={place / 'tiny.py'}", f"--workdir={name}"]
    assert "not UTF-8, expected UTF-8. Rename it" in fails(command, capsys)


@pytest.mark.parametrize(("flag", "message"), KEYS.values(), ids=KEYS.keys())
def test_a_wrong_key_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    workdir = place / "never"
    flags = flag.split(",--") if flag.startswith("--config.data.vocab_size") else [flag]
    flags = [flags[0], *(f"--{more}" for more in flags[1:])]
    said = fails(["train", f"--config={place / 'tiny.py'}", f"--workdir={workdir}", *flags], capsys)
    assert message in said
    assert not workdir.exists()


COMMANDS = {
    "no command of that name": (
        ["trian"],
        "'trian': unknown command, expected one of prepare, train, ",
    ),
    "nearly a command": (["trian"], "Did you mean train?"),
    "no config": (["train", "--workdir=w"], "--config: missing, expected FILE"),
    "no workdir": (["train", "--config=c.py"], "--workdir: missing, expected FOLDER"),
    "a config that is not there": (
        ["train", "--config=absent.py", "--workdir=w"],
        "--config=absent.py cannot be loaded",
    ),
    "a report of nothing": (["report", "absent"], "absent/results.json: does not exist"),
}


@pytest.mark.parametrize(("args", "message"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_wrong_command_line_is_explained(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert message in fails(args, capsys)


def test_a_config_file_that_fails_is_named_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise RuntimeError('out of ideas')\n")
    said = fails(["train", f"--config={file}", "--workdir=w"], capsys)
    assert "broken.py cannot be loaded (RuntimeError: out of ideas)" in said


def test_a_workdir_that_is_a_file_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(
        ["train", f"--config={place / 'tiny.py'}", f"--workdir={place / 'corpus.jsonl'}"], capsys
    )
    assert "is a file; give a folder" in said


def test_a_workdir_in_use_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = fails(["train", f"--config={place / 'tiny.py'}", f"--workdir={tmp_path}"], capsys)
    assert "in use by another memjax process" in said


def truncated_gzip(path: Path) -> None:
    raw = gzip.compress(b"some words of text. " * 5000)
    path.write_bytes(raw[: len(raw) // 2])


CORPORA: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("empty.txt", lambda path: path.write_text(""), "config.data.corpus is empty"),
    "too small": ("small.txt", lambda path: path.write_text("just a few words\n"), "config.data"),
    "not UTF-8": (
        "latin.txt",
        lambda path: path.write_bytes("caf\xe9 ".encode("latin-1") * 99),
        "latin.txt",
    ),
    "a gzip file cut short": ("cut.txt.gz", truncated_gzip, "cut.txt.gz"),
    "lines that are no JSON": (
        "lines.jsonl",
        lambda path: path.write_text("{'text': 1}\n"),
        "lines.jsonl",
    ),
    "another field": ("field.jsonl", lambda path: path.write_text('{"body": "words"}\n'), "text"),
    "an ending nobody reads": ("book.pdf", lambda path: path.write_text("words"), ".txt"),
    "nothing there": ("absent.txt", lambda path: None, "absent.txt"),
}


@pytest.mark.quick_cases(
    "empty", "not UTF-8", "a gzip file cut short", "another field", "nothing there"
)
@pytest.mark.parametrize(("name", "write", "message"), CORPORA.values(), ids=CORPORA.keys())
def test_a_corpus_that_cannot_be_used_is_explained(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    write: Callable[[Path], object],
    message: str,
) -> None:
    write(tmp_path / name)
    args = [
        "train",
        f"--config={place / 'tiny.py'}",
        f"--workdir={tmp_path / 'w'}",
        f"--config.data.corpus={tmp_path / name}",
    ]
    assert message in fails(args, capsys)
    left = sorted(path.name for path in (tmp_path / "w").rglob("*"))
    known = ["status.json"] if (tmp_path / "w").exists() else []
    assert left == known, "a corrected corpus must work in the same workdir"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "seconds"
    }


def train_again(place: Path, workdir: Path, *flags: str) -> list[str]:
    return ["train", f"--config={place / 'short.py'}", f"--workdir={workdir}", *flags]


def test_a_workdir_of_another_config_is_refused_and_left_alone(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(trained)
    said = fails(train_again(place, trained, "--config.stages.combined.learning_rate=0.5"), capsys)
    assert (
        "is the workdir of another config: config.stages.combined.learning_rate: 0.5 now, 0.003"
        " there" in said
    )
    assert contents(trained) == before


def test_settings_that_fix_no_result_may_change_with_a_line(
    trained: Path,
) -> None:
    config = from_json((trained / "config.json").read_text())
    other = dataclasses.replace(
        config,
        log_every=3,
        model=dataclasses.replace(config.model, remat="nothing_saveable"),
        stages=config.stages
        | {"combined": dataclasses.replace(config.stages["combined"], grad_accum_steps=2)},
    )
    said: list[str] = []
    check_workdir(other, trained, said.append)
    assert said == [
        f"{trained}: resuming with other settings: config.log_every: 3 now, {config.log_every}"
        " there; config.model.remat: 'nothing_saveable' now, 'none' there;"
        " config.stages.combined.grad_accum_steps: 2 now, 1 there"
    ]


def test_a_workdir_of_another_tokenizer_is_refused_and_left_alone(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "other"
    shutil.copytree(trained, workdir)
    other = write_corpus(tmp_path / "other.jsonl", words=90, seed=5)
    shutil.rmtree(workdir / "data")
    config = tiny_config(place / "corpus.jsonl", steps=4)
    prepare(dataclasses.replace(config.data, corpus=str(other)), workdir / "data")
    info = json.loads((workdir / "data" / "prepared.json").read_text())
    ours = json.loads((trained / "data" / "prepared.json").read_text())
    # The text is declared the same: only the tokenizer tells.
    kept = {
        key: ours[key] for key in ("corpus", "corpus_stamp", "corpus_fingerprint", "text_field")
    }
    write_json(workdir / "data" / "prepared.json", sealed(info | kept))
    before = contents(workdir / "stages")
    said = fails(train_again(place, workdir), capsys)
    assert "tokenizer" in said and "use another --workdir" in said
    assert contents(workdir / "stages") == before


def test_a_truncated_row_file_is_named(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "cut"
    shutil.copytree(trained, workdir)
    shard = next((workdir / "data").rglob("train-*.arrayrecord"))
    shard.write_bytes(shard.read_bytes()[:-100])
    before = contents(workdir / "stages")
    said = fails(train_again(place, workdir), capsys)
    assert shard.name in said and "Delete the folder" in said
    assert contents(workdir / "stages") == before


@pytest.mark.slow
@pytest.mark.usefixtures("quick_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_cut_short_falls_back_to_the_last_whole_one_and_says_so(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "fallback"
    shutil.copytree(trained, workdir)
    steps = workdir / "stages" / "autoencoder" / "checkpoints"
    assert sorted(p.name for p in steps.iterdir() if p.name.isdigit()) == ["2", "4"]
    (steps / "4" / "params" / "manifest.ocdbt").write_bytes(b"")
    shutil.rmtree(steps / "4" / "optimizer")
    assert main(train_again(place, workdir)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "kept as damaged-4" in said
    assert "autoencoder: resuming from step 2" in said
    assert (steps / "damaged-4").is_dir() and (steps / "4" / "params").is_dir()


def test_a_stage_may_not_start_from_an_encoder_that_means_something_else(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernel shapes do not tell every setting: the config stored beside the weights does."""
    config = tiny_config(place / "corpus.jsonl", steps=4)
    seeded = dataclasses.replace(
        config.stages["combined"], init_from=f"{trained}/stages/autoencoder"
    )
    model = dataclasses.replace(
        config.model, encoder=dataclasses.replace(config.model.encoder, final_norm=False)
    )
    other = dataclasses.replace(
        config, model=model, stages={"combined": seeded}, curriculum=("combined",), controls=()
    )
    write_config(tmp_path / "other.py", other)
    said = fails(
        ["train", f"--config={tmp_path / 'other.py'}", f"--workdir={tmp_path / 'w'}"], capsys
    )
    assert "was trained with config.model.encoder=" in said and "final_norm=True" in said
