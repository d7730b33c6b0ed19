"""A family is one adapter and one line, an objective is one file and one line: toys of both are
trained by the same step as ours."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Config, ConfigError, Data, Stage, to_json
from memjax.models import FAMILIES, Request, build, can, example, find
from memjax.models.adapter import Adapter
from memjax.models.uses import Use
from memjax.objectives import OBJECTIVES, SpecialIds, load_config, of_family
from memjax.objectives.objective import Objective, score_labels
from memjax.objectives.requests import token_weight
from memjax.training.flops import model_flops
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, train_step


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of the toy."""

    width: int = 4
    """Width of its table."""


class Bigram(nn.Module):
    """Scores every token by the one before it."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(self.vocab_size)(nn.Embed(self.vocab_size, self.width)(tokens))


def answer(asking, variables, requests):
    found = {}
    for name, request in requests.items():
        log = jax.nn.log_softmax(asking.module.apply(variables, request.inputs))
        nats = -jnp.take_along_axis(log, request.labels[..., None], axis=-1)[..., 0]
        found[name] = nats, log.argmax(-1) == request.labels
    return found


TOY = Adapter(
    name="bigram",
    module=Bigram,
    summary="A toy.",
    capabilities=frozenset(("predicts", "reads_rows", "echoes")),
    build=lambda config, stage: Bigram(config.data.vocab_size, TOY.dials_of(stage).width),
    example=lambda config: jnp.zeros((1, config.data.sequence_length), jnp.int32),
    uses=lambda config, stage, requests: iter(
        [Use("Dense_0", "head", len(requests) * stage.batch_size * config.data.sequence_length)]
    ),
    answer=answer,
    dials=Dials,
)


def echo(asking):
    """Every token from itself."""
    tokens = asking.batch.tokens[:, None]
    return Request(tokens, tokens, token_weight(tokens, asking.ids))


ECHO = Objective("echo", needs="echoes", request=echo, score=score_labels)


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(FAMILIES, TOY.name, TOY)
    monkeypatch.setitem(OBJECTIVES, ECHO.name, ECHO)


def config_of(**changes):
    stage = Stage(family="bigram", objectives={"next_token": 1.0, "echo": 1.0}, batch_size=4)
    return Config(
        data=Data(vocab_size=300, sequence_length=32),
        stages={"toy": dataclasses.replace(stage, **changes)},
        curriculum=("toy",),
    )


def test_a_toy_family_and_a_toy_objective_are_trained(toys):
    config = load_config(to_json(config_of(dials={"width": 6})))
    stage = config.stages["toy"]
    assert of_family("bigram") == ("next_token", "echo")
    module = build(config, stage)
    params = module.init(jax.random.key(0), example(module, config))["params"]
    assert params["Embed_0"]["embedding"].shape == (300, 6)
    trainable, frozen = split(params, stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    state = TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable))
    rows = np.random.default_rng(0).integers(6, 300, (4, 32)).astype(np.int32)
    step = jax.jit(
        lambda state: train_step(
            state, rows, module=module, stage=stage, optimizer=optimizer, ids=SpecialIds()
        )
    )
    losses = []
    for _ in range(3):
        state, metrics = step(state)
        losses.append(float(metrics.loss))
    assert set(metrics.terms) == {"next_token", "echo"}
    assert losses[-1] < losses[0]


def test_dials_are_checked_by_name_and_type(toys):
    with pytest.raises(ConfigError, match=r"config.stages.toy.dials.wide: unknown, expected width"):
        load_config(to_json(config_of(dials={"wide": 1})))
    with pytest.raises(ConfigError, match=r"config.stages.toy.dials.width: 'x', expected int"):
        load_config(to_json(config_of(dials={"width": "x"})))
    stage = Stage(objectives={"next_token": 1.0}, dials={"width": 1})
    text = to_json(Config(stages={"main": stage}, curriculum=("main",)))
    with pytest.raises(
        ConfigError, match=r"dials.width: unknown, expected .*family='memory_model'"
    ):
        load_config(text)


def test_an_objective_needs_a_capability(toys):
    with pytest.raises(ConfigError, match=r"'copy', expected one of next_token, echo$"):
        load_config(to_json(config_of(objectives={"copy": 1.0})))
    assert "echo" not in of_family("causal_lm")


def test_every_family_declares_what_it_can(toys):
    for name, adapter in FAMILIES.items():
        assert find(name) is adapter
        assert of_family(name)
        assert all(can(name, OBJECTIVES[o].needs) for o in of_family(name))
        assert adapter.summary.endswith(".")


def test_flops_follow_from_the_adapter(toys):
    config = config_of(dials={"width": 6})
    # Two requests of 4 rows of 32 tokens, each by a matrix of 6 x 300.
    found = model_flops(config, config.stages["toy"])
    assert found.forward == 2 * (2 * 4 * 32) * 6 * 300
    assert found.parts == {"head": found.parts["head"]}
