"""Settings: every mistake is named by its key, and what is right survives every form a config takes."""

import dataclasses
import re
import typing

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memjax import config as c
from memjax.config import settings

LM = c.Stage(objectives={"next_token": 1.0})
AE = c.Stage(family="autoencoder", objectives={"reconstruction": 1.0})
VALID = c.Config(
    stages={"auto": AE, "main": dataclasses.replace(LM, init_from="auto", init_part="encoder"), "control": LM},
    curriculum=("auto", "main"),
    controls=("control",),
)


def tree_with(changes: dict) -> dict:
    """The valid config as plain dicts, with the values at the given dotted keys replaced."""
    tree = dataclasses.asdict(VALID)
    for key, value in changes.items():
        *path, last = key.split(".")
        branch = tree
        for part in path:
            branch = branch[part]
        branch[last] = value
    return tree


def message_of(changes: dict) -> str:
    with pytest.raises(c.ConfigError) as error:
        c.from_config_dict(tree_with(changes))
    return str(error.value)


def test_the_starting_point_of_this_file_is_valid():
    assert c.from_config_dict(tree_with({})) == VALID


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("log_evry", "log_every"),
        ("data.row_token", "data.row_tokens"),
        ("model.chunk_len", "model.chunk_length"),
        ("model.encoder.widht", "model.encoder.width"),
        ("model.decoder.kv_head", "model.decoder.kv_heads"),
        ("model.reconstructor.kernle", "model.reconstructor.kernel"),
        ("optimizer.clip_nrom", "optimizer.clip_norm"),
        ("stages.main.learning_rat", "stages.main.learning_rate"),
    ],
)
def test_unknown_key_is_named_and_the_closest_suggested(key, suggestion):
    assert message_of({key: 1}) == f"config.{key} is not a setting; did you mean {suggestion}?"


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
        ("data.row_tokens", 128.0),
        ("data.corpus", ("a", "b")),
        ("data.validation_share", "0.1"),
        ("data.validation_share", False),
        ("model.task_mark", 1),
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
    config = c.from_config_dict(tree_with({"model.encoder.mlp_ratio": 2, "stages.main.objectives.next_token": 3}))
    assert isinstance(config.model.encoder.mlp_ratio, float)
    assert isinstance(config.stages["main"].objectives["next_token"], float)


BAD = [
    *[({key: 0}, key) for key in ("log_every", "checkpoint_every", "checkpoints_kept", "evaluate_every")],
    *[({key: 0}, key) for key in ("evaluation_rows", "data.row_tokens", "model.chunk_length", "model.vectors")],
    *[({f"model.{part}.width": 0}, f"model.{part}.width") for part in ("encoder", "decoder", "reconstructor")],
    *[({f"model.encoder.{key}": 0}, f"model.encoder.{key}") for key in ("layers", "kernel", "mlp_ratio")],
    *[({f"stages.main.{key}": 0}, f"stages.main.{key}") for key in ("steps", "rows", "microbatches", "learning_rate")],
    *[({f"stages.main.{key}": -1}, f"stages.main.{key}") for key in ("steps", "rows", "warmup_steps", "learning_rate")],
    ({"stages.main.learning_rate": float("nan")}, "stages.main.learning_rate"),
    ({"data.vocabulary": 299}, "data.vocabulary"),
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
    ({"model.vectors": 2}, "model.vectors"),
    ({"model.vectors": 2, "model.readout": "second_to_last"}, "model.vectors"),
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
    ({"model.decoder.kernel": 2}, "model.decoder.kernel"),
    ({"model.encoder.heads": 0, "model.encoder.output_gate": True}, "model.encoder.output_gate"),
    ({"model.reconstructor.width": 129, "model.reconstructor.heads": 3}, "model.reconstructor.width"),
    ({"optimizer.rules": ((".*", "sgd"),)}, "optimizer.rules"),
    ({"optimizer.rules": (("(", "adamw"),)}, "optimizer.rules"),
    ({"optimizer.rate_rules": (("[a", 1.0),)}, "optimizer.rate_rules"),
    ({"optimizer.rate_rules": ((".*", "fast"),)}, "optimizer.rate_rules"),
    ({"optimizer.decay_rules": ((".*", None),)}, "optimizer.decay_rules"),
    ({"optimizer.clip_norm": -1.0}, "optimizer.clip_norm"),
    ({"stages.main.trainable": (("*", True),)}, "stages.main.trainable"),
    ({"stages.main.trainable": ((".*", 0),)}, "stages.main.trainable"),
    ({"stages.main.family": "llm"}, "stages.main.family"),
    ({"stages.main.decay": "exponential"}, "stages.main.decay"),
    ({"stages.main.final_rate": 1.5}, "stages.main.final_rate"),
    ({"stages.main.warmup_steps": 101}, "stages.main.warmup_steps"),
    ({"stages.main.microbatches": 5}, "stages.main.microbatches"),
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


@pytest.mark.parametrize(("changes", "key"), BAD, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_impossible_value_names_its_key(changes, key):
    assert re.search(rf"\bconfig\.{re.escape(key)}(?![\w.])", message_of(changes))


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"model.encoder.kind": "rnn"}, settings.BACKBONES),
        ({"model.readout": "first"}, settings.READOUTS),
        ({"model.remat": "all"}, settings.REMAT_POLICIES),
        ({"stages.main.family": "llm"}, settings.FAMILIES),
        ({"stages.main.decay": "step"}, settings.DECAYS),
        ({"stages.main.objectives": {"clm": 1.0}}, c.OBJECTIVES["memory_model"]),
        ({"stages.auto.objectives": {"next_token": 1.0}}, c.OBJECTIVES["autoencoder"]),
        ({"optimizer.rules": ((".*", "sgd"),)}, settings.OPTIMIZERS),
        ({"curriculum": ("mane",)}, ("auto", "main", "control")),
    ],
)
def test_unknown_name_lists_those_that_are_known(changes, allowed):
    assert message_of(changes).endswith(", ".join(allowed))


