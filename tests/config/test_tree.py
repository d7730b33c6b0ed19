"""Settings: every mistake is named by its key, and what is right survives every form a config
takes."""

import dataclasses
import re
import typing

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memjax import config as c
from memjax.config import choices
from memjax.layers import MIXERS
from memjax.models import FAMILIES
from memjax.objectives import load_config
from memjax.testing.families import FAMILY_OBJECTIVES
from memjax.testing.settings import VALID, message_of, tree_with


def test_the_starting_point_of_this_file_is_valid():
    assert load_config(tree_with({})) == VALID


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("log_evry", "log_every"),
        ("data.sequence_lenght", "data.sequence_length"),
        ("model.chunk_len", "model.chunk_length"),
        ("model.encoder.widht", "model.encoder.width"),
        ("model.decoder.kv_head", "model.decoder.kv_heads"),
        ("model.reconstructor.channel_kernle", "model.reconstructor.channel_kernel"),
        ("optimizer.clip_nrom", "optimizer.clip_norm"),
        ("stages.main.learning_rat", "stages.main.learning_rate"),
    ],
)
def test_unknown_key_is_named_and_the_closest_suggested(key, suggestion):
    assert (
        message_of({key: 1}) == f"config.{key} is not a setting; did you mean config.{suggestion}?"
    )


def test_unknown_key_like_no_other_lists_the_keys_there():
    message = message_of({"data.zzz": 1})
    assert message.startswith("config.data.zzz is not a setting; the keys there are attributions, ")
    assert all(f.name in message for f in dataclasses.fields(c.Data))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1.0),
        ("seed", "1"),
        ("seed", None),
        ("seed", True),
        ("name", 3),
        ("data.sequence_length", 128.0),
        ("data.corpus", ("a", "b")),
        ("data.validation_share", "0.1"),
        ("data.validation_share", False),
        ("model.task_embedding", 1),
        ("model.decoder.tie_embeddings", 1),
        ("model.decoder.rope_scaling", (8.0, "low")),
        ("model.decoder.rope_scaling", 8.0),
        ("model.encoder.layers", "4"),
        ("model.encoder.mlp_ratio", None),
        ("optimizer.clip_norm", "1"),
        ("stages.main.memory", "False"),
        ("stages.main.steps", 10.5),
        ("stages.main.objectives.next_token", "1"),
        ("stages.main.objectives.next_token", True),
        ("curriculum", "auto"),
        ("controls", (1,)),
        ("optimizer.rules", "adamw"),
        ("optimizer.rules", ((".*",),)),
        ("optimizer.rules", ((1, "adamw"),)),
        ("stages.main.trainable", True),
    ],
)
def test_wrong_type_names_the_key_and_the_value(key, value):
    message = message_of({key: value})
    assert message.startswith(f"config.{key}=")
    assert repr(value) in message


def test_whole_number_is_taken_where_a_real_one_is_due():
    config = load_config(
        tree_with({"model.encoder.mlp_ratio": 2, "stages.main.objectives.next_token": 3})
    )
    assert isinstance(config.model.encoder.mlp_ratio, float)
    assert isinstance(config.stages["main"].objectives["next_token"], float)


