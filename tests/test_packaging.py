"""What is installed is what is declared: versions, files, command, and no framework but JAX."""

import ast
import dataclasses
import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path, PurePath

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import memjax

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = ("tensorflow", "torch")

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys

class Watch:
    tried = []

    def find_spec(self, name, path=None, target=None):
        if name in {foreign!r}:
            self.tried.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Watch())
import memjax
light = sorted(set(sys.modules) & {{"jax", "flax", "matplotlib"}})
from memjax.cli.main import main
assert main(["--help"]) == 0
for module in pkgutil.walk_packages(memjax.__path__, "memjax."):
    importlib.import_module(module.name)
for name in dir(memjax):
    getattr(memjax, name)
print(json.dumps({{"tried": Watch.tried, "light": light}}))
"""


def pins() -> dict[str, Version]:
    """Exact versions of requirements.txt, for this platform, by canonical name."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"requirements.txt: {line} is not an exact version"
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


@pytest.fixture
def declared(monkeypatch) -> dict:
    """What setup.py hands to setuptools."""
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_core_and_dev_ranges_allow_the_tested_versions(declared):
    tested = pins()
    for text in declared["install_requires"] + declared["extras_require"]["dev"]:
        requirement = Requirement(text)
        version = tested.get(canonicalize_name(requirement.name))
        assert version is not None, f"requirements.txt has no version of {requirement.name}"
        assert requirement.specifier, f"setup.py gives {requirement.name} no range"
        assert version in requirement.specifier, (
            f"requirements.txt has {requirement.name}=={version}, setup.py allows {text}"
        )


def test_build_needs_are_among_the_tested_versions():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (needs,) = re.findall(r"^requires = (\[.*\])$", text, re.MULTILINE)
    for need in map(Requirement, ast.literal_eval(needs)):
        assert pins()[canonicalize_name(need.name)] in need.specifier


def test_everything_memjax_imports_is_declared(declared):
    """Distributions of the top-level imports, found in the sources; what only extras bring is left
    out by name."""
    sources = [*(ROOT / "memjax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    modules = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    homes = importlib.metadata.packages_distributions()
    core = {canonicalize_name(Requirement(text).name) for text in declared["install_requires"]}
    extras = {
        canonicalize_name(Requirement(text).name)
        for texts in declared["extras_require"].values()
        for text in texts
    }
    for module in sorted(modules - set(sys.stdlib_module_names) - {"memjax"}):
        names = {canonicalize_name(name) for name in homes.get(module, [module])}
        assert names & (core | extras), (
            f"memjax imports {module}, of {sorted(names)}, which setup.py does not name"
        )


def test_the_environment_has_the_tested_versions():
    """Only where the environment is the one requirements.txt makes; elsewhere the difference is the
    reason for skipping."""
    other = []
    for name, version in pins().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "absent"
        if installed == "absent" or Version(installed) != version:
            other.append(f"{name} {installed} instead of {version}")
    if other and Path(sys.prefix).resolve() != ROOT / ".venv":
        pytest.skip(f"not the environment of requirements.txt: {', '.join(other)}")
    assert not other, "requirements.txt and .venv differ; run make clean, then make test"


@pytest.mark.slow
def test_no_other_framework_is_imported_or_declared(declared):
    script = IMPORT_EVERYTHING.format(foreign=FOREIGN)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tried"] == [], f"importing memjax looks for {found['tried']}"
    assert found["light"] == [], (
        "import memjax alone must be quick: heavy modules come with the names that need them"
    )
    core = {canonicalize_name(Requirement(text).name) for text in declared["install_requires"]}
    assert not (core | set(pins())) & set(FOREIGN)


def test_version_packages_and_command(declared):
    assert declared["version"] == memjax.__version__
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "memjax").rglob("__init__.py")
    }
    assert set(declared["packages"]) == folders
    (script,) = declared["entry_points"]["console_scripts"]
    command, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()
    assert command == "memjax"
    assert callable(getattr(importlib.import_module(module), function))


def test_every_file_that_is_not_python_is_packaged(declared):
    others = [
        p
        for p in (ROOT / "memjax").rglob("*")
        if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts
    ]
    assert any(path.name == "py.typed" for path in others)
    for path in others:
        home = next(folder for folder in path.parents if (folder / "__init__.py").exists())
        patterns = declared["package_data"].get(".".join(home.relative_to(ROOT).parts), [])
        # As setuptools reads them: * is of one folder.
        assert any(PurePath(path.relative_to(home)).match(pattern) for pattern in patterns), (
            f"setup.py's package_data leaves out {path}"
        )


def test_changelog_has_this_version():
    assert re.search(
        rf"^## \[{re.escape(memjax.__version__)}\]",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )


def test_fewer_than_a_hundred_settings():
    sections = [
        value
        for value in vars(memjax.config).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ]
    names = {section.__name__ for section in sections}
    assert {"Config", "Data", "Model", "Backbone", "Optimizer", "Stage"} <= names

    def is_leaf(field: dataclasses.Field) -> bool:
        return not names & set(re.findall(r"\w+", str(field.type)))

    leaves = [
        f"{section.__name__}.{field.name}"
        for section in sections
        for field in dataclasses.fields(section)
        if is_leaf(field)
    ]
    assert "Stage.learning_rate" in leaves
    assert "Model.encoder" not in leaves
    assert len(leaves) < 100, (
        f"{len(leaves)} settings; a variant is a new config file, not a new key"
    )