@given(rows=st.integers(4, 2048), chunk=st.integers(2, 2048))
def test_suggested_chunk_lengths_are_accepted(rows, chunk):
    """And without a suggestion there is none: the row is prime."""
    assume(rows % chunk or rows < 2 * chunk)
    suggestions = message_of({"data.row_tokens": rows, "model.chunk_length": chunk}).rpartition("; ")[2].split(" use ")[1]
    if suggestions == "no length":
        assert all(rows % d for d in range(2, rows))
        return
    for length in map(int, suggestions.split(", ")):
        config = c.from_config_dict(tree_with({"data.row_tokens": rows, "model.chunk_length": length}))
        assert config.chunks == rows // length >= 2


def test_chunk_length_suggestions_are_the_nearest_divisors():
    assert message_of({"data.row_tokens": 1024, "model.chunk_length": 250}).endswith("for rows of 1024 use 64, 128, 256")


@given(heads=st.integers(2, 40), width=st.integers(2, 120))
def test_suggested_mixer_heads_are_accepted(heads, width):
    assume(width % heads and any(width % d == 0 for d in range(2, width)))
    message = message_of({"model.encoder.width": width, "model.encoder.heads": heads})
    for suggestion in map(int, message.rpartition(" use ")[2].split(", ")):
        c.from_config_dict(tree_with({"model.encoder.width": width, "model.encoder.heads": suggestion}))


def test_flat_mixer_of_any_width_is_accepted():
    c.from_config_dict(tree_with({"model.encoder.width": 127, "model.encoder.heads": 0, "model.encoder.kernel": 3}))


def test_folder_path_is_a_valid_start():
    config = c.from_config_dict(tree_with({"stages.auto.init_from": "runs/one/auto"}))
    assert config.stages["auto"].init_from == "runs/one/auto"


# Forms


