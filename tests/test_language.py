"""The language check: the easy part of the style rules, in every text that a person reads.

    python tests/test_language.py                          counts per room and rule
    python tests/test_language.py --list PATH ...          file:line of each hit in files or folders
    python tests/test_language.py --list --rule=per PATH   hits of one rule
    python tests/test_language.py --root=FOLDER            the same for another checkout

The check reads docstrings, comments and strings with a space in Python files, and the prose of
documents, templates, scripts and notebooks. It skips code in backticks and fences. Rules:

    speech    say, tell, ask, know: programs log, report, raise, return, read, write
    per       "tokens a second" is "tokens per second"
    go_on     go on, anew, write on, say again: resume, continue, regenerate, reconstruct
    fragment  a docstring that begins with a fragment ("Of the run.", "What is left.", "None.")
    columns   more than 100 columns; of Markdown, tables and code apart
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 100

FIRST = {"speech": 537, "per": 123, "go_on": 86, "fragment": 429, "columns": 5594}
"""Hits at commit 685f859, before the first language pass."""

CEILINGS = dict.fromkeys(FIRST, 0)
"""No rule may have more hits than this."""

ALLOWED: dict[str, dict[str, str]] = {
    "memjax/objectives/copying.py": {"asking: the inputs": "the name of a parameter"},
    "memjax/objectives/objective.py": {"(asking, variables": "the name of a parameter"},
    "memjax/testing/__init__.py": {
        "what the chunk said": "words of the tests' corpus, on which their numbers depend"
    },
}
"""Phrases that are the right words where they stand: file -> phrase -> reason."""

UNIT = (
    r"(?:\w*tokens?|nats?|bits?|\w*bytes?|vectors?|rows?|chunks?|seconds?|steps?|floats?|numbers?"
    r"|[A-Z]?FLOPs|times|once|twice|positions?|texts?|documents?|examples?|process(?:es)?|devices?"
    r"|lines?|calls?|blocks?|heads?|values?|[num]s|[KMGkT]i?B|slots?|draws?|pass(?:es)?|files?|one"
    r"|two|three|threads?|tensors?|tasks?|workers?|cop(?:y|ies)|layers?|characters?|words?|keys?"
    r"|entr(?:y|ies)|shards?|(?:micro-?)?batch(?:es)?|passages?|prompts?|Jacobian|estimate|query"
    r"|\d[\d,.]*|[KMG])"
)
MEASURE = (
    r"(?:second|minute|hour|day|step|token|byte|chunk|row|batch|text|document|device|chip|host"
    r"|process|layer|block|head|position|dimension|number|sequence|stage|file|line|slot|call|round"
    r"|example|vector|query|shard|node|core|word|character|epoch|update|micro-?batch|piece|place"
    r"|memory|task|question|window|stack|seed|worker|group|experiment|family|parameter|matrix|slice"
    r"|weight|time|candidate|passage|pod|GPU|bin|kind|channel|command|entry|item|unit|letter)"
)
VERB = (
    r"(?:has|have|runs?|can|becomes?|may|gets|holds|needs|reads|writes|makes|model|is|was|names"
    r"|left|takes|at a time|token)"
)
RULES = {
    "speech": r"\b(?:say|says|said|saying|tells?|told|telling|ask|asks|asked|asking|knows?)\b",
    "per": rf"(?<![\w-]){UNIT}[*`]* an? {MEASURE}\b(?! {VERB}\b)",
    "go_on": r"\b(?:go|goes|going|went|gone) on\b|\banew\b|\bwrit(?:e|es|ing) on\b",
    "fragment": r"(?:of|whose|which|that|what|how|whether|who|why|the same|and|but|one that|those"
    r"|none|nothing)\b",
}
PATTERNS = {rule: re.compile(pattern.replace(" ", r"\s+")) for rule, pattern in RULES.items()}
PATTERNS["fragment"] = re.compile(RULES["fragment"].replace(" ", r"\s+"), re.IGNORECASE)


class Text(NamedTuple):
    """A piece of prose, with the source line of each of its lines."""

    text: str
    lines: tuple[int, ...]
    docstring: bool = False


class Hit(NamedTuple):
    """A place that breaks a rule."""

    path: str
    line: int
    rule: str
    text: str

    @property
    def allowed(self) -> str | None:
        """The allowed phrase that the place belongs to."""
        phrases = ALLOWED.get(self.path, {})
        return next((phrase for phrase in phrases if phrase in self.text), None)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


def blank(pattern: str, text: str) -> str:
    """The text with each match replaced by its line breaks."""
    return re.sub(pattern, lambda match: "`" + "\n" * match[0].count("\n"), text)


def lines_of(text: str, first: int = 1) -> Text:
    """A text whose lines follow one another in its file."""
    return Text(text, tuple(range(first, first + text.count("\n") + 1)))


def python_texts(source: str) -> Iterator[Text]:
    """Docstrings, strings with a space, and blocks of comments."""
    tree, source_lines = ast.parse(source), source.splitlines()
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in inner:
            parts = [p.value if isinstance(p, ast.Constant) else "`" for p in node.values]
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in inner else node.value
        else:
            continue
        if " " not in text.strip() and id(node) not in docstrings:
            continue
        start, end = node.lineno, node.end_lineno or node.lineno
        if text.count("\n") == end - start:
            where = tuple(range(start, end + 1))
        else:  # The pieces of one string on several lines: each word's line is looked up.
            text, where = located(text.replace("\n", " "), source_lines, start, end)
        yield Text(text, where, id(node) in docstrings)
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != block[-1][0] + 1:
                yield comment(block)
                block = []
            block.append((token.start[0], token.string.lstrip("#: ")))
    if block:
        yield comment(block)


def located(text: str, source: list[str], start: int, end: int) -> tuple[str, tuple[int, ...]]:
    """The text broken into lines as its source lines are."""
    broken, where, rest = [], [], text
    for number in range(start, end + 1):
        last = re.findall(r"[^\s'\"]{2,} ?(?=['\"][^'\"]*$)", source[number - 1])
        cut = rest.find(last[-1].strip()) if last else -1
        if cut >= 0 and number < end:
            cut += len(last[-1].strip())
            broken.append(rest[:cut])
            where.append(number)
            rest = rest[cut:]
    return "\n".join([*broken, rest]), (*where, end if where else start)


def comment(block: list[tuple[int, str]]) -> Text:
    """A block of comments as one text."""
    return Text("\n".join(text for _, text in block), tuple(line for line, _ in block))


def markdown(text: str) -> str:
    """Prose alone: without code, fields of templates, addresses and tags."""
    for pattern in (
        r"(?ms)^ *```.*?^ *```$",
        r"(?m)^(?:    |\t)(?! *[-*] ).*$",
        r"\|",
        r"(?s)\{#.*?#\}|\{%.*?%\}",
        r"\{\{.*?\}\}",
        r"(?<=\])\([^)]*\)",
        r"<[^>]*>",
    ):
        text = blank(pattern, text)
    return text


def texts_of(path: Path) -> Iterator[Text]:
    """The prose of a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from python_texts(source)
    elif path.suffix == ".ipynb":
        for cell in json.loads(source)["cells"]:
            text = "".join(cell["source"])
            found = [lines_of(markdown(text))]
            if cell["cell_type"] == "code":
                magic = re.sub(r"(?m)^[!%]", "# ", text)
                found = list(python_texts(magic))
            before = source[: source.find(json.dumps(cell["source"][0], ensure_ascii=False))]
            for one in found:
                yield one._replace(lines=tuple(before.count("\n") + n for n in one.lines))
    elif path.suffix == ".md" or path.name.endswith(".md.jinja"):
        yield lines_of(markdown(source))
    elif path.suffix == ".jinja":
        code = r"(?s)<style.*?</style>|\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>"
        yield lines_of(blank(code, source))
    else:
        yield lines_of(source)


