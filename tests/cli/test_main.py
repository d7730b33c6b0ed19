"""Every command shows its usage, its flags and an example; flags are few and mean one thing."""

import errno
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from memjax.cli.arguments import FLAGS, UsageError, help_text, parse
from memjax.cli.main import COMMANDS, GROUPS, main
from memjax.data import CorpusError

MODULES = {
    name: importlib.import_module(f"memjax.cli.{'import_weights' if name == 'import' else name}")
    for name in COMMANDS
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_usage_flags_and_a_correct_example(name, flag, capsys):
    arguments = MODULES[name].ARGUMENTS
    assert main([name, flag]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: memjax {name} ")
    assert COMMANDS[name] in shown
    for own in arguments.flags:
        assert f"\n  --{own}" in shown
    for word in arguments.words:
        assert f"\n  {word}" in shown
    assert "--flagfile" not in shown
    assert max(map(len, shown.partition("example:")[0].splitlines())) <= 130
    program, command, *args = shlex.split(arguments.example)
    assert (program, command) == ("memjax", name)
    assert shown.rstrip().endswith(arguments.example)
    parse(arguments, args)


def test_every_flag_is_used_and_documented():
    taken = {name for module in MODULES.values() for name in module.ARGUMENTS.flags}
    assert taken == set(FLAGS)
    for module in MODULES.values():
        for name, own in module.ARGUMENTS.flags.items():
            assert own.help.endswith(".") and "{}" not in own.help, name
            assert own.kind == FLAGS[name].kind, "a flag has one type"
            assert all(key.help.endswith(".") for key in own.keys.values())


def test_commands_and_flags_are_few():
    assert len(COMMANDS) <= 17
    assert len(FLAGS) <= 60
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)


def test_the_list_of_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, sentence in COMMANDS.items():
        assert f"  {name:<12} {sentence}\n" in shown
        assert sentence.endswith(".") and len(sentence) <= 80
    assert "memjax COMMAND --help" in shown
    assert main([]) == 2


def test_no_help_imports_jax():
    script = f"""
import sys
from memjax.cli.main import main
main(["--help"])
assert not {{"etils.epath", "filelock", "rich"}} & set(sys.modules)
for name in {list(COMMANDS)}:
    main([name, "--help"])
assert not {{"jax", "ml_collections"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


WRONG = {
    "an unknown flag": (
        "generate",
        ["a", "--tempreature=1"],
        "--tempreature: unknown flag, expected a flag of `memjax generate --help`."
        " Did you mean --temperature?",
    ),
    "a beginning of a flag": ("generate", ["a", "--temp=1"], "--temp: unknown flag"),
    "a typo in --config.KEY": (
        "train",
        ["--confg.seed=1"],
        "--confg.seed: unknown flag, expected a flag of `memjax train --help`."
        " Did you mean --config.seed?",
    ),
    "an override of what is no config": (
        "reconstruct",
        ["a", "b", "--against.seed=1"],
        "--against.seed: unknown flag",
    ),
    "no number": (
        "generate",
        ["a", "--max_new_tokens=many"],
        "--max_new_tokens: 'many', expected a whole number of at least 1.",
    ),
    "too small a number": (
        "generate",
        ["a", "--max_new_tokens=0"],
        "--max_new_tokens: 0, expected a whole number of at least 1.",
    ),
    "not a number": (
        "generate",
        ["a", "--temperature=nan"],
        "--temperature: nan, expected a number of at least 0.",
    ),
    "no choice": (
        "compress",
        ["a", "b", "--dtype=int16"],
        "--dtype: 'int16', expected one of float32, bfloat16, float8_e4m3, int8, int4. Did you"
        " mean int8?",
    ),
    "no value": ("generate", ["a", "--seed"], "--seed: no value, expected --seed=VALUE."),
    "a value too many": ("measure", ["a", "--unscaled=yes"], "--unscaled: a value, expected none."),
    "no PATH": (
        "generate",
        ["--prompt="],
        "PATH: missing, expected PATH. For example: memjax generate",
    ),
    "no STORE": ("reconstruct", ["a"], "STORE: missing, expected PATH STORE. For example: memjax"),
    "no SOURCE": ("compress", ["a", "--out=b"], "SOURCE: missing, expected PATH SOURCE..."),
    "a word too many": ("inspect", ["a", "b"], "'b': unexpected argument, expected PATH."),
    "a word where there are none": ("train", ["fast"], "'fast': unexpected argument, expected"),
    "no required flag": (
        "compress",
        ["a", "b"],
        "--out: missing, expected PATH. For example: memjax compress",
    ),
    "no KEY=VALUE": (
        "probe",
        ["a", "--protocol=400"],
        "--protocol: '400', expected KEY=VALUE with a key of kind, controls,",
    ),
    "a wrong key": (
        "probe",
        ["a", "--protocol=step=400"],
        "--protocol: 'step=400', expected KEY=VALUE with a key of",
    ),
    "a wrong value of a key": (
        "probe",
        ["a", "--protocol=steps=many"],
        "--protocol: steps='many', expected a whole number of at least 0.",
    ),
    "no slice of steps": (
        "bench",
        ["--config=a", "--profile=3:1"],
        "--profile: '3:1', expected START:STOP, two steps such as 10:20, or N for 1:N.",
    ),
}


@pytest.mark.parametrize(("command", "args", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line_is_one_line(command, args, message, capsys):
    assert main([command, *args]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"memjax: {message}")
    assert shown.count("\n") == 1


def test_values_of_every_kind():
    given = parse(
        MODULES["probe"].ARGUMENTS,
        ["a", "--limit", "9", "b.npz,c.npz", "--protocol=steps=4,controls=constant+shuffled"],
    )
    assert given.encoder == ["a", "b.npz,c.npz"] and given.limit == 9
    assert given.protocol["steps"] == 4 and given.protocol["width"] == 256
    assert given.protocol["controls"] == ["constant", "shuffled"]
    assert (
        parse(MODULES["probe"].ARGUMENTS, ["a", "--protocol=controls="]).protocol["controls"] == []
    )
    assert parse(MODULES["reproduce"].ARGUMENTS, ["--out=a", "--seeds=3,4"]).seeds == [3, 4]
    bench = MODULES["bench"].ARGUMENTS
    given = parse(bench, ["--config=a", "--config.b=1", "--against.c=(2,\n3)", "--profile=2"])
    assert given.overrides == {"config": [("b", "1")], "against": [("c", "(2,\n3)")]}
    assert given.profile == (1, 2) and parse(bench, ["--config=a", "--profile=3:5"]).profile == (
        3,
        5,
    )
    given = parse(MODULES["generate"].ARGUMENTS, ["a", "--prompt=", "--chunks=-5:"])
    assert given.prompt == "" and given.chunks == "-5:" and given.temperature == 0
    given = parse(MODULES["generate"].ARGUMENTS, ["a", "--prompt=", "--memory=~/b.store"])
    assert given.memory == os.path.expanduser("~/b.store")


def test_help_lists_the_keys_of_a_flag():
    shown = help_text("eval", "", MODULES["eval"].ARGUMENTS)
    assert "lengths=N+N" in shown and "Default: 1024+4096." in shown


def test_required_flags_may_not_be_empty():
    with pytest.raises(UsageError, match="--workdir: missing"):
        parse(MODULES["train"].ARGUMENTS, ["--config=a", "--workdir="])


@pytest.mark.parametrize("error", [CorpusError, OSError])
def test_an_error_is_one_line_that_no_terminal_interprets(error, capsys, monkeypatch):
    def fail(given):
        raise error("a\x1b]0;title\x07 [red]:smile:\n\ud800" + "k" * 100_000)

    monkeypatch.setattr(MODULES["report"], "run", fail)
    assert main(["report", "a"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(r"memjax: a\x1b]0;title\x07 [red]:smile:\n\ud800kkk")
    assert shown.count("\n") == 1 and shown[:-1].isprintable() and len(shown) < 1_600


@pytest.mark.parametrize(
    "args",
    [
        ["measure", "{stage}"],
        ["eval", "{stage}", "--tasks=long_recall", "--corpus=python-docs"],
        ["probe", "{stage}"],
    ],
    ids=str,
)
@pytest.mark.parametrize("out", [["--out=/read_only/found.json"], []])
def test_a_folder_that_cannot_be_written_is_met_before_the_work(
    args, out, place, monkeypatch, capsys
):
    """The stage's own, by default, and the one that is given."""

    def refuse(dir, suffix):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/tmp{suffix}")

    def work(*_):
        raise AssertionError("begun")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    monkeypatch.setattr("memjax.evaluation.instruments.suite.prepare_subject", work)
    monkeypatch.setattr("memjax.cli.eval._long_recall", work)
    monkeypatch.setattr("memjax.cli.probe._vectors", work)
    stage = place / "run" / "stages" / "autoencoder"
    if args[0] == "eval":
        stage = stage.with_name("memory_model")
    assert main([*(arg.format(stage=stage) for arg in args), *out]) == 2
    said = " ".join(capsys.readouterr().err.split())
    path = "/read_only/found.json" if out else "json"
    assert f"{path}: Read-only file system, expected one that can be written. Use another" in said
    assert said.count("memjax:") == 1


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (command, flag)
        for command, module in MODULES.items()
        for flag in ("out", "save")
        if flag in module.ARGUMENTS.flags and module.ARGUMENTS.flags[flag].metavar == "FILE"
    ],
)
def test_a_file_that_cannot_be_written_is_met_before_all_else(command, flag, tmp_path, capsys):
    assert main([command, f"--{flag}={tmp_path}"]) == 2
    assert f"{tmp_path}: Is a directory" in " ".join(capsys.readouterr().err.split())


