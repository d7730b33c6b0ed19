"""A memory model on a laptop, from text to report.

    memjax train --config=configs/quickstart.py --workdir=runs/quickstart

Trains on the English prose of Python's own documentation, or on any text
(--config.data.corpus=PATH). An autoencoder comes first. With its encoder frozen, a decoder learns
to read memories (blank copy), to copy, and to predict as well (combined). Two controls of the same
size follow, one trained on next tokens alone and one without memories. Every decoder stage also
trains on next tokens, so that the controls see as many of them.

It takes about nine minutes on two CPU cores, and 3.3 GB of memory. Expect a copy accuracy of about
0.97 on held-out text, against 0.3 for the controls. Expect a next-token loss about 7 % above that
of the control that trains on nothing else.

`configs/quickstart.py:decoder` trains the decoders alone, on the autoencoder of runs/quickstart.
With the stored memories of `memjax compress` (--config.data.memories=FOLDER) it does not run
the encoder.

`configs/quickstart.py:small` is the same run in miniature, about a minute: a test of the software,
not of memories.
"""

import dataclasses

import ml_collections

from memjax import config as c

MATRICES = r"blocks/.*(kernel|mixing)$|unroll_projection/kernel|bridge/kernel"
TOKENS = r"embed/embedding$"
FROZEN_ENCODER = (("^encoder/", False), (".*", True))

MIXER = c.Backbone(kind="mixer", width=128, layers=4, heads=16, mlp="gelu", mlp_ratio=2.0)
DECODER = c.Backbone(
    kind="transformer", width=128, layers=4, heads=4, mlp_ratio=2.5, output_gate=True
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `small` is the miniature, `decoder` trains decoders on a given encoder."""
    stage = c.Stage(batch_size=32, learning_rate=3e-3, warmup_steps=20)
    reading = dataclasses.replace(stage, trainable=FROZEN_ENCODER, final_lr_ratio=0.5)
    # Both objectives, from the copy stage on.
    both = {"copy": 1.0, "next_token": 1.5}
    # Next tokens from the first decoder stage on, so that the comparison with the control is at
    # equal targets.
    stages = {
        "autoencoder": dataclasses.replace(
            stage, family="autoencoder", objectives={"reconstruction": 1.0}, steps=300
        ),
        "blank_copy": dataclasses.replace(
            reading,
            objectives={"blank_copy": 1.0, "next_token": 0.3},
            steps=300,
            init_from="autoencoder",
            init_part="encoder",
        ),
        "copy": dataclasses.replace(reading, objectives=both, steps=100, init_from="blank_copy"),
        "combined": dataclasses.replace(
            reading, objectives=both, steps=400, init_from="copy", final_lr_ratio=0.0
        ),
    }
    decoder_steps = sum(stages[name].steps for name in ("blank_copy", "copy", "combined"))
    control = dataclasses.replace(stage, steps=decoder_steps, objectives={"next_token": 1.0})
    stages |= {"causal_control": control, "no_memory": dataclasses.replace(control, memory=False)}
    config = c.Config(
        name="quickstart",
        data=c.Data(vocab_size=1024, sequence_length=64),
        model=c.Model(chunk_length=16, encoder=MIXER, decoder=DECODER, reconstructor=MIXER),
        optimizer=c.Optimizer(
            rules=((MATRICES, "muon"), (".*", "adamw")),
            rate_rules=((MATRICES, 10.0), (TOKENS, 4.0), (".*", 1.0)),
            decay_rules=((".*", 0.0),),
        ),
        stages=stages,
        curriculum=("autoencoder", "blank_copy", "copy", "combined"),
        controls=("causal_control", "no_memory"),
        evaluators=c.usual_evaluators(every=50),
    )
    if variant == "small":
        config = _small(config)
    elif variant == "decoder":
        config = _decoder(config)
    elif variant:
        raise ValueError(f"quickstart.py has no variant {variant!r}; it has 'small' and 'decoder'")
    return c.to_config_dict(config)


def _decoder(config: c.Config) -> c.Config:
    """Return the decoder stages on the encoder of another run, and the control without memories."""
    stages = {name: config.stages[name] for name in ("blank_copy", "copy", "combined", "no_memory")}
    stages["blank_copy"] = dataclasses.replace(
        stages["blank_copy"], init_from="runs/quickstart/stages/autoencoder"
    )
    curriculum = ("blank_copy", "copy", "combined")
    return dataclasses.replace(
        config,
        name="quickstart-decoder",
        stages=stages,
        curriculum=curriculum,
        controls=("no_memory",),
    )


def _small(config: c.Config) -> c.Config:
    """Return the config with smaller models and fewer steps."""
    narrow = {"width": 32, "layers": 2, "heads": 4}
    parts = {
        part: dataclasses.replace(getattr(config.model, part), **narrow)
        for part in ("encoder", "decoder", "reconstructor")
    }
    stages = {
        name: dataclasses.replace(stage, steps=12, batch_size=8, warmup_steps=4)
        for name, stage in config.stages.items()
    }
    return dataclasses.replace(
        config,
        name="quickstart-small",
        data=dataclasses.replace(config.data, vocab_size=400, sequence_length=64),
        model=dataclasses.replace(config.model, chunk_length=16, **parts),
        stages=stages,
        checkpoint_every=6,
        evaluators=c.usual_evaluators(every=6, examples=32),
        log_every=2,
    )
