"""Oracles: causal decoders that also read a memory of the block that they predict.

Badger 2026, oracle memories.

    memjax train --config=configs/oracle.py:VARIANT --workdir=runs/oracle/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu, mixers of E11 and some of E13 on
FineMath 4+. Blocks have 1024 tokens in batches of 64, through 64 numbers, or 512 in batches of 128,
through the encoder's width (`large`, `frozen`). 200,000 steps, 500,000 with `_500k`, 100,000 with
`_100k`. Losses are in nats per token.

| variant | register | tokens | published |
|---|---|---|---|
| {transformer_512,mixer_1024}{,_embedding,_add} | E11 | 13.1 B | figure, no number |
| transformer_{256,512,1024} | E12 | 13.1 B | 512 without noise: 2.26 (table of quantisation) |
| transformer_512_500k | E12 | 32.8 B | 2.13 (same table) |
| mixer_{512,1024} | E12 | 13.1 B | figure, no number |
| mixer_1024_{h4,k4,k8,k16,k8_k1} | E13 | 13.1 B | figure, no number |
| transformer_512_noise_{1_2,1_4,1_8,1_16} | E14 | 13.1 B | 2.424 (table; note a) |
| transformer_512_noise_1_16_100k | E14 | 6.55 B | 2.56 (table) |
| transformer_512_residual_noise_1_4 | E14 | 13.1 B | 2.4203 (table) |
| frozen_causal_l{8,16} | E15 | 13.1 B | about 2.9 and 2.65 (text) |
| frozen_autoencoder_k{1,8,16}_l{8,16} | E15 | 26.2 B | lower with a better autoencoder (text) |
| large_mixer_{k1,h4} | E16 | 13.1 B | figure, no number |
| large_mixer_k{4,8} | E16 | 13.1 B | 0.148, 0.099; FineMath: 0.94, 0.59 (note b) |
| large_transformer_l{4,8} | E16 | 13.1 B | 0.291, 0.098; FineMath: 1.72, 1.07 (note b) |
| large_mixer_k{4,8} | E32 | 13.1 B | as E16 (note c) |
| large_transformer_l{4,8} | E32 | 13.1 B | as E16 |

Where the table names a note:

- a: the table gives one number with noise and not its scale.
- b: from the table of generalisation.
- c: these weights are scored on the other corpus; nothing is trained.

The memory is the first token; `_embedding` concatenates it to the embedding of every token (the
decoder's width includes it), and `_add` adds it. Encoders are a quarter of 1024 or half of the
decoder's width. `_noise_1_16`: uniform in [-1/16, 1/16) on the 64 numbers in training.
`frozen_causal` starts from runs/causal_lm/mixer_1024_l8_n512 and reads the second-to-last position
(`--config.model.readout=last` for the last); `frozen_autoencoder` trains its autoencoder first. k1
stands for the autoencoder of loss 3.5, k8 and k16 for those of 1.4 and 0.3. Each variant also
exists as VARIANT_as_published: noise is then drawn from [0, 2q).

Differences from publication. Rows are packed; published ones are single documents, padded on the
left. A start token precedes each block, so that its first token is a target. bfloat16 throughout.
Chosen here, because the publication leaves it open: flat k1 mixers in E11 and E12 (they fit the
published parameter count of `mixer_1024_embedding`), encoders of 256 for both mixers of E12, flat
decoders for E13's h4, a flat k1 decoder on frozen encoders, the scales of noise of the tables, and
the autoencoder with the loss 3.5.
"""

from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p

SMALL, MIXED = p.llama(256, 16), p.mixer(256, 16)
LARGE = {"length": 512, "batch_size": 128, "bottleneck": 0}


def oracle(
    encoder: c.Backbone,
    decoder: c.Backbone,
    length: int = 1024,
    batch_size: int = 64,
    steps: int = 200_000,
    bottleneck: int = 64,
    **model: Any,
) -> c.Config:
    """Return a run of one oracle on blocks of `length` tokens."""
    stage = p.stage("oracle", "next_token", decoder, batch_size=batch_size, steps=steps)
    return p.single(
        p.model(length, encoder, decoder, bottleneck=bottleneck, **model), length, stage
    )