BAD = [
    *[({key: 0}, key) for key in ("log_every", "checkpoint_every", "checkpoints_kept")],
    *[
        ({key: 0}, key)
        for key in (
            "evaluators.accuracy.examples",
            "data.sequence_length",
            "model.chunk_length",
            "model.memory_vectors",
        )
    ],
    *[
        ({f"model.{part}.width": 0}, f"model.{part}.width")
        for part in ("encoder", "decoder", "reconstructor")
    ],
    *[
        ({f"model.encoder.{key}": 0}, f"model.encoder.{key}")
        for key in ("layers", "channel_kernel", "mlp_ratio")
    ],
    *[
        ({f"stages.main.{key}": 0}, f"stages.main.{key}")
        for key in ("steps", "batch_size", "grad_accum_steps", "learning_rate")
    ],
    *[
        ({f"stages.main.{key}": -1}, f"stages.main.{key}")
        for key in ("steps", "batch_size", "warmup_steps", "learning_rate")
    ],
    ({"stages.main.learning_rate": float("nan")}, "stages.main.learning_rate"),
    ({"data.vocab_size": 299}, "data.vocab_size"),
    ({"data.validation_share": 0.0}, "data.validation_share"),
    ({"data.validation_share": 1.0}, "data.validation_share"),
    ({"model.chunk_length": 24}, "model.chunk_length"),
    ({"model.chunk_length": 128}, "model.chunk_length"),
    ({"model.chunk_length": 256}, "model.chunk_length"),
    ({"model.readout": "first"}, "model.readout"),
    ({"model.expansion": "stretch"}, "model.expansion"),
    ({"model.layout": "loose"}, "model.layout"),
    ({"model.dtype": "float16"}, "model.dtype"),
    ({"model.remat": "everything"}, "model.remat"),
    ({"model.memory_vectors": 2}, "model.memory_vectors"),
    ({"model.memory_vectors": 2, "model.readout": "second_to_last"}, "model.memory_vectors"),
    ({"model.bottleneck": -1}, "model.bottleneck"),
    ({"model.bottleneck": 129}, "model.bottleneck"),
    ({"model.layout": "variable", "model.decoder.kind": "mixer"}, "model.layout"),
    ({"model.encoder.kind": "rnn"}, "model.encoder.kind"),
    ({"model.encoder.mlp": "relu"}, "model.encoder.mlp"),
    ({"model.decoder.norm": "batch"}, "model.decoder.norm"),
    ({"model.decoder.heads": 3}, "model.decoder.heads"),
    ({"model.encoder.heads": 3}, "model.encoder.heads"),
    ({"model.decoder.heads": 0}, "model.decoder.heads"),
    ({"model.decoder.heads": -4}, "model.decoder.heads"),
    ({"model.encoder.heads": -4}, "model.encoder.heads"),
    ({"model.decoder.heads": 128}, "model.decoder.heads"),
    ({"model.decoder.width": 12}, "model.decoder.heads"),
    ({"model.decoder.kv_heads": 3}, "model.decoder.kv_heads"),
    ({"model.decoder.kv_heads": 8}, "model.decoder.kv_heads"),
    ({"model.decoder.kv_heads": -1}, "model.decoder.kv_heads"),
    ({"model.encoder.kv_heads": 2}, "model.encoder.kv_heads"),
    ({"model.decoder.channel_kernel": 2}, "model.decoder.channel_kernel"),
    ({"model.encoder.heads": 0, "model.encoder.output_gate": True}, "model.encoder.output_gate"),
    (
        {"model.reconstructor.width": 129, "model.reconstructor.heads": 3},
        "model.reconstructor.width",
    ),
    ({"optimizer.rules": ((".*", "sgd"),)}, "optimizer.rules"),
    ({"optimizer.rules": (("(", "adamw"),)}, "optimizer.rules"),
    ({"optimizer.rate_rules": (("[a", 1.0),)}, "optimizer.rate_rules"),
    ({"optimizer.rate_rules": ((".*", "fast"),)}, "optimizer.rate_rules"),
    ({"optimizer.decay_rules": ((".*", None),)}, "optimizer.decay_rules"),
    ({"optimizer.clip_norm": -1.0}, "optimizer.clip_norm"),
    ({"stages.main.trainable": (("*", True),)}, "stages.main.trainable"),
    ({"stages.main.trainable": ((".*", 0),)}, "stages.main.trainable"),
    ({"stages.main.family": "llm"}, "stages.main.family"),
    ({"stages.main.lr_schedule": "exponential"}, "stages.main.lr_schedule"),
    ({"stages.main.final_lr_ratio": 1.5}, "stages.main.final_lr_ratio"),
    ({"stages.main.warmup_steps": 101}, "stages.main.warmup_steps"),
    ({"stages.main.grad_accum_steps": 5}, "stages.main.grad_accum_steps"),
    ({"stages.main.objectives": {}}, "stages.main.objectives"),
    ({"stages.main.objectives": {"reconstruction": 1.0}}, "stages.main.objectives"),
    ({"stages.auto.objectives": {"copy": 1.0}}, "stages.auto.objectives"),
    ({"stages.main.objectives.next_token": 0.0}, "stages.main.objectives.next_token"),
    ({"stages.main.objectives.next_token": -1.0}, "stages.main.objectives.next_token"),
    ({"stages.main.init_from": ""}, "stages.main.init_part"),
    ({"stages.main.init_from": "control"}, "stages.main.init_from"),
    ({"stages.main.init_from": "main"}, "stages.main.init_from"),
    ({"stages.auto.init_from": "main"}, "stages.auto.init_from"),
    ({"curriculum": ()}, "curriculum"),
    ({"curriculum": ("auto", "mane")}, "curriculum"),
    ({"controls": ("control", "nothing")}, "controls"),
    ({"curriculum": ("auto", "main", "auto")}, "curriculum"),
    ({"controls": ("control", "main")}, "controls"),
]


