"""A memory model on a laptop, from text to report.

    memjax train --config=configs/quickstart.py --workdir=runs/quickstart

Trains on the English prose of Python's own documentation, or on any text
(--config.data.corpus=PATH), in sequences of 64 chunks of 16 tokens. An autoencoder comes first. Its
encoder is frozen and encodes the text once. A decoder then learns to read these memories: to recall
any chunk of a sequence by its place, with its tokens shown and without, and to predict the next
tokens. A control of the same size trains on next tokens alone, on the same rows and as many
targets.

The positions of the decoder are those of the text, and half of its sequences train with random gaps
between chunks, in a range of 4,096 places. So it reads thousands of memories where it trained on
63: the report shows recall among 16 to 4,096 memories.

`configs/quickstart.py:decoder` trains the decoder alone, on the autoencoder of runs/quickstart.
With the stored memories of `memjax compress` (--config.data.memories=FOLDER) it does not run
the encoder.

`configs/quickstart.py:no_memory` adds a control whose decoder never sees a memory.

`configs/quickstart.py:small` is the same run in miniature, about a minute: a test of the software,
not of memories.
"""

import dataclasses

import ml_collections

from memjax import config as c

MATRICES = r"blocks/.*(kernel|mixing)$|unroll_projection/kernel|bridge/kernel"
TOKENS = r"embed/embedding$"

MIXER = c.Backbone(kind="mixer", width=128, layers=4, heads=16, mlp="gelu", mlp_ratio=2.0)
DECODER = c.Backbone(
    kind="transformer",
    width=128,
    layers=4,
    heads=4,
    mlp_ratio=2.5,
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; the variants are those of the top of this file."""
    autoencoder = c.Stage(
        family="autoencoder",
        objectives={"reconstruction": 1.0},
        steps=480,
        batch_size=2,
        learning_rate=6e-3,
        lr_schedule="linear",
        warmup_steps=20,
    )
    control = c.Stage(
        objectives={"next_token": 1.0},
        scored_chunks={"next_token": 8},
        dials={"place_range": 4096},
        steps=380,
        batch_size=8,
        learning_rate=1e-2,
        lr_schedule="linear",
        warmup_steps=20,
    )
    combined = dataclasses.replace(
        control,
        objectives={"blank_recall": 1.0, "recall": 0.6, "next_token": 2.0},
        scored_chunks={"blank_recall": 8, "recall": 4, "next_token": 8},
        trainable=c.FREEZING["frozen_all"],
        init_from="autoencoder",
        init_part="encoder",
    )
    config = c.Config(
        name="quickstart",
        data=c.Data(vocab_size=1024, sequence_length=1024, memories="autoencoder"),
        model=c.reading(
            c.Model(chunk_length=16, encoder=MIXER, decoder=DECODER, reconstructor=MIXER)
        ),
        optimizer=c.Optimizer(
            rules=((MATRICES, "muon"), (".*", "adamw")),
            rate_rules=((MATRICES, 4.0), (TOKENS, 4.0), (".*", 1.0)),
            decay_rules=((".*", 0.0),),
        ),
        stages={"autoencoder": autoencoder, "combined": combined, "causal_control": control},
        curriculum=("autoencoder", "combined"),
        controls=("causal_control",),
        evaluators=_evaluators(),
    )
    variants = {"": lambda x: x, "decoder": _decoder, "no_memory": _no_memory, "small": _small}
    if variant not in variants:
        known = ", ".join(filter(None, variants))
        raise ValueError(f"quickstart.py has no variant {variant!r}; it has {known}")
    return c.to_config_dict(variants[variant](config))


def _evaluators(every: int = 100, examples: int = 32, chunks: int = 2048) -> dict[str, c.Evaluator]:
    return c.usual_evaluators(every=every, examples=examples) | {
        "validation": c.Evaluator("validation", every=every, examples=max(1, examples // 4)),
        "empty": c.Evaluator("base_accuracy", examples=examples),
        "reading": c.Evaluator("reading", examples=chunks),
    }


def _decoder(config: c.Config) -> c.Config:
    """Return the decoder alone, on the encoder of another run."""
    combined = dataclasses.replace(
        config.stages["combined"], init_from="runs/quickstart/stages/autoencoder"
    )
    return dataclasses.replace(
        config,
        name="quickstart-decoder",
        data=dataclasses.replace(config.data, memories=""),
        stages={"combined": combined},
        curriculum=("combined",),
        controls=(),
    )


def _no_memory(config: c.Config) -> c.Config:
    """Return the config with a second control."""
    control = dataclasses.replace(config.stages["causal_control"], memory=False)
    return dataclasses.replace(
        config,
        stages={**config.stages, "no_memory": control},
        controls=(*config.controls, "no_memory"),
    )


def _small(config: c.Config) -> c.Config:
    """Return the config with smaller models and fewer steps."""
    narrow = {"width": 32, "layers": 2, "heads": 4}
    parts = {
        part: dataclasses.replace(getattr(config.model, part), **narrow)
        for part in ("encoder", "decoder", "reconstructor")
    }
    stages = {
        name: dataclasses.replace(stage, steps=12, batch_size=2, warmup_steps=4)
        for name, stage in config.stages.items()
    }
    return dataclasses.replace(
        config,
        name="quickstart-small",
        data=dataclasses.replace(config.data, vocab_size=400),
        model=dataclasses.replace(config.model, **parts),
        stages=stages,
        checkpoint_every=6,
        evaluators=_evaluators(every=6, examples=8, chunks=64),
        log_every=2,
    )
