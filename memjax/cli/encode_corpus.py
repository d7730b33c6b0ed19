"""The command `memjax encode-corpus --checkpoint=STAGE --out=FOLDER [--data=DATA]`: memories of all rows, for training with a frozen encoder.

A stage that keeps its encoder frozen computes the same memories in every epoch. Written to disk once, they are read in place of running
it. First train the encoder, say the stage `autoencoder` of the run runs/a, and write the memories of that run's rows:

    memjax encode-corpus --checkpoint=runs/a/stages/autoencoder --out=runs/a/memories

Then train decoders on it, in a run of the same text, vocabulary and row length whose stages are of family memory_model or have no encoder:

    memjax train --config=decoder.py --workdir=runs/b --config.data.memories=runs/a/memories

Each memory model there takes that encoder (init_from='runs/a/stages/autoencoder', init_part='encoder') or the model of a stage before it,
and keeps it as it is (trainable=(('^encoder/', False), ('.*', True))). Before a stage trains, the memories are compared with its encoder and
with its rows, and refused if they are of others. Held-out rows are encoded as ever: only training reads memories.

Where rows of the second run are longer, so that its data is another: start it once, so that it prepares its data and says that the memories
are not there; write them with --data=runs/b/data --row_tokens=N; start it again. The command runs on one machine, on all its devices.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from memjax.cli.arguments import read_own
from memjax.config.settings import DTYPES

EXAMPLE = "memjax encode-corpus --checkpoint=runs/a/stages/autoencoder --out=runs/a/memories"


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "Folder of the stage whose encoder it is.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write.", flag_values=values)
    flags.DEFINE_string("data", None, "Data folder of a workdir; by default that of the checkpoint's.", flag_values=values)
    flags.DEFINE_enum("split", "train", ("train", "validation"), "Whose memories; training reads train.", flag_values=values)
    flags.DEFINE_integer(
        "row_tokens", 0, "N, tokens in a row; 0 is the checkpoint's config.data.row_tokens.", 0, flag_values=values
    )
    flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "What is stored, 2 or 4 bytes a number.", flag_values=values)
    flags.DEFINE_integer("batch_rows", 64, "Rows encoded at a time.", 1, flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Encodes every row of a split."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("checkpoint", "out"))
    if given is None:
        return 0
    if "://" in given["checkpoint"] and not given["data"]:
        raise flags.IllegalFlagValueError(
            f"--data is missing: a checkpoint in a bucket ({given['checkpoint']}) has no data beside it"
        )
    given["data"] = given["data"] or Path(given["checkpoint"]).parent.parent / "data"
    from memjax.training.encode_corpus import encode_corpus  # Imports JAX: after the flags are known to be right.

    encode_corpus(**given)
    return 0
