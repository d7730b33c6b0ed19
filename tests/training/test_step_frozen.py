"""What the presets of `config.FREEZING` keep: the weights, out of gradients and optimizer, and the
function.

Shapes: B row, C chunk, L token.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from memjax.checkpoints import CheckpointError, transplant
from memjax.config import (
    FREEZING,
    Backbone,
    Config,
    ConfigError,
    Data,
    Model,
    Optimizer,
    Stage,
    to_config_dict,
)
from memjax.experiment.preflight import check_stages
from memjax.models import build, example
from memjax.objectives import SpecialIds, load_config
from memjax.sharding import make_mesh
from memjax.testing import MATRICES, tiny_config
from memjax.testing.families import FAMILY_OBJECTIVES
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, train_step

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY, STEPS = 4, 4, 20, 20
SMALL = {"layers": 2, "heads": 2, "mlp_ratio": 1.0}
CONFIG = Config(
    data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH),
    model=Model(
        chunk_length=LENGTH,
        bottleneck=4,
        encoder=Backbone(kind="mixer", width=8, mlp="gelu", norm="layer", **SMALL),
        decoder=Backbone(width=12, **SMALL),
        reconstructor=Backbone(width=12, **SMALL),
    ),
    # Both optimizers, and a decay that would move what has no gradient.
    optimizer=Optimizer(rules=((MATRICES, "muon"), (".*", "adamw")), decay_rules=((".*", 0.1),)),
)
NAMES = {"autoencoder": "reconstruction", "memory_model": "blank_copy", "oracle": "next_token"}
FROZEN = {"trainable": (), "frozen_all": ("encoder/",), "frozen_blocks": ("encoder/backbone/",)}
"""What the paths of each preset's frozen parameters begin with."""
TOKENS = (
    np.random.default_rng(0)
    .integers(IDS.first_content, VOCABULARY, (4, CHUNKS * LENGTH))
    .astype(np.int32)
)
SOURCE = Stage(family="autoencoder")


def flat(tree):
    return flatten_dict(tree, sep="/")


def held(state):
    """(path, shape) of the arrays that an optimizer keeps of parameters."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(state):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        # Before a parameter's path stands which optimizer it is of, in Muon twice.
        keys = [k for k in keys if not k.startswith(("adam", "muon"))]
        if keys:
            found.append(("/".join(keys), leaf.shape))
        else:
            # Counters, and the coefficients of Muon's polynomial.
            assert leaf.shape in ((), (3,)), path
    return found


@pytest.fixture(scope="module")
def source(draw):
    """Parameters of an autoencoder."""
    module = build(CONFIG, SOURCE)
    return draw(module, example(module, CONFIG))["params"]


@pytest.fixture(scope="module")
def trained(quick, draw, source):
    """A model on the autoencoder's encoder after 20 steps: module, state before and after, and the
    gradients' paths."""

    @functools.cache
    def run(family, preset):
        stage = Stage(
            family=family,
            objectives={NAMES[family]: 1.0},
            batch_size=len(TOKENS),
            steps=STEPS,
            warmup_steps=0,
            lr_schedule="constant",
            trainable=FREEZING[preset],
        )
        module = build(CONFIG, stage)
        fresh = draw(module, example(module, CONFIG), seed=1)["params"]
        trainable, frozen = split(
            transplant(fresh, source, "encoder", "there"), stage.trainable, "trainable"
        )
        optimizer, seen = make_optimizer(CONFIG.optimizer, stage, trainable), []

        def update(gradients, state, params):
            seen.append({path: leaf.shape for path, leaf in flat(gradients).items()})
            return optimizer.update(gradients, state, params)

        spied = optax.GradientTransformation(optimizer.init, update)
        step = functools.partial(train_step, module=module, stage=stage, optimizer=spied, ids=IDS)
        before = TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable))
        after = quick(
            lambda state: jax.lax.fori_loop(
                0, STEPS, lambda _, state: step(state, TOKENS)[0], state
            )
        )(before)
        return module, before, after, seen

    return run


