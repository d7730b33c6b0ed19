"""Scaling RMT: its write in both directions, the restarts of training, and the curriculum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.models.peers.rmt import STATE, RecurrentMemoryTransformer
from memjax.models.peers.rmt import Dials as RMTDials
from memjax.models.peers.scaling_rmt import Dials, ScalingRMT, curriculum

CHUNKS, LENGTH, VOCABULARY, WIDTH = 6, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (3, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((3, LENGTH), bool)


def make(reach=0, kind=ScalingRMT):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(2, reach))


class SeesAll(ScalingRMT):
    """A fault: a chunk is decoded in both directions too."""

    def read(self, leaves, x, tokens, valid):
        x = jnp.concatenate([leaves[STATE], x], axis=1)
        return self.backbone(x, jnp.zeros(x.shape[:2], int), jnp.ones((1, 1, x.shape[1]), bool))


@pytest.mark.slow
def test_every_position_is_read_and_the_state_leaves_at_its_own(draw, quick):
    module = make()
    variables = draw(module, TOKENS)

    @quick
    def both(tokens):
        def run(model):
            x = jnp.concatenate([model.start(3)[STATE], model.embed_tokens(tokens, REAL)], axis=1)
            at = jnp.broadcast_to(jnp.arange(2 + LENGTH), x.shape[:2])
            plain = model.backbone(x, at, jnp.ones((3, 2 + LENGTH, 2 + LENGTH), bool))
            return model.update(model.start(3), tokens, REAL)[STATE], plain[:, :2]

        return module.apply(variables, method=run)

    np.testing.assert_allclose(*both(TOKENS[:, 0]), atol=1e-6)


@pytest.mark.slow
def test_a_chunk_is_decoded_as_by_rmt_and_causally(draw, quick):
    module = make()
    variables = draw(module, TOKENS)
    rmt = RecurrentMemoryTransformer(MODEL, CHUNKS, VOCABULARY, dials=RMTDials(2))
    states = []
    for kind in (module, rmt, make(kind=SeesAll)):

        def run(model, tokens):
            return model.read(model.start(3), model.embed_tokens(tokens, REAL), tokens, REAL)

        read = quick(lambda x, kind=kind, run=run: kind.apply(variables, x, method=run))
        ahead = TOKENS[:, 0].copy()
        ahead[:, -1] = 6
        states.append((read(TOKENS[:, 0]), read(ahead)))
    (one, changed), (other, _), (wrong, wrongly_changed) = states
    np.testing.assert_array_equal(one, other)
    assert np.array_equal(one[:, :-1], changed[:, :-1])
    assert not np.array_equal(wrong[:, :-1], wrongly_changed[:, :-1])


@pytest.mark.slow
def test_a_state_restarts_in_training_and_never_in_evaluation(draw, quick):
    restarts = {}
    variables = draw(make(), TOKENS)
    for reach, rngs in ((1, {"memory": jax.random.key(0)}), (3, {"memory": jax.random.key(0)})):
        module = make(reach)

        def run(rngs, module=module):
            return module.apply(variables, TOKENS, method="fold", rngs=rngs).leaves[STATE]

        first = np.asarray(variables["params"]["first"])
        restarts[reach] = (quick(run)(rngs) == first).all(axis=(2, 3))
    assert restarts[1].all()
    spans = [np.diff(np.flatnonzero(row)) for row in restarts[3]]
    assert max(map(max, spans)) <= 3 and len(set(np.concatenate(spans))) > 1
    held = quick(lambda: make(3).apply(variables, TOKENS, method="fold").leaves)()
    assert set(held) == {STATE} and not (held[STATE][:, 1:] == first).all(axis=(2, 3)).any()


def test_a_curriculum_reaches_one_more_chunk_in_every_stage():
    start = Stage(family="scalingrmt", dials={"vectors": 2}, init_from="runs/one")
    stages = curriculum(start, 3)
    assert [(name, stage.init_from, stage.dials["reach"]) for name, stage in stages.items()] == [
        ("reach_1", "runs/one", 1),
        ("reach_2", "reach_1", 2),
        ("reach_3", "reach_2", 0),
    ]
    assert {stage.dials["vectors"] for stage in stages.values()} == {2}
