"""The programs of a stage that are compiled and timed."""

import dataclasses

import jax
import pytest

from memjax.config import reading
from memjax.performance import stage_programs
from memjax.performance.stage_programs import StagePrograms
from memjax.sharding import make_mesh
from memjax.testing import tiny_config


@pytest.mark.parametrize("objective", ["copy", "recall"])
def test_generation_is_prompted_by_what_a_stage_is_trained_on(objective, monkeypatch):
    config = tiny_config("unused")
    stage = dataclasses.replace(config.stages["combined"], objectives={objective: 1.0})
    if objective == "recall":
        config = dataclasses.replace(config, model=reading(config.model))
    config = dataclasses.replace(config, stages={"combined": stage}, curriculum=("combined",))
    prompts = []

    def spy(module, params, tokens, **how):
        prompts.append(how["ask"])
        return tokens

    monkeypatch.setattr(stage_programs, "regenerate", spy)
    jitted, arguments = StagePrograms(config, "combined", make_mesh(config.mesh)).generate()
    jax.eval_shape(jitted, *arguments)
    assert prompts == [objective]