@pytest.mark.quick_cases(
    slow=(
        "memory_model-frozen_all",
        "memory_model-frozen_blocks",
        "oracle-frozen_all",
        "autoencoder-frozen_blocks",
        "autoencoder-trainable",
    ),
)
@pytest.mark.parametrize("preset", FROZEN)
@pytest.mark.parametrize("family", NAMES)
def test_what_is_frozen_stays_and_all_else_moves(family, preset, trained):
    _, before, after, seen = trained(family, preset)
    assert after.step == STEPS
    paths = {*flat(before.trainable), *flat(before.frozen)}
    frozen = (
        {path for path in paths if path.startswith(FROZEN[preset])} if FROZEN[preset] else set()
    )
    assert set(flat(before.frozen)) == set(flat(after.frozen)) == frozen
    assert len(frozen) == {"trainable": 0, "frozen_all": 21, "frozen_blocks": 16}[preset]
    for path, leaf in flat(after.frozen).items():
        assert np.asarray(leaf).tobytes() == np.asarray(flat(before.frozen)[path]).tobytes(), path
    for path, leaf in flat(after.trainable).items():
        moved = np.any(leaf != flat(before.trainable)[path], axis=tuple(range(1, leaf.ndim)))
        # Every layer of a stack; of a table those tokens that there are.
        assert moved.all() if "blocks/" in path else moved.any(), path

    # The optimizer is asked once, while the step is traced, and about what moves alone.
    assert seen
    for gradients in seen:
        assert gradients == {path: leaf.shape for path, leaf in flat(before.trainable).items()}


@pytest.mark.quick_cases(
    "memory_model-frozen_all",
    slow=(
        "memory_model-frozen_blocks",
        "oracle-frozen_all",
        "autoencoder-frozen_blocks",
        "autoencoder-trainable",
    ),
)
@pytest.mark.parametrize("preset", FROZEN)
@pytest.mark.parametrize("family", NAMES)
def test_what_is_frozen_has_no_optimizer_state(family, preset, trained):
    _, before, after, _ = trained(family, preset)
    # Adam keeps two moments, Muon one.
    expected = [
        (path, leaf.shape)
        for path, leaf in flat(before.trainable).items()
        for _ in range(1 if re.search(MATRICES, path) else 2)
    ]
    assert sorted(held(before.opt_state)) == sorted(held(after.opt_state)) == sorted(expected)
    assert not [
        path for path, _ in expected for prefix in FROZEN[preset] if path.startswith(prefix)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_under_frozen_all_memories_are_the_autoencoders_to_the_last_bit(
    family, trained, source, quick
):
    tokens = TOKENS.reshape(-1, LENGTH)
    autoencoder = build(CONFIG, SOURCE)

    def memories(module, params):
        shaped = (
            tokens.reshape(-1, CHUNKS, LENGTH)
            if family == "memory_model" and module is not autoencoder
            else tokens
        )
        run = quick(
            lambda params: module.apply(
                {"params": params}, shaped, shaped != IDS.pad, method="encode"
            )
        )
        return run(params).reshape(len(tokens), -1)

    expected = memories(autoencoder, source)
    module, _, state, _ = trained(family, "frozen_all")
    assert memories(module, state.params).tobytes() == expected.tobytes()
    # With a token table of its own it is another function of the same blocks.
    module, _, state, _ = trained(family, "frozen_blocks")
    assert np.all(np.abs(memories(module, state.params) - expected).max(axis=1) > 1e-4)


# Refusals


def changed(stage: str, **changes: object) -> Config:
    tree = to_config_dict(tiny_config("unused"))
    with tree.unlocked():
        tree.stages[stage].update(changes)
    return load_config(tree)


def test_an_unknown_family_is_refused_with_those_there_are():
    known = f"expected .* or one of {', '.join(FAMILY_OBJECTIVES)}$"
    with pytest.raises(ConfigError, match=f"stages.combined.family: 'memory', {known}"):
        changed("combined", family="memory")


@pytest.mark.parametrize("family", FAMILY_OBJECTIVES)
def test_an_objective_of_another_family_is_refused_with_the_familys_own(family):
    foreign = next(
        name
        for names in FAMILY_OBJECTIVES.values()
        for name in names
        if name not in FAMILY_OBJECTIVES[family]
    )
    tree = to_config_dict(tiny_config("unused"))
    with tree.unlocked():
        tree.stages.combined.family = family
        tree.stages.combined.objectives = {foreign: 1.0}
    known = ", ".join(FAMILY_OBJECTIVES[family])
    with pytest.raises(
        ConfigError, match=f"combined.objectives: '{foreign}', expected one of {known}$"
    ):
        load_config(tree)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "encoder,decoder",
            r"'decoder' is no part of this model; its parts are backbone, .*embed, encoder, head",
        ),
        (
            "encoder:memory",
            r"'memory' is no part of this model; its parts are backbone, .*embed, encoder, head",
        ),
        (
            "table:encoder/embed",
            r"autoencoder has no parameter 'table/embedding'; its parts are backbone, encoder,"
            r" head",
        ),
    ],
)
def test_an_unknown_part_is_refused_with_those_there_are_before_anything_runs(part, said):
    with pytest.raises(CheckpointError, match=said):
        check_stages(changed("combined", init_part=part), make_mesh())
