"""The command `memjax reproduce --out=FOLDER`: the paper's claims trained anew, measured, and judged on a page.

    memjax reproduce --out=runs/reproduction

trains, for two seeds, autoencoders of mixers and of transformers, an oracle, causal encoders, a retriever, memory models under five regimes,
a recurrent memory and a decoder with full context; measures them on held-out text; and writes `reproduction.html` with every claim, its
figures and the verdict. Run again, it goes on where it stopped. Less than 45 minutes on two CPU cores at --scale=small; --scale=paper has
the published sizes, for a TPU slice; --scale=tiny learns nothing and shows that everything runs.

Trained on the English prose inside Python itself, or on any text: --corpus=PATH, as config.data.corpus.
"""

from collections.abc import Sequence

from absl import flags

from memjax.cli.allocator import keep_freed_memory
from memjax.cli.arguments import read_own

EXAMPLE = "memjax reproduce --out=runs/reproduction"
SCALES = ("tiny", "small", "paper")


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "Folder of this reproduction alone.", flag_values=values)
    flags.DEFINE_enum("scale", "small", SCALES, "Sizes and lengths of training.", flag_values=values)
    flags.DEFINE_string("corpus", "python-docs", "Text to train on, as config.data.corpus.", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1"], "Seeds, at least two.", flag_values=values)
    flags.DEFINE_integer("limit", 0, "Held-out rows that are measured, at most; 0 is the scale's.", 0, flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Trains, measures, judges."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("out",))
    if given is None:
        return 0
    try:
        seeds = tuple(int(seed) for seed in given["seeds"])
    except ValueError:
        raise flags.IllegalFlagValueError(f"--seeds={','.join(given['seeds'])} must be whole numbers with commas") from None
    if len(set(seeds)) < 2:
        raise flags.IllegalFlagValueError(
            f"--seeds={','.join(given['seeds'])} must be at least two different ones, to tell a claim from chance"
        )
    keep_freed_memory()
    # It imports JAX: after the allocator is set and the flags are known to be right.
    from memjax.reproduce import reproduce

    reproduce(given["out"], given["scale"], given["corpus"], seeds, given["limit"])
    return 0
