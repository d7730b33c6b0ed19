"""Causal language models over whole rows: the baselines, and the encoders that others freeze (Badger 2026, baselines).

    memjax train --config=configs/causal_lm.py:VARIANT --workdir=runs/causal_lm/VARIANT --config.data.corpus=PATH

The register's lines are explained in configs/README.md. Published on FineWeb-edu, those of E34 on FineMath 4+ too
(transformer_512_n256 there on FineWeb-edu alone). 200,000 steps; 16 layers but where `_lN` says another number; 4 heads or flat
mixers; loss in nats a token.

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
| transformer_512_n512 | E34 | 13.1 B | FineMath: 1.36 train, 1.39 test (table of retrieval models) |
| mixer_512_l16_n512 | E34 | 13.1 B | none |
| mixer_512_l32_n512 | E34 | 13.1 B | FineMath: 1.62, 1.65 (same table) |
| mixer_1024_l16_n512 | E34 | 13.1 B | FineMath: 1.48, 1.53 (same table) |
| transformer_512_n256 | E34 | 6.55 B | none |

Rows are 1024 tokens, or N where `_nN` says so; batches 128 rows, or 64 (`_b64`). Each variant also comes as
VARIANT_as_published.

What differs from publication. Rows are packed; published ones are single documents, padded on the right for mixers of 1024
tokens. A start token stands before each row, so that the first token is a target. Weights were float16 in part; here it is
bfloat16.
"""

import ml_collections

from memjax import config as c
from memjax.config import published as p


def causal_lm(stack: c.Backbone, length: int = 1024, rows: int = 128) -> c.Config:
    """A run of one causal language model over rows of `length` tokens."""
    return p.single(p.model(length, stack), length, p.stage("causal_lm", "next_token", stack, rows=rows))


VARIANTS = {
    "transformer_512": causal_lm(p.llama(512, 16)),
    "mixer_1024": causal_lm(p.mixer(1024, 16)),
    "transformer_256_b64": causal_lm(p.llama(256, 16), rows=64),
    "transformer_512_b64": causal_lm(p.llama(512, 16), rows=64),
    "transformer_1024_l24_b64": causal_lm(p.llama(1024, 24), rows=64),
    "mixer_512_b64": causal_lm(p.mixer(512, 16), rows=64),
    "mixer_1024_b64": causal_lm(p.mixer(1024, 16), rows=64),
    "transformer_512_n512": causal_lm(p.llama(512, 16), 512),
    "transformer_512_l8_n512": causal_lm(p.llama(512, 8), 512),
    "mixer_512_l16_n512": causal_lm(p.mixer(512, 16), 512),
    "mixer_512_l32_n512": causal_lm(p.mixer(512, 32), 512),
    "mixer_1024_l8_n512": causal_lm(p.mixer(1024, 8), 512),
    "mixer_1024_l16_n512": causal_lm(p.mixer(1024, 16), 512),
    "transformer_512_n256": causal_lm(p.llama(512, 16), 256),
    "transformer_512_h8_n256": causal_lm(p.llama(512, 16, 8), 256),
    "mixer_512_k4_n256": causal_lm(p.mixer(512, 16, kernel=4), 256),
}


def get_config(variant: str = "transformer_512") -> ml_collections.ConfigDict:
    """The config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
