"""Memory models that learn to reconstruct earlier chunks: copy, blank copy, curricula.

Badger 2026, copy and curriculum.

    memjax train --config=configs/copying.py:VARIANT --workdir=runs/copying/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu. Sequences have four chunks of 256
tokens. Encoder and decoder are 512 wide with 16 layers, 4 heads or flat mixers (encoder k4, decoder
k1). Each stage takes 100,000 steps with a batch size of 64. An autoencoder has 8 + 8 layers (mixers
16 + 16) and trains before for 200,000 steps (mixers 128,000) with a batch size of 128 chunks.

| variant | register | tokens | published |
|---|---|---|---|
| transformer{,_256} | E23 | 6.55 B | figure, no number |
| mixer | E23 | 6.55 B | figure, no number |
| transformer_frozen{,_blocks} | E24 | 13.1 B | fails (text) |
| transformer_frozen_untrained_layers | E24 | 6.55 B | fails (text), as its code did it |
| mixer_frozen{,_blocks} | E24 | 10.7 B | fails (text) |
| transformer_frozen_causal{,_h8}{,_blocks} | E25 | 6.55 B | fails (text) |
| blank_{transformer,mixer} | E26 | 6.55 B | far below a frozen autoencoder's encoder (text) |
| blank_transformer_frozen{,_blocks} | E26 | 13.1 B | best of these (text) |
| blank_mixer_frozen{,_blocks} | E26 | 10.7 B | best of these (text) |
| blank_{transformer,mixer}_frozen_causal{,_blocks} | E26 | 6.55 B | fails (text) |
| blank_{transformer,mixer}_frozen_memory{,_blocks} | E26 | 13.1 B | as causal or better (text) |
| curriculum_transformer{,_blocks,_blank} | E27 | 32.8 B | better than blank copy alone (text) |
| curriculum_mixer{,_blocks} | E27 | 30.4 B | better than blank copy alone (text) |
| curriculum_transformer_untrained_layers | E27 | 26.2 B | the same, as its code did it |
| combined_transformer | E28 | 6.55 B | figure, no number |
| curriculum_transformer{,_blocks,_blank} | E28 | 32.8 B | figure, no number |
| curriculum_transformer_untrained_layers | E28 | 26.2 B | figure, no number, as its code did it |
| next_token_transformer | E28 | 6.55 B | figure, no number |
| repeat_mixer_1024 | beside | 0.655 B | figure, no number |
| repeat_mixer_2048 | beside | 1.31 B | figure, no number |
| repeat_mixer_4096 | beside | 2.62 B | figure, no number |

Published autoencoders of chunks of 256 have a loss below 0.03 and an accuracy above 95 %.
Curricula: autoencoder, blank copy, copy, then copy and next tokens (`combined`; `_blank` replaces
copy by blank copy), and a control without memories. E27 has the first three of these stages.

Encoders: `_frozen` freezes the encoder with its token table. `_frozen_blocks` and `_blocks` train a
new token table before frozen blocks, as published. `_untrained_layers` has 8 trained layers, 8
untrained ones and an untrained norm. The published code made this of transformers, from
runs/autoencoder/transformer_512_n256_unroll. `_causal` starts from
runs/causal_lm/{transformer_512,transformer_512_h8,mixer_512_k4}_n256. `_memory` starts from a
memory model that its previous stage trains on next tokens. Each variant also exists as
VARIANT_as_published.

E23 to E25 copy without a delimiter (`plain_copy`). E26 to E28 insert one. As published, it replaces
three tokens, and copying has half the weight of next tokens. E28 also ran with
`--config.stages.combined.warmup_steps=10000`; E23 to E26 ran at first for 10,000 steps with 50 of
warm-up.

Differences from publication, beside delimiter and encoders: rows are packed; slots without a memory
are masked; every token is a target; bfloat16 throughout. Some autoencoders were trained at 4e-4.
Small decoders hardly learn to read a frozen memory by rotary positions alone. These settings help:
`--config.model.token_positions=True`, `--config.model.chunk_positions=True` and
`--config.model.task_embedding=True`.

repeat_mixer_N: a sibling project's copy over N tokens (256 wide, 16 layers, 4 heads, 10,000 steps,
50 of warm-up), with column repeats in half of the heads and row repeats in the others. One stack
reads both halves of a sequence; its state is the memory.
"""

