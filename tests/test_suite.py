"""The suite itself: test files have the names of modules, and `make` runs every mark."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"beam", "golden", "golden_configs", "launch", "reliability"}
"""Folders of tests that are no room of memjax."""
OF_NO_MODULE = {
    "cli/test_released.py",
    "models/peers/test_lattice.py",
    "models/test_parameters.py",
    "models/test_properties.py",
    "models/test_quirks.py",
    "objectives/test_overfit.py",
    "objectives/test_scores.py",
    "objectives/test_stored_memories.py",
    "objectives/test_toy_rows.py",
    "performance/aot/test_splash_lowering.py",
    "sharding/test_many_devices.py",
}
"""Files on what all commands, models, objectives or meshes have in common."""


def modules(folder: Path) -> set[str]:
    """Names of modules and packages in a folder."""
    return {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}


def test_a_test_file_begins_with_the_name_of_its_module():
    found = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    nowhere = {
        str(path)
        for path in found
        if len(path.parts) > 1
        and path.parts[0] not in BESIDE
        and not any(
            f"{path.stem}_".startswith(f"test_{name}_")
            for name in modules(ROOT / "memjax" / path.parent)
        )
    }
    assert nowhere == OF_NO_MODULE


def test_make_runs_every_test_once():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    marks = {
        line.split(":")[0].split("(")[0]
        for line in declared["tool"]["pytest"]["ini_options"]["markers"]
    }
    assert marks == {"slow", "night", "quick_cases"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    chosen = dict(re.findall(r'^(\w+):.*\n\t\$\(PYTEST\) -m "?([^"\n]+)', makefile, re.MULTILINE))
    assert list(chosen) == ["test", "slow", "night"]
    for held in ({"slow"}, {"night"}, {"slow", "night"}, set()):
        marked = {"slow": "slow" in held, "night": "night" in held}
        ran = [target for target, expression in chosen.items() if eval(expression, {}, marked)]
        assert len(ran) == 1, held
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make .*(test|slow|night)$", ci, re.MULTILINE) == ["test", "slow"]
