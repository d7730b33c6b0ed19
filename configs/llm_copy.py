"""Copy with a pretrained language model, Llama-3.2-1B, as the decoder.

Badger 2026, pretrained decoders.

    memjax train --config=configs/llm_copy.py:VARIANT --workdir=runs/llm_copy/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on a million documents of FineWeb-edu. Sequences
have four chunks of 256 tokens. The encoder is 512 wide with 16 layers and 8 heads (frozen: 8
layers, 4 heads), the vocabulary has 128,256 entries. Up to 100,000 steps with a batch size of 16,
of which 34,000 are reported.

| variant | register | tokens | published |
|---|---|---|---|
| autoencoder | E29 | 3.15 B | none |
| trainable | E29 | 1.64 B | figure; benchmarks before and after (table of Llama-3.2-1B) |
| frozen{,_blocks} | E29 | 1.64 B | figure, no number |
| no_memory | E29 | 1.64 B | figure: overtaken by memory after about 1,000 steps (text) |

The learning rate is the later 5e-5; the first runs had `--config.stages.train.learning_rate=5e-6`.
`autoencoder` trains the encoder of `frozen`. Each variant also exists as VARIANT_as_published.

This file has the published shapes, with weights of memjax models. `trainable` and `no_memory` start
from runs/llama_3_2_1b/stages/reference. `frozen` starts from
runs/llama_3_2_1b_with_encoder/stages/reference, which holds the decoder and, as `encoder`, that of
the autoencoder, because a stage starts from one folder. RoPE theta, norms and head are memjax's.
`pretrained.py` starts from the released Llama-3.2-1B itself, with its own settings and vocabulary.
Imported weights need the quirks of the variant that starts from them.

Other differences from publication. Rows are packed; slots without a memory are masked; every token
is a target.
"""

from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p

VOCABULARY = 128_256
DECODER = p.llama(2048, 16, 32, kv_heads=8)
AUTOENCODER = p.llama(512, 8, final_norm=False)


def copying(
    encoder: c.Backbone, source: str = "llama_3_2_1b", part: str = "", **changes: Any
) -> c.Config:
    """Return a run of plain copy with the pretrained decoder, and with `part` of an encoder."""
    parts = ",".join(filter(None, ("backbone", "embed", "head", part)))
    settings = {"steps": 100_000, "batch_size": 16, "learning_rate": 5e-5, "warmup_steps": 100}
    start = {"init_from": f"runs/{source}/stages/reference", "init_part": parts}
    stage = p.stage("memory_model", "plain_copy", DECODER, **settings | start | changes)
    return p.single(p.model(256, encoder, DECODER), 1024, stage, vocab_size=VOCABULARY)


def frozen(suffix: str) -> c.Config:
    """Return a run of copying on the encoder of the autoencoder."""
    freezing = p.FROZEN[suffix]
    return copying(
        AUTOENCODER,
        "llama_3_2_1b_with_encoder",
        freezing["init_part"],
        trainable=freezing["trainable"],
    )


VARIANTS = {
    "autoencoder": p.single(
        p.model(256, AUTOENCODER, DECODER, AUTOENCODER),
        256,
        p.stage("autoencoder", "reconstruction", AUTOENCODER, steps=96_000),
        vocab_size=VOCABULARY,
    ),
    "trainable": copying(p.llama(512, 16, 8)),
    "no_memory": copying(p.llama(512, 16, 8), memory=False),
} | {f"frozen{suffix}": frozen(suffix) for suffix in p.FROZEN}


def get_config(variant: str = "trainable") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
