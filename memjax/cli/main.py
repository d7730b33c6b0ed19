"""The command `memjax COMMAND --flags`: every expected error becomes one clear line."""

import importlib
import signal
import sys
from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.markup import escape

from memjax.cli.platforms import skip_absent_tpu

COMMANDS = {
    "prepare": "text to rows of tokens, by many processes; killed, it goes on where it was",
    "train": "train what a config describes, from text to report; run again, it goes on where it stopped",
    "compile": "a stage's steps compiled for a TPU slice, without TPUs: memory, FLOPs, collectives, and the highest MFU",
    "bench": "time the real steps on the devices at hand, or two configs against each other",
    "measure": "what the memories of a trained stage hold: information, recall, bits, capacity, retrieval and more",
    "generate": "what a trained model writes after a prompt, as it comes",
    "eval": "standard evaluations: tasks of lm-evaluation-harness, and facts recalled from long texts",
    "inspect": "what a checkpoint holds, without the devices that wrote it",
    "attribute": "colour held-out texts by what each token takes from the memory, or write that of all rows to train on",
    "probe": "how much of a text its vectors hold: a decoder trained on them from scratch, beside controls",
    "embed-hf": "write the vectors of a corpus by a Hugging Face encoder, to probe them",
    "compress": "text files to a store of memories, once, with what rounding costs",
    "expand": "the text of a store of memories again, by a stage's decoder",
    "encode-corpus": "write the memories of a corpus once, to train decoders on",
    "reproduce": "train, measure and judge the paper's claims anew, in miniature or at the published sizes",
    "report": "write the page of a workdir again from its numbers",
    "export": "a trained stage as a folder of safetensors with a model card, to share and to load",
    "import-reference": "make a folder of weights of the published PyTorch code, to load or to train on",
    "export-reference": "write such a folder's weights as they came",
}

_USAGE = "usage: memjax COMMAND [--flags]\n\n" + "\n".join(f"  {name:<16} {what}" for name, what in COMMANDS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 done, 1 a run that failed, 2 wrong input, 128 + signal when asked to stop."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if args else 2
    if args[0] not in COMMANDS:
        return _complain(f"{args[0]!r} is not a command; the commands are {', '.join(COMMANDS)}")
    skip_absent_tpu()
    command = importlib.import_module(f"memjax.cli.{args[0].replace('-', '_')}")
    try:
        return command.run(args)
    except flags.Error as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        status = _expected(error)
        if status is None:
            raise
        return _complain(str(error), status)


def _expected(error: Exception) -> int | None:
    """Exit status of an error that its message explains in full; None for one that needs its traceback."""
    from memjax.checkpoints import CheckpointError
    from memjax.config import ConfigError
    from memjax.data import CorpusError, RowsError, TokenizerError
    from memjax.evals.errors import EvalError
    from memjax.inference.errors import GenerationError
    from memjax.instruments.errors import InstrumentError
    from memjax.interop import FolderError, HuggingFaceError, SpecError, StateDictError
    from memjax.report import ReportError
    from memjax.sharding import ProcessesError
    from memjax.store import StoreError
    from memjax.training import Interrupted, NonFiniteError, WorkdirError

    if isinstance(error, Interrupted):
        return 128 + error.signal
    if isinstance(error, (NonFiniteError, ProcessesError)):
        return 1
    files = (
        CheckpointError,
        CorpusError,
        FolderError,
        HuggingFaceError,
        ReportError,
        RowsError,
        StateDictError,
        TokenizerError,
    )
    wrong_input = (*files, ConfigError, EvalError, GenerationError, InstrumentError, SpecError, StoreError, WorkdirError)
    # What the system refuses (a full disk, no permission) names its file and needs no traceback either.
    return 2 if isinstance(error, (*wrong_input, OSError)) else None


def _complain(message: str, status: int = 2) -> int:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]memjax:[/] {escape(message)}", highlight=False, emoji=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
