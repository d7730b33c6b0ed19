"""Pages and cards from the templates in this folder."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from memjax.files import write_text

MARK = '<meta name="generator" content="memjax">'
"""A tag in the beginning of every page of memjax."""


def render(template: str, filters: Mapping[str, Callable[..., str]], **context: Any) -> str:
    """Return the text of a template.

    Args:
      template: its path in this folder. In an HTML page (.html.jinja) all text is escaped; in
        Markdown, text from elsewhere must go through a filter.
      filters: functions of a value, by their names in the template.
      **context: the template's variables.
    """
    environment = _environment(template)
    environment.filters |= filters
    return environment.get_template(template).render(context, mark=MARK)


@functools.cache
def _environment(template: str) -> jinja2.Environment:
    """Return the environment of one template, which compiles it once."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("memjax.experiment", ""),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_page(path: str | os.PathLike, text: str) -> Path:
    """Write an HTML page and return its path.

    Lone surrogates, which no text file can hold, become question marks.
    """
    write_text(path, text.encode(errors="replace").decode())
    return Path(path)
