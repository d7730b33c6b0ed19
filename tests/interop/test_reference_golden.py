"""Weights of the published code compute here what they compute there, and leave as they came."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from memjax import objectives
from memjax.interop.reference import export_state_dict, forward, import_state_dict
from memjax.interop.reference.spec import STAGE, SpecError, to_config
from memjax.interop.reference.weights import StateDictError
from memjax.objectives import SpecialIds

TOLERANCE = 2e-5
"""Absolute, of logits and losses; the worst case, a mixer that reads slots of zeros through a layer
norm, is at 6e-6."""
CASES = 31
FEW = pytest.mark.quick_cases(
    "autoencoder_mixer_repeat_k8.a",
    "autoencoder_mixer_unroll_heads.w",
    "autoencoder_transformer_unroll_bottleneck.a",
    "llama_lm.a",
    "memory_mixer_heads_bottleneck.a",
    "memory_transformer_copy.a",
    "memory_transformer_variable.a",
    "mixer_lm_kernel4.a",
    "oracle_mixer_token.a",
    "oracle_transformer_embedding.a",
    "probe_transformer_bridge.a",
    "recurrent_memory_mixer.a",
)
"""Of every family and kind of stack; the others are slow."""


class Computed(NamedTuple):
    logits: np.ndarray
    loss: float


def published_loss(module, variables, tokens, spec):
    """The loss that training reports, under the quirks of the imported config."""
    config = to_config(spec)
    stage = config.stages[STAGE]
    ids = SpecialIds(pad=-1, blank=spec.get("blank_token", 1))
    (name,) = stage.objectives
    scores = objectives.score(module, variables, tokens, [name], ids, stage)[name]
    count = scores.weight.sum()
    if "chunk_means" in stage.compat:
        scores = objectives.chunk_means(scores, scores.weight.sum(axis=(0, 2)), config.chunks)
    return objectives.weighted_loss(
        {name: objectives.total(scores)}, stage.objectives, {name: count}
    )


@pytest.fixture(scope="module")
def case(case_name, golden):
    return golden(case_name)


@pytest.fixture(scope="module")
def imported(case):
    return import_state_dict(case.tensors, case.spec)


@pytest.fixture(scope="module")
def computed(case, imported, quick):
    module, variables = imported

    def both(params, tokens):
        variables = {"params": params}
        return forward(module, variables, tokens, case.spec), published_loss(
            module, variables, tokens, case.spec
        )

    return Computed(*quick(both)(variables["params"], case.tokens))


@FEW
def test_logits_are_those_of_the_published_code(case, computed):
    assert computed.logits.shape == case.logits.shape
    worst = np.abs(computed.logits - case.logits).max()
    print(f"worst difference {worst:.1e}")
    assert worst < TOLERANCE


@FEW
def test_losses_are_those_of_the_published_code(case, computed):
    assert abs(computed.loss - case.spec["loss"]) < TOLERANCE


@FEW
def test_every_tensor_leaves_as_it_came(case, imported):
    left = export_state_dict(imported[1], case.spec)
    assert left.keys() == case.tensors.keys()
    for name, tensor in case.tensors.items():
        assert left[name].dtype == tensor.dtype and left[name].shape == tensor.shape
        assert left[name].tobytes() == tensor.tobytes()


def test_all_numbers_are_accounted_for(case, imported):
    used = sum(x.size for x in jax.tree.leaves(imported[1]["params"]))
    assert used + sum(x.size for x in imported[1].get("unused", {}).values()) == case.spec["params"]


def test_every_family_that_was_published_has_cases(golden):
    folder = golden("llama_lm.a").state.parent
    specs = [golden(path.stem).spec for path in folder.glob("*.json")]
    assert len(specs) == CASES
    kinds = {
        "causal_lm",
        "autoencoder",
        "information_probe",
        "memory_model",
        "recurrent_memory",
        "oracle",
    }
    assert {spec["kind"] for spec in specs} == kinds


# What no forward pass reads


def test_unused_tensors_may_be_absent(golden):
    case = golden("memory_transformer_fixed.a")
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    _, variables = import_state_dict(case.tensors, case.spec)
    assert sorted(variables["unused"]) == sorted(tables)
    for name in tables:
        del case.tensors[name]
    _, without = import_state_dict(case.tensors, case.spec)
    assert "unused" not in without
    jax.tree.map(np.testing.assert_array_equal, without["params"], variables["params"])
    assert export_state_dict(without, case.spec).keys() == case.tensors.keys()


@pytest.mark.parametrize("name", ["mixer_lm_kernel4.a", "memory_mixer_heads_bottleneck.a"])
def test_garbage_above_the_diagonal_is_masked_and_kept(name, golden, quick):
    case = golden(name)
    dirty = dict(case.tensors)
    for key, tensor in case.tensors.items():
        if tensor.ndim == 3:
            above = np.triu(np.ones(tensor.shape[:2], bool), 1)[..., None]
            assert not np.any(tensor[above[..., 0]])
            dirty[key] = np.where(above, np.float32(7.5), tensor)
    module, variables = import_state_dict(dirty, case.spec)
    clean = import_state_dict(case.tensors, case.spec)[1]
    logits = quick(lambda params: forward(module, {"params": params}, case.tokens, case.spec))
    assert np.array_equal(logits(variables["params"]), logits(clean["params"]))
    left = export_state_dict(variables, case.spec)
    assert all(left[key].tobytes() == tensor.tobytes() for key, tensor in dirty.items())


def test_weights_that_training_changed_leave_under_their_names(golden):
    case = golden("autoencoder_mixer_unroll_heads.a")
    variables = import_state_dict(case.tensors, case.spec)[1]
    doubled = {"params": jax.tree.map(lambda x: 2 * x, variables["params"])}
    left = export_state_dict(doubled, case.spec)
    assert left.keys() == case.tensors.keys()
    for name, tensor in case.tensors.items():
        assert np.array_equal(left[name], 2 * tensor)


# Refusals


def refused(case, tensors):
    with pytest.raises(StateDictError) as caught:
        import_state_dict(tensors, case.spec)
    return str(caught.value)


def test_a_missing_tensor_is_named_with_the_nearest_name(golden):
    case = golden("mixer_lm_flat.a")
    tensors = dict(case.tensors)
    tensors["mixerblocks.1.conv.weights"] = tensors.pop("mixerblocks.1.conv.weight")
    said = refused(case, tensors)
    assert "no tensor 'mixerblocks.1.conv.weight', of shape (12, 12, 1)" in said
    assert "the nearest name there is 'mixerblocks.1.conv.weights'" in said


def test_surplus_tensors_are_named(golden):
    case = golden("mixer_lm_flat.a")
    extra = {
        key.replace(".1.", ".2."): x
        for key, x in case.tensors.items()
        if key.startswith("mixerblocks.1.")
    }
    said = refused(case, case.tensors | extra)
    assert (
        "holds 'mixerblocks.2.conv.bias', 'mixerblocks.2.conv.weight',"
        " 'mixerblocks.2.patch_ff.0.bias' and 7 more" in said
    )


def test_a_tensor_of_another_shape_is_named(golden):
    case = golden("memory_transformer_fixed.a")
    said = refused(
        case, case.tensors | {"decoder_proj.weight": case.tensors["decoder_proj.weight"].T}
    )
    assert "tensor 'decoder_proj.weight' has shape (8, 16); the spec's model has (16, 8)" in said


def test_a_norm_that_the_spec_denies_is_surplus(golden):
    """Shapes are the same with and without it, the function is not."""
    case = golden("autoencoder_transformer_repeat.a")
    assert "no tensor 'decoder.model.layers.0" in refused(
        case._replace(spec=case.spec | {"final_norm": False}), case.tensors
    )


SPECS = {
    "unknown kind": (
        "llama_lm.a",
        {"kind": "llama"},
        "kind='llama' is unknown, expected one of causal_lm, autoencoder, ",
    ),
    "unknown stack": (
        "oracle_mixer_add.a",
        {"encoder": "lstm"},
        "encoder='lstm' is unknown, expected one of transformer, mixer",
    ),
    "unknown objective": (
        "memory_mixer.a",
        {"objective": "clm"},
        "objective='clm' is unknown, expected one of next_token, copy",
    ),
    "objective of another kind": (
        "llama_lm.a",
        {"objective": "copy"},
        "objective='copy' is unknown, expected one of next_token",
    ),
    "unknown readout": (
        "oracle_mixer_add.a",
        {"memory_position": -3},
        "memory_position=-3 is unknown, expected one of -1, -2",
    ),
    "unknown expansion": (
        "autoencoder_mixer_repeat_k1.a",
        {"expand": "tile"},
        "expand='tile' is unknown, expected one of unroll",
    ),
    "unknown layout": (
        "memory_mixer.a",
        {"positions": "free"},
        "positions='free' is unknown, expected one of fixed, variable",
    ),
    "unknown combination": (
        "oracle_mixer_add.a",
        {"combine": "sum"},
        "combine='sum' is unknown, expected one of token",
    ),
    "unknown constant": (
        "memory_mixer.a",
        {"memory_pad": 0.5},
        "memory_pad=0.5 is unknown, expected one of 0.0, 1.0",
    ),
    "no vocabulary": (
        "llama_lm.a",
        {"vocab": None},
        "the spec has no 'vocab', which a model of kind 'causal_lm' needs",
    ),
    "no kind": ("llama_lm.a", {"kind": None}, "the spec has no 'kind'"),
    "no encoder width": ("memory_mixer.a", {"encoder_dim": None}, "the spec has no 'encoder_dim'"),
    "no chunks": ("recurrent_memory_mixer.a", {"chunks": None}, "the spec has no 'chunks'"),
    "no heads": ("llama_lm.a", {"heads": None}, "the spec has no 'heads'"),
    "words for a number": (
        "llama_lm.a",
        {"layers": "two"},
        "layers='two' must be an integer of 1 or more",
    ),
    "a width that heads do not divide": ("llama_lm.a", {"heads": 3}, "heads=3 does not divide"),
    "too much compression": (
        "memory_mixer.a",
        {"compression": 9},
        "compression=9 leaves nothing of an encoder of width 8",
    ),
    "slots that move in a mixer": (
        "memory_mixer.a",
        {"positions": "variable"},
        "'variable' needs a transformer decoder",
    ),
}


@pytest.mark.parametrize(("name", "changes", "message"), SPECS.values(), ids=SPECS.keys())
def test_a_spec_of_no_published_model_is_refused_by_its_key(name, changes, message, golden):
    spec = {key: x for key, x in (golden(name).spec | changes).items() if x is not None}
    with pytest.raises(SpecError) as caught:
        to_config(spec)
    assert message in str(caught.value)


def test_parameters_of_another_model_are_not_exported(golden):
    case = golden("memory_transformer_fixed.a")
    variables = import_state_dict(case.tensors, case.spec)[1]
    with pytest.raises(StateDictError, match="bridge/kernel"):
        export_state_dict(variables, case.spec | {"encoder_dim": 16})
