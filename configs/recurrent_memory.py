"""Recurrent memory, the baseline that reads chunks one after another (Badger 2026, baselines; Bulatov et al. 2022).

    memjax train --config=configs/recurrent_memory.py:VARIANT --workdir=runs/recurrent_memory/VARIANT --config.data.corpus=PATH

The register's lines are explained in configs/README.md. Published on FineWeb-edu. 200,000 steps of 128 rows (64 in E20), one
vector, gradients through all chunks, 16 layers; `_CxL` is C chunks of L tokens.

| variant | register | tokens | published |
|---|---|---|---|
| transformer_512_4x256 | E19 | 26.2 B | a little worse than memory models (figure, no number) |
| mixer_1024_k8_{4x256,8x128} | E19 | 26.2 B | figure, no number |
| transformer_512_4x512 | E20 | 26.2 B | figure, no number |
| mixer_1024_k8_4x512 | E20 | 26.2 B | figure, no number |

Each variant also comes as VARIANT_as_published: the write slot then stands over each chunk's last token, which nobody reads,
the first state is constant, and a chunk's first token is no target. It is a weaker baseline.

What differs from publication. The first state is learned, every token is read and is a target. Rows are packed. bfloat16
throughout.
"""

import ml_collections

from memjax import config as c
from memjax.config import published as p


def recurrent(stack: c.Backbone, chunks: int, length: int, rows: int = 128) -> c.Config:
    """A run over rows of `chunks` chunks."""
    return p.single(p.model(length, stack), chunks * length, p.stage("recurrent_memory", "next_token", stack, rows=rows))


TRANSFORMER, MIXER = p.llama(512, 16), p.mixer(1024, 16, kernel=8)
VARIANTS = {
    "transformer_512_4x256": recurrent(TRANSFORMER, 4, 256),
    "mixer_1024_k8_4x256": recurrent(MIXER, 4, 256),
    "mixer_1024_k8_8x128": recurrent(MIXER, 8, 128),
    "transformer_512_4x512": recurrent(TRANSFORMER, 4, 512, rows=64),
    "mixer_1024_k8_4x512": recurrent(MIXER, 4, 512, rows=64),
}


def get_config(variant: str = "transformer_512_4x256") -> ml_collections.ConfigDict:
    """The config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
