"""The common tests of the field's memories that train or generate, besides those of test_peer.py.

T6 compilation and recomputation change nothing, T8 the gradient ends at the borders of
`bptt_chunks`, T11 generation is greedy, T12 frozen parts stay as they are and have no moments, T14
what else a batch asks for changes no score. The programs of a peer are compiled once for all but
T8.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.inference.generator import Generator
from memjax.layers.lora import adapter_shapes
from memjax.models import build
from memjax.models.memory import Memories
from memjax.models.peers import PEERS
from memjax.models.peers.adapters import answer
from memjax.models.peers.rmt import RecurrentMemoryTransformer
from memjax.models.request import Asking, Batch, SpecialIds, next_chunks
from memjax.objectives import build_requests
from memjax.objectives.requests import shift_right
from memjax.training.optimizer import make_optimizer, merge, split
from memjax.training.step import TrainState, train_step

VARIANTS = frozenset(
    (
        "scalingrmt",
        "memo",
        "transformerxl",
        "mplus",
        "500xcompressor",
        "emllm",
        "cmt",
        "mbc",
        "lstm",
        "gru",
        "memorytokens",
    )
)
"""Peers that share their form with another one; theirs are tests of the night."""
CASES = [
    pytest.param(name, marks=pytest.mark.night if name in VARIANTS else pytest.mark.slow)
    for name in PEERS
]

BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 4, 4, 32
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (BATCH, CHUNKS * LENGTH)).astype(np.int32)
EVERY, BORDERED = 3, 5
"""Chunks between borders of T8, and chunks of its sequence."""
READS_AGAIN = frozenset(("hmt",))
"""Peers that keep the last tokens of a chunk, and read them before those of the next one."""
DETACHED = frozenset(("memoria", "lamemo", "transformerxl"))
"""Chains whose states carry no gradient at all, as published: T8 needs only zeros there."""
IDS = SpecialIds()


def setting(name, chunks=CHUNKS, **model):
    config = Config(
        data=Data(vocab_size=VOCABULARY, sequence_length=chunks * LENGTH),
        model=dataclasses.replace(MODEL, **model),
    )
    stage = Stage(
        family=name,
        dials=dict(PEERS[name].tiny),
        objectives={"next_token": 1.0},
        trainable=PEERS[name].trainable,
    )
    return config, stage, build(config, stage)


@dataclasses.dataclass(frozen=True)
class Made:
    """A peer, its drawn parameters with those of adapters, and its programs."""

    name: str
    module: object
    params: dict
    score: object
    """Nats of the tokens of rows and whether each is the likeliest, for some objectives."""
    scored: object
    """The same, compiled."""


@pytest.fixture(params=CASES, scope="module")
def made(request, draw, quick):
    _, stage, module = setting(request.param)
    shapes = draw(module, ROWS.reshape(BATCH, CHUNKS, LENGTH))["params"]
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype),
        adapter_shapes(shapes, stage.trainable, "trainable"),
    )
    params = merge(shapes, adapters)

    def score(params, rows, names):
        asking = Asking(module, Batch(rows), IDS, stage)
        requests = build_requests(module, rows, names, IDS, stage)
        return answer(asking, {"params": params}, requests)["next_token"]

    return Made(request.param, module, params, score, quick(score, static_argnums=2))


def trained(name, params, quick, **model):
    """The state before and after a training step whose update is the gradient itself."""
    _, stage, module = setting(name, **model)
    trainable, frozen = split(params, stage.trainable, "trainable")
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable))
    step = functools.partial(train_step, module=module, stage=stage, optimizer=optimizer, ids=IDS)
    return state, *quick(step)(state, jnp.asarray(ROWS))


@pytest.fixture(scope="module")
def step(made, quick):
    return trained(made.name, made.params, quick)


def test_compilation_changes_nothing(made):
    """T6: scores, operation by operation."""
    compiled, _ = made.scored(made.params, ROWS, ("next_token",))
    plain, _ = made.score(made.params, jnp.asarray(ROWS), ("next_token",))
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-5)


def test_recomputation_changes_nothing(made, step, quick):
    """T6: losses, and the gradient of every parameter."""
    _, state, metrics = step
    _, other, found = trained(made.name, made.params, quick, remat="nothing_saveable")
    np.testing.assert_allclose(found.loss, metrics.loss, rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
        state.trainable,
        other.trainable,
    )


def test_frozen_parts_stay(made, step):
    """T12: their values bit by bit, and only what is trained has moments."""
    before, after, metrics = step
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
    assert np.isfinite(metrics.loss)
    assert 0 < metrics.gradient_norm < np.inf
    config, stage, _ = setting(made.name)
    optimizer = make_optimizer(config.optimizer, stage, before.trainable)
    moments = jax.eval_shape(optimizer.init, before.trainable)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(moments)]
    names = {re.sub(r"\W+", "/", path) for path in paths}
    for path in flatten_dict(before.frozen, sep="/"):
        assert not any(f"/{path}/" in name for name in names)
    for path in flatten_dict(before.trainable, sep="/"):
        assert any(f"/{path}/" in name for name in names)


def test_a_copy_request_changes_no_score(made):
    """T14."""
    alone, _ = made.scored(made.params, ROWS, ("next_token",))
    both, _ = made.scored(made.params, ROWS, ("copy", "next_token"))
    np.testing.assert_allclose(both, alone, rtol=1e-6, atol=1e-6)


def test_generation_is_greedy(made):
    """T11: over two borders of chunks, and for prompts of different lengths."""
    prompts = [ROWS[0, :3], ROWS[1, :6]]
    generator = Generator(made.module, made.params, IDS)
    found = generator.generate(prompts, 7)
    assert [len(tokens) for tokens in found] == [7, 7]
    rows = np.stack(
        [
            np.concatenate([prompt, tokens, row])[: CHUNKS * LENGTH]
            for prompt, tokens, row in zip(prompts, found, ROWS, strict=True)
        ]
    )
    _, likeliest = made.scored(made.params, rows, ("next_token",))
    for prompt, tokens, flags in zip(prompts, found, likeliest.reshape(BATCH, -1), strict=True):
        # Scores take the id of padding, which weights without training may generate, for no token.
        before = np.cumprod([1, *(np.asarray(tokens) != IDS.pad)])[:-1].astype(bool)
        scored = flags[len(prompt) : len(prompt) + 7]
        assert scored[before[: len(scored)]].all()


def cut_module(name, every=EVERY):
    return setting(name, BORDERED, bptt_chunks=every)[2]


def reached(module, draw, quick):
    """Whether the loss of each chunk has a gradient at the tokens of each chunk.

    The chunks have no token in common, so that the rows of the token tables are chunks.
    """
    tokens = 6 + np.arange(BORDERED * LENGTH).reshape(1, BORDERED, LENGTH)
    inputs = shift_right(jnp.asarray(tokens), IDS.bos, IDS.pad)
    flat = flatten_dict(draw(module, tokens)["params"])
    tables = {path: leaf for path, leaf in flat.items() if path[-1] == "embedding"}

    def losses(tables):
        def run(module):
            prefixes = module.fold(jnp.asarray(tokens[:, :-1]))
            return module.hidden(prefixes, next_chunks(inputs, tokens)).sum(axis=(0, 2, 3))

        return module.apply({"params": unflatten_dict(flat | tables)}, method=run)

    found = np.zeros((BORDERED, BORDERED), bool)
    for table in quick(jax.jacrev(losses))(tables).values():
        by_chunk = table[:, 6 : 6 + BORDERED * LENGTH].reshape(BORDERED, BORDERED, -1)
        found |= (by_chunk != 0).any(axis=-1)
    return found


CHUNK = np.arange(BORDERED)
EARLIER = CHUNK[:, None] > CHUNK
SAME = CHUNK[:, None] // EVERY == CHUNK // EVERY


@pytest.mark.parametrize(
    "name", [case for case in CASES if PEERS[str(case.values[0])].kind != "bank"]
)
def test_the_gradient_ends_at_borders(name, draw, quick):
    """T8: a loss reaches the chunks behind the last border, and nothing before it."""
    found, same = reached(cut_module(name), draw, quick)[EARLIER], SAME[EARLIER]
    # Tokens that are read again are inputs of the next chunk, and no state.
    again = (CHUNK[:, None] // EVERY == (CHUNK + 1) // EVERY)[EARLIER] & (name in READS_AGAIN)
    assert np.array_equal(found, (same & (name not in DETACHED)) | again)


class CutsNothing(RecurrentMemoryTransformer):
    """A fault, as in the published code of two peers: what is detached is read by nothing."""

    def fold(self, tokens, valid=None, state=None):
        def detach(leaves):
            leaves = jax.lax.stop_gradient(leaves)

        states = [self.start(len(tokens))]
        for chunk in range(tokens.shape[1]):
            text = tokens[:, chunk]
            states.append(self.update(states[-1], text, jnp.ones(text.shape, bool)))
            if (chunk + 1) % self.config.bptt_chunks == 0:
                detach(states[-1])
        leaves = jax.tree.map(lambda *leaf: jnp.stack(leaf, axis=1), *states)
        return Memories(leaves, jnp.full(len(tokens), len(states) - 1), self.KIND)


class CutsAll(RecurrentMemoryTransformer):
    """A fault: every state is detached, not only those at a border."""

    def update(self, leaves, tokens, valid):
        return jax.lax.stop_gradient(super().update(leaves, tokens, valid))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CutsNothing, CutsAll])
def test_a_truncation_without_effect_is_seen(kind, draw, quick):
    """T8 fails: all chunks before are reached, or none."""
    sound = cut_module("rmt")
    module = kind(sound.config, sound.chunks, sound.vocab_size, dials=sound.dials)
    found = reached(module, draw, quick)[EARLIER]
    assert (found == (kind is CutsNothing)).all()
    assert not np.array_equal(found, SAME[EARLIER])
