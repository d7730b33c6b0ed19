"""The released model `small-en`, and how to train it further.

    memjax train --config=configs/release.py --workdir=runs/small-en \
        --config.data.corpus="0.3*python-docs + 0.7*novels/*.txt.gz"
    memjax export runs/small-en/stages/small_en --out=small-en --dtype=bfloat16

It is the quickstart with a larger vocabulary, more text and more steps: an autoencoder, a decoder
on its frozen encoder, and a control on next tokens alone. The card of the model lists its texts.

`configs/release.py:continue` trains the decoder of small-en on other text, with its tokenizer and
its encoder as they are:

    memjax train --config=configs/release.py:continue --config.data.corpus=notes/ \
        --workdir=runs/notes
"""

import dataclasses

import ml_collections

from memjax import config as c

MATRICES = r"blocks/.*(kernel|mixing)$|unroll_projection/kernel|bridge/kernel"
TOKENS = r"embed/embedding$"

MIXER = c.Backbone(kind="mixer", width=128, layers=4, heads=16, mlp="gelu", mlp_ratio=2.0)
DECODER = c.Backbone(kind="transformer", width=128, layers=4, heads=4, mlp_ratio=2.5)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; the variant is that of the top of this file."""
    autoencoder = c.Stage(
        family="autoencoder",
        objectives={"reconstruction": 1.0},
        steps=3000,
        batch_size=2,
        learning_rate=3e-3,
        warmup_steps=20,
    )
    control = c.Stage(
        objectives={"next_token": 1.0},
        scored_chunks={"next_token": 8},
        dials={"place_range": 32_768},
        steps=2500,
        batch_size=8,
        learning_rate=5e-3,
        warmup_steps=20,
    )
    decoder = dataclasses.replace(
        control,
        objectives={"blank_recall": 1.0, "recall": 0.6, "next_token": 2.0},
        scored_chunks={"blank_recall": 8, "recall": 4, "next_token": 8},
        trainable=c.FREEZING["frozen_all"],
        init_from="autoencoder",
        init_part="encoder",
    )
    config = c.Config(
        name="small-en",
        data=c.Data(vocab_size=2048, sequence_length=1024, memories="autoencoder"),
        model=c.reading(
            c.Model(chunk_length=16, encoder=MIXER, decoder=DECODER, reconstructor=MIXER)
        ),
        optimizer=c.Optimizer(
            rules=((MATRICES, "muon"), (".*", "adamw")),
            rate_rules=((MATRICES, 10.0), (TOKENS, 4.0), (".*", 1.0)),
            decay_rules=((".*", 0.0),),
        ),
        stages={"autoencoder": autoencoder, "small_en": decoder, "causal_control": control},
        curriculum=("autoencoder", "small_en"),
        controls=("causal_control",),
        evaluators=c.usual_evaluators(every=500, examples=32)
        | {
            "validation": c.Evaluator("validation", every=500, examples=8),
            "empty": c.Evaluator("base_accuracy", examples=32),
            "reading": c.Evaluator("reading", examples=2048),
        },
    )
    variants = {"": lambda x: x, "continue": _continue}
    if variant not in variants:
        raise ValueError(f"release.py has no variant {variant!r}; it has continue")
    return c.to_config_dict(variants[variant](config))


def _continue(config: c.Config) -> c.Config:
    """Return a short run that starts from the released model."""
    stage = dataclasses.replace(
        config.stages["small_en"],
        init_from="small-en",
        init_part="",
        steps=200,
        learning_rate=1e-3,
    )
    return dataclasses.replace(
        config,
        name="small-en-continued",
        data=dataclasses.replace(config.data, tokenizer="small-en", memories=""),
        stages={"small_en": stage},
        curriculum=("small_en",),
        controls=(),
    )