import dataclasses
from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p

ENCODERS = {"transformer": p.llama(512, 16), "mixer": p.mixer(512, 16, channel_kernel=4)}
DECODERS = {"transformer": p.llama(512, 16), "mixer": p.mixer(512, 16)}
AUTOENCODERS = {"transformer": p.llama(512, 8, final_norm=False), "mixer": ENCODERS["mixer"]}
AUTOENCODER_STEPS = {"transformer": 200_000, "mixer": 128_000}
CAUSAL = {"transformer": "transformer_512_n256", "mixer": "mixer_512_k4_n256"}


def stage(kind: str, objectives: str, **changes: Any) -> c.Stage:
    """Return a stage of a memory model."""
    return p.stage(
        "memory_model", objectives, DECODERS[kind], **{"batch_size": 64, "steps": 100_000} | changes
    )


def trainable(
    kind: str, objectives: str, encoder: c.Backbone | None = None, decoder: c.Backbone | None = None
) -> c.Config:
    """Return a run that trains encoder and decoder together from the first step."""
    return p.single(
        p.model(256, encoder or ENCODERS[kind], decoder or DECODERS[kind]),
        1024,
        stage(kind, objectives),
    )


def frozen(kind: str, objective: str, suffix: str) -> c.Config:
    """Return a run of an autoencoder, then of a decoder on its encoder."""
    stages = autoencoder(kind) | {
        "train": stage(kind, objective, init_from="autoencoder", **p.FROZEN[suffix])
    }
    return p.run(p.model(256, AUTOENCODERS[kind], DECODERS[kind], AUTOENCODERS[kind]), 1024, stages)


def autoencoder(kind: str) -> dict[str, c.Stage]:
    """Return the first stage of a curriculum, with 128 chunks per batch."""
    steps = AUTOENCODER_STEPS[kind]
    return {
        "autoencoder": p.stage(
            "autoencoder", "reconstruction", AUTOENCODERS[kind], batch_size=32, steps=steps
        )
    }


def frozen_causal(
    kind: str, objective: str, suffix: str, source: str = "", heads: int = 0
) -> c.Config:
    """Return a run of a decoder on the stack of a causal language model.

    A mixer is read at the second-to-last position.
    """
    freezing = p.FROZEN[suffix] | {"init_part": p.CAUSAL_PARTS[suffix]}
    started = stage(
        kind, objective, init_from=p.trained("causal_lm", source or CAUSAL[kind]), **freezing
    )
    encoder = dataclasses.replace(ENCODERS[kind], heads=heads or ENCODERS[kind].heads)
    readout = "second_to_last" if kind == "mixer" else "last"
    return p.single(p.model(256, encoder, DECODERS[kind], readout=readout), 1024, started)


def frozen_memory(kind: str, suffix: str) -> c.Config:
    """Return a run of a memory model that predicts, then of a blank-copy decoder on its encoder."""
    stages = {
        "next_token": stage(kind, "next_token"),
        "train": stage(kind, "blank_copy", init_from="next_token", **p.FROZEN[suffix]),
    }
    return p.run(p.model(256, ENCODERS[kind], DECODERS[kind]), 1024, stages)


def untrained_layers(stages: dict[str, c.Stage]) -> c.Config:
    """Return the stages on 8 trained and 8 untrained layers, the first from the autoencoder."""
    first = next(iter(stages))
    source = p.trained("autoencoder", "transformer_512_n256_unroll")
    stages = stages | {
        first: dataclasses.replace(stages[first], init_from=source, compat=("untrained_layers",))
    }
    return p.run(
        p.model(256, ENCODERS["transformer"], DECODERS["transformer"]),
        1024,
        stages,
        controls(stages),
    )