INF, NAN = float("inf"), float("nan")
REALS = [
    "checkpoint_minutes",
    "data.validation_share",
    "model.noise",
    *(f"model.encoder.{key}" for key in ("mlp_ratio", "rope_theta", "decay_length", "norm_eps")),
    *(f"optimizer.{key}" for key in ("beta1", "beta2", "epsilon", "clip_norm")),
    *(f"stages.main.{key}" for key in ("learning_rate", "final_lr_ratio")),
    "stages.main.objectives.next_token",
]
WHOLE = [
    *("seed", "log_every", "checkpoint_every", "checkpoints_kept"),
    *("evaluators.accuracy.examples", "evaluators.accuracy.every"),
    *("data.sequence_length", "data.vocab_size"),
    *(f"model.{key}" for key in ("chunk_length", "memory_vectors", "bptt_chunks", "bottleneck")),
    "model.max_memories",
    *(f"model.encoder.{key}" for key in ("width", "layers", "heads", "channel_kernel")),
    *(f"model.decoder.{key}" for key in ("kv_heads", "head_dim", "place_heads")),
    *(f"stages.main.{key}" for key in ("steps", "batch_size", "warmup_steps")),
]


def test_every_number_is_in_one_of_the_lists():
    """So that no new setting is left out of the next tests."""
    apart = {"mesh.data", "mesh.fsdp", "mesh.tensor", "stages.main.grad_accum_steps"}

    def numbers(kind, prefix):
        for field in dataclasses.fields(kind):
            of = typing.get_type_hints(kind)[field.name]
            key = prefix + field.name
            if dataclasses.is_dataclass(of):
                yield from numbers(of, f"{key}.")
            elif of in (int, float):
                yield key

    every = {
        *numbers(c.Config, ""),
        *numbers(c.Evaluator, "evaluators.accuracy."),
        *numbers(c.Stage, "stages.main."),
    }
    tested = {key.replace("decoder", "encoder") for key in REALS + WHOLE}
    alike = {key.replace("decoder", "encoder").replace("reconstructor", "encoder") for key in every}
    assert alike - tested - apart == set()


@pytest.mark.parametrize(
    "value",
    [INF, -INF, NAN, 1e30, -1.0, 10**400],
    ids=["inf", "-inf", "nan", "1e30", "-1", "1e400"],
)
@pytest.mark.parametrize("key", REALS)
def test_real_numbers_are_finite_and_in_range(key, value):
    assert re.search(rf"config\.{re.escape(key)}\b.* expected ", message_of({key: value}))


