"""Messages are one line, printable and short, whatever they quote."""

import logging
import pickle
import re
from pathlib import Path

import pytest

import memjax
from memjax.data import CorpusError
from memjax.errors import MemjaxError, few, message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.txt: é 字 ok", "a.txt: é 字 ok"),
        ("\x1b[31mred\x1b[0m\x07", r"\x1b[31mred\x1b[0m\x07"),
        ("two\nlines\r\tand\x85more\u2028", r"two\nlines\r\tand\x85more\u2028"),
        ("\u202etxt.exe \x9b2J", r"\u202etxt.exe \x9b2J"),
        ("half \udcff of one", r"half \udcff of one"),
    ],
)
def test_what_is_not_printable_is_escaped(text, shown):
    assert message(text) == shown == str(CorpusError(text)) == message(shown)
    assert str(pickle.loads(pickle.dumps(MemjaxError(text)))) == shown


@pytest.mark.parametrize("args", [("%s: damaged", TEXT := "run\x1b[2J\u202e é 字 %s"), (TEXT,)])
def test_lines_of_the_log_are_messages_too(caplog, args):
    logging.getLogger("memjax").warning(*args)
    assert caplog.messages == [message(args[0] % args[1:] if args[1:] else args[0])]
    assert r"run\x1b[2J\u202e é 字 %s" in caplog.text


def test_the_package_has_one_log():
    """Its filter would not see the lines of others, also of those below it."""
    sources = [file.read_text() for file in Path(memjax.__file__).parent.rglob("*.py")]
    names = {name for text in sources for name in re.findall(r"getLogger\(([^)]*)", text)}
    others = {'"absl"', '"asyncio"', '"lm_eval"', "_name"}  # Those of libraries are filtered.
    assert names - others == {'"memjax"'}


def test_a_long_message_keeps_its_beginning_and_its_advice():
    text = f"a.jsonl: no field {'k' * 5_000_000!r}. Set config.data.text_field"
    shown = message(text)
    assert len(shown) < 1_500
    assert shown.startswith("a.jsonl: no field 'kkk")
    assert "characters left out]" in shown
    assert shown.endswith("kkk'. Set config.data.text_field")
    assert message("\x1b" * 1_000_000) == message(message("\x1b" * 1_000_000))


def test_long_lists_are_their_first_names_and_a_count():
    assert few([]) == ""
    assert few({"a": 1, "b": 2}) == "a, b"
    assert few(range(1_000_000)) == "0, 1, 2, 3, 4, 5, 6, 7 and 999992 more"
    assert few(["k" * 1000, "a"], 1) == f"{'k' * 60}... and 1 more"
