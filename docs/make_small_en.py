"""Measure the released model small-en and write its card, memjax/released/small-en/README.md.

    python docs/make_small_en.py RUN TEXTS NOVEL [TEXT...]    measure, write the card
    python docs/make_small_en.py --page                       write the card from docs/small_en.json

RUN is the workdir of configs/release.py, TEXTS the folder of the novels it trained on, and NOVEL a
novel that it did not train on. Each TEXT is one more text, of another kind. It takes about five
minutes on two cores; run it on an idle machine.
"""

import datetime
import gzip
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jinja2  # noqa: E402

import memjax  # noqa: E402
from memjax.experiment.reproduce.run import commit  # noqa: E402
from memjax.inference import TrainedModel, load  # noqa: E402
from memjax.inference.expansion import accuracy_against  # noqa: E402

NAME = "small-en"
DATA, TEMPLATE = ROOT / "docs" / "small_en.json", ROOT / "docs" / "small_en.md.jinja"
FOLDER = ROOT / "memjax" / "released" / NAME
PAGE = FOLDER / "README.md"
STAGE, CONTROL = "small_en", "causal_control"
ASKED = 1000
"""Chunks of the novel that are recalled from all of its memories."""
BOOKS = {
    "Burnett_Garden_1911": "F. H. Burnett, *The Secret Garden* (1911)",
    "Cbronte_Jane_1847": "Charlotte Brontë, *Jane Eyre* (1847)",
    "Chesterton_Thursday_1908": "G. K. Chesterton, *The Man Who Was Thursday* (1908)",
    "Conrad_Nostromo_1904": "Joseph Conrad, *Nostromo* (1904)",
    "Dickens_Bleak_1853": "Charles Dickens, *Bleak House* (1853)",
    "Doyle_Hound_1902": "Arthur Conan Doyle, *The Hound of the Baskervilles* (1902)",
    "Eliot_Adam_1859": "George Eliot, *Adam Bede* (1859)",
    "Gaskell_Wives_1865": "Elizabeth Gaskell, *Wives and Daughters* (1865)",
    "Haggard_Mines_1885": "H. Rider Haggard, *King Solomon's Mines* (1885)",
    "Hardy_Tess_1891": "Thomas Hardy, *Tess of the d'Urbervilles* (1891)",
    "Kipling_Kim_1901": "Rudyard Kipling, *Kim* (1901)",
    "Stevenson_Treasure_1883": "R. L. Stevenson, *Treasure Island* (1883)",
    "Trollope_Warden_1855": "Anthony Trollope, *The Warden* (1855)",
    "Wcollins_Woman_1860": "Wilkie Collins, *The Woman in White* (1860)",
}
KINDS = {
    "Python": (Path(os.__file__).parent / "argparse.py").read_text(encoding="utf-8")[:40_000],
    "French": (
        "En 1815, M. Charles-François-Bienvenu Myriel était évêque de Digne. C'était un vieillard"
        " d'environ soixante-quinze ans ; il occupait le siège de Digne depuis 1806. Quoique ce"
        " détail ne touche en aucune manière au fond même de ce que nous avons à raconter, il n'est"
        " peut-être pas inutile, ne fût-ce que pour être exact en tout, d'indiquer ici les bruits"
        " et les propos qui avaient couru sur son compte au moment où il était arrivé dans le"
        " diocèse. Vrai ou faux, ce qu'on dit des hommes tient souvent autant de place dans leur"
        " vie et surtout dans leur destinée que ce qu'ils font."
    ),
    "emoji": 8
    * "Good morning 🌞! Coffee ☕ first, then the train 🚆 to work 💼, and cake 🍰 at four. ",
    "a table": "".join(
        f"| {n} | {n * n:,} | {n**0.5:.4f} | {'even' if n % 2 == 0 else 'odd'} |\n"
        for n in range(1000, 1060)
    ),
}
"""Text of other kinds; that of the first is Python's own argparse, the French is Victor Hugo's."""


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result of a call, its seconds and its CPU-seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - start, time.process_time() - cpu


def given_back(model: TrainedModel, source: Any) -> dict[str, Any]:
    """Return how much of a text its memories give back, each chunk from its own."""
    chunks = model.chunks(source)
    store = model.compress(chunks)
    right = accuracy_against(store, model.reconstruct_tokens(store), chunks, "the text")
    return {
        "chunks": len(store),
        "tokens": int(store.tokens),
        "bytes": int(store.text_bytes),
        "right": right.tokens.value,
        "exact": right.chunks.value,
    }


def measure(run: Path, texts: Path, novel: Path, others: list[Path]) -> dict[str, Any]:
    """Return the numbers of the card."""
    model, load_seconds, _ = timed(lambda: load(NAME))
    chunks = model.chunks(novel)
    store, compress_seconds, compress_cpu = timed(lambda: model.compress(chunks))
    asked = list(range(0, len(store), max(1, len(store) // ASKED)))
    recall = {}
    for objective in ("recall", "blank_recall"):
        found = model.recall_tokens(store, asked, objective=objective)
        right = accuracy_against(store, found, chunks, novel.name, asked)
        recall[objective] = {"right": right.tokens.value, "exact": right.chunks.value}
    middle = [len(store) // 2]
    model.recall(store, middle)
    _, recall_seconds, _ = timed(lambda: model.recall(store, middle))
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    stages = results["models"]
    with tempfile.TemporaryDirectory() as folder:
        store.save(Path(folder) / "store")
        size = (Path(folder) / "store").stat().st_size
    return {
        "novel": BOOKS.get(novel.name.partition(".")[0], novel.name),
        "whole": given_back(model, novel),
        "recall": recall,
        "asked": len(asked),
        "seconds": {
            "load": load_seconds,
            "compress": compress_seconds,
            "compress_cpu": compress_cpu,
            "recall": recall_seconds,
        },
        "store_bytes": size,
        "kinds": {
            **{name: given_back(model, [text]) for name, text in KINDS.items()},
            **{path.name: given_back(model, path) for path in others},
        },
        "nats": {name: stages[name]["next_token_nats"] for name in (STAGE, CONTROL)},
        "by_memories": {
            STAGE: results["next_token_nats_by_memories"],
            CONTROL: results[f"next_token_nats_by_memories_{CONTROL}"],
        },
        "training": {
            "seconds": results["seconds_total"],
            "command": results["command"],
            "steps": {name: stage.steps for name, stage in model.config.stages.items()},
            "seed": model.config.seed,
        },
        "texts": [
            {
                "title": BOOKS[path.name.partition(".")[0]],
                "file": path.name.removesuffix(".gz"),
                "sha256": hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest(),
            }
            for path in sorted(texts.glob("*.gz"))
        ],
        "model": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
            "vocabulary": model.vocab_size,
            "chunk_length": model.config.model.chunk_length,
            "width": model.config.model.encoder.width,
            "bytes": sum(file.stat().st_size for file in FOLDER.rglob("*") if file != PAGE),
        },
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "version": memjax.__version__,
    }


def write_page(found: dict[str, Any]) -> None:
    """Write the card."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.2f} %"
    environment.filters["number"] = "{:,}".format
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**found)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Measure the model, or read its numbers, and write the card."""
    words = sys.argv[1:]
    if words == ["--page"]:
        found = json.loads(DATA.read_text(encoding="utf-8"))
    elif len(words) >= 3:
        run, texts, novel, *others = map(Path, words)
        found = measure(run, texts, novel, others)
        DATA.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        sys.exit("expected RUN TEXTS NOVEL [TEXT...], or --page")
    write_page(found)


if __name__ == "__main__":
    main()