@pytest.mark.parametrize(
    "value", [2**32, 10**12, 10**30, -1, 10**5000], ids=["2^32", "1e12", "1e30", "-1", "1e5000"]
)
@pytest.mark.parametrize("key", WHOLE)
def test_whole_numbers_are_in_range(key, value):
    """And at once: no check counts up to them."""
    said = message_of({key: value})
    assert re.search(rf"config\.{re.escape(key)}\b.*( expected |; use )", said)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer.decay_rules": ((".*", INF),)}, "optimizer.decay_rules['.*']"),
        ({"optimizer.rate_rules": ((".*", 1e30),)}, "optimizer.rate_rules['.*']"),
        ({"optimizer.rate_rules": ((".*", NAN),)}, "optimizer.rate_rules['.*']"),
        ({"stages.main.trainable": ((".*", 10**12),)}, "stages.main.trainable['.*']"),
        ({"stages.main.trainable": ((".*", 10**4400),)}, "stages.main.trainable"),
        ({"model.decoder.rope_scaling": (8.0, 1.0, INF, 8.0)}, "model.decoder.rope_scaling"),
        ({"data.sequence_length": 2**20, "model.chunk_length": 2}, "model.chunk_length"),
        ({"data.corpus": "\ud800"}, "data.corpus"),
        ({"name": "run \udcff"}, "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_and_texts_in_rules_are_usable(changes, key):
    assert message_of(changes).startswith(f"config.{key}")


UNUSED = {
    "learning_rate": NAN,
    "steps": -1,
    "batch_size": -1,
    "compat": ("foo",),
    "family": "foo",
    "objectives": {},
    "init_from": "nonexistent",
    "init_part": "encoder",
    "lr_schedule": "foo",
    "trainable": ((".*", 0),),
    "dials": {"foo": 1},
    "memory": False,
}


@pytest.mark.parametrize("key", UNUSED)
def test_a_stage_in_no_curriculum_is_checked(key):
    changes = {"controls": (), f"stages.control.{key}": UNUSED[key]}
    if key == "memory":
        changes |= {"stages.control.family": "autoencoder"}
        changes |= {"stages.control.objectives": {"reconstruction": 1.0}}
    assert message_of(changes).startswith(f"config.stages.control.{key}")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "x" * 200, "a\0b"])
def test_a_stage_has_the_name_of_a_folder(name):
    tree = tree_with({"curriculum": (name,), "controls": ()})
    tree["stages"] = {name: tree["stages"]["auto"]}
    with pytest.raises(c.ConfigError, match="expected a name that a folder can have"):
        load_config(tree)


def test_names_of_stages_are_text():
    tree = tree_with({}) | {"stages": {1: {}}}
    with pytest.raises(c.ConfigError, match=r"config\.stages\.1"):
        load_config(tree)


@pytest.mark.parametrize(
    ("changes", "key"), BAD, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_impossible_value_names_its_key(changes, key):
    assert re.search(rf"\bconfig\.{re.escape(key)}(?![\w.])", message_of(changes))


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"model.encoder.kind": "rnn"}, tuple(MIXERS)),
        ({"model.readout": "first"}, choices.READOUTS),
        ({"model.remat": "all"}, choices.REMAT_POLICIES),
        ({"stages.main.family": "llm"}, tuple(FAMILIES)),
        ({"stages.main.lr_schedule": "step"}, choices.LR_SCHEDULES),
        ({"stages.main.objectives": {"clm": 1.0}}, FAMILY_OBJECTIVES["memory_model"]),
        ({"stages.auto.objectives": {"next_token": 1.0}}, FAMILY_OBJECTIVES["autoencoder"]),
        ({"optimizer.rules": ((".*", "sgd"),)}, choices.OPTIMIZERS),
        ({"curriculum": ("mane",)}, ("auto", "main", "control")),
    ],
)
def test_unknown_name_lists_those_that_are_known(changes, allowed):
    assert message_of(changes).endswith(", ".join(allowed))


@given(rows=st.integers(4, 2048), chunk=st.integers(2, 2048))
def test_suggested_chunk_lengths_are_accepted(rows, chunk):
    """And without a suggestion there is none: the row is prime."""
    assume(rows % chunk or rows < 2 * chunk)
    suggestions = (
        message_of({"data.sequence_length": rows, "model.chunk_length": chunk})
        .rpartition("; ")[2]
        .split(" use ")[1]
    )
    if suggestions == "no length":
        assert all(rows % d for d in range(2, rows))
        return
    for length in map(int, suggestions.split(", ")):
        config = load_config(
            tree_with({"data.sequence_length": rows, "model.chunk_length": length})
        )
        assert config.chunks == rows // length >= 2