def lessons(kind: str, suffix: str, last: str = "copy") -> dict[str, c.Stage]:
    """Return the stages blank copy, copy, copy with next tokens, and the control.

    The first starts from an autoencoder.
    """
    freezing = p.FROZEN[suffix]
    still = {"trainable": freezing["trainable"]}
    both = f"next_token {last}"
    return {
        "blank_copy": stage(kind, "blank_copy", init_from="autoencoder", **freezing),
        "copy": stage(kind, "copy", init_from="blank_copy", **still),
        "combined": stage(kind, both, init_from="copy", **still),
        "no_memory": stage(kind, both, memory=False),
    }


def controls(stages: dict[str, c.Stage]) -> tuple[str, ...]:
    """Return the names of the stages without memories."""
    return tuple(name for name, stage in stages.items() if not stage.memory)


def curriculum(kind: str, suffix: str, last: str = "copy") -> c.Config:
    """Return a run of an autoencoder and all lessons."""
    stages = autoencoder(kind) | lessons(kind, suffix, last)
    return p.run(
        p.model(256, AUTOENCODERS[kind], DECODERS[kind], AUTOENCODERS[kind]),
        1024,
        stages,
        controls(stages),
    )


def repeat_mixer(length: int) -> c.Config:
    """Return a run of one stack over the whole sequence, which copies its first half."""
    stack = p.repeat_mixer("mixed_repeat", 256, 16, 4)
    copying = p.stage(
        "causal_lm",
        "plain_copy",
        stack,
        batch_size=64,
        steps=10_000,
        warmup_steps=50,
        learning_rate=p.RATES["mixer"],
    )
    return p.single(p.model(length, stack), length, copying)


KINDS = tuple(DECODERS)
VARIANTS = (
    {kind: trainable(kind, "plain_copy") for kind in KINDS}
    | {
        "transformer_256": trainable(
            "transformer", "plain_copy", p.llama(256, 16), p.llama(256, 16)
        )
    }
    | {
        f"{kind}_frozen{suffix}": frozen(kind, "plain_copy", suffix)
        for kind in KINDS
        for suffix in p.FROZEN
    }
    | {
        "transformer_frozen_untrained_layers": untrained_layers(
            {"train": stage("transformer", "plain_copy", **p.FROZEN["_blocks"])}
        )
    }
    | {
        f"transformer_frozen_causal{suffix}": frozen_causal("transformer", "plain_copy", suffix)
        for suffix in p.FROZEN
    }
    | {
        f"transformer_frozen_causal_h8{suffix}": frozen_causal(
            "transformer", "plain_copy", suffix, "transformer_512_h8_n256", 8
        )
        for suffix in p.FROZEN
    }
    | {f"blank_{kind}": trainable(kind, "blank_copy") for kind in KINDS}
    | {
        f"blank_{kind}_frozen{what}{suffix}": build(kind, suffix)
        for kind in KINDS
        for suffix in p.FROZEN
        for what, build in (
            ("", lambda kind, suffix: frozen(kind, "blank_copy", suffix)),
            ("_causal", lambda kind, suffix: frozen_causal(kind, "blank_copy", suffix)),
            ("_memory", frozen_memory),
        )
    }
    | {
        f"curriculum_{kind}{suffix}": curriculum(kind, suffix)
        for kind in KINDS
        for suffix in p.FROZEN
    }
    | {
        "curriculum_transformer_blank": curriculum("transformer", "", "blank_copy"),
        "curriculum_transformer_untrained_layers": untrained_layers(
            lessons("transformer", "_blocks")
        ),
        "combined_transformer": trainable("transformer", "next_token copy"),
        "next_token_transformer": trainable("transformer", "next_token"),
    }
    | {f"repeat_mixer_{length}": repeat_mixer(length) for length in (1024, 2048, 4096)}
)


def get_config(variant: str = "curriculum_transformer") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
