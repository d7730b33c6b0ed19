"""Tokens that a module has no place for, outside of a run's checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Stage
from memjax.errors import MemjaxError
from memjax.models import EMPTY, build, example
from memjax.models.registry import FAMILIES
from memjax.testing.settings import VALID


@pytest.mark.parametrize("name", ["main", "auto"])
def test_tokens_without_a_place_are_named(draw, name):
    module = build(VALID, VALID.stages[name])
    tokens = example(module, VALID)
    variables = draw(module, tokens)
    for wrong in (VALID.data.vocab_size, -1):
        with pytest.raises(MemjaxError, match=rf"ids: \[{wrong}\], expected 0 to 1023"):
            module.apply(variables, jnp.full(tokens.shape, wrong, jnp.int32))


@pytest.mark.parametrize("family", FAMILIES)
def test_more_tokens_or_chunks_than_the_module_has_places_for_are_named(draw, family):
    module = build(VALID, Stage(family=family))
    tokens = example(module, VALID)
    variables = draw(module, tokens)
    *before, length = tokens.shape
    chunks = f"at most 4 chunks of {length}" if family == "memory_model" else f"at most {length}"
    wrong = [(*before, length + 1), (2, 2, 2, 2)]
    wrong += [(1, 5, length)] if family == "memory_model" else []
    for shape in wrong:
        for apply in (module.apply, jax.jit(module.apply)):
            with pytest.raises(MemjaxError, match=rf"shape .*{shape[-1]}\), expected .* {chunks} "):
                apply(variables, jnp.zeros(shape, jnp.int32))


def test_chunks_without_a_given_place_are_those_of_one_sequence(draw):
    module = build(VALID, VALID.stages["main"])
    variables = draw(module, example(module, VALID))
    five = jnp.zeros((1, 5, 32), jnp.int32)
    for ask in ("decode", "score"):
        with pytest.raises(MemjaxError, match="at most 4 chunks"):
            module.apply(variables, *[five] * (1 + (ask == "score")), method=ask)
    places = {"slots": np.full((5, 3), EMPTY), "chunk": np.zeros(5, np.int32)}
    jax.eval_shape(lambda: module.apply(variables, five, None, **places, method="states"))