def test_chunk_length_suggestions_are_the_nearest_divisors():
    assert message_of({"data.sequence_length": 1024, "model.chunk_length": 250}).endswith(
        "for rows of 1024 use 64, 128, 256"
    )


@given(heads=st.integers(2, 40), width=st.integers(2, 120))
def test_suggested_mixer_heads_are_accepted(heads, width):
    assume(width % heads and any(width % d == 0 for d in range(2, width)))
    message = message_of({"model.encoder.width": width, "model.encoder.heads": heads})
    for suggestion in map(int, message.rpartition(" use ")[2].split(", ")):
        load_config(tree_with({"model.encoder.width": width, "model.encoder.heads": suggestion}))


def test_flat_mixer_of_any_width_is_accepted():
    load_config(
        tree_with(
            {
                "model.encoder.width": 127,
                "model.encoder.heads": 0,
                "model.encoder.channel_kernel": 3,
            }
        )
    )


def test_folder_path_is_a_valid_start():
    config = load_config(tree_with({"stages.auto.init_from": "runs/one/auto"}))
    assert config.stages["auto"].init_from == "runs/one/auto"


# Forms


RULES = st.lists(
    st.tuples(st.sampled_from(["^encoder/", "kernel$", ".*"]), st.booleans()),
    min_size=1,
    max_size=3,
).map(tuple)
CONFIGS = st.builds(
    lambda seed, ratio, rate, rules, weight, vectors, name: load_config(
        tree_with(
            {
                "seed": seed,
                "name": name,
                "model.encoder.mlp_ratio": ratio,
                "model.memory_vectors": vectors,
                "model.readout": "memory_tokens",
                "stages.main.learning_rate": rate,
                "stages.main.trainable": rules,
                "stages.main.objectives": {"copy": weight, "next_token": 1.0},
            }
        )
    ),
    seed=st.integers(0, 2**32 - 1),
    ratio=st.floats(0.1, 16),
    rate=st.floats(1e-9, 1e3),
    rules=RULES,
    weight=st.floats(1e-6, 1e6),
    vectors=st.integers(1, 64),
    name=st.text(),
)


@given(CONFIGS)
def test_json_and_config_dict_give_the_same_config_back(config):
    assert c.from_json(c.to_json(config)) == config
    assert load_config(c.to_config_dict(config)) == config
    assert (
        c.differences(c.from_json(c.to_json(config)), load_config(c.to_config_dict(config))) == []
    )


def test_json_is_the_same_whatever_order_the_keys_came_in():
    tree = tree_with({})
    tree["stages"] = dict(reversed(tree["stages"].items()))
    assert c.to_json(load_config(tree)) == c.to_json(VALID)
    assert c.to_json(VALID).endswith("}\n")


def test_config_dict_takes_overrides_and_refuses_new_keys():
    tree = c.to_config_dict(VALID)
    tree.model.encoder.width = 64
    tree.stages.main.objectives["copy"] = 0.5
    config = load_config(tree)
    assert config.model.encoder.width == 64
    assert config.stages["main"].objectives == {"next_token": 1.0, "copy": 0.5}
    tree.model.encoder.depth = 3
    with pytest.raises(c.ConfigError, match=r"config\.model\.encoder\.depth is not a setting"):
        load_config(tree)


def test_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VALID.model.encoder.width = 3


# Resuming

TOP_LEVEL = {
    "name": "other",
    "seed": 5,
    "log_every": 7,
    "checkpoint_every": 7,
    "checkpoints_kept": 7,
    "evaluators.validation.every": 7,
    "evaluators.accuracy.examples": 7,
    "wandb_project": "project",
    "mesh.fsdp": 2,
    "model.remat": "nothing_saveable",
    "stages.main.grad_accum_steps": 2,
    "stages.main.batch_size": 8,
    "model.dtype": "bfloat16",
}


