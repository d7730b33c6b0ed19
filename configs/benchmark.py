"""Configs for docs/benchmarks.md: memory models of one size, timed on random tokens.

    memjax bench --config=configs/benchmark.py:combined --against=two_passes
    memjax bench --config=configs/benchmark.py:frozen_stored --against=configs/benchmark.py:frozen
    memjax bench --config=configs/benchmark.py:shared --against=configs/benchmark.py:slots

Sequences have 4 chunks of 256 tokens, the vocabulary 8,000 entries, and transformers 4 heads.
Blocks keep the outputs of their matrices for the backward pass and recompute the rest. Variants of
one size differ only in their objectives and trained parts:

| variant | encoder, decoder | objectives | encoder |
|---|---|---|---|
| combined | 256, 512 wide, 4 layers each | next tokens and copies | trained |
| next_token, copy | the same | one of the two | trained |
| equal | 512 wide both, 4 layers each | next tokens and copies | trained |
| frozen, frozen_stored | as equal | next tokens and copies | frozen; or stored memories instead |
| blank, blank_stored | as equal | copies from blanks | frozen; or stored memories instead |
| reading | as combined, with all parts of the reading decoder | next tokens, recall | trained |
| shared | 128 wide both, 4 layers each | next tokens | frozen, stored memories |
| slots | the same | the same; every chunk has slots of its own | the same |
| accelerator | 256, 512 wide, 16 layers each, bfloat16 | next tokens and copies | trained |

`shared` and `slots` have the quickstart's sizes: 64 chunks of 16 tokens, vocabulary 1,024. The
batch size is 4, 8 for these, and 32 for `accelerator`. These configs are not for training: frozen
encoders keep their random weights, and stored memories are random too, so that no folder is
necessary.
"""

import dataclasses

import ml_collections

from memjax import config as c

FROZEN = c.FREEZING["frozen_all"]


def benchmark(
    *objectives: str,
    encoder: int = 256,
    layers: int = 4,
    batch_size: int = 4,
    trainable: c.Rules = c.FREEZING["trainable"],
    memories: str = "",
    dtype: str = "float32",
) -> c.Config:
    """Return a run of one stage.

    `encoder` is the width of the encoder; `memories` stands for a folder of stored memories.
    """
    stage = c.Stage(
        objectives=dict.fromkeys(objectives, 1.0),
        batch_size=batch_size,
        learning_rate=3e-4,
        trainable=trainable,
    )
    return c.Config(
        data=c.Data(vocab_size=8000, sequence_length=1024, memories=memories),
        model=c.Model(
            chunk_length=256,
            encoder=c.Backbone(kind="transformer", width=encoder, layers=layers, heads=4),
            decoder=c.Backbone(kind="transformer", width=512, layers=layers, heads=4),
            dtype=dtype,
            remat="dots_with_no_batch_dims_saveable",
        ),
        stages={"train": stage},
        curriculum=("train",),
    )


def reading() -> c.Config:
    """Return a run whose decoder has the positions of the text and reads any number of memories."""
    config = benchmark("next_token", "recall")
    return dataclasses.replace(config, model=c.reading(config.model))


def many_chunks(*compat: str) -> c.Config:
    """Return a run with sequences of 64 chunks, whose memories are stored."""
    config = benchmark("next_token", batch_size=8, trainable=FROZEN, memories="random")
    stack = c.Backbone(kind="transformer", width=128, layers=4, heads=4)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, vocab_size=1024),
        model=c.Model(chunk_length=16, encoder=stack, decoder=stack, compat=compat),
    )


VARIANTS = {
    "combined": benchmark("next_token", "copy"),
    "reading": reading(),
    "next_token": benchmark("next_token"),
    "copy": benchmark("copy"),
    "equal": benchmark("next_token", "copy", encoder=512),
    "frozen": benchmark("next_token", "copy", encoder=512, trainable=FROZEN),
    "frozen_stored": benchmark(
        "next_token", "copy", encoder=512, trainable=FROZEN, memories="random"
    ),
    "blank": benchmark("blank_copy", encoder=512, trainable=FROZEN),
    "blank_stored": benchmark("blank_copy", encoder=512, trainable=FROZEN, memories="random"),
    "shared": many_chunks(),
    "slots": many_chunks("slots_of_zeros"),
    "accelerator": benchmark("next_token", "copy", layers=16, batch_size=32, dtype="bfloat16"),
}


def get_config(variant: str = "combined") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"benchmark.py has no variant {variant!r}; it has {', '.join(VARIANTS)}")
    return c.to_config_dict(dataclasses.replace(VARIANTS[variant], name=f"benchmark-{variant}"))
