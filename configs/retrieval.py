"""Retrieval: finding the passage that a query belongs to by the direction of memories, or by a ranker (Badger 2026, retrieval).

    memjax train --config=configs/retrieval.py:VARIANT --workdir=runs/retrieval/VARIANT --config.data.corpus=PATH

The register's lines are explained in configs/README.md. `pair` was published on FineMath 4+, the others on FineWeb-edu. Rate
1e-4, temperature 0.02, queries of 7 tokens.

| variant | register | tokens | published |
|---|---|---|---|
| pair_transformer_512 | E34 | 1.47 B | first of 32: 70.4 %; 95.0 % after 400,000 pairs (table of retrieval) |
| pair_mixer_512{,_l32} | E34 | 1.47 B | 82.1 %; with 32 layers 84.6 % |
| pair_mixer_1024 | E34 | 1.47 B | 86.0 %; 98.2 % after 400,000 pairs |
| pair_mixer_1024_autoencoder | E34 | 1.47 B | none |
| {ngram,nbag}_{causal,autoencoder,memory} | E34 | 6.55 B | none |
| ranker_{causal,autoencoder,memory} | E34 | 25.4 B | none |

`pair`: passages of 512 tokens, 32 pairs a step, 45,000 steps; encoders of runs/causal_lm, read at the position before the last,
and of runs/autoencoder/mixer_1024_k16_unroll. `ngram`, `nbag`: 128 passages of 256 tokens, 200,000 steps; encoders of
runs/causal_lm/transformer_512_n256, runs/autoencoder/transformer_512_n256_unroll and runs/copying/transformer. `ranker`: those
encoders frozen, and a transformer of 8 layers over a query and the 31 passages of a row, 32 rows, 100,000 steps. Each variant
also comes as VARIANT_as_published.

What differs from publication. A pair is a chunk and the one after it; there it is a passage and its summary, written by a
language model. Every passage of a batch has a query, and the loss is symmetric; there one query is asked of each batch.
Read-outs are at the last real token; rankers see all candidates and no order. Rows are packed. Not said and chosen here: the
ranker's size and steps, which autoencoder. The predecessor's mixer over query and candidates is not there: it belongs to one
number of candidates.
"""

import ml_collections

from memjax import config as c
from memjax.config import published as p

CANDIDATES = 31
ENCODERS = {
    "causal": (p.llama(512, 16), ("causal_lm", "transformer_512_n256"), p.CAUSAL_PARTS[""]),
    "autoencoder": (p.llama(512, 8, final_norm=False), ("autoencoder", "transformer_512_n256_unroll"), "encoder"),
    "memory": (p.llama(512, 16), ("copying", "transformer"), "encoder"),
}


def pairs(encoder: c.Backbone, source: str) -> c.Config:
    """Rows of a query and its passage, and the encoder of another run."""
    causal = source.startswith("causal_lm")
    part = p.CAUSAL_PARTS[""] if causal else "encoder"
    start = {"init_from": p.trained(*source.split("/")), "init_part": part}
    stage = p.stage("retriever", "pair_retrieval", encoder, learning_rate=1e-4, rows=32, steps=45_000, **start)
    return p.single(p.model(512, encoder, readout="second_to_last" if causal else "last"), 1024, stage)


def queries(which: str, objective: str) -> c.Config:
    """Passages of 256 tokens, one a row, that are asked for by some of their own."""
    encoder, source, part = ENCODERS[which]
    start = {"init_from": p.trained(*source), "init_part": part}
    stage = p.stage("retriever", objective, encoder, learning_rate=1e-4, **start)
    return p.single(p.model(256, encoder), 256, stage)


def ranker(which: str) -> c.Config:
    """A frozen encoder and a transformer that reads a query and its candidates."""
    encoder, source, part = ENCODERS[which]
    start = {"init_from": p.trained(*source), "init_part": part, "trainable": p.FROZEN[""]["trainable"]}
    decoder = p.llama(512, 8)
    stage = p.stage("ranker", "ngram_ranking", decoder, learning_rate=1e-4, rows=32, steps=100_000, **start)
    return p.single(p.model(256, encoder, decoder), CANDIDATES * 256, stage)


VARIANTS = (
    {
        "pair_transformer_512": pairs(p.llama(512, 16), "causal_lm/transformer_512_n512"),
        "pair_mixer_512": pairs(p.mixer(512, 16), "causal_lm/mixer_512_l16_n512"),
        "pair_mixer_512_l32": pairs(p.mixer(512, 32), "causal_lm/mixer_512_l32_n512"),
        "pair_mixer_1024": pairs(p.mixer(1024, 16), "causal_lm/mixer_1024_l16_n512"),
        "pair_mixer_1024_autoencoder": pairs(p.mixer(1024, 8, kernel=16), "autoencoder/mixer_1024_k16_unroll"),
    }
    | {f"{query}_{which}": queries(which, f"{query}_retrieval") for query in ("ngram", "nbag") for which in ENCODERS}
    | {f"ranker_{which}": ranker(which) for which in ENCODERS}
)


def get_config(variant: str = "ngram_autoencoder") -> ml_collections.ConfigDict:
    """The config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
