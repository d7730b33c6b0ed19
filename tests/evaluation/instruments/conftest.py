"""A tiny autoencoder that has learned, for instruments to look at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Optimizer, Stage
from memjax.inference.codec import MemoryCodec, make_codec
from memjax.models import Autoencoder, MemoryModel
from memjax.objectives import SpecialIds
from memjax.testing import tiny_model
from memjax.training.optimizer import make_optimizer
from memjax.training.step import TrainState, train_step

VOCABULARY, LENGTH = 40, 8
IDS = SpecialIds()


def markov_texts(
    count: int, seed: int, length: int = LENGTH, vocabulary: int = VOCABULARY
) -> np.ndarray:
    """Texts [count, length] of a chain in which a token is followed by one of two others, so that
    unseen texts can be learned."""
    content = vocabulary - IDS.first_content
    follow = np.random.default_rng(99).permuted(np.tile(np.arange(content), (2, 1)), axis=1)
    generator = np.random.default_rng(seed)
    state = np.minimum(generator.geometric(0.15, count) - 1, content - 1)
    texts = [state]
    for _ in range(length - 1):
        state = follow[(generator.random(count) < 0.2).astype(int), state]
        texts.append(state)
    return (np.stack(texts, axis=1) + IDS.first_content).astype(np.int32)


def train(module, stage: Stage, texts: np.ndarray) -> dict:
    """Parameters after `stage.steps` updates, each on random `stage.batch_size` of the texts, all
    in one call."""
    example = jnp.asarray(texts[:1])
    if isinstance(module, MemoryModel):
        example = example.reshape(1, module.chunks, -1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
    optimizer = make_optimizer(Optimizer(), stage, shapes)

    @jax.jit
    def run(key, texts):
        params = module.init(key, example)["params"]
        state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))

        def step(state, key):
            rows = texts[jax.random.randint(key, (stage.batch_size,), 0, len(texts))]
            state, metrics = train_step(
                state, rows, module=module, stage=stage, optimizer=optimizer, ids=IDS
            )
            return state, metrics.loss

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), stage.steps))

    state, losses = run(jax.random.key(0), texts)
    assert float(losses[-1]) < 0.7 * float(losses[0]), losses
    return jax.device_get(dict(state.trainable))


@pytest.fixture(scope="session")
def chain():
    """`markov_texts`."""
    return markov_texts


@pytest.fixture(scope="session")
def learn():
    """`train`."""
    return train


@pytest.fixture(scope="session")
def trained_autoencoder() -> tuple[MemoryCodec, dict, np.ndarray, np.ndarray]:
    """(system, params, train texts [512, 8], held-out texts [96, 8]); well above half of held-out
    tokens come back right."""
    model = tiny_model()
    wide = dataclasses.replace(model.encoder, width=32)
    module = Autoencoder(dataclasses.replace(model, encoder=wide, reconstructor=wide), VOCABULARY)
    stage = Stage(
        family="autoencoder",
        objectives={"reconstruction": 1.0},
        batch_size=64,
        steps=150,
        warmup_steps=10,
        learning_rate=1e-2,
    )
    texts = markov_texts(608, seed=1)
    params = train(module, stage, texts[:512])
    return make_codec(module, IDS), params, texts[:512], texts[512:]
