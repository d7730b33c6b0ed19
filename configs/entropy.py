"""Training with the predictability of each token: weighted losses, regression, corrupted copy.

Badger 2026, entropy.

    memjax train --config=configs/entropy.py:VARIANT --workdir=runs/entropy/VARIANT
    --config.data.corpus=PATH

configs/README.md explains the register. Published on FineWeb-edu, with sequences of 1024 tokens and
a batch size of 128. All but copies need a file with an attribution per token of the training rows,
`--config.data.attributions=FILE.npy`, such as that of an oracle (the small one of configs/oracle.py
is `transformer_512`, the large one `large_transformer_l8`).

| variant | register | tokens | published |
|---|---|---|---|
| complement_weighted_512 | E33 | 26.2 B | benchmarks equal within noise (table) |
| {ten_minus,subtracted,distance,below_six}_weighted_512 | E33 | 26.2 B | none |
| {complement,ten_minus,subtracted,distance,below_six}_weighted_128 | E33 | 26.2 B | none |
| {,shifted_}entropy_regression | E33 | 26.2 B | none |
| {,unweighted_}corrupted_copy | E33 | 1.31 B | figure, no number |

`_512` has 16 layers, as in the published table, `_128` 8 layers, as in the latest code; 4 heads.
The plain model of the benchmarks is causal_lm.py:transformer_512. The first weighting is for
attributions scaled to [0, 1], the others for unscaled ones. `entropy_regression` estimates the
attribution of a token after reading it, `shifted_` before. The test of overfitting uses 50,000
documents for 100 epochs: set `--config.stages.train.steps`. Each variant also exists as
VARIANT_as_published.

Differences from publication. Rows are packed. The mean is over targets. Heads have no bias, and
there is no dropout. Corrupted copy draws its positions per sequence and leaves out tokens below
ln V instead of 6.4; the control leaves nothing out.
"""

from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p

LENGTH = 1024
WEIGHTINGS = (
    *("complement_weighted", "ten_minus_weighted", "subtracted_weighted"),
    *("distance_weighted", "below_six_weighted"),
)
REGRESSIONS = ("entropy_regression", "shifted_entropy_regression")
SIZES = {512: p.llama(512, 16), 128: p.llama(128, 8)}


def trained(
    family: str,
    objective: str,
    stack: c.Backbone,
    attributions: str = "attributions.npy",
    **changes: Any,
) -> c.Config:
    """Return a run of one stack on sequences of 1024 tokens."""
    stage = p.stage(family, objective, stack, **changes)
    return p.single(p.model(LENGTH, stack), LENGTH, stage, attributions=attributions)


VARIANTS = (
    {
        f"{name}_{width}": trained("causal_lm", name, stack)
        for name in WEIGHTINGS
        for width, stack in SIZES.items()
    }
    | {name: trained("entropy_regressor", name, SIZES[512]) for name in REGRESSIONS}
    | {
        name: trained("causal_lm", name, p.llama(128, 16), "", steps=10_000, warmup_steps=50)
        for name in ("corrupted_copy", "unweighted_corrupted_copy")
    }
)


def get_config(variant: str = "complement_weighted_512") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    return p.choose(__file__, VARIANTS, variant)
