"""Probes: decoders that reconstruct a block from the vector of a frozen encoder.

Badger 2026, information.

    memjax train --config=configs/probe.py:VARIANT --workdir=runs/probe/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu (bert_large_n{16,512} also on
FineMath 4+). Blocks have 512 tokens (`_nN`: N) in batches of 128 (language models: 32,768 tokens).
200,000 steps (Llama: 40,000). Results are loss in nats per token, and accuracy.

| variant | register | tokens | published |
|---|---|---|---|
| mixer_autoencoder_validation | E30 | 13.1 B | 0.435, 76.96 % (table of probes) |
| mixer_autoencoder | E30 | 13.1 B | 1.528, 55.34 % |
| mixer_untrained | E30 | 13.1 B | 5.937, 4.08 % |
| mixer_causal | E30 | 13.1 B | 5.815, 4.79 % |
| mixer_causal_retrieval | E30 | 13.1 B | 5.594, 4.76 % |
| mixer_autoencoder_retrieval | E30 | 13.1 B | 5.767, 4.47 % |
| transformer_autoencoder | E30 | 13.1 B | 2.935, 39.10 % (validation: 2.924, 38.82 %) |
| transformer_untrained | E30 | 13.1 B | 6.643, 4.09 % |
| transformer_causal | E30 | 13.1 B | 6.214, 4.62 % |
| transformer_causal_retrieval | E30 | 13.1 B | 6.380, 4.38 % |
| oracle_mixer_{repeat,unroll} | E30 | 13.1 B | 4.953, 13.90 % and 4.980, 15.89 % |
| oracle_transformer | E30 | 13.1 B | 5.549, 8.42 % |
| memory_mixer_n256 | E30 | 6.55 B | about 5 % (text) |
| memory_transformer | E30 | 13.1 B | about 5 % (text) |
| bert_large_n{16,64,256,512} | E30 | 6.55 B | 2.91, 5.38, 6.16, 6.47 (note) |
| llama_3_2_1b_n64 | E30 | 1.31 B | 6.02, 11.2 % |
| qwen3_0_6b{,_random}_n64 | E30 | 6.55 B | none |

Note: accuracies of BERT are 40.2, 11.6, 6.6 and 5.96 %; its losses on FineMath are 1.13 at 16
tokens and 5.28 at 512.

Accuracies and losses of a table may come from different subsets; losses are the safer target. Small
encoders are frozen blocks behind a new token table, as published; language models are frozen with
their own. Encoders come from runs/autoencoder, runs/causal_lm, runs/retrieval, runs/oracle and
runs/memory_model. Causally trained mixers are read at the second-to-last position, as published.
Each variant also exists as VARIANT_as_published.

Differences from publication. Rows are packed. Frozen transformers keep all their layers and their
final norm, if they were trained with one; published probes ran 8 layers of any and no norm.
bfloat16 throughout. Chosen here, because the publication leaves it open: decoders of 8 layers for
oracle and memory transformers, blocks of 64 for Qwen3, and the difference between the two published
transformer autoencoders.

The probes of language models start from runs/{bert_large,llama_3_2_1b,qwen3_0_6b}/stages/reference,
checkpoints of memjax models (BERT as the encoder of an autoencoder, the others as causal language
models). Without them a run stops before its first step. memjax does not import BERT: it has learned
positions, segment tables, biases, and norms after its sub-layers. The shapes of Llama and Qwen3
here are approximate; `pretrained.py` reads their real settings and weights. qwen3_0_6b_random needs
no import, only the tokenizer. Imported weights need the quirks of the variant that starts from
them.
"""

from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p

BLOCKS = p.FROZEN["_blocks"]
BERT = c.Backbone(
    width=1024, layers=24, heads=16, mlp="gelu", norm="layer", final_norm=False, causal=False
)
LLAMA = p.llama(2048, 16, 32, kv_heads=8)
QWEN = p.llama(1024, 28, 16, kv_heads=8, mlp_ratio=3.0)


def probe(
    encoder: c.Backbone,
    decoder: c.Backbone,
    source: str = "",
    length: int = 512,
    expansion: str = "repeat",
    readout: str = "last",
    causal: bool = False,
    warmup: int = 500,
) -> c.Config:
    """Return a run of a decoder on frozen blocks of an encoder or causal language model.

    Without a source, the blocks are untrained.
    """
    start: dict[str, Any] = {"trainable": BLOCKS["trainable"]}
    if source:
        part = p.CAUSAL_PARTS["_blocks"] if causal else BLOCKS["init_part"]
        start |= {"init_from": p.trained(*source.split("/")), "init_part": part}
    stage = p.stage("autoencoder", "reconstruction", decoder, warmup_steps=warmup, **start)
    model = p.model(length, encoder, reconstructor=decoder, expansion=expansion, readout=readout)
    return p.single(model, length, stage)