WRITERS = [(c, f) for c in COMMANDS for f in ("out", "save") if f in MODULES[c].ARGUMENTS.flags]


@pytest.mark.parametrize("command", [*dict(WRITERS)])
@pytest.mark.parametrize("scheme", ["gs", "s3", "file", "memory", "hf"])
def test_an_address_to_write_to_is_refused_before_all_else(
    command, scheme, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for flag in (flag for name, flag in WRITERS if name == command):
        assert main([command, f"--{flag}={scheme}://b/x"]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"memjax: {scheme}://b/x: an address, expected a path on this machine. Write it there"
            " and copy it\n"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "prepare"])
@pytest.mark.parametrize("scheme", ["file", "memory", "hf"])
def test_a_workdir_in_no_bucket_is_refused(command, scheme, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = os.path.abspath("configs/quickstart.py")
    monkeypatch.chdir(tmp_path)
    assert main([command, f"--config={config}", f"--workdir={scheme}://{tmp_path}/x"]) == 2
    assert "expected a folder on this machine, or gs://BUCKET/FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_in_a_flag_is_the_folder_of_the_user(monkeypatch):
    """A shell leaves it in `--out=~/x`."""
    monkeypatch.setenv("HOME", "/home/one")
    given = parse(MODULES["compress"].ARGUMENTS, ["~/run", "a", "~/b", "--out=~/c"])
    assert (given.path, given.source) == ("/home/one/run", ["a", "/home/one/b"])
    assert given.out == "/home/one/c"
    given = parse(MODULES["train"].ARGUMENTS, ["--config=~/c.py", "--workdir=~"])
    assert (given.config, given.workdir) == ("/home/one/c.py", "/home/one")
    given = parse(MODULES["generate"].ARGUMENTS, ["run", "--prompt=~/x"])
    assert given.prompt == "~/x"


def test_commands_compute_in_32_bits(monkeypatch, capsys):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    assert main(["inspect", "--help"]) == 0
    assert os.environ["JAX_ENABLE_X64"] == "0"


def test_a_config_that_is_no_file(put_no_file, tmp_path, capsys):
    file = put_no_file(tmp_path / "config.py")
    assert main(["prepare", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 2
    shown = capsys.readouterr().err
    assert "cannot be loaded" in shown and "not a file" in shown and shown.count("\n") == 1


BLOCKED = """
import ctypes, sys, types
from memjax.cli import main
from memjax.cli.arguments import Arguments

def run(given):
    mutex = ctypes.create_string_buffer(64)
    print("blocked", flush=True)
    for _ in range(2):  # A lock that no signal interrupts, as libraries in C++ hold them.
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

command = types.ModuleType("memjax.cli.report")
command.run, command.ARGUMENTS = run, Arguments(example="", flags={})
sys.modules["memjax.cli.report"] = command
main.PATIENCE = float(sys.argv[1])
sys.argv[1:] = ["report"]
sys.exit(main.main())
"""


@pytest.mark.parametrize(("patience", "signals"), [("0.1", 1), ("600", 2)])
def test_ctrl_c_ends_a_command_that_no_signal_interrupts(patience, signals):
    """Also where the first interrupts Python before the command waits, and the second its end."""
    command = [sys.executable, "-c", BLOCKED, patience]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "blocked\n"
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)  # Two that come together are one.
        _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert said == "memjax: interrupted\n"
