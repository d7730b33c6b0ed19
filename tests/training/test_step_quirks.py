"""What the published code does in training, seen through updates and runs.

Shapes: B row, N = C * L token of a row, C chunk, L token.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from memjax.checkpoints import CheckpointError, load_params
from memjax.config import FREEZING, Backbone, Config, Data, Model, Stage
from memjax.data import prepare
from memjax.models import build, example
from memjax.objectives import SpecialIds, score
from memjax.progress import Reporter
from memjax.testing import tiny_config, tiny_model, write_corpus
from memjax.training.init_state import Run
from memjax.training.loop import train_stage
from memjax.training.step import TrainState, train_step

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY, ROWS = 4, 4, 20, 4
SMALL = {"width": 8, "layers": 1, "heads": 2, "mlp_ratio": 1.0}
MIXER = Backbone(kind="mixer", **SMALL)
MODEL = Model(chunk_length=LENGTH, encoder=MIXER, decoder=Backbone(**SMALL), reconstructor=MIXER)
CONFIG = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
FIRST, MEANS, DELIMITED = (
    ("unscored_first_tokens",),
    ("unscored_first_tokens", "chunk_means"),
    "overwritten_delimiter",
)
TOKENS = (
    np.random.default_rng(0)
    .integers(IDS.first_content, VOCABULARY, (ROWS, CHUNKS * LENGTH))
    .astype(np.int32)
)
# Rows end in the last chunk, within the third, with the second and within the first.
PADDED = np.where(np.arange(CHUNKS * LENGTH) < np.array([[15], [11], [8], [3]]), TOKENS, IDS.pad)


def stage_of(compat, family="memory_model", **objectives):
    return Stage(family=family, objectives=objectives, compat=compat, batch_size=ROWS)


@pytest.fixture(scope="module")
def stepped(quick, draw):
    """Of a stage: its model, parameters, and a step by the bare gradient, compiled once."""

    cache = {}

    def compiled(stage):
        module = build(CONFIG, stage)
        params = draw(module, example(module, CONFIG))["params"]
        optimizer = optax.sgd(1.0)
        step = quick(
            functools.partial(train_step, module=module, stage=stage, optimizer=optimizer, ids=IDS)
        )
        return (
            module,
            params,
            lambda tokens: step(
                TrainState(jnp.int32(0), params, {}, optimizer.init(params)), tokens
            ),
        )

    def of(stage):
        if repr(stage) not in cache:
            cache[repr(stage)] = compiled(stage)
        return cache[repr(stage)]

    return of


def by_hand(stage, scores):
    """The published loss: the sum of the chunks' own means over C, however many of them have a
    target; in loops."""
    loss = 0.0
    for name, weight in stage.objectives.items():
        nats_BXL, weight_BXL = scores[name].nats, scores[name].weight
        for x in range(nats_BXL.shape[1]):
            targets = jnp.sum(weight_BXL[:, x])
            mean = jnp.sum(nats_BXL[:, x] * weight_BXL[:, x]) / jnp.maximum(targets, 1)
            loss += weight * jnp.where(targets > 0, mean, 0) / CHUNKS
    return loss


ALL = dict.fromkeys(("next_token", "copy", "plain_copy", "blank_copy"), 1.0)
MIXTURE = stage_of((*MEANS, DELIMITED), next_token=1.0, copy=2.0, blank_copy=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "microbatches"),
    [(MIXTURE, 1), (MIXTURE, 2), (stage_of(MEANS, "recurrent_memory", next_token=1.0), 2)],
    ids=["memory-1", "memory-2", "recurrent-2"],
)
def test_a_loss_of_chunk_means_is_that_by_hand(stage, microbatches, stepped, quick):
    module, params, step = stepped(dataclasses.replace(stage, grad_accum_steps=microbatches))
    state, metrics = step(PADDED)

    @quick
    def expected(params):
        def loss(params):
            return by_hand(
                stage,
                score(
                    module,
                    {"params": params},
                    jnp.asarray(PADDED),
                    list(stage.objectives),
                    IDS,
                    stage,
                ),
            )

        return jax.value_and_grad(loss)(params)

    value, gradient = expected(params)
    np.testing.assert_allclose(metrics.loss, value, rtol=1e-5)
    # At a rate of 1 the update is the gradient.
    jax.tree.map(
        lambda before, after, g: np.testing.assert_allclose(
            before - after, g, rtol=1e-4, atol=2e-6
        ),
        params,
        state.trainable,
        gradient,
    )


@pytest.mark.slow
def test_copying_has_half_the_weight_of_next_tokens(stepped):
    """Two of four chunks are copied, and the sum of their means is divided by four. Without padding
    all chunks weigh the same."""
    _, plain = stepped(stage_of(FIRST, **ALL))[2](TOKENS)
    _, means = stepped(stage_of(MEANS, **ALL))[2](TOKENS)
    of = {name: term.nats / term.count for name, term in plain.terms.items()}
    np.testing.assert_allclose(plain.loss, sum(of.values()), rtol=1e-5)
    expected = of["next_token"] + (of["copy"] + of["plain_copy"] + of["blank_copy"]) / 2
    np.testing.assert_allclose(means.loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_chunks_without_a_target_do_not_raise_the_share_of_the_others(stepped):
    first = np.where(np.arange(CHUNKS * LENGTH) < LENGTH, TOKENS, IDS.pad)
    (_, plain), (_, means) = (
        stepped(stage_of(compat, **ALL))[2](first) for compat in (FIRST, MEANS)
    )
    np.testing.assert_allclose(means.loss, plain.loss / CHUNKS, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compat", "next_token", "copied"),
    [((), 16, 8), (FIRST, 12, 6), ((*FIRST, DELIMITED), 12, 5)],
    ids=["none", "unscored", "delimited"],
)
def test_so_many_tokens_of_a_row_are_targets(compat, next_token, copied, stepped):
    _, metrics = stepped(stage_of(compat, **ALL))[2](TOKENS)
    counts = {name: float(term.count) / ROWS for name, term in metrics.terms.items()}
    # Without a delimiter nothing is overwritten.
    plain = 6 if DELIMITED in compat else copied
    assert counts == {
        "next_token": next_token,
        "copy": copied,
        "plain_copy": plain,
        "blank_copy": copied,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["recurrent_memory", "oracle"])
def test_other_families_leave_a_chunks_first_token_out_too(family, stepped):
    _, metrics = stepped(stage_of(FIRST, family, next_token=1.0))[2](PADDED)
    # Tokens of the four rows, less the first of each chunk that has one.
    assert metrics.terms["next_token"].count == (15 - 4) + (11 - 3) + (8 - 2) + (3 - 1)


# Layers that were never trained

SHALLOW = Backbone(width=16, layers=1, heads=2, mlp_ratio=2.0, final_norm=False)
DEEP = dataclasses.replace(SHALLOW, layers=3, final_norm=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained autoencoder of one layer, and how to make a run of another depth of encoder that
    starts from it."""
    folder = tmp_path_factory.mktemp("untrained")
    config = tiny_config(
        write_corpus(folder / "corpus.jsonl"), steps=2, model=tiny_model(encoder=SHALLOW)
    )
    data = prepare(config.data, folder / "data")
    reporter = Reporter(Console(quiet=True))
    train_stage(Run(config, folder / "shallow", data, reporter), "autoencoder")

    def run(name, encoder, **changes):
        changes = {
            "init_from": str(folder / "shallow" / "stages" / "autoencoder"),
            "init_part": "encoder/backbone",
            "trainable": FREEZING["frozen_blocks"],
        } | changes
        stages = {"main": dataclasses.replace(config.stages["combined"], **changes)}
        model = tiny_model(encoder=encoder)
        deeper = dataclasses.replace(
            config, model=model, stages=stages, curriculum=("main",), controls=()
        )
        return Run(deeper, folder / name, data, reporter)

    return folder / "shallow", run