def too_long(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of more than 100 columns, where such lines can be broken."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from numbered(text)
    elif path.suffix in (".md", ".jinja") and ".md" in path.name:
        fenced = blank(r"(?ms)^ *```.*?^ *```$|\{\{.*?\}\}|\{%.*?%\}", text)
        yield from (
            (number, line)
            for number, line in numbered(fenced)
            if not line.startswith(("|", "    ", "!["))
        )


def numbered(text: str) -> Iterator[tuple[int, str]]:
    """Each long line with its number."""
    lines = enumerate(text.splitlines(), 1)
    yield from ((number, line) for number, line in lines if len(line) > COLUMNS)


def files(root: Path) -> Iterator[Path]:
    """Every file with words of ours; pages that a template makes are read as templates."""
    for folder in ("memjax", "configs", "docs", "launch", "notebooks", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if "golden" in str(path) or "__pycache__" in path.parts or not path.is_file():
                continue
            if path.suffix == ".md" and path.with_name(path.name + ".jinja").exists():
                continue
            if folder == "tests" and path.suffix != ".py":
                continue
            if path.suffix in (".py", ".md", ".ipynb", ".jinja", ".sh", ".sbatch", ".yaml") or (
                path.name == "Dockerfile"
            ):
                yield path
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "setup.py")
    yield from (root / name for name in (*names, "pyproject.toml") if (root / name).exists())


def hits_of(path: Path, root: Path) -> list[Hit]:
    """Every place of a file that breaks a rule."""
    name = str(path.relative_to(root))
    found = [Hit(name, number, "columns", line.strip()) for number, line in too_long(path)]
    if name.startswith("tests/"):
        return found
    for text, lines, docstring in texts_of(path):
        read = blank(r"``.*?``|`[^`\n]+`", text)
        for rule, pattern in PATTERNS.items():
            if rule == "fragment":
                start = re.match(r"\s*", read)
                matches = [pattern.match(read, start.end() if start else 0)] if docstring else []
            else:
                matches = list(pattern.finditer(read))
            for match in matches:
                if match is None:
                    continue
                place = read.count("\n", 0, match.start())
                around = read[max(match.start() - 50, 0) : match.end() + 50]
                around = " ".join(around.split())
                found.append(Hit(name, lines[min(place, len(lines) - 1)], rule, around))
    return found


def room(path: str) -> str:
    """The room of a file: two folders of the package, else the first one."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "memjax" else parts[0]


def check(root: Path = ROOT, only: Iterable[str] = ()) -> list[Hit]:
    """All hits, or those of some rooms, folders or files."""
    starts = tuple(str(one).rstrip("/") for one in only)
    return sorted(
        hit
        for path in files(root)
        if not starts or str(path.relative_to(root)).startswith(starts)
        for hit in hits_of(path, root)
    )


def test_no_rule_has_more_hits_than_before():
    found = [hit for hit in check() if not hit.allowed]
    counts = Counter(hit.rule for hit in found)
    worse = {rule: count for rule, count in counts.items() if count > CEILINGS[rule]}
    assert not worse, (
        f"{worse}, expected at most {CEILINGS}. List the places by "
        "`python tests/test_language.py --list FILE ...` and reword them."
    )


def test_allowed_phrases_are_few_and_in_use():
    found = [hit for hit in check(only=ALLOWED) if hit.allowed] if ALLOWED else []
    used = {(hit.path, hit.allowed) for hit in found}
    assert used == {(path, phrase) for path, phrases in ALLOWED.items() for phrase in phrases}
    for rule, count in Counter(hit.rule for hit in found).items():
        assert count <= 0.05 * FIRST[rule], f"{rule}: {count} allowed hits, expected 5 % at most"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("speech", '"""Return what the file says."""'),
        ("speech", 'raise ValueError(f"{path} knows no such key")'),
        ("speech", "# the process is asked\n# to stop"),
        ("per", '"""Return tokens a second."""'),
        ("per", 'x = ("bits a "\n     "number, on average")'),
        ("go_on", '"""Go on from a checkpoint."""'),
        ("fragment", 'x = 1\n"""Of the run."""'),
        ("fragment", '"""None."""'),
    ],
)
def test_a_hit_is_found(rule, text, tmp_path):
    path = tmp_path / "memjax" / "x.py"
    path.parent.mkdir()
    path.write_text(text.replace("Go on", "It goes on"), encoding="utf-8")
    assert [hit.rule for hit in check(tmp_path)] == [rule]


@pytest.mark.parametrize(
    "text",
    [
        '"""Return `say` and the rows a batch has; known, essay."""',
        "ask = tell(said)",
        'x = "says"',
        '"""The batch of a step: one token at a time."""',
    ],
)
def test_other_words_are_no_hits(text, tmp_path):
    path = tmp_path / "memjax" / "x.py"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    assert check(tmp_path) == []


def test_lines_of_hits_are_those_of_their_words(tmp_path):
    path = tmp_path / "memjax" / "x.py"
    path.parent.mkdir()
    path.write_text('x = (\n    "first line, "\n    "it says so"\n)\n\n\n# one\n# it says\n')
    assert [hit.line for hit in check(tmp_path)] == [3, 8]


def main() -> None:
    """Print counts or places."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", nargs="*", metavar="PATH", help="list hits in these paths")
    parser.add_argument("--rule", choices=CEILINGS, help="only this rule")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    args = parser.parse_args()
    found = check(args.root.resolve(), args.list or ())
    found = [hit for hit in found if args.rule in (None, hit.rule) and not hit.allowed]
    if args.list is not None:
        print(*found, sep="\n")
    table = {name: Counter() for name in sorted({room(hit.path) for hit in found})}
    for hit in found:
        table[room(hit.path)][hit.rule] += 1
    if args.list is None:
        print(f"{'':28}" + "".join(f"{rule:>10}" for rule in CEILINGS))
        for name, counts in table.items():
            print(f"{name:28}" + "".join(f"{counts[rule]:>10}" for rule in CEILINGS))
    total = Counter(hit.rule for hit in found)
    print(f"{'all':28}" + "".join(f"{total[rule]:>10}" for rule in CEILINGS))


if __name__ == "__main__":
    sys.exit(main())
