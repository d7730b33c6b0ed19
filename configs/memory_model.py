"""Memory models at research sizes (Badger 2026, memory models).

    memjax train --config=configs/memory_model.py:VARIANT --workdir=runs/memory_model/VARIANT --config.data.corpus=PATH

The register's lines are explained in configs/README.md. Published on FineWeb-edu, E22 on FineMath 4+; download the text and
give its path. `_CxL` is C chunks of L tokens; 200,000 steps of 128 rows, of 64 with chunks of 512 or a frozen encoder; decoders
of 16 layers, 512 wide with 4 heads or, mixers, 1024 wide and flat with kernel 1; encoders of half the width with as many
layers, mixers with kernel 8.

| variant | register | tokens | published |
|---|---|---|---|
| {transformer,mixer}_4x256 | E17 | 26.2 B | figure: as good a step as the full context, 20 to 25 % slower (text) |
| {transformer,mixer}_4x256_no_memory | E17 | 26.2 B | figure, no number |
| transformer_4x256 | E18 | 26.2 B | its fixed slots |
| transformer_4x256_variable | E18 | 26.2 B | a little better than fixed (text) |
| {transformer,mixer}_4x512 | E20 | 26.2 B | figure, no number |
| {transformer,mixer}_4x512_no_memory | E20 | 26.2 B | figure, no number |
| mixer_4x512_frozen{,_blocks} | E20 | 39.3 B | a part of the trained memory's gain, growing (text); its autoencoder: 0.292 |
| transformer_4x512_frozen{,_blocks} | E20 | 39.3 B | the same; its autoencoder: 0.289 |
| transformer_4x512_frozen_untrained_layers | E20 | 26.2 B | the same, as its code did it |
| mixer_to_transformer_4x512_frozen{,_blocks} | E20 | 39.3 B | worse than no memory (text) |
| mixer_4x256_frozen{,_blocks} | E21 | 19.7 B | figure, no number |
| mixer_4x512 | E22 | 26.2 B | figure, no number |
| mixer_4x512_no_memory | E22 | 26.2 B | figure, no number |
| paper | beside | 6.55 B | next tokens and copy from the first step; the same with wider encoders: copying.py:combined_transformer |
| 1b | beside | 26.2 B | none: memjax's own |

`_frozen`: an autoencoder is trained first, and its encoder, token table and all, moves no more. `_frozen_blocks`: the table is
learned anew before frozen blocks, which is what was published. `_untrained_layers`: as the published code handed transformers
over, with a final norm that was never trained; starts from runs/autoencoder/transformer_1024_h8_unroll. `1b` is a decoder of a
billion parameters with an encoder of a quarter of that, memjax's positions, marks and gate. Baselines: causal_lm.py (full
context) and recurrent_memory.py. Each variant also comes as VARIANT_as_published: a slot without a memory then holds ones or
zeros that are read, and losses are means of chunks' means.

What differs from publication. Rows are packed; published ones are single documents, padded, under masks that did not match the
rows. Slots without a memory are masked, every token is a target, and the loss is a mean over tokens. bfloat16 throughout. None
was trained to its end with memjax yet.
"""

import dataclasses

import ml_collections

from memjax import config as c
from memjax.config import published as p

LLAMA, MIXER = p.llama(512, 16), p.mixer(1024, 16)
SIZES = {"transformer": (p.llama(256, 16), LLAMA), "mixer": (p.mixer(512, 16, kernel=8), MIXER)}


def memory_model(kind: str, length: int, rows: int = 128, memory: bool = True, layout: str = "fixed") -> c.Config:
    """A run of one memory model over four chunks, all of it trained."""
    encoder, decoder = SIZES[kind]
    stage = p.stage("memory_model", "next_token", decoder, rows=rows, memory=memory)
    return p.single(p.model(length, encoder, decoder, layout=layout), 4 * length, stage)


def frozen(autoencoder: c.Backbone, decoder: c.Backbone, length: int, suffix: str) -> c.Config:
    """An autoencoder, unrolled, of 128 chunks a batch, and a memory model on its encoder."""
    stages = {
        "autoencoder": p.stage("autoencoder", "reconstruction", autoencoder, rows=32),
        "train": p.stage("memory_model", "next_token", decoder, rows=64, init_from="autoencoder", **p.FROZEN[suffix]),
    }
    return p.run(p.model(length, autoencoder, decoder, autoencoder), 4 * length, stages)


def untrained_layers() -> c.Config:
    """Frozen blocks of an autoencoder that has no final norm, before a final norm."""
    source = p.trained("autoencoder", "transformer_1024_h8_unroll")
    stage = p.stage("memory_model", "next_token", LLAMA, rows=64, init_from=source, **p.FROZEN["_blocks"])
    model = p.model(512, p.llama(1024, 8, 8), LLAMA)
    return p.single(model, 2048, dataclasses.replace(stage, compat=("untrained_layers",)))


def one_billion() -> c.Config:
    """Wider heads in number, grouped keys and values, MLP of 2.75 times the width, and memjax's additions."""
    decoder = p.llama(2048, 20, 16, kv_heads=8, mlp_ratio=2.75, output_gate=True)
    encoder = p.llama(1024, 20, 8, kv_heads=4, mlp_ratio=2.75)
    added = {"token_positions": True, "chunk_positions": True, "task_mark": True}
    stage = p.stage("memory_model", "next_token copy", decoder, rows=256, microbatches=4, steps=100_000, warmup_steps=2000)
    return p.run(dataclasses.replace(p.model(256, encoder, decoder), **added), 1024, {"combined": stage})


def paper() -> c.Config:
    """Next tokens and copy together from the first step."""
    encoder, decoder = SIZES["transformer"]
    stage = p.stage("memory_model", "next_token copy", decoder, rows=64, steps=100_000)
    return p.run(p.model(256, encoder, decoder), 1024, {"combined": stage})


VARIANTS = (
    {"paper": paper(), "1b": one_billion()}
    | {
        f"{kind}_4x{length}{suffix}": memory_model(kind, length, rows, memory)
        for length, rows in ((256, 128), (512, 64))
        for kind in SIZES
        for suffix, memory in (("", True), ("_no_memory", False))
    }
    | {"transformer_4x256_variable": memory_model("transformer", 256, layout="variable")}
    | {
        f"{name}_frozen{suffix}": frozen(autoencoder, decoder, length, suffix)
        for suffix in p.FROZEN
        for name, autoencoder, decoder, length in (
            ("mixer_4x512", p.mixer(1024, 8, kernel=16), MIXER, 512),
            ("transformer_4x512", p.llama(1024, 8, 8, final_norm=False), LLAMA, 512),
            ("mixer_to_transformer_4x512", p.mixer(1024, 8, kernel=16), LLAMA, 512),
            ("mixer_4x256", p.mixer(512, 16, kernel=16), MIXER, 256),
        )
    }
    | {"transformer_4x512_frozen_untrained_layers": untrained_layers()}
)


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
