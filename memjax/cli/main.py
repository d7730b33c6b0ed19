"""The command `memjax COMMAND`: every expected error becomes one clear line."""

import contextlib
import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from os import _exit

from memjax.allocator import keep_freed_memory
from memjax.cli.arguments import close_match, help_text, parse
from memjax.errors import MemjaxError, message

GROUPS = {
    "Train": {
        "prepare": "Tokenize a corpus into training data (parallel, resumable).",
        "train": "Train and evaluate a config; an interrupted run resumes.",
        "report": "Write the HTML page of a run again, or a page to look into a store.",
        "inspect": "Describe a run and its checkpoint: status, settings, parameters.",
    },
    "Use a trained stage": {
        "compress": "Encode texts, or a prepared corpus, into stored memories.",
        "reconstruct": "Reconstruct text from stored memories.",
        "generate": "Generate text from a prompt, token by token.",
        "recall": "Give back chunks of stored memories by their numbers, or find a phrase.",
        "export": "Write a stage as safetensors, or in another project's format.",
        "import": "Convert weights of another project into a stage.",
    },
    "Evaluate": {
        "measure": "Measure the memories of a stage with instruments.",
        "probe": "Compare encoders by decoders trained on their frozen vectors.",
        "eval": "Evaluate a language model on standard tasks and on recall over long texts.",
        "compare": "Train memory architectures of the field side by side, at equal stored bits.",
        "reproduce": "Train, measure and judge the claims of the paper.",
    },
    "Plan": {
        "compile": "Compile a stage for a TPU slice without TPUs: memory, FLOPs, highest MFU.",
        "bench": "Time the programs of a stage on this machine.",
    },
}
"""Commands and what each does, by what a person wants."""
COMMANDS = {name: sentence for group in GROUPS.values() for name, sentence in group.items()}
PATIENCE = 10.0
"""Seconds from Ctrl-C to the end of the process, at most."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit status: 0 done, 1 a run that failed, 2 wrong input, 128 + signal when interrupted.
    """
    if argv is None:
        # The process is ours, and has no other thread yet.
        keep_freed_memory()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        if argv is None:
            # The process ends: another Ctrl-C is not to interrupt that.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _complain("interrupted", 128 + signal.SIGINT)


def _run(args: list[str]) -> int:
    """Run one command and return the exit status, or raise KeyboardInterrupt."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if args else 2
    name, *args = args
    if name not in COMMANDS:
        return _complain(
            f"{name!r}: unknown command, expected one of {', '.join(COMMANDS)}."
            f"{close_match(name, COMMANDS)}"
        )
    # Before JAX is imported: parameters, optimizer and ids are of 32 bits.
    os.environ["JAX_ENABLE_X64"] = "0"
    # A module cannot be called `import`.
    command = importlib.import_module(f"memjax.cli.{name.replace('import', 'import_weights')}")
    if {"-h", "--help"} & set(args):
        print(help_text(name, COMMANDS[name], command.ARGUMENTS))
        return 0
    try:
        with _interruptible():
            return command.run(parse(command.ARGUMENTS, args)) or 0
    except MemjaxError as error:
        return _complain(str(error), error.status)
    except OSError as error:
        from memjax.files import explain

        return _complain(explain(error))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """End the process soon after Ctrl-C or a second signal, while the block runs.

    Python handles signals between its own operations alone: libraries and collectives delay that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    thread = threading.Thread(target=_end_after_signals, args=(read,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        thread.join()
        os.close(read)


def _end_after_signals(read: int) -> None:
    """End the process after signals, whose numbers come from a pipe until it is closed."""
    signals = 0
    while number := os.read(read, 1):
        signals += 1
        # A stage in training has a handler of its own: it saves its step after a first signal.
        if signals == 1 and signal.getsignal(number[0]) is not signal.default_int_handler:
            continue
        ended, _, _ = select.select([read], [], [], PATIENCE / signals)
        if not ended or os.read(read, 1):
            _exit(_complain("interrupted", 128 + number[0]))
        return


def _usage() -> str:
    lines = ["usage: memjax COMMAND [ARGUMENTS] [FLAGS]"]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<12} {what}" for name, what in commands.items())]
    return "\n".join(
        [*lines, "", "`memjax COMMAND --help` shows a command's flags and an example."]
    )


def _complain(text: str, status: int = 2) -> int:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]memjax:[/] {escape(message(text))}", highlight=False, emoji=False
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
