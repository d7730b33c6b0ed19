"""Causal language models over whole sequences: the baselines, and encoders that others freeze.

Badger 2026, baselines.

    memjax train --config=configs/causal_lm.py:VARIANT --workdir=runs/causal_lm/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu, those of E34 also on FineMath 4+
(except transformer_512_n256). 200,000 steps; 16 layers, or N with `_lN`; 4 heads or flat mixers.
Losses are in nats per token.

| variant | register | tokens | published |
|---|---|---|---|
| transformer_512 | E17 | 26.2 B | figure, no number |
| mixer_1024 | E17 | 26.2 B | figure, no number |
| transformer_{256,512,1024_l24}_b64 | E12 | 13.1 B | figure, no number |
| mixer_{512,1024}_b64 | E12 | 13.1 B | figure, no number |
| transformer_512 | E33 | 26.2 B | the unweighted model of its table |
| mixer_1024_l8_n512 | E15 | 13.1 B | about 2.6 (text) |
| transformer_512_n256 | E25 | 6.55 B | none |
| transformer_512_h8_n256 | E25 | 6.55 B | none |
| transformer_512_n256 | E26 | 6.55 B | none |
| mixer_512_k4_n256 | E26 | 6.55 B | none |
| transformer_512_l8_n512 | E30 | 13.1 B | none |
| mixer_1024_l8_n512 | E30 | 13.1 B | about 2.6 (text) |
| transformer_512_n512 | E34 | 13.1 B | FineMath: 1.36, 1.39 (table) |
| mixer_512_l16_n512 | E34 | 13.1 B | none |
| mixer_512_l32_n512 | E34 | 13.1 B | FineMath: 1.62, 1.65 (table) |
| mixer_1024_l16_n512 | E34 | 13.1 B | FineMath: 1.48, 1.53 (table) |
| transformer_512_n256 | E34 | 6.55 B | none |

The table of E34 is that of retrieval models: loss in training and in test.

Sequences have 1024 tokens, or N with `_nN`. The batch size is 128, or 64 with `_b64`. Each variant
also exists as VARIANT_as_published.

Differences from publication. Rows are packed; published ones are single documents, padded on the
right for mixers of 1024 tokens. A start token precedes each sequence, so that the first token is a
target. bfloat16 replaces float16, which part of the published weights used.
"""

import ml_collections

from memjax import config as c
from memjax.config import published as p


def causal_lm(stack: c.Backbone, length: int = 1024, batch_size: int = 128) -> c.Config:
    """Return a run of one causal language model on sequences of `length` tokens."""
    return p.single(
        p.model(length, stack),
        length,
        p.stage("causal_lm", "next_token", stack, batch_size=batch_size),
    )


VARIANTS = {
    "transformer_512": causal_lm(p.llama(512, 16)),
    "mixer_1024": causal_lm(p.mixer(1024, 16)),
    "transformer_256_b64": causal_lm(p.llama(256, 16), batch_size=64),
    "transformer_512_b64": causal_lm(p.llama(512, 16), batch_size=64),
    "transformer_1024_l24_b64": causal_lm(p.llama(1024, 24), batch_size=64),
    "mixer_512_b64": causal_lm(p.mixer(512, 16), batch_size=64),
    "mixer_1024_b64": causal_lm(p.mixer(1024, 16), batch_size=64),
    "transformer_512_n512": causal_lm(p.llama(512, 16), 512),
    "transformer_512_l8_n512": causal_lm(p.llama(512, 8), 512),
    "mixer_512_l16_n512": causal_lm(p.mixer(512, 16), 512),
    "mixer_512_l32_n512": causal_lm(p.mixer(512, 32), 512),
    "mixer_1024_l8_n512": causal_lm(p.mixer(1024, 8), 512),
    "mixer_1024_l16_n512": causal_lm(p.mixer(1024, 16), 512),
    "transformer_512_n256": causal_lm(p.llama(512, 16), 256),
    "transformer_512_h8_n256": causal_lm(p.llama(512, 16, 8), 256),
    "mixer_512_k4_n256": causal_lm(p.mixer(512, 16, channel_kernel=4), 256),
}


def get_config(variant: str = "transformer_512") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
