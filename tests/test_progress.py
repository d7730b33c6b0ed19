"""Bars on a terminal, lines in a log, and nothing without an active reporter."""

import io

import pytest
from rich.console import Console

from memjax import progress
from memjax.progress import Reporter, bar, track
from memjax.testing.progress import Recorder


def reporter(terminal: bool) -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    return Reporter(Console(file=out, force_terminal=terminal, width=200)), out


def test_items_pass_unchanged_and_are_counted():
    recorder = Recorder()
    with recorder.active():
        assert list(track("abc", "letters")) == ["a", "b", "c"]
        assert list(track(iter("ab"), "some", 5)) == ["a", "b"]
        with pytest.raises(TypeError, match="has no len"):
            next(track(iter("ab"), "some"))
    assert recorder.bars == {"letters": [1, 1, 1], "some": [1, 1]}
    assert recorder.totals == {"letters": 3, "some": 5}


def test_nothing_is_shown_without_an_active_reporter(capsys):
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    with Reporter().active():
        pass
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_bars_and_lines_above_them_and_nested_bars_go():
    shown, out = reporter(terminal=True)
    with shown.active():
        for letter in track("ab", "outer"):
            assert len(list(track(range(3), f"inner {letter}"))) == 3
            shown.log(f"[{letter}] done")
    text = out.getvalue()
    assert "outer" in text and "inner a" in text and "2/2" in text and "left" in text
    assert "[a] done" in text and "[b] done" in text
    assert shown._progress is None


def test_an_error_inside_a_loop_ends_the_bar():
    shown, out = reporter(terminal=True)

    def fail():
        with shown.active():
            for _ in track("ab", "outer"):
                raise KeyError("a")

    with pytest.raises(KeyError):
        fail()
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown, out = reporter(terminal=False)
    with shown.active(), bar("train", 10, done=2) as steps:
        for step in range(8):
            now[0] += 6
            steps.advance(1, f"[{step}]")
    assert out.getvalue().splitlines() == [
        "train 5/10, 0:00:30 left  [2]",
        "train 8/10, 0:00:12 left  [5]",
        "train 10/10, 0:00:00 left  [7]",
    ]


def test_short_loops_leave_a_log_alone():
    shown, out = reporter(terminal=False)
    with shown.active():
        list(track(range(100), "quick"))
    assert out.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_names_and_texts_beside_bars_steer_no_terminal(monkeypatch, terminal):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    shown, out = reporter(terminal)
    name = "[b]é 字\x1b[2J\u202e"
    with shown.active(), bar(name, 2) as drawn:
        drawn.advance(1, name)
    assert "[b]é 字\\x1b[2J\\u202e" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_a_table_that_goes_to_no_terminal_is_whole():
    out = io.StringIO()
    count = "123,456,789,012,345"
    title = f"{'folder/' * 30}corpus.jsonl: {count} documents"
    Reporter(Console(file=out, width=80, soft_wrap=True)).table(
        title, ["split", *(f"column {i}" for i in range(30))], [["train", *[count] * 30]], title
    )
    lines = out.getvalue().splitlines()
    assert lines[0] == lines[-1] == title
    assert [cell.strip() for cell in lines[4].split("│")[2:-1]] == [count] * 30


def test_names_of_files_are_printed_as_they_are():
    out = io.StringIO()
    shown = Reporter(Console(file=out, force_terminal=True, width=200))
    odd = "hf:smile:[bold]\x1b[2J[/]\u202e"
    shown.log(f"{odd}\nsecond line")
    shown.table(odd, [odd], [[odd]], odd)
    text = out.getvalue()
    assert "\x1b[2J" not in text
    assert text.count(r"hf:smile:[bold]\x1b[2J[/]\u202e") == 5
    assert text.splitlines()[1] == "second line"