@pytest.mark.parametrize(("key", "value"), TOP_LEVEL.items())
def test_a_run_may_go_on_with_another_value_of_what_touches_no_weight(key, value):
    other = load_config(tree_with({key: value}))
    free = {
        "log_every",
        "checkpoint_every",
        "checkpoints_kept",
        "evaluators.validation.every",
        "evaluators.accuracy.examples",
        "wandb_project",
        "name",
        "mesh.fsdp",
        "model.remat",
        "stages.main.grad_accum_steps",
    }
    assert bool(c.differences(VALID, other)) == (key not in free)
    found = c.differences(VALID, other, unchecked=key in free)
    assert [line.partition(":")[0] for line in found] == [key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.corpus", "elsewhere"),
        ("model.encoder.layers", 5),
        ("model.task_embedding", False),
        ("optimizer.beta1", 0.5),
        ("optimizer.rules", (("kernel", "muon"), (".*", "adamw"))),
        ("stages.main.steps", 200),
        ("stages.main.objectives.next_token", 2.0),
        ("stages.auto.trainable", (("^head", False), (".*", True))),
    ],
)
def test_difference_is_named_with_both_values(key, value):
    other = load_config(tree_with({key: value}))
    (line,) = c.differences(VALID, other)
    (back,) = c.differences(other, VALID)
    assert line.startswith(f"{key}: ")
    assert line.endswith(f"{value!r} there")
    assert f"{value!r} now" in back


def test_difference_names_what_only_one_side_has():
    other = load_config(tree_with({"stages.main.objectives.copy": 1.0}))
    assert c.differences(VALID, other) == ["stages.main.objectives.copy: 'absent' now, 1.0 there"]


# Rules


def test_first_rule_that_matches_decides_and_matches_anywhere_in_the_path():
    rules = (("^head/", 1), ("kernel", 2), (".*", 3))
    assert c.match_rules(rules, "head/kernel", "k") == 1
    assert c.match_rules(rules, "encoder/blocks/kernel", "k") == 2
    assert c.match_rules(rules, "encoder/head/bias", "k") == 3


def test_parameter_without_a_rule_is_an_error_that_names_both():
    with pytest.raises(
        c.ConfigError,
        match=r"config\.stages\.main\.trainable: no rule matches parameter 'encoder/x'",
    ):
        c.match_rules((("^decoder/", True),), "encoder/x", "config.stages.main.trainable")


def overridden(*overrides):
    return load_config(tree_with({}), [tuple(override.split("=", 1)) for override in overrides])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=7", 7),
        ("name=a, b", "a, b"),
        ("optimizer.clip_norm=2", 2.0),
        ("stages.main.learning_rate=1e-4", 1e-4),
        ("model.task_embedding=False", False),
        ("model.task_embedding=true", True),
        ("model.encoder.causal=0", False),
        ("model.compat=dense_mixing_gradient", ("dense_mixing_gradient",)),
        (
            "model.compat=dense_mixing_gradient,reference_init",
            ("dense_mixing_gradient", "reference_init"),
        ),
        ("model.compat=('dense_mixing_gradient',)", ("dense_mixing_gradient",)),
        (
            "model.compat='dense_mixing_gradient', 'reference_init'",
            ("dense_mixing_gradient", "reference_init"),
        ),
        ("model.compat=", ()),
        ("curriculum=auto", ("auto",)),
        ("model.decoder.rope_scaling=8, 1,4,8192", (8.0, 1.0, 4.0, 8192.0)),
        ("model.decoder.rope_scaling=(8, 1, 4, 8192)", (8.0, 1.0, 4.0, 8192.0)),
        ("model.decoder.rope_scaling=", ()),
        (
            "optimizer.rules=(('kernel', 'muon'), ('.*', 'adamw'))",
            (("kernel", "muon"), (".*", "adamw")),
        ),
    ],
)
def test_text_of_the_command_line_is_read_as_the_declared_type(override, value):
    found = overridden(override)
    for name in override.split("=")[0].split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.memory_vectors=two", "config.model.memory_vectors: expected int, got 'two'"),
        ("model.memory_vectors=1.5", "config.model.memory_vectors: expected int, got '1.5'"),
        (
            "model.encoder.mlp_ratio=wide",
            "config.model.encoder.mlp_ratio: expected float, got 'wide'",
        ),
        ("stages.main.memory=maybe", "config.stages.main.memory: expected bool, got 'maybe'"),
        (
            "stages.main.objectives.copy=much",
            "config.stages.main.objectives.copy: expected float, got 'much'",
        ),
        (
            "model.decoder.rope_scaling=8,low",
            "config.model.decoder.rope_scaling: expected numbers with commas between them, got",
        ),
        (
            "optimizer.rules=adamw",
            "config.optimizer.rules: expected a tuple of (path regex, value) pairs, got 'adamw'",
        ),
        (
            "stages.main.objectives=copy",
            "config.stages.main.objectives: expected a Python literal, got 'copy'",
        ),
        (
            "model.memory_vector=2",
            "config.model.memory_vector is not a setting; did you mean config.model.memory_vectors",
        ),
        (
            "modle.memory_vectors=2",
            "config.modle.memory_vectors is not a setting; did you mean config.model?",
        ),
        (
            "stages.mian.steps=2",
            "config.stages.mian.steps is not a setting; did you mean config.stages.main?",
        ),
        ("seed.value=2", "config.seed: a whole number, expected no key 'value' below it"),
        ("data.tokenizer.foo=1", "config.data.tokenizer: text, expected no key 'foo' below it"),
        ("optimizer.rules.a.b=1", "config.optimizer.rules: a tuple of (path regex, value) pairs"),
        ("data..vocab_size=1", "config.data..vocab_size is not a setting"),
        ("seed=" + "9" * 5000, "config.seed: expected int, got '999"),
        *(
            (f"mesh.rules={text}", "config.mesh.rules: expected a tuple of (path regex, value)")
            for text in ("{[]: 1}", "1" + "+1" * 100_000, "-" * 100_000 + "1", "(" * 1000)
        ),
    ],
)
def test_text_that_cannot_be_read_names_its_key(override, message):
    with pytest.raises(c.ConfigError) as error:
        overridden(override)
    assert str(error.value).startswith(message)


