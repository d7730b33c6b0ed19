"""Memory models at research sizes: four chunks of 256 tokens, next tokens and copy together, every parameter trained.

    memjax train --config=configs/memory_model.py:paper --workdir=runs/paper --config.data.corpus=PATH
    memjax train --config=configs/memory_model.py:1b --workdir=runs/1b --config.data.corpus=PATH

`paper` has the sizes and the schedule of Badger (2026, arXiv 2602.13466): encoder of width 256, decoder of 512, 16 layers
each, 64 rows a step, AdamW at 2e-4 with linear decay, and none of memjax's additions (positions, marks, gate). Its 100,000 steps
are 6.6 billion tokens: days on one accelerator, out of reach of a laptop. `1b` is a decoder of a billion parameters with an encoder
of a quarter of that. Neither was trained to its end with memjax yet, so no accuracy is promised here.
"""

import dataclasses

import ml_collections

from memjax import config as c

PLAIN = {"token_positions": False, "chunk_positions": False, "task_mark": False}


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The config of `paper` or `1b`."""
    stage = c.Stage(
        objectives={"next_token": 1.0, "copy": 1.0},
        steps=100_000,
        rows=64,
        learning_rate=2e-4,
        warmup_steps=500,
        decay="linear",
    )
    backbone = c.Backbone(kind="transformer", width=512, layers=16, heads=4)
    config = c.Config(
        name="memory-model-paper",
        data=c.Data(vocabulary=8000, row_tokens=1024),
        model=c.Model(
            chunk_length=256,
            encoder=dataclasses.replace(backbone, width=256),
            decoder=backbone,
            reconstructor=backbone,
            dtype="bfloat16",
            remat="dots_with_no_batch_dims_saveable",
            **PLAIN,
        ),
        stages={"combined": stage},
        curriculum=("combined",),
        log_every=50,
        checkpoint_every=2000,
        evaluate_every=1000,
    )
    if variant == "1b":
        config = _one_billion(config)
    elif variant != "paper":
        raise ValueError(f"memory_model.py has no variant {variant!r}; it has 'paper' and '1b'")
    return c.to_config_dict(config)


def _one_billion(config: c.Config) -> c.Config:
    """Wider heads in number, grouped keys and values, MLP of 2.75 times the width, and memjax's additions."""
    decoder = c.Backbone(kind="transformer", width=2048, layers=20, heads=16, kv_heads=8, mlp_ratio=2.75, output_gate=True)
    encoder = dataclasses.replace(decoder, width=1024, heads=8, kv_heads=4, output_gate=False)
    model = dataclasses.replace(
        config.model, encoder=encoder, decoder=decoder, token_positions=True, chunk_positions=True, task_mark=True
    )
    stage = dataclasses.replace(config.stages["combined"], rows=256, microbatches=4, warmup_steps=2000)
    return dataclasses.replace(config, name="memory-model-1b", model=model, stages={"combined": stage})
