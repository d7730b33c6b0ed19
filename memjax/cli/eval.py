"""The command `memjax eval`: standard evaluations of a trained language model."""

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memjax.cli.arguments import Arguments, UsageError, file_beside, take
from memjax.cli.flags import STAGE_PATH, Flag
from memjax.cli.joined import joined
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.evaluation.text_scorer import TextScorer

LONG_RECALL = "long_recall"
FILE = "evaluations.json"
KEPT = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "config",
)
"""The keys of the harness's result that are written; the rest describe the machine."""
QUESTIONS = {
    "lengths": Flag("Tokens per text.", "ints", "N+N", 1, [1024, 4096]),
    "depths": Flag(
        "Shares of the text before the fact.", "floats", "X+X", 0, [0.0, 0.25, 0.5, 0.75, 1.0]
    ),
    "facts": Flag("A file of bAbI; by default facts are generated.", metavar="FILE", default=""),
    "questions": Flag("Texts per length and depth.", "int", "N", 1, 20),
}
ARGUMENTS = Arguments(
    example="memjax eval runs/quickstart --tasks=arc_easy,lambada_openai --limit=100",
    words={"PATH": STAGE_PATH},
    flags=take(
        tasks={
            "what": f"of lm-evaluation-harness, of local files (NAME_local), or {LONG_RECALL}",
            "required": True,
        },
        task_folder={},
        limit={"what": "documents per task"},
        num_fewshot={},
        corpus={"what": f"{LONG_RECALL}, in which facts are hidden"},
        long_recall={"keys": QUESTIONS},
        seed={"default": 0},
        batch_size={"what": "Texts", "default": 32},
        out={
            "what": f"Write all numbers to this file; by default {FILE} in the stage's folder",
            "metavar": "FILE",
        },
    ),
    notes=f"""
    Tasks of the harness need pip install lm-eval. --task_folder holds more tasks (.yaml) and
    the files that local tasks read (memjax/evaluation/tasks). {LONG_RECALL} needs no extra: it
    hides facts in long text and ranks the answers, as in --tasks={LONG_RECALL} --corpus=books/
    --long_recall=lengths=1024+4096,questions=10.

    The family of the stage must predict the next token: memory_model, causal_lm or
    recurrent_memory. Memory models read the full chunks of a context through memories, as in
    training.
    """,
)


def run(given: Namespace) -> None:
    """Evaluates a stage, prints the tables and writes the numbers."""
    harness = [name for name in given.tasks if name != LONG_RECALL]
    recall = len(harness) < len(given.tasks)
    UsageError.require(
        given.corpus or not recall,
        f"--corpus: missing, expected text for {LONG_RECALL}. Add it, for example --corpus=books/.",
    )
    UsageError.require(
        not given.task_folder or Path(given.task_folder).is_dir(),
        f"--task_folder: {given.task_folder!r}, expected a folder.",
    )
    with joined(given) as reporter:
        _evaluate(given, harness, recall, reporter)


def _evaluate(given: Namespace, harness: list[str], recall: bool, reporter: Reporter) -> None:
    # These import JAX: after the flags are checked.
    from memjax.evaluation.harness import require_harness, versions
    from memjax.evaluation.text_scorer import text_scorer
    from memjax.files import check_writable, write_json
    from memjax.inference import load
    from memjax.sharding import leads

    if harness:
        require_harness()
    trained = load(given.path)
    out = file_beside(given, trained.folder, FILE)
    check_writable(out)
    model = text_scorer(trained, given.batch_size)
    written: dict[str, Any] = {"model": dict(model.about), "memjax": versions()}
    with reporter.active():
        if harness:
            written |= _harness(model, harness, given)
        if recall:
            written[LONG_RECALL] = _long_recall(model, given, reporter)
    if leads():
        write_json(out, written, indent=1)
    reporter.log(f"all numbers in {out}")


def _harness(model: "TextScorer", tasks: list[str], given: Namespace) -> dict[str, Any]:
    """Prints the harness's own tables and returns the numbers to write."""
    from lm_eval.utils import handle_non_serializable, make_table

    from memjax.evaluation.harness import evaluate
    from memjax.sharding import leads

    folder = given.task_folder or ""
    found = evaluate(model, tasks, folder, folder, given.limit, given.num_fewshot)
    for groups in ("results", "groups") if leads() else ():
        if found.get(groups):
            print(make_table(found, groups))
    kept = {name: found[name] for name in KEPT if name in found}
    return json.loads(json.dumps(kept, default=handle_non_serializable))


def _long_recall(model: "TextScorer", given: Namespace, reporter: Reporter) -> dict[str, Any]:
    """Prints accuracy per length and depth, and returns the numbers to write."""
    from memjax.data import open_source
    from memjax.evaluation.facts import made_up, read_babi
    from memjax.evaluation.long_recall import long_recall
    from memjax.objectives.uncertainty import to_json

    own, seed = given.long_recall, given.seed
    texts = (document.text for document in open_source(given.corpus))
    count = own["questions"] * len(own["lengths"]) * len(own["depths"])
    questions = read_babi(own["facts"]) if own["facts"] else made_up(count, seed)
    found = long_recall(
        model, texts, questions, own["lengths"], own["depths"], own["questions"], seed
    )
    depths = [f"{depth:g}" for depth in found.by_depth]
    reporter.table(
        f"long_recall: accuracy (guessing: {found.chance:.3f})",
        ("tokens", *(f"depth {depth}" for depth in depths), "all depths", "text kept", "fact kept"),
        [
            (
                str(length),
                *(f"{found.cells[f'{length}@{depth}'].accuracy.value:.2f}" for depth in depths),
                str(row.accuracy),
                f"{row.kept_share:.0%}",
                f"{row.fact_kept:.0%}",
            )
            for length, row in found.by_length.items()
        ],
    )
    return to_json(found) | {"haystack": given.corpus, "facts": own["facts"] or "made up"}
