"""Autoencoders that compress a block of tokens into one vector and reconstruct it.

Badger 2026, autoencoders.

    memjax train --config=configs/autoencoder.py:VARIANT --workdir=runs/autoencoder/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu; E1, E2 and the heads of E10 on
FineMath 4+. Download the text and pass its path. Blocks have 512 tokens, stacks 8 layers, batches
128 blocks, and training 200,000 steps. Losses are in nats per token.

| variant | register | tokens | published |
|---|---|---|---|
| transformer_{256,512,1024}_repeat | E1 | 13.1 B | figure, no number |
| mixer_{256,512,1024}_k8_repeat | E1 | 13.1 B | FineMath, width 1024: about 0.6 (text) |
| transformer_1024_repeat_final_norm | E2 | 13.1 B | FineMath: 5.381, 5.288 (log; note a) |
| transformer_1024_repeat | E2 | 13.1 B | a little better than the one before (text) |
| transformer_to_mixer_512_k{1,8} | E3 | 13.1 B | figure, no number |
| mixer_512_k{1,8}_to_transformer | E3 | 13.1 B | figure, no number |
| transformer_512_{repeat,unroll} | E4 | 13.1 B | unroll: 2.03, 3.33 on FineMath (table; note b) |
| transformer_512_h{2,8,16}_unroll | E5 | 13.1 B | about 8 heads are best (text) |
| transformer_512_unroll | E5 | 13.1 B | its 4 heads |
| mixer_512_k{4,8,16}_{repeat,unroll} | E6 | 13.1 B | k8: 3.23, 3.56 on FineMath (table; note c) |
| mixer_1024_k8_{repeat,unroll} | E7 | 13.1 B | repeat: 1.392, 2.68 on FineMath (table) |
| mixer_1024_k16_unroll | E7 | 13.1 B | 0.301, 1.36 on FineMath (table) |
| mixer_512_k8_repeat_to_{128,256} | E8 | 13.1 B | figure, no number |
| mixer_1024_k8_repeat_to_{128,512} | E8 | 13.1 B | figure, no number |
| transformer_512_unroll_to_{128,256} | E8 | 13.1 B | figure, no number |
| transformer_1024_unroll_to_{128,512} | E8 | 13.1 B | figure, no number |
| mixer_1024_k8_repeat_unmasked{,_encoder} | E9 | 13.1 B | see note d |
| mixer_1024_k1_repeat | E10 | 13.1 B | over 6 times the samples (text; note e) |
| mixer_1024_h{1,2,4,8,16}_repeat | E10 | 13.1 B | h4: 1.493, 2.46 on FineMath (table; note f) |
| mixer_1024_k8_repeat | E10 | 13.1 B | 1.392 (table) |
| mixer_1024_k8_repeat_random | E31 | 13.1 B | none that is valid (note g) |
| mixer_1024_k16_unroll | E32 | 13.1 B | as E7 (note h) |
| mixer_1024_{k8,h4}_repeat | E32 | 13.1 B | as E7 and E10 |
| mixer_512_k8_repeat | E32 | 13.1 B | as E6 |
| transformer_512_unroll | E32 | 13.1 B | as E4 |
| transformer_1024_h8_unroll | E20 | 13.1 B | 0.289 (name of the weights' file) |
| transformer_512_n256_unroll | E24 | 6.55 B | below 0.03, accuracy above 95 % (text) |
| transformer_512_n256_unroll | E27 | 6.55 B | the same |
| repeat_mixer_{row,column,combined,diagonal,mixed} | beside | 13.1 B | figure, no number |
| repeat_mixer_mixed_decay | beside | 13.1 B | figure, no number |

Where the table names a note:

- a: losses at steps 4,000 and 8,000.
- b: from the table of generalisation; the number of heads is uncertain.
- c: the table does not state whether repeat or unroll.
- d: an unmasked encoder alone is less efficient, both unmasked are unstable (text).
- e: that many samples for the loss that 4 or 8 heads reach.
- f: h4 is about as good as k8, h8 is better (text).
- g: losses were computed against other labels.
- h: these weights are scored on the other corpus; nothing is trained.

`_to_N`: a bottleneck of N. `_n256`: blocks of 256 tokens, the first stage of curricula. "beside":
repeat mixers of a sibling project, 16 layers per stack. Each variant also exists as
VARIANT_as_published, with the quirks of the published code.

A transformer that reads a repeated memory gets the same vector at every position. All its values
are equal, and attention returns that value for any weights. Rotary positions rotate queries and
keys alone, so they cannot separate positions either. Its output is the same at every position, and
its loss cannot fall below the entropy of the tokens of a block (`tests/test_presets.py`). The
published loss of E2 is of that kind.

Differences from publication. Rows are packed with text. Published rows are the first 512 tokens of
each document, padded, and padding counted as tokens seen. bfloat16 replaces float16, under which 1
and 2 heads diverged. Published transformers called "n16" ran 8 + 8 layers, and so do these. Token
tables have a smaller initial scale unless `_as_published`. Chosen here, because the publication
leaves it open: repeat for the transformers of E1 and E2 and for E10, k8 with repeat for E9, 4 heads
in E2, 2e-4 for hybrids. For E31 and E32 load the model of a run (`memjax.load`) and score other
rows (`objectives.score`, with `reconstruction` or `random_reconstruction`).
"""

