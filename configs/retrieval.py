"""Retrieval: find the passage of a query by the cosine similarity of memories, or by a ranker.

Badger 2026, retrieval.

    memjax train --config=configs/retrieval.py:VARIANT --workdir=runs/retrieval/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. `pair` was published on FineMath 4+, the others on
FineWeb-edu. Learning rate 1e-4, temperature 0.02, queries of 7 tokens.

| variant | register | tokens | published |
|---|---|---|---|
| pair_transformer_512 | E34 | 1.47 B | 70.4 %; 95.0 % after 400,000 pairs |
| pair_mixer_512{,_l32} | E34 | 1.47 B | 82.1 %; with 32 layers 84.6 % |
| pair_mixer_1024 | E34 | 1.47 B | 86.0 %; 98.2 % after 400,000 pairs |
| pair_mixer_1024_autoencoder | E34 | 1.47 B | none |
| {ngram,nbag}_{causal,autoencoder,memory} | E34 | 6.55 B | none |
| ranker_{causal,autoencoder,memory} | E34 | 25.4 B | none |

Published numbers, from the table of retrieval: share of queries whose passage ranks first of 32.

`pair`: passages of 512 tokens, 32 pairs per step, 45,000 steps; encoders of runs/causal_lm, read at
the second-to-last position, and of runs/autoencoder/mixer_1024_k16_unroll. `ngram`, `nbag`: 128
passages of 256 tokens, 200,000 steps; encoders of runs/causal_lm/transformer_512_n256,
runs/autoencoder/transformer_512_n256_unroll and runs/copying/transformer. `ranker`: these encoders,
frozen, and a transformer of 8 layers over a query and the 31 passages of a sequence; batch size 32,
100,000 steps. Each variant also exists as VARIANT_as_published.

Differences from publication. A pair is a chunk and the next one; published pairs are a passage and
its summary by a language model. Every passage of a batch has a query, and the loss is symmetric;
published batches have one query. Readouts are at the last real token. Rankers see all candidates
without an order. Rows are packed. Chosen here, because the publication leaves it open: size and
steps of the ranker, and the autoencoder. The predecessor's mixer over query and candidates is not
included: it works for one number of candidates only.
"""

import ml_collections

from memjax import config as c
from memjax.config import published as p

CANDIDATES = 31
ENCODERS = {
    "causal": (p.llama(512, 16), ("causal_lm", "transformer_512_n256"), p.CAUSAL_PARTS[""]),
    "autoencoder": (
        p.llama(512, 8, final_norm=False),
        ("autoencoder", "transformer_512_n256_unroll"),
        "encoder",
    ),
    "memory": (p.llama(512, 16), ("copying", "transformer"), "encoder"),
}


def pairs(encoder: c.Backbone, source: str) -> c.Config:
    """Return a run on sequences of a query and its passage, with the encoder of another run."""
    causal = source.startswith("causal_lm")
    part = p.CAUSAL_PARTS[""] if causal else "encoder"
    start = {"init_from": p.trained(*source.split("/")), "init_part": part}
    stage = p.stage(
        "retriever",
        "pair_retrieval",
        encoder,
        learning_rate=1e-4,
        batch_size=32,
        steps=45_000,
        **start,
    )
    return p.single(
        p.model(512, encoder, readout="second_to_last" if causal else "last"), 1024, stage
    )


def queries(which: str, objective: str) -> c.Config:
    """Return a run on passages of 256 tokens, with queries of some of their own tokens."""
    encoder, source, part = ENCODERS[which]
    start = {"init_from": p.trained(*source), "init_part": part}
    stage = p.stage("retriever", objective, encoder, learning_rate=1e-4, **start)
    return p.single(p.model(256, encoder), 256, stage)


def ranker(which: str) -> c.Config:
    """Return a run of a frozen encoder and a transformer that reads a query and its candidates."""
    encoder, source, part = ENCODERS[which]
    start = {
        "init_from": p.trained(*source),
        "init_part": part,
        "trainable": p.FROZEN[""]["trainable"],
    }
    decoder = p.llama(512, 8)
    stage = p.stage(
        "ranker",
        "ngram_ranking",
        decoder,
        learning_rate=1e-4,
        batch_size=32,
        steps=100_000,
        **start,
    )
    return p.single(p.model(256, encoder, decoder), CANDIDATES * 256, stage)


VARIANTS = (
    {
        "pair_transformer_512": pairs(p.llama(512, 16), "causal_lm/transformer_512_n512"),
        "pair_mixer_512": pairs(p.mixer(512, 16), "causal_lm/mixer_512_l16_n512"),
        "pair_mixer_512_l32": pairs(p.mixer(512, 32), "causal_lm/mixer_512_l32_n512"),
        "pair_mixer_1024": pairs(p.mixer(1024, 16), "causal_lm/mixer_1024_l16_n512"),
        "pair_mixer_1024_autoencoder": pairs(
            p.mixer(1024, 8, channel_kernel=16), "autoencoder/mixer_1024_k16_unroll"
        ),
    }
    | {
        f"{query}_{which}": queries(which, f"{query}_retrieval")
        for query in ("ngram", "nbag")
        for which in ENCODERS
    }
    | {f"ranker_{which}": ranker(which) for which in ENCODERS}
)


def get_config(variant: str = "ngram_autoencoder") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
