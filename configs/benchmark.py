"""What `memjax bench` times for docs/benchmarks.md: memory models of one size, on random tokens.

    memjax bench --config=configs/benchmark.py:combined --against=two_passes
    memjax bench --config=configs/benchmark.py:frozen_stored --against=configs/benchmark.py:frozen

Rows of 4 chunks of 256 tokens, a vocabulary of 8,000, transformers of 4 heads, whose blocks keep what their matrices give for the backward
pass and compute the rest again. What a stage asks and what it trains is all that differs between variants of one size:

| variant | encoder, decoder | asks for | encoder |
|---|---|---|---|
| combined | 256, 512 wide, 4 layers each | next tokens and copies | trained |
| next_token, copy | the same | one of the two | trained |
| equal | 512 wide both, 4 layers each | next tokens and copies | trained |
| frozen, frozen_stored | as equal | next tokens and copies | frozen; not run: memories are read |
| blank, blank_stored | as equal | copies from blanks | frozen; not run: memories are read |
| accelerator | 256, 512 wide, 16 layers each, bfloat16 | next tokens and copies | trained |

Batches are 4 rows, of `accelerator` 32. Nothing here is for training: encoders are frozen as they are drawn, and memories that are read
are random too, so that no folder of them needs to be there.
"""

import dataclasses

import ml_collections

from memjax import config as c

FROZEN = c.FREEZING["frozen_all"]


def benchmark(
    *objectives: str,
    encoder: int = 256,
    layers: int = 4,
    rows: int = 4,
    trainable: c.Rules = c.FREEZING["trainable"],
    memories: str = "",
    dtype: str = "float32",
) -> c.Config:
    """A run of one stage; `encoder` is its width, `memories` stands for the folder of those that are read."""
    stage = c.Stage(objectives=dict.fromkeys(objectives, 1.0), rows=rows, learning_rate=3e-4, trainable=trainable)
    return c.Config(
        data=c.Data(vocabulary=8000, row_tokens=1024, memories=memories),
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


VARIANTS = {
    "combined": benchmark("next_token", "copy"),
    "next_token": benchmark("next_token"),
    "copy": benchmark("copy"),
    "equal": benchmark("next_token", "copy", encoder=512),
    "frozen": benchmark("next_token", "copy", encoder=512, trainable=FROZEN),
    "frozen_stored": benchmark("next_token", "copy", encoder=512, trainable=FROZEN, memories="random"),
    "blank": benchmark("blank_copy", encoder=512, trainable=FROZEN),
    "blank_stored": benchmark("blank_copy", encoder=512, trainable=FROZEN, memories="random"),
    "accelerator": benchmark("next_token", "copy", layers=16, rows=32, dtype="bfloat16"),
}


def get_config(variant: str = "combined") -> ml_collections.ConfigDict:
    """The config of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"benchmark.py has no variant {variant!r}; it has {', '.join(VARIANTS)}")
    return c.to_config_dict(dataclasses.replace(VARIANTS[variant], name=f"benchmark-{variant}"))