import dataclasses
from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p


def autoencoder(
    encoder: c.Backbone,
    decoder: c.Backbone | None = None,
    expansion: str = "repeat",
    objective: str = "reconstruction",
    length: int = 512,
    rate: float | None = None,
    **model: Any,
) -> c.Config:
    """Return a run of one autoencoder; both stacks are alike unless a decoder is given."""
    decoder = decoder or encoder
    stage = p.stage("autoencoder", objective, decoder, **({"learning_rate": rate} if rate else {}))
    return p.single(
        p.model(length, encoder, reconstructor=decoder, expansion=expansion, **model), length, stage
    )


def llama(width: int, heads: int = 4, final_norm: bool = False) -> c.Backbone:
    """Return a stack of eight layers."""
    return p.llama(width, 8, heads, final_norm=final_norm)


def mixer(width: int, **settings: Any) -> c.Backbone:
    """Return a stack of eight layers."""
    return p.mixer(width, 8, **settings)


def hybrids(kernel: int) -> dict[str, c.Config]:
    """Return an autoencoder of a transformer with its final norm and a mixer, in either order."""
    transformer, mixing = llama(512, final_norm=True), mixer(512, channel_kernel=kernel)
    return {
        f"transformer_to_mixer_512_k{kernel}": autoencoder(transformer, mixing, rate=2e-4),
        f"mixer_512_k{kernel}_to_transformer": autoencoder(mixing, transformer, rate=2e-4),
    }


def unmasked(stack: c.Backbone) -> c.Backbone:
    """Return the stack without a causal mask."""
    return dataclasses.replace(stack, causal=False)


WIDE = mixer(1024, channel_kernel=8)
EXPANSIONS = ("repeat", "unroll")
VARIANTS = (
    {f"transformer_{width}_repeat": autoencoder(llama(width)) for width in (256, 512, 1024)}
    | {"transformer_1024_repeat_final_norm": autoencoder(llama(1024, final_norm=True))}
    | hybrids(1)
    | hybrids(8)
    | {"transformer_512_unroll": autoencoder(llama(512), expansion="unroll")}
    | {
        f"transformer_512_h{heads}_unroll": autoencoder(llama(512, heads), expansion="unroll")
        for heads in (2, 8, 16)
    }
    | {"transformer_1024_h8_unroll": autoencoder(llama(1024, 8), expansion="unroll")}
    | {"mixer_256_k8_repeat": autoencoder(mixer(256, channel_kernel=8))}
    | {
        f"mixer_512_k{kernel}_{expansion}": autoencoder(
            mixer(512, channel_kernel=kernel), expansion=expansion
        )
        for kernel in (4, 8, 16)
        for expansion in EXPANSIONS
    }
    | {
        f"mixer_1024_k8_{expansion}": autoencoder(WIDE, expansion=expansion)
        for expansion in EXPANSIONS
    }
    | {"mixer_1024_k16_unroll": autoencoder(mixer(1024, channel_kernel=16), expansion="unroll")}
    | {"mixer_1024_k1_repeat": autoencoder(mixer(1024))}
    | {
        f"mixer_1024_h{heads}_repeat": autoencoder(mixer(1024, heads=heads))
        for heads in (1, 2, 4, 8, 16)
    }
    | {
        f"{name}_to_{width // ratio}": autoencoder(
            stack, expansion=expansion, bottleneck=width // ratio
        )
        for width, ratios in ((512, (2, 4)), (1024, (2, 8)))
        for ratio in ratios
        for name, stack, expansion in (
            (f"mixer_{width}_k8_repeat", mixer(width, channel_kernel=8), "repeat"),
            (f"transformer_{width}_unroll", llama(width), "unroll"),
        )
    }
    | {
        "mixer_1024_k8_repeat_unmasked_encoder": autoencoder(unmasked(WIDE), WIDE),
        "mixer_1024_k8_repeat_unmasked": autoencoder(unmasked(WIDE)),
        "mixer_1024_k8_repeat_random": autoencoder(WIDE, objective="random_reconstruction"),
        "transformer_512_n256_unroll": autoencoder(llama(512), expansion="unroll", length=256),
        "repeat_mixer_mixed_decay": autoencoder(
            p.repeat_mixer("mixed_repeat", 1024, 16, 4, decay_length=1.0)
        ),
    }
    | {
        f"repeat_mixer_{kind.removesuffix('_repeat')}": autoencoder(
            p.repeat_mixer(kind, 1024, 16, 4)
        )
        for kind in c.REPEATS
    }
)


def get_config(variant: str = "mixer_1024_k16_unroll") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
