"""Rates, rules and updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import ConfigError, Optimizer, Stage
from memjax.training.optimizer import learning_rate, make_optimizer, merge, split

PARAMS = {
    "encoder": {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones(5)},
    "head": {"kernel": jnp.full((4, 6), 2.0)},
}


def rates(stage: Stage) -> list[float]:
    schedule = learning_rate(stage)
    return [float(schedule(step)) for step in range(stage.steps + 1)]


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.6), ("cosine", 0.6), ("constant", 1.0)])
def test_rate_rises_to_its_peak_and_falls_to_the_final_share(decay: str, middle: float) -> None:
    values = rates(
        Stage(steps=13, warmup_steps=4, learning_rate=1.0, lr_schedule=decay, final_lr_ratio=0.2)
    )
    np.testing.assert_allclose(values[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(values[8], middle, rtol=1e-6)
    np.testing.assert_allclose(values[12], 1.0 if decay == "constant" else 0.2, rtol=1e-6)


def test_the_last_step_has_the_final_rate_and_is_never_without_effect() -> None:
    stage = Stage(
        steps=5, warmup_steps=2, learning_rate=1.0, lr_schedule="linear", final_lr_ratio=0.1
    )
    np.testing.assert_allclose(rates(stage)[:5], [0.5, 1.0, 1.0, 0.55, 0.1], rtol=1e-6)
    to_zero = dataclasses.replace(stage, final_lr_ratio=0.0)
    np.testing.assert_allclose(rates(to_zero), [0.5, 1.0, 1.0, 2 / 3, 1 / 3, 0.0], atol=1e-6)


def test_rate_without_warm_up_starts_at_the_peak() -> None:
    np.testing.assert_allclose(
        rates(Stage(steps=4, warmup_steps=0, learning_rate=1.0, lr_schedule="linear"))[:2],
        [1.0, 0.75],
    )


def test_split_and_merge_are_inverse() -> None:
    yes, no = split(PARAMS, (("^encoder/", False), (".*", True)), "config.x")
    assert set(yes) == {"head"} and set(no) == {"encoder"}
    assert jax.tree.structure(merge(yes, no)) == jax.tree.structure(PARAMS)


def updated(config: Optimizer, stage: Stage, grads: object) -> dict:
    optimizer = make_optimizer(config, stage, PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    return jax.tree.map(np.asarray, updates)


FLAT = Stage(steps=10, warmup_steps=0, learning_rate=0.1, lr_schedule="constant")
GRADS = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), PARAMS)


def test_rate_and_decay_rules_scale_each_parameter() -> None:
    plain = updated(Optimizer(clip_norm=0.0), FLAT, GRADS)
    ruled = updated(
        Optimizer(
            clip_norm=0.0,
            rate_rules=(("head", 3.0), (".*", 1.0)),
            decay_rules=(("head", 0.5), (".*", 0.0)),
        ),
        FLAT,
        GRADS,
    )
    np.testing.assert_array_equal(ruled["encoder"]["kernel"], plain["encoder"]["kernel"])
    # AdamW: minus rate times (direction + decay * weight); the weight is 2.
    np.testing.assert_allclose(
        ruled["head"]["kernel"], 3 * plain["head"]["kernel"] - 0.3 * 0.5 * 2, atol=1e-6
    )


def test_adamw_is_optax_adamw() -> None:
    theirs = optax.adamw(0.1, 0.9, 0.999, 1e-8, weight_decay=0.0)
    expected, _ = theirs.update(GRADS, theirs.init(PARAMS), PARAMS)
    ours = updated(Optimizer(clip_norm=0.0), FLAT, GRADS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        ours,
        jax.tree.map(np.asarray, expected),
    )


def test_muon_makes_each_stacked_matrix_nearly_orthogonal_on_its_own() -> None:
    rules = (("encoder/kernel", "muon"), (".*", "adamw"))
    update = updated(Optimizer(rules=rules, clip_norm=0.0), FLAT, GRADS)["encoder"]["kernel"]
    # Rate 0.1 times sqrt(5 / 4) times singular values that Newton-Schulz brings near 1.
    singular = np.linalg.svd(update, compute_uv=False) / (0.1 * np.sqrt(5 / 4))
    assert singular.shape == (3, 4)
    assert singular.min() > 0.5 and singular.max() < 1.4


def test_muon_refuses_vectors_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'encoder/bias' of shape \(5,\) to muon"):
        make_optimizer(Optimizer(rules=((".*", "muon"),)), FLAT, PARAMS)


def test_gradients_are_clipped_to_the_global_norm() -> None:
    small = jax.tree.map(lambda g: g * 0.5 / optax.tree.norm(GRADS), GRADS)
    large = jax.tree.map(lambda g: g * 7.0, small)
    # Adam's first update hides the gradient's scale; a huge epsilon shows it.
    config = Optimizer(clip_norm=0.5, epsilon=1e3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        updated(config, FLAT, small),
        updated(config, FLAT, large),
    )
