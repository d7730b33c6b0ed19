"""What the published code does to its models: what each quirk changes, and that it changes nothing
else.

What `overwritten_write_slot` changes is in test_recurrent_memory.py, noise in
test_encoder_noise.py, first weights in test_initialize.py.

Shapes: B row, C chunk, S slot, L token, D width, V vocabulary.
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import (
    MODEL_QUIRKS,
    STAGE_QUIRKS,
    Backbone,
    Config,
    ConfigError,
    Data,
    Model,
    Stage,
    to_config_dict,
)
from memjax.layers import Backbone as Stack
from memjax.models import EMPTY, MemoryModel, build, earlier_chunks, example
from memjax.objectives import Batch, SpecialIds, load_config, score
from memjax.testing import tiny_config
from memjax.testing.families import FAMILY_OBJECTIVES

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY, WIDTH = 3, 4, 20, 8
SMALL = {"width": WIDTH, "layers": 1, "heads": 2, "mlp_ratio": 1}
TRANSFORMER, MIXER = Backbone(**SMALL), Backbone(kind="mixer", **SMALL)
MODEL = Model(chunk_length=LENGTH, encoder=MIXER, decoder=TRANSFORMER, reconstructor=MIXER)
MIXED = dataclasses.replace(MODEL, decoder=MIXER)
FILLS = {"slots_of_ones": 1.0, "slots_of_zeros": 0.0}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(IDS.first_content, VOCABULARY, (2, CHUNKS, LENGTH)).astype(np.int32)
MEMORIES = RNG.normal(size=(2, CHUNKS, 1, WIDTH)).astype(np.float32)


def memory_model(model, *quirks, memory=True):
    return MemoryModel(dataclasses.replace(model, compat=quirks), CHUNKS, VOCABULARY, memory)


# Nothing else

CHANGES = {
    "slots_of_ones": {"memory_model"},
    "slots_of_zeros": {"memory_model"},
    "attended_padding": set(FAMILY_OBJECTIVES),
    "overwritten_write_slot": {"recurrent_memory"},
    # Whatever has a mixer: a gradient that the forward pass does not show.
    "dense_mixing_gradient": set(FAMILY_OBJECTIVES),
    "one_sided_noise": {"autoencoder", "memory_model", "oracle", "retriever", "ranker"},
    "residual_noise": {"autoencoder", "memory_model", "oracle", "retriever", "ranker"},
    "reference_init": set(),
}
"""The families each quirk may change."""


def program(
    family: str, *quirks: str, padded: bool = True, training: bool = True, mixer: bool = True
) -> str:
    """What a family computes for its first objective, as text: equal text is equal arithmetic.

    Args:
      family: of models.
      *quirks: of the model.
      padded: whether the model is told where padding is.
      training: whether there is noise.
      mixer: whether stacks are mixers.
    """
    decoder = MIXER if mixer and family != "ranker" else TRANSFORMER
    stack = MIXER if mixer else TRANSFORMER
    model = Model(
        chunk_length=LENGTH,
        bottleneck=4,
        noise=0.1,
        encoder=stack,
        decoder=decoder,
        reconstructor=stack,
        compat=quirks,
    )
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=4 * LENGTH), model=model)
    stage = Stage(family=family, dials={"query_tokens": 2})
    module = build(config, stage)
    tokens = example(module, config)
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens)
    rows, key = jnp.zeros((2, 4 * LENGTH), jnp.int32), jax.random.key(0) if training else None

    def run(variables, rows, attribution):
        if not padded:
            return module.apply(variables, tokens)
        return score(
            module,
            variables,
            Batch(rows, attribution),
            FAMILY_OBJECTIVES[family][:1],
            IDS,
            stage,
            key,
        )

    traced = str(jax.make_jaxpr(run)(variables, rows, rows.astype(jnp.float32)))
    return re.sub(r" at 0x[0-9a-f]+", "", traced)


@pytest.fixture(scope="module")
def without():
    """Programs of all families without quirks."""
    return {family: program(family) for family in FAMILY_OBJECTIVES}


def test_every_quirk_of_models_is_listed_here():
    assert tuple(CHANGES) == MODEL_QUIRKS


@pytest.mark.quick_cases(slow=("attended_padding", "dense_mixing_gradient", "slots_of_zeros"))
@pytest.mark.parametrize("quirk", MODEL_QUIRKS)
def test_a_quirk_changes_these_families_and_no_other(quirk, without):
    assert {
        family for family in FAMILY_OBJECTIVES if program(family, quirk) != without[family]
    } == CHANGES[quirk]


@pytest.mark.quick_cases("memory_model", "causal_lm", "retriever")
@pytest.mark.parametrize("family", FAMILY_OBJECTIVES)
def test_what_is_attended_to_matters_only_where_there_is_padding(family):
    assert program(family, "attended_padding", padded=False) == program(family, padded=False)


@pytest.mark.quick_cases("memory_model")
@pytest.mark.parametrize("family", FAMILY_OBJECTIVES)
def test_a_model_without_mixers_has_no_dead_triangle(family):
    assert program(family, "dense_mixing_gradient", mixer=False) == program(family, mixer=False)


@pytest.mark.quick_cases("memory_model", "retriever")
@pytest.mark.parametrize("family", sorted(CHANGES["one_sided_noise"]))
def test_noise_has_a_side_in_training_alone(family):
    plain = program(family, training=False)
    assert program(family, "one_sided_noise", training=False) == plain
    # It goes around the bottleneck: without noise too.
    assert program(family, "residual_noise", training=False) != plain


# Slots without a memory


@pytest.mark.parametrize("quirk", FILLS)
@pytest.mark.parametrize("model", [MODEL, MIXED], ids=["transformer", "mixer"])
def test_there_are_as_many_slots_as_chunks_and_all_are_read(model, quirk, draw):
    module = memory_model(model, quirk)
    assert module.slots == CHUNKS
    assert memory_model(model).slots == CHUNKS - 1
    variables = draw(module, TOKENS)
    sequences = []

    def spy(call, args, kwargs, context):
        if (
            isinstance(context.module, Stack)
            and context.method_name == "__call__"
            and context.module.path == ("backbone",)
        ):
            sequences.append((args[0].shape, args[2].shape))
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(module.apply, variables, TOKENS)
    assert sequences == [((2 * CHUNKS, CHUNKS + LENGTH, WIDTH), (2 * CHUNKS, CHUNKS + LENGTH))]
    if model is MIXED:
        mixing = variables["params"]["backbone"]["blocks"]["mix"]["mixing"]
        assert mixing.shape[-2:] == (CHUNKS + LENGTH, CHUNKS + LENGTH)


@pytest.mark.parametrize("quirk", FILLS)
@pytest.mark.parametrize("model", [MODEL, MIXED], ids=["transformer", "mixer"])
def test_an_empty_slot_is_one_that_holds_a_memory_of_the_constant(model, quirk, quick, draw):
    """A model told that all slots are filled, with the constant among its memories, computes the
    same."""
    # Places are added to memories and not to the constant.
    module = memory_model(dataclasses.replace(model, chunk_positions=False), quirk)
    variables = draw(module, TOKENS)
    given = np.concatenate([MEMORIES[:, :-1], np.full_like(MEMORIES[:, :1], FILLS[quirk])], axis=1)
    filled = np.array([[2, 2, 2], [0, 2, 2], [0, 1, 2]])
    invalid = np.array([[True, False, True], [True, True, True]])
    without = np.array([[2, 2, 2], [0, 2, 2], [0, 2, 2]])

    @quick
    def run(memories, slots, valid):
        return module.apply(variables, TOKENS, memories, slots, memory_valid=valid, method="decode")

    valid = np.ones((2, CHUNKS), bool)
    empty = run(
        given, np.pad(earlier_chunks(CHUNKS), ((0, 0), (0, 1)), constant_values=EMPTY), valid
    )
    np.testing.assert_allclose(empty, run(given, filled, valid), atol=1e-6)
    # A memory of a chunk of padding is none.
    found = run(given, np.where(filled == 2, EMPTY, filled), invalid)
    np.testing.assert_allclose(found[0], run(given, without, valid)[0], atol=1e-6)
    np.testing.assert_allclose(found[1], empty[1], atol=1e-6)


@pytest.fixture(scope="module", params=[MODEL, MIXED], ids=["transformer", "mixer"])
def filled(request, quick, draw):
    """Logits under both quirks from the same weights: with memories, without, and of the
    control."""
    modules = [memory_model(request.param, quirk) for quirk in FILLS]
    variables = draw(modules[0], TOKENS)

    @quick
    def run(memories):
        given = [m.apply(variables, TOKENS, memories, method="decode") for m in modules]
        controls = [memory_model(request.param, quirk, memory=False) for quirk in FILLS]
        own = {"params": {k: v for k, v in variables["params"].items() if k != "encoder"}}
        return (
            given,
            [m.apply(variables, TOKENS, None, method="decode") for m in modules],
            [m.apply(own, TOKENS) for m in controls],
        )

    return run


def test_the_constant_is_read_by_every_token_of_every_chunk(filled):
    """The last chunk too, whose last slot nothing fills."""
    (ones, zeros), *_ = filled(MEMORIES)
    assert np.all(np.abs(ones - zeros).max(axis=-1) > 1e-4)


@pytest.mark.parametrize("chunk", range(CHUNKS - 1))
def test_a_memory_is_still_read_by_later_chunks_alone(filled, chunk):
    other = MEMORIES.copy()
    other[:, chunk] += 1
    for before, after in zip(filled(MEMORIES)[0], filled(other)[0], strict=True):
        assert [np.array_equal(before[:, c], after[:, c]) for c in range(CHUNKS)] == [
            c <= chunk for c in range(CHUNKS)
        ]


def test_the_control_reads_the_constant_in_every_slot(filled):
    given, nothing, control = filled(MEMORIES)
    for with_memories, without, alone in zip(given, nothing, control, strict=True):
        np.testing.assert_array_equal(without, alone)
        np.testing.assert_allclose(without[:, 0], with_memories[:, 0], atol=1e-6)
        assert np.all(np.abs(without[:, 1:] - with_memories[:, 1:]).max(axis=-1) > 1e-4)
    assert np.all(np.abs(control[0] - control[1]).max(axis=-1) > 1e-4)


# Padding that is read


@pytest.mark.quick_cases("memory_model", "causal_lm")
@pytest.mark.parametrize(
    "family", ["autoencoder", "memory_model", "causal_lm", "retriever", "ranker"]
)
def test_what_stands_in_padding_is_read_only_where_asked(family, quick, draw):
    """Oracle, recurrent memory and entropy regressor have this test beside their own."""
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
    modules = []
    for quirks in ((), ("attended_padding",)):
        settings = dataclasses.replace(config, model=dataclasses.replace(MODEL, compat=quirks))
        modules.append(build(settings, Stage(family=family)))
    tokens = TOKENS.reshape(-1, *example(modules[0], config).shape[1:])
    valid = np.ones(tokens.shape, bool)
    valid[..., 1] = False
    other = np.where(valid, tokens, tokens % 5 + 1)
    variables = draw(modules[0], tokens)
    run = quick(lambda tokens: [m.apply(variables, tokens, valid) for m in modules])
    (masked, attended), (masked_after, attended_after) = run(tokens), run(other)
    # At padding itself there are logits of next tokens, which nobody reads.
    at = valid if family in ("memory_model", "causal_lm") else ...
    assert np.array_equal(masked[at], masked_after[at])
    assert np.all(np.abs(attended - attended_after).reshape(len(tokens), -1).max(axis=-1) > 1e-4)
    assert np.abs(masked - attended)[at].max() > 1e-4


# The dead triangle


@pytest.mark.slow
def test_the_dead_triangle_of_every_mixer_of_a_memory_model_has_a_gradient_and_nothing_else_changes(
    quick, draw
):
    deep = dataclasses.replace(MIXER, layers=2)
    model = dataclasses.replace(MODEL, encoder=deep, decoder=deep)
    modules = [memory_model(model), memory_model(model, "dense_mixing_gradient")]
    variables = draw(modules[0], TOKENS)

    @quick
    def run(variables):
        def loss(variables, module):
            scores = score(module, variables, TOKENS.reshape(2, -1), ["next_token", "copy"], IDS)
            return sum(jnp.sum(s.nats * s.weight) for s in scores.values())

        return [jax.value_and_grad(loss)(variables, module) for module in modules]

    (value, cut), (same, dense) = run(variables)
    assert value == same
    cut, dense = cut["params"], dense["params"]
    for path in (("encoder", "backbone"), ("backbone",)):
        parts = [cut, dense]
        for name in (*path, "blocks", "mix"):
            parts = [part[name] for part in parts]
        triangles = [part.pop("mixing") for part in parts]
        dead = np.triu(np.ones(triangles[0].shape[-2:], bool), 1)
        np.testing.assert_allclose(
            triangles[0][..., ~dead], triangles[1][..., ~dead], rtol=1e-4, atol=1e-5
        )
        assert np.all(triangles[0][..., dead] == 0)
        first, last = triangles[1][:, :, 0]
        assert np.all(first[:, dead] != 0)
        # In the last layer alone it matters where a stack is read: at an encoder's last position,
        # at a decoder's tokens.
        at_read = len(dead) - (1 if path[0] == "encoder" else LENGTH)
        assert np.all(
            (last != 0)[:, dead]
            == (np.arange(len(dead)) >= at_read)[:, None].repeat(len(dead), 1)[dead]
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), cut, dense)


# Refusals


@pytest.mark.parametrize(
    ("key", "known"),
    [("model.compat", MODEL_QUIRKS), ("stages.combined.compat", STAGE_QUIRKS)],
    ids=["model", "stage"],
)
def test_an_unknown_quirk_is_refused_with_those_there_are(key, known):
    tree = to_config_dict(tiny_config("unused"))
    *path, name = key.split(".")
    owner = tree
    for step in path:
        owner = owner[step]
    with owner.unlocked():
        owner[name] = (*known[:1], "slots_of_twos")
    with pytest.raises(
        ConfigError,
        match=rf"config\.{key}: 'slots_of_twos', expected one of {', '.join(known)}",
    ):
        load_config(tree)