def frozen_causal(layers: int) -> c.Config:
    """Return the stack and the tokens of a causal mixer as encoder."""
    encoder, decoder = p.mixer(1024, 8), p.mixer(1024, layers)
    frozen = p.FROZEN[""] | {
        "init_part": p.CAUSAL_PARTS[""],
        "init_from": p.trained("causal_lm", "mixer_1024_l8_n512"),
    }
    stage = p.stage("oracle", "next_token", decoder, **frozen)
    return p.single(p.model(512, encoder, decoder, readout="second_to_last"), 512, stage)


def frozen_autoencoder(kernel: int, layers: int) -> c.Config:
    """Return a run of an autoencoder, then of an oracle on its encoder."""
    stack, decoder = p.mixer(1024, 8, channel_kernel=kernel), p.mixer(1024, layers)
    model = p.model(512, stack, decoder, stack, expansion="unroll" if kernel == 16 else "repeat")
    stages = {
        "autoencoder": p.stage("autoencoder", "reconstruction", stack),
        "train": p.stage("oracle", "next_token", decoder, init_from="autoencoder", **p.FROZEN[""]),
    }
    return p.run(model, 512, stages)


def noisy(share: int, **settings: Any) -> c.Config:
    """Return settings for noise in [-1 / share, 1 / share) on the bottleneck."""
    return oracle(SMALL, p.llama(512, 16), noise=1 / share, **settings)


def kernels(encoder: int, decoder: int) -> c.Config:
    """Return mixers with these kernels."""
    return oracle(
        p.mixer(256, 16, channel_kernel=encoder), p.mixer(1024, 16, channel_kernel=decoder)
    )


VARIANTS = (
    {
        name + ("" if combine == "token" else f"_{combine}"): oracle(
            encoder, decoder, memory_injection=combine
        )
        for name, encoder, decoder in (
            ("transformer_512", SMALL, p.llama(512, 16)),
            ("mixer_1024", MIXED, p.mixer(1024, 16)),
        )
        for combine in ("token", "embedding", "add")
    }
    | {
        "transformer_256": oracle(p.llama(128, 16), p.llama(256, 16)),
        "transformer_1024": oracle(p.llama(512, 24), p.llama(1024, 24)),
        "transformer_512_500k": oracle(SMALL, p.llama(512, 16), steps=500_000),
        "mixer_512": oracle(MIXED, p.mixer(512, 16)),
        "mixer_1024_h4": oracle(p.mixer(256, 16, heads=4), p.mixer(1024, 16)),
        "mixer_1024_k8_k1": kernels(8, 1),
    }
    | {f"mixer_1024_k{kernel}": kernels(kernel, kernel) for kernel in (4, 8, 16)}
    | {f"transformer_512_noise_1_{share}": noisy(share) for share in (2, 4, 8, 16)}
    | {
        "transformer_512_noise_1_16_100k": noisy(16, steps=100_000),
        "transformer_512_residual_noise_1_4": noisy(4, compat=("residual_noise",)),
    }
    | {f"frozen_causal_l{layers}": frozen_causal(layers) for layers in (8, 16)}
    | {
        f"frozen_autoencoder_k{kernel}_l{layers}": frozen_autoencoder(kernel, layers)
        for kernel in (1, 8, 16)
        for layers in (8, 16)
    }
    | {
        f"large_mixer_k{k}": oracle(
            p.mixer(1024, 8, channel_kernel=k), p.mixer(1024, 8, channel_kernel=k), **LARGE
        )
        for k in (1, 4, 8)
    }
    | {"large_mixer_h4": oracle(p.mixer(1024, 8, heads=4), p.mixer(1024, 8), **LARGE)}
    | {
        f"large_transformer_l{n}": oracle(p.llama(1024, n), p.llama(1024, n), **LARGE)
        for n in (4, 8)
    }
)


def get_config(variant: str = "transformer_512") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