@pytest.mark.night
def test_a_shallower_stack_fills_the_first_layers_and_the_others_stay_as_initialised(runs):
    source, run = runs
    deep = run("deep", DEEP, compat=("untrained_layers",))
    train_stage(deep, "main")
    trained, _ = load_params(source / "stages" / "autoencoder" / "checkpoints")
    found, _ = load_params(deep.folder("main") / "checkpoints")
    config = deep.config
    module = build(config, config.stages["main"])
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"main"))
    fresh = jax.jit(lambda key: module.init(key, example(module, config)))(key)["params"]

    trained, fresh_encoder, encoder = (
        tree["encoder"]["backbone"] for tree in (trained, fresh, found)
    )
    assert "norm" not in trained
    assert np.array_equal(encoder["norm"]["scale"], fresh_encoder["norm"]["scale"])
    blocks = jax.tree.leaves_with_path(encoder["blocks"])
    assert len(blocks) == len(jax.tree.leaves(trained["blocks"]))
    for (path, leaf), first, rest in zip(
        blocks,
        jax.tree.leaves(trained["blocks"]),
        jax.tree.leaves(fresh_encoder["blocks"]),
        strict=True,
    ):
        assert leaf.shape[0] == 3, path
        assert np.array_equal(leaf[:1], first), path
        assert np.array_equal(leaf[1:], rest[1:]), path
        if path[-1].key == "kernel":
            assert not np.array_equal(first, rest[:1]), path
    # Before the frozen blocks a token table is learned anew.
    assert not np.array_equal(
        found["encoder"]["embed"]["embedding"], fresh["encoder"]["embed"]["embedding"]
    )


@pytest.mark.slow
def test_layers_are_not_filled_unasked(runs):
    _, run = runs
    with pytest.raises(
        CheckpointError, match=r"trained with config\.model\.encoder=.*layers=1.*layers=3"
    ):
        train_stage(run("unasked", DEEP), "main")


@pytest.mark.slow
def test_filled_layers_are_those_of_the_same_stack_but_for_its_depth(runs):
    """As many heads are no matter of shapes, and yet of what weights mean."""
    _, run = runs
    with pytest.raises(
        CheckpointError, match=r"trained with config\.model\.encoder=.*heads=2.*heads=4"
    ):
        train_stage(
            run("heads", dataclasses.replace(DEEP, heads=4), compat=("untrained_layers",)), "main"
        )
