"""Copy with a pretrained language model, Llama-3.2-1B, as the decoder (Badger 2026, pretrained decoders).

    memjax train --config=configs/llm_copy.py:VARIANT --workdir=runs/llm_copy/VARIANT --config.data.corpus=PATH

The register's lines are explained in configs/README.md. Published on a million documents of FineWeb-edu. Four chunks of 256
tokens, encoder of 512, 16 layers and 8 heads (frozen: 8 layers, 4 heads), vocabulary of 128,256; up to 100,000 steps of 16
rows, of which 34,000 are reported.

| variant | register | tokens | published |
|---|---|---|---|
| autoencoder | E29 | 3.15 B | none |
| trainable | E29 | 1.64 B | figure; benchmarks before and after (table of Llama-3.2-1B) |
| frozen{,_blocks} | E29 | 1.64 B | figure, no number |
| no_memory | E29 | 1.64 B | figure: overtaken by memory after about 1,000 steps (text) |

The rate is the later 5e-5; the first runs had `--config.stages.train.learning_rate=5e-6`. `autoencoder` trains the encoder that
`frozen` keeps. Each variant also comes as VARIANT_as_published.

This file has the published shapes, with weights of memjax models: `trainable` and `no_memory` start from runs/llama_3_2_1b/stages/reference,
`frozen` from runs/llama_3_2_1b_with_encoder/stages/reference, which holds the decoder and, as `encoder`, the autoencoder's, since a stage
starts from one folder; rotary base, norms and head are memjax's. What starts from the released Llama-3.2-1B itself, with its own settings and
vocabulary, is `pretrained.py`. What is imported must have the quirks of the variant that starts from it.

What else differs from publication. Rows are packed; slots without a memory are masked; every token is a target.
"""

from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p

VOCABULARY = 128_256
DECODER = p.llama(2048, 16, 32, kv_heads=8)
AUTOENCODER = p.llama(512, 8, final_norm=False)


def copying(encoder: c.Backbone, source: str = "llama_3_2_1b", part: str = "", **changes: Any) -> c.Config:
    """Plain copy with the pretrained decoder, and `part` of an encoder if it is named."""
    parts = ",".join(filter(None, ("backbone", "embed", "head", part)))
    settings = {"steps": 100_000, "rows": 16, "learning_rate": 5e-5, "warmup_steps": 100}
    start = {"init_from": f"runs/{source}/stages/reference", "init_part": parts}
    stage = p.stage("memory_model", "plain_copy", DECODER, **settings | start | changes)
    return p.single(p.model(256, encoder, DECODER), 1024, stage, vocabulary=VOCABULARY)


def frozen(suffix: str) -> c.Config:
    """Copy on the autoencoder's encoder."""
    freezing = p.FROZEN[suffix]
    return copying(AUTOENCODER, "llama_3_2_1b_with_encoder", freezing["init_part"], trainable=freezing["trainable"])


VARIANTS = {
    "autoencoder": p.single(
        p.model(256, AUTOENCODER, DECODER, AUTOENCODER),
        256,
        p.stage("autoencoder", "reconstruction", AUTOENCODER, steps=96_000),
        vocabulary=VOCABULARY,
    ),
    "trainable": copying(p.llama(512, 16, 8)),
    "no_memory": copying(p.llama(512, 16, 8), memory=False),
} | {f"frozen{suffix}": frozen(suffix) for suffix in p.FROZEN}


def get_config(variant: str = "trainable") -> ml_collections.ConfigDict:
    """The config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
