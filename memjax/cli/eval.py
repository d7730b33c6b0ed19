"""The command `memjax eval --workdir=RUN [--stage=NAME] --tasks=NAME,...`: standard evaluations of a trained model.

    memjax eval --workdir=runs/quickstart --stage=combined --tasks=arc_easy,hellaswag,lambada_openai --limit=100
    memjax eval --workdir=runs/quickstart --tasks=arc_easy_local,lambada_local --data=evals/
    memjax eval --workdir=runs/quickstart --tasks=long_recall --haystack=books/ --lengths=1024,4096

Tasks are those of lm-evaluation-harness (the extra: pip install 'memjax[eval]'), NAME_local of files in --data (memjax/interop/tasks), any
in --include_path, and long_recall, which is memjax's own and needs no extra: facts hidden in long text, recalled by the ranking of answers.
A run's last stage is taken unless another is named; its family must be memory_model, causal_lm or recurrent_memory. Memory models read the
full chunks of a context through memories, as in training. Prints the tables and writes all numbers as JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from memjax.cli.arguments import read_own

if TYPE_CHECKING:
    from memjax.evals import LongRecall, TextModel

EXAMPLE = "memjax eval --workdir=runs/quickstart --tasks=arc_easy_local --data=evals/"
LONG_RECALL = "long_recall"
FILE = "evaluations.json"
KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config")
"""What is written of what the harness returns; the rest is about the machine."""


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "A workdir that `memjax train` wrote.", flag_values=values)
    flags.DEFINE_string("stage", "", "A stage of it; by default the last of the curriculum.", flag_values=values)
    flags.DEFINE_list("tasks", [], "Which ones, with commas.", flag_values=values)
    flags.DEFINE_string("include_path", "", "A folder of more task files (.yaml).", flag_values=values)
    flags.DEFINE_string("data", "", "The folder that tasks of local files read.", flag_values=values)
    flags.DEFINE_integer("limit", None, "Documents of each task, at most.", 1, flag_values=values)
    flags.DEFINE_integer("num_fewshot", None, "Worked examples before each question.", 0, flag_values=values)
    flags.DEFINE_integer("batch", 32, "Texts at a time.", 1, flag_values=values)
    flags.DEFINE_string("out", "", f"JSON file; by default {FILE} in the stage's folder.", flag_values=values)
    flags.DEFINE_string("haystack", "", "long_recall: texts to hide facts in, as config.data.corpus.", flag_values=values)
    flags.DEFINE_list("lengths", ["1024", "4096"], "long_recall: tokens of a text.", flag_values=values)
    flags.DEFINE_list(
        "depths", ["0", "0.25", "0.5", "0.75", "1"], "long_recall: share of it before the fact.", flag_values=values
    )
    flags.DEFINE_string("facts", "", "long_recall: a file of bAbI; by default facts are made up.", flag_values=values)
    flags.DEFINE_integer("questions", 20, "long_recall: texts of each length and depth.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "long_recall: what chance comes from.", 0, flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Evaluates, prints and writes."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("workdir", "tasks"))
    if given is None:
        return 0
    lengths, depths = _numbers("lengths", given["lengths"], int), _numbers("depths", given["depths"], float)
    harness = [name for name in given["tasks"] if name != LONG_RECALL]
    long = len(harness) < len(given["tasks"])
    if long and not given["haystack"]:
        raise flags.IllegalFlagValueError(
            "--tasks=long_recall needs --haystack, the texts to hide facts in; for example: --haystack=books/"
        )
    # These import JAX: after the flags are known to be right.
    from memjax.evals import open_text_model
    from memjax.interop.lm_eval import require_harness, versions
    from memjax.training.progress import Reporter

    if harness:
        require_harness()
    reporter = Reporter()
    model = open_text_model(given["workdir"], given["stage"], given["batch"], reporter.bar)
    written: dict[str, Any] = {"model": dict(model.about), "memjax": versions()}
    if harness:
        written |= _harness(model, harness, given)
    if long:
        found = _long_recall(model, given, lengths, depths)
        reporter.console.print(_table(found))
        written[LONG_RECALL] = found.to_json() | {"haystack": given["haystack"], "facts": given["facts"] or "made up"}
    out = Path(given["out"] or _folder(given["workdir"], model.about["stage"]) / FILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written, indent=1, default=str) + "\n", encoding="utf-8")
    reporter.say(f"all numbers in {out}")
    return 0


def _harness(model: "TextModel", tasks: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Tables of the harness's own form on stdout, and what is written."""
    from lm_eval.utils import handle_non_serializable, make_table

    from memjax.interop.lm_eval import evaluate

    found = evaluate(model, tasks, given["include_path"], given["data"], given["limit"], given["num_fewshot"])
    print(make_table(found))
    if found.get("groups"):
        print(make_table(found, "groups"))
    kept = {name: found[name] for name in KEPT if name in found}
    return json.loads(json.dumps(kept, default=handle_non_serializable))


def _long_recall(model: "TextModel", given: dict[str, Any], lengths: list[int], depths: list[float]) -> "LongRecall":
    from memjax.data import read_corpus
    from memjax.evals import long_recall
    from memjax.evals.facts import made_up, read_babi

    texts = (document.text for document in read_corpus(given["haystack"]))
    count = given["questions"] * len(lengths) * len(depths)
    questions = read_babi(given["facts"]) if given["facts"] else made_up(count, given["seed"])
    return long_recall(model, texts, questions, lengths, depths, given["questions"], given["seed"])


def _table(found: "LongRecall") -> Any:
    """Accuracy by length and depth, and what the model kept of the texts."""
    from rich.table import Table

    table = Table(title=f"long_recall: accuracy (guessing: {found.chance:.3f})")
    for name in ("tokens", *(f"depth {depth:g}" for depth in found.by_depth), "all depths", "text kept", "fact kept"):
        table.add_column(name, justify="right")
    for length, row in found.by_length.items():
        cells = [str(found.cells[f"{length}@{depth:g}"].accuracy.value) for depth in found.by_depth]
        cells = [f"{float(cell):.2f}" for cell in cells]
        table.add_row(str(length), *cells, str(row.accuracy), f"{row.kept_share:.0%}", f"{row.fact_kept:.0%}")
    return table


def _folder(workdir: str, stage: str) -> Path:
    """The stage's folder on this machine, or what was given where there is none."""
    here = Path(workdir.partition("://")[2] or workdir)
    return here / "stages" / stage if (here / "stages").is_dir() or "://" in workdir else here


def _numbers(name: str, given: Sequence[str], kind: type) -> list[Any]:
    try:
        return [kind(value) for value in given]
    except ValueError as error:
        raise flags.IllegalFlagValueError(f"--{name}={','.join(given)}: {error}; give numbers with commas") from error
