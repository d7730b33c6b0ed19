"""CALM and LCM: autoencoders of chunks, models of the next vector, and their losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.memory import VECTORS
from memjax.models.peers import PEERS, next_vector_losses
from memjax.models.peers.peer import GENERATOR

CHUNKS, LENGTH, VOCABULARY, START = 3, 4, 24, 2
STACK = Backbone(width=16, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(1).integers(6, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones(TOKENS[0].shape, bool)


def module_of(name, **dials):
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
    dials = {**PEERS[name].tiny, **dials}
    return build(config, Stage(family=name, dials=dials, objectives={"next_token": 1.0}))


@pytest.fixture(scope="module", params=["calm", "lcm"])
def predicted(request, draw, quick):
    """Two predictions of each chunk, and the vectors, without noise."""
    module = module_of(request.param)
    variables = draw(module, TOKENS)
    method = functools.partial(type(module).next_vectors, start=START, samples=2)
    program = quick(lambda tokens: module.apply(variables, tokens, method=method))
    return program, program(TOKENS)


@pytest.mark.slow
def test_a_prediction_comes_from_the_chunks_before(predicted):
    program, (guess, target) = predicted
    assert guess.shape == (2, *target.shape)
    other = TOKENS.copy()
    other[:, 1] = 7
    guess_other, target_other = program(other)
    assert np.array_equal(guess[:, :, :2], guess_other[:, :, :2])
    assert not np.array_equal(guess[:, :, 2], guess_other[:, :, 2])
    assert np.array_equal(target[:, 2], target_other[:, 2])


def test_a_prediction_without_noise_is_one(predicted):
    _, (guess, _) = predicted
    np.testing.assert_allclose(guess[0], guess[1], atol=1e-6)


@pytest.mark.slow
def test_noise_makes_samples_and_latents_differ(draw, quick):
    """And without any noise an encoder is a function of its text."""
    module = module_of("calm")
    variables = draw(module, TOKENS)
    method = functools.partial(type(module).next_vectors, start=START, samples=2)
    program = quick(
        lambda key: module.apply(variables, TOKENS, method=method, rngs={GENERATOR: key})
    )
    (guess, target), (_, other) = (program(jax.random.key(seed)) for seed in range(2))
    assert not np.any(guess[0] == guess[1])
    assert not np.any(target == other)
    mean = module.apply(variables, TOKENS[0], REAL, method="gaussian")[0]
    latents = module.apply(variables, TOKENS[0], REAL, method="encode")[VECTORS]
    assert np.array_equal(mean, latents)


@pytest.mark.slow
def test_a_generator_begins_at_nothing(quick):
    """Its last matrix is 0 before training, and the prediction too."""
    module, states = module_of("calm"), np.ones((1, 2, 16), np.float32)
    init = functools.partial(module.init_with_output, method="predict")
    guess, variables = quick(init)(jax.random.key(0), states)
    assert not np.any(guess)
    assert np.any(variables["params"]["noise_in"]["kernel"])


def test_a_patch_is_encoded_alone(draw, quick):
    """A token reaches the latent of its own patch, and a padded one none."""
    module = module_of("calm")
    variables = draw(module, TOKENS)
    program = quick(lambda *args: module.apply(variables, *args, method="encode")[VECTORS])
    other = TOKENS[0].copy()
    other[:, 3] = 7
    one, two = program(TOKENS[0], REAL), program(other, REAL)
    assert np.array_equal(one[:, 0], two[:, 0])
    assert not np.any(one[:, 1] == two[:, 1])
    short = np.broadcast_to(np.arange(LENGTH) < 3, REAL.shape)
    assert np.array_equal(program(TOKENS[0], short), program(other, short))


def test_concepts_are_restored_as_they_were(draw):
    """The median and the range of drawn vectors, and their inverse."""
    module = module_of("lcm")
    vectors = np.random.default_rng(0).normal(3, 2, (101, 8)).astype(np.float32)
    vectors[:, 0] = 5
    centre, spread = next_vector_losses.robust_scale(vectors)
    variables = draw(module, TOKENS)
    variables["params"] |= {"centre": centre, "spread": spread}
    normal = module.apply(variables, vectors, method="normal")
    np.testing.assert_allclose(np.median(normal, axis=0), 0, atol=1e-6)
    between = np.subtract(*np.percentile(normal[:, 1:], [75, 25], axis=0))
    np.testing.assert_allclose(between, 1, atol=1e-5)
    restored = module.apply(variables, normal, method="restored")
    np.testing.assert_allclose(restored, vectors, atol=1e-5)


@pytest.mark.slow
def test_the_decoder_reads_the_prediction_alone(draw, quick):
    """Where the prediction cannot differ, no earlier chunk reaches the decoder."""
    for name, last in (("calm", "sample"), ("lcm", "concept")):
        module = module_of(name)
        variables = draw(module, TOKENS)
        variables["params"][last] = jax.tree.map(jnp.zeros_like, variables["params"][last])
        program = quick(functools.partial(module.apply, variables))
        other = TOKENS.copy()
        other[:, :2] = 7
        assert np.array_equal(program(TOKENS)[:, 2], program(other)[:, 2])


def test_the_energy_of_a_point_on_the_target_is_0(quick):
    """And its gradient there is a number."""
    targets = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    same = np.broadcast_to(targets[:1], targets.shape)
    loss, gradient = quick(
        jax.value_and_grad(lambda x: next_vector_losses.energy_loss(x, same).sum())
    )(same)
    assert loss == 0
    assert np.isfinite(gradient).all()


def test_the_energy_is_least_at_the_true_mean(quick):
    """Of Gaussians of one number; the mean of the targets is 0.3."""
    rng = np.random.default_rng(0)
    targets = rng.normal(0.3, 1, (4000, 1, 1)).astype(np.float32)
    noise = rng.normal(0, 1, (100, 1, 1)).astype(np.float32)
    noise -= noise.mean()
    program = quick(lambda mean: next_vector_losses.energy_loss(noise + mean, targets)[0])
    means = np.linspace(-0.2, 0.8, 11, dtype=np.float32)
    losses = [program(mean) for mean in means]
    assert means[np.argmin(losses)] == pytest.approx(targets.mean(), abs=0.06)


def test_free_nats_have_no_gradient(quick):
    """Exactly 0 below the bound, and that of the nats above it."""
    mean, log_variance = np.float32([0.5, 3.0]), np.float32([0.1, 0.1])
    gradient = quick(jax.grad(next_vector_losses.gaussian_penalty, argnums=(0, 1)))
    of_mean, of_variance = gradient(mean, log_variance)
    assert of_mean[0] == of_variance[0] == 0
    assert of_mean[1] == pytest.approx(3)


def test_the_brier_score_of_known_predictors():
    """1 of a certain one that is right, and 1 / V on average of one that knows nothing."""
    label = np.full((1, 1), 3)
    assert next_vector_losses.brier(label, label, label) == 1
    ids = np.arange(8)
    first, second = (x.reshape(-1, 1) for x in np.meshgrid(ids, ids))
    found = next_vector_losses.brier(first, second, np.broadcast_to(label, first.shape))
    assert found.mean() == pytest.approx(1 / 8)


def test_squared_errors_are_means_over_samples():
    samples, targets = np.float32([[[1, 1]], [[3, 3]]]), np.float32([[1, 1]])
    assert next_vector_losses.squared_loss(samples, targets).tolist() == [2]


@pytest.mark.slow
def test_a_prediction_that_reads_more_inputs_is_seen(draw, quick):
    """T2r of the common tests fails where the last input takes the first one's place."""
    module = module_of("lcm")

    class Ahead(type(module)):
        """Faulty: the vector model reads the mean of all inputs."""

        def read(self, leaves, x, tokens, valid):
            guess = self.next_of(leaves, x.mean(axis=1))
            return self.read_rows(self.expand(guess), None, x, valid)

    faulty = Ahead(module.config, module.chunks, module.vocab_size, module.dials)
    program = quick(functools.partial(faulty.apply, draw(module, TOKENS)))
    other = TOKENS.copy()
    other[:, 2, 3] = 7
    assert not np.array_equal(program(TOKENS)[:, 2, :3], program(other)[:, 2, :3])