def mixer_probe(kernel: int = 1, layers: int = 8, decoder: int = 1, **settings: Any) -> c.Config:
    """Return flat mixers 1024 wide with these kernels; the encoder has `layers` layers."""
    return probe(
        p.mixer(1024, layers, channel_kernel=kernel),
        p.mixer(1024, 8, channel_kernel=decoder),
        **settings,
    )


def transformer_probe(encoder: c.Backbone, source: str = "", **settings: Any) -> c.Config:
    """Return a decoder of 8 layers, 512 wide."""
    return probe(encoder, p.llama(512, 8, final_norm=False), source, expansion="unroll", **settings)


def language_model(
    encoder: c.Backbone, vocabulary: int, length: int, source: str, steps: int = 200_000
) -> c.Config:
    """Return a run on a frozen pretrained model, with a bridge and a decoder of 16 layers."""
    decoder = p.llama(512, 16)
    part = "encoder/backbone,encoder/embed" if source == "bert_large" else p.CAUSAL_PARTS[""]
    settings: dict[str, Any] = {"batch_size": 32_768 // length, "steps": steps, "warmup_steps": 100}
    settings["trainable"] = p.FROZEN[""]["trainable"]
    if source:
        settings |= {"init_from": f"runs/{source}/stages/reference", "init_part": part}
    stage = p.stage("autoencoder", "reconstruction", decoder, **settings)
    return p.single(
        p.model(length, encoder, reconstructor=decoder), length, stage, vocab_size=vocabulary
    )


BEFORE_LAST = {"readout": "second_to_last"}
VARIANTS = {
    "mixer_autoencoder_validation": mixer_probe(
        16, decoder=16, source="autoencoder/mixer_1024_k16_unroll", expansion="unroll"
    ),
    "mixer_autoencoder": mixer_probe(16, source="autoencoder/mixer_1024_k16_unroll"),
    "mixer_untrained": mixer_probe(),
    "mixer_causal": mixer_probe(source="causal_lm/mixer_1024_l8_n512", causal=True, **BEFORE_LAST),
    "mixer_causal_retrieval": mixer_probe(
        layers=16, source="retrieval/pair_mixer_1024", **BEFORE_LAST
    ),
    "mixer_autoencoder_retrieval": mixer_probe(
        16, source="retrieval/pair_mixer_1024_autoencoder", expansion="unroll"
    ),
    "transformer_autoencoder": transformer_probe(
        p.llama(512, 8, 16, final_norm=False), "autoencoder/transformer_512_h16_unroll"
    ),
    "transformer_untrained": transformer_probe(p.llama(512, 8, final_norm=False)),
    "transformer_causal": transformer_probe(
        p.llama(512, 8), "causal_lm/transformer_512_l8_n512", causal=True
    ),
    "transformer_causal_retrieval": transformer_probe(
        p.llama(512, 16), "retrieval/pair_transformer_512"
    ),
    "oracle_mixer_repeat": mixer_probe(8, source="oracle/large_mixer_k8"),
    "oracle_mixer_unroll": mixer_probe(
        8, decoder=8, source="oracle/large_mixer_k8", expansion="unroll"
    ),
    "oracle_transformer": transformer_probe(p.llama(1024, 8), "oracle/large_transformer_l8"),
    "memory_mixer_n256": probe(
        p.mixer(512, 16, channel_kernel=8),
        p.mixer(512, 16, channel_kernel=8),
        "memory_model/mixer_4x256",
        256,
        "unroll",
        warmup=5000,
    ),
    "memory_transformer": transformer_probe(p.llama(256, 16), "memory_model/transformer_4x512"),
    "llama_3_2_1b_n64": language_model(LLAMA, 128_256, 64, "llama_3_2_1b", 40_000),
    "qwen3_0_6b_n64": language_model(QWEN, 151_936, 64, "qwen3_0_6b"),
    "qwen3_0_6b_random_n64": language_model(QWEN, 151_936, 64, ""),
} | {
    f"bert_large_n{length}": language_model(BERT, 30_522, length, "bert_large")
    for length in (16, 64, 256, 512)
}


def get_config(variant: str = "mixer_autoencoder") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
