"""Add to the site what lies outside docs/: the README and other pages of the repository, and one
page of the API reference per room of the package.
"""

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "configs/README.md": "configs.md",
    "launch/README.md": "launch.md",
    "memjax/released/small-en/README.md": "small-en.md",
    "LICENSE": "LICENSE.txt",
    "docs/reproduction.html": "reproduction_report.html",
    "notebooks/memory_in_ten_minutes.ipynb": "memory_in_ten_minutes.ipynb",
}
"""Files of the repository -> their places on the site."""
ROOMS = sorted(path.parent.name for path in ROOT.glob("memjax/*/__init__.py"))


def on_config(config: Any) -> Any:
    """Add the API reference to the table of contents."""
    rooms = [{f"memjax.{room}": f"api/{room}.md"} for room in ROOMS]
    config["nav"].append({"API reference": [{"memjax": "api/memjax.md"}, *rooms]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add pages that lie elsewhere in the repository, and those of the API."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for room in ROOMS:
        text = f"# `memjax.{room}`\n\n::: memjax.{room}\n"
        files.append(File.generated(config, f"api/{room}.md", content=text))
    files.append(File.generated(config, "api/memjax.md", content=public_page()))
    return files


def public_page() -> str:
    """Return the page of the public names: those that `memjax/__init__.py` imports lazily."""
    tree = ast.parse((ROOT / "memjax/__init__.py").read_text(encoding="utf-8"))
    lazy = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.col_offset]
    names = [f"{node.module}.{alias.name}" for node in lazy for alias in node.names]
    rooms = [name for name in names if (ROOT / name.replace(".", "/")).is_dir()]
    options = "    options: {show_root_heading: true, show_root_full_path: false}"
    return "\n\n".join(
        [
            "# `memjax`",
            ast.get_docstring(tree) or "",
            *(f"- [`{name}`]({name.split('.')[1]}.md)" for name in rooms),
            *(f"::: {name}\n{options}" for name in names if name not in rooms),
        ]
    )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links between files of the repository at their places on the site."""
    place = page.file.src_uri
    source = next((one for one, other in PAGES.items() if other == place), f"docs/{place}")

    def moved(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), match[1]))
        target = PAGES.get(target, target.removeprefix("docs/"))
        return f"]({os.path.relpath(target, os.path.dirname(place) or '.')}"

    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)", moved, markdown)
