"""Memory models of four sizes for TPU slices, the configs of docs/scaling.md.

    memjax compile --config=configs/scaling.py:1.3b-512x8 --topology=v5e-256
    memjax train --config=configs/scaling.py:1.3b-512x8 --workdir=gs://BUCKET/RUN
    --config.data.corpus=PATH

A variant is SIZE-LxC: the size of the decoder (125m, 350m, 1.3b, 7b), tokens per chunk and chunks
per sequence (256x4, 512x8, 512x32). The encoder has half the width and the same depth. Heads are
128 wide and every width is a multiple of 128, the size of the hardware's tiles. One stage trains
encoder and decoder to predict and to copy, from scratch, which is the most expensive step; a frozen
encoder makes it cheaper. `--config.stages.combined.batch_size` is the batch size, by default 16
thousand tokens per chip on 256 chips.

SIZE-reading-LxC (512x32, 512x256) has a decoder like the quickstart's, with positions of the text.
Its encoder is frozen: name the stage that trained it in `--config.stages.combined.init_from`, with
`init_part=encoder`. A step scores 8 chunks of each objective. A chip gets one sequence, of 131,072
tokens in 512x256.

These configs were compiled, not trained.
"""

import dataclasses
import itertools

import ml_collections

from memjax import config as c

DECODERS = {
    "125m": {"width": 768, "layers": 12, "heads": 6, "mlp_ratio": 8 / 3},
    "350m": {"width": 1024, "layers": 24, "heads": 8, "mlp_ratio": 2.75},
    "1.3b": {"width": 2048, "layers": 24, "heads": 16, "mlp_ratio": 2.75},
    "7b": {"width": 4096, "layers": 32, "heads": 32, "mlp_ratio": 2.6875},
}
SHAPES = {"256x4": (256, 4), "512x8": (512, 8), "512x32": (512, 32)}
READING_SHAPES = {"reading-512x32": (512, 32), "reading-512x256": (512, 256)}
SLOTS, READING = (
    tuple(f"{size}-{shape}" for size, shape in itertools.product(DECODERS, shapes))
    for shapes in (SHAPES, READING_SHAPES)
)
VARIANTS = SLOTS + READING
CHIPS, TOKENS_PER_CHIP = 256, 16384
MICROBATCHES = {"125m": 1, "350m": 2, "1.3b": 4, "7b": 4}
"""Where a chip has several sequences."""
SAVED = {"125m": 16384, "350m": 12288, "1.3b": 4096, "7b": 0}
"""Decoded tokens of a microbatch whose matrix products a chip of v5e has room for."""


def get_config(variant: str = "1.3b-512x8") -> ml_collections.ConfigDict:
    """Return the config of SIZE-LxC."""
    if variant not in VARIANTS:
        raise ValueError(f"scaling.py has no variant {variant!r}; it has {', '.join(VARIANTS)}")
    size, _, shape = variant.partition("-")
    length, chunks = (SHAPES | READING_SHAPES)[shape]
    decoder = c.Backbone(kind="transformer", **DECODERS[size])
    encoder = dataclasses.replace(decoder, width=decoder.width // 2, heads=decoder.heads // 2)
    rows = max(CHIPS, CHIPS * TOKENS_PER_CHIP // (length * chunks))
    microbatches = min(MICROBATCHES[size], rows // CHIPS)
    stage = c.Stage(
        objectives={"next_token": 1.0, "copy": 1.0},
        steps=50_000,
        batch_size=rows,
        grad_accum_steps=microbatches,
        learning_rate=3e-4,
        warmup_steps=1000,
        final_lr_ratio=0.1,
    )
    config = c.Config(
        name=f"scaling-{variant}",
        data=c.Data(vocab_size=32768, sequence_length=length * chunks),
        model=c.Model(
            chunk_length=length,
            encoder=encoder,
            decoder=decoder,
            dtype="bfloat16",
            remat=_remat(size, TOKENS_PER_CHIP // microbatches),
        ),
        mesh=c.MESHES["fsdp"],
        optimizer=c.Optimizer(beta2=0.95, decay_rules=((r"kernel$", 0.1), (".*", 0.0))),
        stages={"combined": stage},
        curriculum=("combined",),
        checkpoint_every=1000,
        evaluators=c.usual_evaluators(every=1000),
    )
    return c.to_config_dict(_reading(config, size) if shape in READING_SHAPES else config)


def _remat(size: str, tokens: int) -> str:
    """Return the policy of remat with that many decoded tokens of a microbatch."""
    return "dots_with_no_batch_dims_saveable" if tokens <= SAVED[size] else "nothing_saveable"


def _reading(config: c.Config, size: str) -> c.Config:
    """Return the config with a reading decoder and a frozen encoder."""
    scored = dict.fromkeys(("blank_recall", "recall", "next_token"), 8)
    stage = dataclasses.replace(
        config.stages["combined"],
        objectives={"blank_recall": 1.0, "recall": 0.5, "next_token": 1.5},
        scored_chunks=scored,
        dials={"place_range": 4096},
        trainable=c.FREEZING["frozen_all"],
    )
    remat = _remat(size, sum(scored.values()) * config.model.chunk_length)
    model = dataclasses.replace(c.reading(config.model), remat=remat)
    return dataclasses.replace(config, model=model, stages={"combined": stage})
