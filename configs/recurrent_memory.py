"""Recurrent memory, a baseline that reads chunks one after another.

Badger 2026, baselines; Bulatov et al. 2022.

    memjax train --config=configs/recurrent_memory.py:VARIANT
    --workdir=runs/recurrent_memory/VARIANT --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu. 200,000 steps with a batch size
of 128 (64 in E20), one vector, gradients through all chunks, 16 layers; `_CxL` is C chunks of L
tokens.

| variant | register | tokens | published |
|---|---|---|---|
| transformer_512_4x256 | E19 | 26.2 B | a little worse than memory models (figure, no number) |
| mixer_1024_k8_{4x256,8x128} | E19 | 26.2 B | figure, no number |
| transformer_512_4x512 | E20 | 26.2 B | figure, no number |
| mixer_1024_k8_4x512 | E20 | 26.2 B | figure, no number |

Each variant also exists as VARIANT_as_published. The write slot then overwrites the last token of
each chunk, which the model never reads, the first state is constant, and the first token of a chunk
is no target. This is a weaker baseline.

Differences from publication. The first state is learned, and every token is read and is a target.
Rows are packed. bfloat16 throughout.
"""

import ml_collections

from memjax import config as c
from memjax.config import published as p


def recurrent(stack: c.Backbone, chunks: int, length: int, batch_size: int = 128) -> c.Config:
    """Return a run on sequences of `chunks` chunks."""
    return p.single(
        p.model(length, stack),
        chunks * length,
        p.stage("recurrent_memory", "next_token", stack, batch_size=batch_size),
    )


TRANSFORMER, MIXER = p.llama(512, 16), p.mixer(1024, 16, channel_kernel=8)
VARIANTS = {
    "transformer_512_4x256": recurrent(TRANSFORMER, 4, 256),
    "mixer_1024_k8_4x256": recurrent(MIXER, 4, 256),
    "mixer_1024_k8_8x128": recurrent(MIXER, 8, 128),
    "transformer_512_4x512": recurrent(TRANSFORMER, 4, 512, batch_size=64),
    "mixer_1024_k8_4x512": recurrent(MIXER, 4, 512, batch_size=64),
}


def get_config(variant: str = "transformer_512_4x256") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
