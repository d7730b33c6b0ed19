"""The command `memjax generate --workdir=RUN [--stage=NAME] --prompt=TEXT|--prompt_file=FILE`: what a trained model writes on.

    memjax generate --workdir=runs/quickstart --stage=causal_control --prompt="The list is" --tokens=100 --temperature=0.8 --top_p=0.9

Writes the continuation, and nothing else, to stdout as it comes. A run's last stage is taken unless another is named; its family must be
memory_model, causal_lm or recurrent_memory. An empty prompt begins a new text. The model ends a text where it says that a document ends.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from memjax.cli.arguments import read_own

if TYPE_CHECKING:
    from memjax.data import Tokenizer

EXAMPLE = 'memjax generate --workdir=runs/quickstart --prompt="The list is"'
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
        "Of a text that is longer than the model keeps: lose the oldest part, or refuse.",
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
    _run(_text(given), given)
    return 0


def _text(given: dict[str, Any]) -> str:
    if given["prompt"] is not None:
        return given["prompt"]
    try:
        return Path(given["prompt_file"]).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise flags.IllegalFlagValueError(f"--prompt_file={given['prompt_file']}: is no UTF-8 text ({error})") from error


def _run(text: str, given: dict[str, Any]) -> None:
    # Imports JAX: after the flags are known to be right.
    from memjax.inference import GenerationError, Sampling, open_generator

    sampling = Sampling(given["temperature"], given["top_k"], given["top_p"])
    generator, tokenizer = open_generator(given["workdir"], given["stage"], given["beyond"])
    if tokenizer is None:
        raise GenerationError(f"{given['workdir']} holds imported weights, whose tokenizer is not known: text has no ids")
    writer = Writer(tokenizer)
    generator.generate(
        [tokenizer.encode(text)],
        given["tokens"],
        sampling,
        given["seed"],
        stop=(tokenizer.eos_id,),
        on_token=lambda _, token: writer.add(token),
    )
    writer.end()


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