def test_objectives_are_changed_added_and_removed_one_by_one():
    assert overridden("stages.main.objectives.next_token=0.5").stages["main"].objectives == {
        "next_token": 0.5
    }
    both = overridden("stages.main.objectives.copy=0.5")
    assert list(both.stages["main"].objectives.items()) == [("next_token", 1.0), ("copy", 0.5)]
    swapped = overridden("stages.main.objectives.copy=2", "stages.main.objectives.next_token=0")
    assert swapped.stages["main"].objectives == {"copy": 2.0}
    whole = overridden(
        "stages.main.objectives={'copy': 1.0}", "stages.main.objectives.blank_copy=0.1"
    )
    assert whole.stages["main"].objectives == {"copy": 1.0, "blank_copy": 0.1}


def test_a_tree_that_is_overridden_stays_as_it_is():
    tree = tree_with({})
    load_config(tree, [("seed", "7"), ("stages.main.objectives.copy", "1")])
    assert tree == tree_with({})


def test_what_became_a_dial_is_read_from_configs_that_have_it_as_a_setting():
    before = {"stages.main.temperature": 0.02, "stages.main.query_tokens": 3}
    config = c.from_config_dict(tree_with(before))
    assert config == c.from_config_dict(tree_with({"stages.main.dials": {"query_tokens": 3}}))


def test_fewer_than_a_hundred_settings():
    """Fields of all classes of settings, groups such as `config.data` too."""
    kinds = (c.Config, c.Data, c.Mesh, c.Model, c.Backbone, c.Optimizer, c.Stage, c.Evaluator)
    assert 40 < sum(len(dataclasses.fields(kind)) for kind in kinds) < 100


# Known bugs


@pytest.mark.parametrize(
    "key", ["data", "model.encoder", "stages", "stages.main", "stages.main.objectives"]
)
def test_a_group_that_is_no_mapping_names_its_key(key):
    assert f"config.{key}" in message_of({key: 3})


def test_suggested_attention_heads_are_accepted():
    message = message_of({"model.decoder.width": 12, "model.decoder.heads": 5})
    for suggestion in map(int, message.rpartition(" use ")[2].split(", ")):
        load_config(tree_with({"model.decoder.width": 12, "model.decoder.heads": suggestion}))
