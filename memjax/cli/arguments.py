"""Command lines: parsing them, and the help of a command."""

import argparse
import dataclasses
import difflib
import os
import re
import runpy
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memjax.cli.flags import FLAGS, PATHS, WRITTEN, Flag
from memjax.errors import MemjaxError

if TYPE_CHECKING:
    from memjax.config import Config

WIDTH = 100
"""Columns of help texts."""


class UsageError(MemjaxError):
    """A command line cannot be used."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The words and flags of a command."""

    example: str
    """A correct command line."""
    flags: Mapping[str, Flag]
    """From `take`."""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Positional arguments and their meaning; one whose name ends in `...` may be several."""
    configs: tuple[str, ...] = ()
    """Flags that take a config file, so that --FLAG.KEY=VALUE changes a setting of it."""
    notes: str = ""
    """Further paragraphs of the help."""


def take(**flags: Mapping[str, Any]) -> dict[str, Flag]:
    """Flags of the table, each with this command's default, choices, or whether it is required.

    `what` is the word that stands for `{}` in the flag's help.
    """
    taken = {}
    for name, given in flags.items():
        own = dict(given)
        sentence = FLAGS[name].help.replace("{}", own.pop("what", "{}"))
        taken[name] = dataclasses.replace(FLAGS[name], help=sentence, **own)
    return taken


def parse(arguments: Arguments, args: Sequence[str]) -> argparse.Namespace:
    """Returns the values of all flags and words of a command.

    Overrides `--config.KEY=VALUE` are in `overrides`: for each config flag a list of (KEY, VALUE).

    Args:
      arguments: what the command takes.
      args: the command line behind the command's name.

    Raises:
      UsageError: an argument is unknown, missing or unreadable.
      OSError: what is to be written is an address, or a file that cannot be written.
    """
    given = argparse.Namespace(overrides={name: [] for name in arguments.configs})
    for name, own in arguments.flags.items():
        keys = {key: each.default for key, each in own.keys.items()}
        setattr(given, name, keys or own.default)
    words, rest = [], iter(args)
    for arg in args:
        # Names in other encodings arrive as half surrogates, which no message or file can hold.
        UsageError.require(
            not re.search("[\ud800-\udfff]", arg), f"{arg!r}: not UTF-8, expected UTF-8. Rename it."
        )
    for arg in rest:
        name, equals, text = arg.removeprefix("--").partition("=")
        config, dot, key = name.partition(".")
        own = arguments.flags.get(name)
        if not arg.startswith("--"):
            words.append(os.path.expanduser(arg))  # All words are paths.
        elif dot and config in arguments.configs:
            UsageError.require(equals, f"{arg}: no value, expected {arg}=VALUE.")
            given.overrides[config].append((key, text))
        elif own is None:
            raise UsageError(_unknown(name, arguments))
        elif own.kind == "switch":
            UsageError.require(not equals, f"--{name}: a value, expected none. Write it alone.")
            setattr(given, name, True)
        else:
            text = text if equals else next(rest, "--")
            missing = not equals and text.startswith("--")
            UsageError.require(not missing, f"{arg}: no value, expected {arg}=VALUE.")
            if name in WRITTEN:
                from memjax.files import local

                local(text)
            setattr(given, name, _read(text, own, f"--{name}: "))
    for name in WRITTEN:
        if name in arguments.flags and arguments.flags[name].metavar == "FILE":
            _check_writable(getattr(given, name))
    _place(words, arguments, given)
    for name, own in arguments.flags.items():
        UsageError.require(
            not own.required or getattr(given, name) not in (None, "", []),
            f"--{name}: missing, expected {_shown(own)}. For example: {arguments.example}",
        )
    return given


def _check_writable(file: str | None) -> None:
    if file:
        from memjax.files import check_writable

        check_writable(file)


def help_text(command: str, sentence: str, arguments: Arguments) -> str:
    """Returns the text that `memjax COMMAND --help` prints."""
    needed = [f"--{name}={_shown(own)}" for name, own in arguments.flags.items() if own.required]
    usage = " ".join(["usage: memjax", command, *arguments.words, *needed, "[FLAGS]"])
    lines = [usage, "", sentence]
    for paragraph in textwrap.dedent(arguments.notes).strip().split("\n\n"):
        lines += ["", *textwrap.wrap(paragraph, WIDTH)] if paragraph else []
    if arguments.words:
        lines += ["", "arguments:", *_table(arguments.words.items())]
    lines += ["", "flags:"]
    for name, own in arguments.flags.items():
        value = "" if own.kind == "switch" else f"={_shown(own)}"
        lines += _table([(f"--{name}{value}", _described(own))])
        lines += _table(
            ((f"  {key}={_shown(each)}", _described(each)) for key, each in own.keys.items()),
            indent=4,
        )
        if name in arguments.configs:
            lines += _table([(f"--{name}.KEY=VALUE", "Change one setting of it.")])
    lines += _table([("--help", "Show this text.")])
    return "\n".join([*lines, "", "example:", f"  {arguments.example}"])


def read_config(flag: str, file: str, overrides: Iterable[tuple[str, str]]) -> "Config":
    """The checked config in a file, changed by overrides.

    Args:
      flag: the name of the flag that named the file, for messages.
      file: FILE or FILE:VARIANT.
      overrides: keys and the text of their new values.

    Raises:
      ConfigError: the file cannot be loaded, or a key is unknown or wrong.
    """
    from memjax.config import ConfigError
    from memjax.files import regular
    from memjax.objectives import load_config

    path, _, variant = file.partition(":")
    try:
        get_config = runpy.run_path(str(regular(path)))["get_config"]
        tree = get_config(variant) if variant else get_config()
        tree = getattr(tree, "to_dict", lambda: tree)()
    except (Exception, SystemExit) as error:
        # The config file is a program: it can raise anything.
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else ""
        raise ConfigError(
            f"--{flag}={file} cannot be loaded ({type(error).__name__}: {reason})"
        ) from error
    ConfigError.require(
        isinstance(tree, Mapping),
        f"--{flag}={file}: get_config() returned {type(tree).__name__}, expected settings. End it"
        " with `return to_config_dict(Config(...))`",
    )
    return load_config(tree, overrides)


def refuse(
    arguments: Arguments, given: argparse.Namespace, names: Iterable[str], where: str
) -> None:
    """Raises UsageError if some of the named flags were given, which have no meaning there."""
    wrong = [
        f"--{name}"
        for name in names
        if getattr(given, name) != arguments.flags[name].default or given.overrides.get(name)
    ]
    UsageError.require(
        not wrong,
        f"{', '.join(wrong)}: given, expected none {where}. Leave it out.",
    )


def file_beside(given: argparse.Namespace, folder: Path, name: str) -> Path:
    """The file --out of a command, by default one in the folder of its stage.

    Raises:
      UsageError: none is given, and the folder is that of a released model.
    """
    from memjax import released

    UsageError.require(
        given.out or not released.folder_of(given.path),
        f"--out: missing, expected a file: {given.path} is part of the package. For example"
        f" --out={name}.",
    )
    return Path(given.out or folder / name)


def close_match(name: str, names: Iterable[str], prefix: str = "") -> str:
    """` Did you mean NAME?`, or nothing where no name is close."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def _place(words: list[str], arguments: Arguments, given: argparse.Namespace) -> None:
    """Assigns positional words to their names, in lower case and without `...`."""
    names = list(arguments.words)
    if len(words) < len(names):
        expected = " ".join(names).removesuffix(".")
        raise UsageError(
            f"{names[len(words)].removesuffix('...')}: missing, expected {expected}."
            f" For example: {arguments.example}"
        )
    values: list[Any] = list(words)
    if names and names[-1].endswith("..."):
        values[len(names) - 1 :] = [words[len(names) - 1 :]]
    if len(values) > len(names):
        raise UsageError(
            f"{words[len(names)]!r}: unexpected argument, expected"
            f" {' '.join(names) if names else 'flags such as --seed=1'}."
            f" For example: {arguments.example}"
        )
    for name, value in zip(names, values, strict=True):
        setattr(given, name.removesuffix("...").lower(), value)


