"""Memory models at research sizes (Badger 2026, memory models).

    memjax train --config=configs/memory_model.py:VARIANT --workdir=runs/memory_model/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu, E22 on FineMath 4+; download the
text and pass its path. `_CxL` is C chunks of L tokens. 200,000 steps with a batch size of 128, or
64 with chunks of 512 or a frozen encoder. Decoders have 16 layers: transformers 512 wide with 4
heads, mixers 1024 wide and flat with kernel 1. Encoders have half the width and as many layers,
mixers with kernel 8.

| variant | register | tokens | published |
|---|---|---|---|
| {transformer,mixer}_4x256 | E17 | 26.2 B | figure, text (note a) |
| {transformer,mixer}_4x256_no_memory | E17 | 26.2 B | figure, no number |
| transformer_4x256 | E18 | 26.2 B | its fixed slots |
| transformer_4x256_variable | E18 | 26.2 B | a little better than fixed (text) |
| {transformer,mixer}_4x512 | E20 | 26.2 B | figure, no number |
| {transformer,mixer}_4x512_no_memory | E20 | 26.2 B | figure, no number |
| mixer_4x512_frozen{,_blocks} | E20 | 39.3 B | text (note b); autoencoder: 0.292 |
| transformer_4x512_frozen{,_blocks} | E20 | 39.3 B | the same; autoencoder: 0.289 |
| transformer_4x512_frozen_untrained_layers | E20 | 26.2 B | the same, as its code did it |
| mixer_to_transformer_4x512_frozen{,_blocks} | E20 | 39.3 B | worse than no memory (text) |
| mixer_4x256_frozen{,_blocks} | E21 | 19.7 B | figure, no number |
| mixer_4x512 | E22 | 26.2 B | figure, no number |
| mixer_4x512_no_memory | E22 | 26.2 B | figure, no number |
| paper | beside | 6.55 B | note c |
| 1b | beside | 26.2 B | none: memjax's own |

Where the table names a note:

- a: per step as good as the full context, 20 to 25 % slower (text).
- b: a part of the trained memory's gain, which grows with training.
- c: next tokens and copy from the first step; copying.py:combined_transformer is the same with
  wider encoders.

`_frozen`: an autoencoder is trained first, and its encoder is frozen with its token table.
`_frozen_blocks`: a new token table is trained before frozen blocks, as published.
`_untrained_layers`: transformers as the published code initialised them, with a final norm that was
never trained; starts from runs/autoencoder/transformer_1024_h8_unroll. `1b` is a decoder of a
billion parameters with an encoder of a quarter of that, and memjax's positions, task embeddings and
gate. Baselines: causal_lm.py (full context) and recurrent_memory.py. Each variant also exists as
VARIANT_as_published: a slot without a memory then holds ones or zeros that are attended, and losses
are means of the means of chunks.

Differences from publication. Rows are packed; published ones are single documents, padded, under
masks that did not match the rows. Slots without a memory are masked, every token is a target, and
the loss is a mean over tokens. bfloat16 throughout. None was trained to its end with memjax yet.
"""

import dataclasses

import ml_collections

from memjax import config as c
from memjax.config import published as p

LLAMA, MIXER = p.llama(512, 16), p.mixer(1024, 16)
SIZES = {
    "transformer": (p.llama(256, 16), LLAMA),
    "mixer": (p.mixer(512, 16, channel_kernel=8), MIXER),
}


def memory_model(
    kind: str, length: int, batch_size: int = 128, memory: bool = True, layout: str = "fixed"
) -> c.Config:
    """Return a run of one memory model on four chunks, with all parameters trained."""
    encoder, decoder = SIZES[kind]
    stage = p.stage("memory_model", "next_token", decoder, batch_size=batch_size, memory=memory)
    return p.single(p.model(length, encoder, decoder, layout=layout), 4 * length, stage)


def frozen(autoencoder: c.Backbone, decoder: c.Backbone, length: int, suffix: str) -> c.Config:
    """Return a run of an unrolled autoencoder, 128 chunks per batch, and a memory model on it."""
    stages = {
        "autoencoder": p.stage("autoencoder", "reconstruction", autoencoder, batch_size=32),
        "train": p.stage(
            "memory_model",
            "next_token",
            decoder,
            batch_size=64,
            init_from="autoencoder",
            **p.FROZEN[suffix],
        ),
    }
    return p.run(p.model(length, autoencoder, decoder, autoencoder), 4 * length, stages)


def untrained_layers() -> c.Config:
    """Return a run on frozen blocks of an autoencoder without a final norm, before a final norm."""
    source = p.trained("autoencoder", "transformer_1024_h8_unroll")
    stage = p.stage(
        "memory_model", "next_token", LLAMA, batch_size=64, init_from=source, **p.FROZEN["_blocks"]
    )
    model = p.model(512, p.llama(1024, 8, 8), LLAMA)
    return p.single(model, 2048, dataclasses.replace(stage, compat=("untrained_layers",)))


def one_billion() -> c.Config:
    """Return a run of the two large stacks with memjax's additions.

    They have more heads, grouped keys and values, and an MLP of 2.75 times the width.
    """
    decoder = p.llama(2048, 20, 16, kv_heads=8, mlp_ratio=2.75, output_gate=True)
    encoder = p.llama(1024, 20, 8, kv_heads=4, mlp_ratio=2.75)
    added = {"token_positions": True, "chunk_positions": True, "task_embedding": True}
    stage = p.stage(
        "memory_model",
        "next_token copy",
        decoder,
        batch_size=256,
        grad_accum_steps=4,
        steps=100_000,
        warmup_steps=2000,
    )
    return p.run(
        dataclasses.replace(p.model(256, encoder, decoder), **added), 1024, {"combined": stage}
    )


def paper() -> c.Config:
    """Return a run of next tokens and copy together from the first step."""
    encoder, decoder = SIZES["transformer"]
    stage = p.stage("memory_model", "next_token copy", decoder, batch_size=64, steps=100_000)
    return p.run(p.model(256, encoder, decoder), 1024, {"combined": stage})


VARIANTS = (
    {"paper": paper(), "1b": one_billion()}
    | {
        f"{kind}_4x{length}{suffix}": memory_model(kind, length, batch_size, memory)
        for length, batch_size in ((256, 128), (512, 64))
        for kind in SIZES
        for suffix, memory in (("", True), ("_no_memory", False))
    }
    | {"transformer_4x256_variable": memory_model("transformer", 256, layout="variable")}
    | {
        f"{name}_frozen{suffix}": frozen(autoencoder, decoder, length, suffix)
        for suffix in p.FROZEN
        for name, autoencoder, decoder, length in (
            ("mixer_4x512", p.mixer(1024, 8, channel_kernel=16), MIXER, 512),
            ("transformer_4x512", p.llama(1024, 8, 8, final_norm=False), LLAMA, 512),
            ("mixer_to_transformer_4x512", p.mixer(1024, 8, channel_kernel=16), LLAMA, 512),
            ("mixer_4x256", p.mixer(512, 16, channel_kernel=16), MIXER, 256),
        )
    }
    | {"transformer_4x512_frozen_untrained_layers": untrained_layers()}
)


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
