"""Make docs/reproduction.md from the numbers of `memjax reproduce`.

    memjax reproduce --out=runs/reproduction --corpus=PATH
    python docs/make_reproduction.py runs/reproduction    copy the numbers to docs, write the page
    python docs/make_reproduction.py                      write the page from docs/reproduction.json

The HTML page docs/reproduction.html is a copy of the folder's `reproduction.html`.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jinja2  # noqa: E402

from memjax.experiment.reproduce.page import NAMES, UNITS  # noqa: E402

DATA, PAGE, TEMPLATE = (ROOT / "docs" / f"reproduction.{end}" for end in ("json", "md", "md.jinja"))


def named(number: str) -> str:
    """Return the title of a number with its unit and models."""
    kind, *models = number.split("/")
    title, unit = UNITS[kind]
    return f"{title}, {unit}: {', '.join(NAMES.get(model, model) for model in models)}"


def shown(number: str, seeds: list[dict[str, Any]]) -> str:
    """Return the value and the interval of each seed."""
    percent = UNITS[number.split("/")[0]][1].startswith("%")
    factor, digits = (100, 1) if percent else (1, 3)

    def one(seed: dict[str, Any]) -> str:
        value, low, high = (seed[key] * factor for key in ("value", "low", "high"))
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    return "; ".join(map(one, seeds))


def main() -> None:
    """Copy the numbers of a given folder and write the page."""
    if sys.argv[1:]:
        found = (Path(sys.argv[1]) / "reproduction.json").read_text(encoding="utf-8")
        DATA.write_text(found, encoding="utf-8")
    results = json.loads(DATA.read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["named"] = named
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results, shown=shown
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
