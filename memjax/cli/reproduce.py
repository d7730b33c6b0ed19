"""The command `memjax reproduce`."""

from argparse import Namespace

from memjax.cli.arguments import Arguments, take

ARGUMENTS = Arguments(
    example="memjax reproduce --out=runs/reproduction",
    flags=take(
        out={"what": "Folder of this reproduction alone", "required": True, "metavar": "FOLDER"},
        scale={"choices": ("tiny", "small", "paper"), "default": "small"},
        corpus={"what": "training", "default": "python-docs"},
        seeds={"default": [0, 1]},
        limit={"what": "held-out sequences; by default as many as the scale has"},
    ),
    notes="""
    For each seed it trains autoencoders of mixers and of transformers, an oracle, causal encoders,
    a retriever, memory models under five regimes, a recurrent memory and a decoder with full
    context. It measures them on held-out text and writes reproduction.html: each claim, its
    figures and the verdict. An interrupted reproduction resumes.

    --scale=small takes less than 45 minutes on two CPU cores. --scale=paper has the published
    sizes, for a TPU slice. --scale=tiny learns nothing: it checks that everything runs.
    """,
)


def run(given: Namespace) -> None:
    """Trains, measures and judges."""
    # These import JAX: after the flags are checked.
    from memjax.experiment.reproduce import reproduce
    from memjax.sharding import connect

    connect()
    reproduce(given.out, given.scale, given.corpus, tuple(given.seeds), given.limit or 0)
