"""Pages and cards from the templates in this folder."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def render(template: str, filters: Mapping[str, Callable[..., str]], **context: Any) -> str:
    """Return the text of a template.

    Args:
      template: its path in this folder. In an HTML page (.html.jinja) all text is escaped; in
        Markdown, text from elsewhere must go through a filter.
      filters: functions of a value, by their names in the template.
      **context: the template's variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memjax.experiment", ""),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(context)
