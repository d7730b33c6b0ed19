"""Whether the objectives can be learned at all: one small batch, by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, Model
from memjax.models import Autoencoder, MemoryModel
from memjax.objectives import SpecialIds, score, total

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY = 4, 4, 20
SMALL = {"width": 32, "layers": 2, "mlp_ratio": 2}
MODEL = Model(
    chunk_length=LENGTH,
    encoder=Backbone(kind="mixer", heads=4, **SMALL),
    decoder=Backbone(heads=2, output_gate=True, **SMALL),
    reconstructor=Backbone(kind="mixer", heads=4, **SMALL),
)
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (8, CHUNKS * LENGTH))


def fit(quick, module, names, tokens, steps, rate):
    """Mean nats of each objective before and after `steps` of Adam on the same rows."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    rows = jnp.asarray(ROWS)

    def loss(variables):
        terms = {name: total(s) for name, s in score(module, variables, rows, names, IDS).items()}
        means = {name: term.nats / term.count for name, term in terms.items()}
        return sum(means.values()), means

    def step(carry, _):
        variables, state = carry
        (_, means), gradients = jax.value_and_grad(loss, has_aux=True)(variables)
        updates, state = optimizer.update(gradients, state, variables)
        return (optax.apply_updates(variables, updates), state), means

    @quick
    def run():
        variables = module.init(jax.random.key(0), tokens)
        return jax.lax.scan(step, (variables, optimizer.init(variables)), length=steps)[1]

    means = run()
    return {name: float(m[0]) for name, m in means.items()}, {
        name: float(m[-1]) for name, m in means.items()
    }


@pytest.mark.slow
def test_autoencoder_learns_a_batch_by_heart(quick):
    before, after = fit(
        quick,
        Autoencoder(MODEL, VOCABULARY),
        ["reconstruction"],
        ROWS[:, :LENGTH],
        steps=150,
        rate=1e-2,
    )
    assert before["reconstruction"] == pytest.approx(np.log(VOCABULARY), abs=1.5)
    assert after["reconstruction"] < 0.05


@pytest.mark.slow
def test_memory_model_learns_to_blank_copy_a_batch_by_heart(quick):
    module = MemoryModel(MODEL, CHUNKS, VOCABULARY)
    before, after = fit(
        quick, module, ["blank_copy"], ROWS.reshape(8, CHUNKS, LENGTH), steps=200, rate=1e-2
    )
    assert before["blank_copy"] == pytest.approx(np.log(VOCABULARY), abs=1.5)
    assert after["blank_copy"] < 0.05


@pytest.mark.slow
def test_without_memories_blank_copy_stays_at_the_entropy_of_each_place(quick):
    """No model that sees blanks alone does better than the frequencies of the eight rows' tokens at
    each place."""
    module = MemoryModel(MODEL, CHUNKS, VOCABULARY, memory=False)
    _, after = fit(
        quick, module, ["blank_copy"], ROWS.reshape(8, CHUNKS, LENGTH), steps=100, rate=1e-2
    )
    columns = [np.unique(column, return_counts=True)[1] / 8 for column in ROWS[:, : 2 * LENGTH].T]
    bound = np.mean([-(p * np.log(p)).sum() for p in columns])
    assert bound - 1e-3 < after["blank_copy"] < bound + 0.1