RULES = st.lists(st.tuples(st.sampled_from(["^encoder/", "kernel$", ".*"]), st.booleans()), min_size=1, max_size=3).map(tuple)
CONFIGS = st.builds(
    lambda seed, ratio, rate, rules, weight, vectors, name: c.from_config_dict(
        tree_with(
            {
                "seed": seed,
                "name": name,
                "model.encoder.mlp_ratio": ratio,
                "model.vectors": vectors,
                "model.readout": "memory_tokens",
                "stages.main.learning_rate": rate,
                "stages.main.trainable": rules,
                "stages.main.objectives": {"copy": weight, "next_token": 1.0},
            }
        )
    ),
    seed=st.integers(0, 2**60),
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
    assert c.from_config_dict(c.to_config_dict(config)) == config
    assert c.differences(c.from_json(c.to_json(config)), c.from_config_dict(c.to_config_dict(config))) == []


def test_json_is_the_same_whatever_order_the_keys_came_in():
    tree = tree_with({})
    tree["stages"] = dict(reversed(tree["stages"].items()))
    assert c.to_json(c.from_config_dict(tree)) == c.to_json(VALID)
    assert c.to_json(VALID).endswith("}\n")


def test_config_dict_takes_overrides_and_refuses_new_keys():
    tree = c.to_config_dict(VALID)
    tree.model.encoder.width = 64
    tree.stages.main.objectives["copy"] = 0.5
    config = c.from_config_dict(tree)
    assert config.model.encoder.width == 64
    assert config.stages["main"].objectives == {"next_token": 1.0, "copy": 0.5}
    tree.model.encoder.depth = 3
    with pytest.raises(c.ConfigError, match=r"config\.model\.encoder\.depth is not a setting"):
        c.from_config_dict(tree)


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
    "evaluate_every": 7,
    "evaluation_rows": 7,
    "wandb_project": "project",
}


@pytest.mark.parametrize(("key", "value"), TOP_LEVEL.items())
def test_a_run_may_go_on_with_another_value_of_what_touches_no_weight(key, value):
    other = c.from_config_dict(tree_with({key: value}))
    free = {
        "log_every",
        "checkpoint_every",
        "checkpoints_kept",
        "evaluate_every",
        "evaluation_rows",
        "wandb_project",
        "name",
    }
    assert bool(c.differences(VALID, other)) == (key not in free)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.corpus", "elsewhere"),
        ("model.encoder.layers", 5),
        ("model.task_mark", False),
        ("optimizer.beta1", 0.5),
        ("optimizer.rules", (("kernel", "muon"), (".*", "adamw"))),
        ("stages.main.steps", 200),
        ("stages.main.objectives.next_token", 2.0),
        ("stages.auto.trainable", (("^head", False), (".*", True))),
    ],
)
def test_difference_is_named_with_both_values(key, value):
    other = c.from_config_dict(tree_with({key: value}))
    (line,) = c.differences(VALID, other)
    (back,) = c.differences(other, VALID)
    assert line.startswith(f"{key}: ")
    assert line.endswith(f"{value!r} there")
    assert f"{value!r} now" in back


def test_difference_names_what_only_one_side_has():
    other = c.from_config_dict(tree_with({"stages.main.objectives.copy": 1.0}))
    assert c.differences(VALID, other) == ["stages.main.objectives.copy: 'absent' now, 1.0 there"]


# Rules


def test_first_rule_that_matches_decides_and_matches_anywhere_in_the_path():
    rules = (("^head/", 1), ("kernel", 2), (".*", 3))
    assert c.match_rules(rules, "head/kernel", "k") == 1
    assert c.match_rules(rules, "encoder/blocks/kernel", "k") == 2
    assert c.match_rules(rules, "encoder/head/bias", "k") == 3


def test_parameter_without_a_rule_is_an_error_that_names_both():
    with pytest.raises(c.ConfigError, match=r"config\.stages\.main\.trainable: no rule matches parameter 'encoder/x'"):
        c.match_rules((("^decoder/", True),), "encoder/x", "config.stages.main.trainable")


def test_fewer_than_eighty_settings():
    """A backbone and a stage count once; a group such as `config.data` is no setting."""
    kinds = (c.Config, c.Data, c.Mesh, c.Model, c.Backbone, c.Optimizer, c.Stage)
    settings = [hint for kind in kinds for hint in typing.get_type_hints(kind).values()]
    leaves = [hint for hint in settings if not {hint, *typing.get_args(hint)} & set(kinds)]
    assert len(settings) - len(leaves) == len(
        ("data", "mesh", "model", "optimizer", "stages", "encoder", "decoder", "reconstructor")
    )
    assert 40 < len(leaves) < 80


# Known bugs


@pytest.mark.parametrize("key", ["data", "model.encoder", "stages", "stages.main", "stages.main.objectives"])
def test_a_group_that_is_no_mapping_names_its_key(key):
    assert f"config.{key}" in message_of({key: 3})


def test_suggested_attention_heads_are_accepted():
    message = message_of({"model.decoder.width": 12, "model.decoder.heads": 5})
    for suggestion in map(int, message.rpartition(" use ")[2].split(", ")):
        c.from_config_dict(tree_with({"model.decoder.width": 12, "model.decoder.heads": suggestion}))