def _read(text: str, flag: Flag, label: str) -> Any:
    """The value that a text gives a flag or a key; `label` begins the message of an error."""
    if flag.kind == "pairs":
        return _pairs(text, flag.keys, label)
    if flag.kind == "steps":
        return _steps(text, label)
    if flag.kind.endswith("s"):
        one = dataclasses.replace(flag, kind=flag.kind[:-1])
        return [_read(part, one, label) for part in re.split(r"[,+]", text)] if text else []
    if flag.kind == "text":
        UsageError.require(
            not flag.choices or text in flag.choices,
            f"{label}{text!r}, expected one of {', '.join(flag.choices)}."
            f"{close_match(text, flag.choices)}",
        )
        return os.path.expanduser(text) if flag.metavar in PATHS else text
    kind, what = (int, "a whole number") if flag.kind == "int" else (float, "a number")
    least = "" if flag.minimum is None else f" of at least {flag.minimum:g}"
    try:
        value = kind(text)
    except ValueError:
        raise UsageError(f"{label}{text!r}, expected {what}{least}.") from None
    enough = flag.minimum is None or value >= flag.minimum
    UsageError.require(enough, f"{label}{text}, expected {what}{least}.")
    return value


def _steps(text: str, label: str) -> tuple[int, int]:
    """The first and the last step of START:STOP, or of N for 1:N."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    start, stop = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    UsageError.require(
        1 <= start <= stop,
        f"{label}{text!r}, expected START:STOP, two steps such as 10:20, or N for 1:N.",
    )
    return start, stop


def _pairs(text: str, keys: Mapping[str, Flag], label: str) -> dict[str, Any]:
    found = {key: each.default for key, each in keys.items()}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        UsageError.require(
            key in keys and equals,
            f"{label}{part!r}, expected KEY=VALUE with a key of {', '.join(keys)}."
            f"{close_match(key, keys)}",
        )
        found[key] = _read(value, keys[key], f"{label}{key}=")
    return found


def _unknown(name: str, arguments: Arguments) -> str:
    first, dot, key = name.partition(".")
    close = close_match(first, arguments.flags, "--")
    if close and dot:
        close = close.replace("?", f".{key}?")
    command = " ".join(arguments.example.split()[:2])
    return f"--{name}: unknown flag, expected a flag of `{command} --help`.{close}"


def _shown(flag: Flag) -> str:
    """The value of a flag in a help text."""
    if flag.kind == "pairs":
        return "KEY=VALUE,..."
    return flag.metavar or "|".join(flag.choices) or {"int": "N", "float": "X"}.get(flag.kind, "X")


def _described(flag: Flag) -> str:
    """The sentence of a flag, with its default."""
    default = flag.default
    if flag.required:
        return f"{flag.help} Required."
    if default is None or default is False or default in ("", []):
        return flag.help
    between = "+" if "+" in flag.metavar else ","
    shown = between.join(map(str, default)) if isinstance(default, list) else default
    return f"{flag.help} Default: {shown}."


def _table(rows: Iterable[tuple[str, str]], indent: int = 2) -> list[str]:
    """Two columns, the second one wrapped; a long first cell has a line of its own."""
    lines = []
    for name, text in rows:
        first = f"{' ' * indent}{name}"
        body = textwrap.wrap(text, WIDTH - 28, break_long_words=False, break_on_hyphens=False)
        if len(first) < 27 and body:
            lines.append(f"{first:<28}{body.pop(0)}")
        else:
            lines.append(first)
        lines += [f"{'':28}{line}" for line in body]
    return lines
