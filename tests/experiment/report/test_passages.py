"""Passages show every character of a token."""

from memjax.experiment.report.passages import visible


def test_characters_that_a_page_would_drop_are_visible():
    assert visible("a\x00\x1b\x7f\t\r\n\rb\n") == "a␀␛␡⇥↵\u200b␍b↵\u200b"
