"""The command `memjax generate --workdir=RUN [--stage=NAME] --prompt=TEXT|--prompt_file=FILE`: what a trained model writes on.

    memjax generate --workdir=runs/quickstart --stage=causal_control --prompt="The list is" --tokens=100 --temperature=0.8 --top_p=0.9
    memjax generate --workdir=runs/quickstart --memory=book.store --prompt="In the end"

Writes the continuation, and nothing else, to stdout as it comes. A run's last stage is taken unless another is named; its family must be
memory_model, causal_lm or recurrent_memory. An empty prompt begins a new text. The model ends a text where it says that a document ends.

With --memory a memory model goes on from a text that `memjax compress` has read, by the same encoder: the memories stand before the prompt,
which may be the next words or a question. It reads as many as it keeps, those nearest to the end; --document and --chunks choose others. A
chunk that is not full, as the last one of a document, is left out: what it said is given with the prompt. What is read is told on stderr.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from memjax.cli.arguments import read_own

if TYPE_CHECKING:
    from memjax.data import Tokenizer
    from memjax.inference import Generator
    from memjax.store import MemoryStore

EXAMPLE = 'memjax generate --workdir=runs/quickstart --prompt="The list is"'
REMEMBERED = 'memjax generate --workdir=runs/quickstart --memory=book.store --prompt="In the end"'
INCOMPLETE = "\ufffd"
"""What bytes that form no character yet decode to."""
LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "A workdir that `memjax train` wrote.", flag_values=values)
    flags.DEFINE_string("stage", "", "A stage of it; by default the last of the curriculum.", flag_values=values)
    flags.DEFINE_string("prompt", None, "The text to go on with; may be empty.", flag_values=values)
    flags.DEFINE_string("prompt_file", None, "A file (UTF-8) with that text.", flag_values=values)
    flags.DEFINE_string("memory", "", "A store that `memjax compress` wrote, to go on from.", flag_values=values)
    flags.DEFINE_integer("document", None, "Number of the one document of it to go on from, from 0.", 0, flag_values=values)
    flags.DEFINE_string(
        "chunks",
        "",
        "Which full chunks of it, as in Python: 10:20, or -5: for the last five; by default all.",
        flag_values=values,
    )
    flags.DEFINE_integer("tokens", 200, "Tokens to write, at most.", 1, flag_values=values)
    flags.DEFINE_float(
        "temperature",
        0.0,
        "What scores are divided by before chance decides; 0 takes the most likely token.",
        flag_values=values,
    )
    flags.DEFINE_integer("top_k", 0, "How many of the most likely tokens may come; 0 is all.", flag_values=values)
    flags.DEFINE_float("top_p", 1.0, "Share of the probability that the tokens that may come make up.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "What chance comes from.", 0, flag_values=values)
    flags.DEFINE_enum(
        "beyond",
        "evict",
        ("evict", "error"),
        "Of a text that is longer than the model keeps, memories counted: lose the oldest part, or refuse.",
        flag_values=values,
    )
    return values


def run(args: Sequence[str]) -> int:
    """Writes the continuation."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("workdir",))
    if given is None:
        return 0
    if (given["prompt"] is None) == (given["prompt_file"] is None):
        what = "are both given; give one of them" if given["prompt"] is not None else "are both missing"
        raise flags.IllegalFlagValueError(f"--prompt and --prompt_file {what}; for example: {EXAMPLE}")
    for name in ("document", "chunks"):
        if given[name] not in (None, "") and not given["memory"]:
            raise flags.IllegalFlagValueError(f"--{name} is of a store, and --memory is missing; for example: {REMEMBERED}")
    given["chunks"] = _slice(given["chunks"])
    _run(_text(given), given)
    return 0


def _text(given: dict[str, Any]) -> str:
    if given["prompt"] is not None:
        return given["prompt"]
    try:
        return Path(given["prompt_file"]).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise flags.IllegalFlagValueError(f"--prompt_file={given['prompt_file']}: is no UTF-8 text ({error})") from error


def _slice(chunks: str) -> slice:
    """Of `A:B`, either of which may be left out."""
    ends = (chunks or ":").split(":")
    try:
        start, stop = (int(end) if end.strip() else None for end in ends)
    except ValueError:
        raise flags.IllegalFlagValueError(
            f"--chunks={chunks} does not say which; give FIRST:END, as in 10:20 or -5: or :8"
        ) from None
    return slice(start, stop)


def _run(text: str, given: dict[str, Any]) -> None:
    # Imports JAX: after the flags are known to be right.
    from memjax.inference import GenerationError, Sampling, open_generator

    sampling = Sampling(given["temperature"], given["top_k"], given["top_p"])
    generator, tokenizer = open_generator(given["workdir"], given["stage"], given["beyond"])
    if tokenizer is None:
        raise GenerationError(f"{given['workdir']} holds imported weights, whose tokenizer is not known: text has no ids")
    ids = tokenizer.encode(text)
    store = _remembered(generator, len(ids), given) if given["memory"] else None
    writer = Writer(tokenizer)
    generator.generate(
        [ids],
        given["tokens"],
        sampling,
        given["seed"],
        stop=(tokenizer.eos_id,),
        on_token=lambda _, token: writer.add(token),
        memories=None if store is None else [store],
    )
    writer.end()


def _remembered(generator: "Generator", prompt: int, given: dict[str, Any]) -> "MemoryStore":
    """The chosen chunks of a store; says on stderr which of them are read before `prompt` tokens."""
    from rich.console import Console

    from memjax.inference import GenerationError
    from memjax.store import MemoryStore
    from memjax.training.progress import Reporter

    store, of = MemoryStore.load(given["memory"], expected=generator.origin), given["memory"]
    if given["document"] is not None:
        store, of = store.of_document(given["document"]), f"{of}, document {given['document']}"
    full = store.full_chunks
    picked = full[given["chunks"]]
    if not len(picked):
        raise GenerationError(f"{of}: none of its {len(full)} full chunks is chosen; --chunks counts these, from 0")
    read = min(len(picked), generator.reader.kept(prompt // generator.reader.window))
    said = f"{of}: reads the last {read} of {len(picked)} memories"
    after = int(picked[-1]) + 1
    if after < len(store) and after not in full:
        document, _, tokens, first, last = store.spans[after].tolist()
        if document == store.spans[after - 1, 0]:
            said += (
                f"; {tokens} tokens that follow ({store.documents[document].name}, bytes {first} to {last}) fill no chunk and are not among"
                " them: let the prompt begin with these"
            )
    Reporter(Console(stderr=True, soft_wrap=True)).say(said)
    return store[picked]


class Writer:
    """Tokens to stdout as soon as they are whole characters."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []

    def add(self, token: int) -> None:
        """Writes what is whole; bytes of a character that may still come wait."""
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting)
        if text.endswith(INCOMPLETE) and len(self._waiting) < LONGEST_CHARACTER:
            return
        self._write(text)

    def end(self) -> None:
        """Writes what still waits, and ends the line."""
        self._write(self._tokenizer.decode(self._waiting) + "\n")

    def _write(self, text: str) -> None:
        self._waiting.clear()
        sys.stdout.write(text)
        sys.stdout.flush()
