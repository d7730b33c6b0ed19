"""Settings and quirks that no stage of a run reads are refused, with the families that do."""

import dataclasses
from typing import Any

import pytest

from memjax import config as c
from memjax.models import FAMILIES
from memjax.objectives import load_config
from memjax.testing.families import FAMILY_OBJECTIVES
from memjax.testing.settings import message_of, tree_with

MEMORIES = ("autoencoder", "memory_model", "oracle", "retriever", "ranker")
READ = {
    "model.memory_injection": ("add", ("oracle",)),
    "model.bptt_chunks": (2, ("recurrent_memory",)),
    "model.expansion": ("repeat", ("autoencoder",)),
    "model.layout": ("variable", ("memory_model",)),
    "model.noise": (0.1, MEMORIES),
    "model.readout": ("second_to_last", MEMORIES),
    "model.bottleneck": (8, MEMORIES),
    "overwritten_write_slot": (None, ("recurrent_memory",)),
    "one_sided_noise": (None, MEMORIES),
    "residual_noise": (None, MEMORIES),
}
"""What only some families read, a value that is not the default's, and these families."""
EVERYWHERE = (
    "slots_of_ones",
    "slots_of_zeros",
    "attended_padding",
    "dense_mixing_gradient",
    "reference_init",
)


def alone(family: str, **changes: Any) -> dict:
    """Changes under which one stage of a family is all there is."""
    stage = c.Stage(family=family, objectives={FAMILY_OBJECTIVES[family][0]: 1.0})
    run = {"stages": {"main": dataclasses.asdict(stage)}, "curriculum": ("main",), "controls": ()}
    regresses = {"data.attributions": "entropy.npy"} if family == "entropy_regressor" else {}
    return run | regresses | changes


def quirks(family: str, *names: str, **changes: Any) -> dict:
    """Changes under which one stage of a family names quirks of the stage."""
    return alone(family) | {"stages.main.compat": names} | changes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", READ)
def test_a_setting_that_no_family_of_the_run_reads_is_refused(name, family):
    value, readers = READ[name]
    if value is not None:
        changes = alone(family) | {name: value}
        said = f"config.{name}={value!r}"
    else:
        changes = alone(family) | {"model.compat": (name,)}
        noisy = name != "overwritten_write_slot" and family in readers
        changes |= {"model.noise": 0.1, "model.bottleneck": 8} if noisy else {}
        said = name
    if family in readers:
        load_config(tree_with(changes))
        return
    message = message_of(changes)
    assert said in message
    assert f"only stages of family {', '.join(readers)} do" in message


@pytest.mark.parametrize("name", READ)
def test_one_stage_that_reads_a_setting_is_enough(name):
    value, readers = READ[name]
    changes = alone("causal_lm")
    changes["stages"] |= alone(readers[0])["stages"] | {"main": changes["stages"]["main"]}
    changes["stages"]["reader"] = alone(readers[0])["stages"]["main"]
    changes |= {"controls": ("reader",)}
    noisy = {"model.noise": 0.1, "model.bottleneck": 8} if name.endswith("_noise") else {}
    load_config(
        tree_with(changes | noisy | ({"model.compat": (name,)} if value is None else {name: value}))
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_quirks_that_published_forms_name_everywhere_are_accepted_everywhere(name, family):
    load_config(tree_with(alone(family) | {"model.compat": (name,)}))
    assert {name for name in READ if "." not in name} | set(EVERYWHERE) == set(c.MODEL_QUIRKS)


@pytest.mark.parametrize("slots", ["slots_of_ones", "slots_of_zeros"])
def test_slots_that_hold_a_constant_have_no_variable_layout(slots):
    message = message_of({"model.layout": "variable", "model.compat": (slots,)})
    assert slots in message
    assert "config.model.layout='variable'" in message


def test_noise_with_a_side_needs_noise():
    narrow = {"model.bottleneck": 8}
    for quirk in ("one_sided_noise", "residual_noise"):
        message = message_of(narrow | {"model.compat": (quirk,)})
        assert quirk in message
        assert "config.model.noise=0.0" in message
        load_config(tree_with(narrow | {"model.compat": (quirk,), "model.noise": 0.1}))
    # What another run trained so stays the function it was.
    taken = narrow | {"model.compat": ("residual_noise",)}
    for init_from in ("runs/one/auto", "hf:model"):
        load_config(tree_with(taken | {"stages.main.init_from": init_from}))
    assert message_of(taken).endswith("Only with another run's weights as init_from may it be 0")


def test_noise_around_a_bottleneck_needs_one():
    message = message_of({"model.noise": 0.1, "model.compat": ("residual_noise",)})
    assert message.startswith("config.model.bottleneck=0, expected a number greater than 0")
    assert "residual_noise of config.model.compat" in message


def test_noise_around_a_bottleneck_needs_the_way_back():
    around = {
        "model.bottleneck": 8,
        "model.noise": 0.1,
        "model.compat": ("residual_noise",),
        "model.decoder.width": 256,
    }
    message = message_of(alone("oracle") | around | {"model.memory_injection": "embedding"})
    assert "residual_noise" in message
    assert "config.model.memory_injection='embedding'" in message
    for combine in ("token", "add"):
        load_config(tree_with(alone("oracle") | around | {"model.memory_injection": combine}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quirk", ["chunk_means", "unscored_first_tokens"])
def test_quirks_of_next_tokens_are_those_of_families_that_predict(quirk, family):
    if family in ("memory_model", "recurrent_memory", "oracle", "causal_lm"):
        load_config(tree_with(quirks(family, quirk)))
        return
    message = message_of(quirks(family, quirk))
    assert (
        f"config.stages.main.compat names {quirk}, which a stage of family {family} does not read"
        in message
    )
    assert message.endswith(
        "only stages of family memory_model, causal_lm, oracle, recurrent_memory do"
    )


DELIMITED = ("unscored_first_tokens", "overwritten_delimiter")


@pytest.mark.parametrize("objective", ["next_token", "plain_copy", "copy", "blank_copy"])
def test_an_overwritten_delimiter_needs_a_copy_that_has_one(objective):
    changes = quirks("memory_model", *DELIMITED)
    changes["stages.main.objectives"] = {objective: 1.0}
    if objective in ("copy", "blank_copy"):
        load_config(tree_with(changes))
    else:
        assert "config.stages.main.objectives" in message_of(changes)


def test_an_overwritten_delimiter_is_of_memory_models():
    message = message_of(
        quirks("causal_lm", *DELIMITED) | {"stages.main.objectives": {"plain_copy": 1.0}}
    )
    assert "overwritten_delimiter, which a stage of family causal_lm does not read" in message


def test_untrained_layers_are_of_weights_that_are_given():
    message = message_of({"stages.control.compat": ("untrained_layers",)})
    assert (
        "config.stages.control.compat names untrained_layers, which needs"
        " config.stages.control.init_from" in message
    )
    load_config(tree_with({"stages.main.compat": ("untrained_layers",)}))


@pytest.mark.parametrize(
    ("names", "objective", "least"),
    [(DELIMITED[:1], "next_token", 2), (DELIMITED, "copy", 4)],
    ids=["first", "delimiter"],
)
def test_a_chunk_has_a_token_that_is_scored(names, objective, least):
    changes = quirks("memory_model", *names) | {"stages.main.objectives": {objective: 1.0}}
    message = message_of(changes | {"model.chunk_length": least // 2})
    assert f"config.model.chunk_length={least // 2}" in message
    assert message.endswith(f"{names[-1]}; use {least} or more")
    load_config(tree_with(changes | {"model.chunk_length": least}))


def test_of_a_causal_model_the_row_is_what_must_be_long_enough():
    changes = quirks("causal_lm", "unscored_first_tokens") | {"model.chunk_length": 1}
    load_config(tree_with(changes))
    assert "config.data.sequence_length=1 leaves no token to score" in message_of(
        changes | {"data.sequence_length": 1}
    )


@pytest.mark.parametrize(
    ("objectives", "rows", "microbatches", "chunks", "enough"),
    [
        ("ngram_retrieval", 4, 4, 1, False),
        ("ngram_retrieval", 4, 2, 1, True),
        ("nbag_retrieval", 4, 4, 2, True),
        ("pair_retrieval", 4, 4, 2, False),
        ("pair_retrieval", 4, 2, 2, True),
        ("pair_retrieval", 4, 4, 4, True),
        ("ngram_retrieval pair_retrieval", 4, 4, 2, False),
    ],
)
def test_a_query_has_two_passages_to_tell_apart(objectives, rows, microbatches, chunks, enough):
    changes = alone("retriever") | {"data.sequence_length": 32 * chunks}
    changes |= {"stages.main.objectives": dict.fromkeys(objectives.split(), 1.0)}
    changes |= {"stages.main.batch_size": rows, "stages.main.grad_accum_steps": microbatches}
    if enough:
        load_config(tree_with(changes))
        return
    message = message_of(changes)
    assert f"config.stages.main.batch_size={rows}" in message
    assert f"config.stages.main.grad_accum_steps={microbatches}" in message


READING = {
    "model.layout": "text",
    "model.chunk_positions": False,
    "model.decoder.place_heads": 2,
    "model.decoder.features": ("blind_memories", "constant_addresses"),
}


@pytest.mark.parametrize("part", ["encoder", "reconstructor"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("place_heads", 1),
        ("features", ("blind_memories",)),
        ("features", ("constant_addresses",)),
    ],
)
def test_only_a_decoder_reads_memories_by_their_place(part, name, value):
    stack = {f"model.{part}.kind": "transformer", f"model.{part}.{name}": value}
    message = message_of(alone("autoencoder") | stack)
    assert message.startswith(f"config.model.{part} has ")
    assert "Only a decoder of family memory_model with config.model.layout='text'" in message


def test_a_stage_beside_a_reading_decoder_has_another_stack_or_is_refused():
    readers = alone("memory_model")["stages"]
    for family in FAMILIES:
        changes = alone(family)
        changes["stages"] |= {"reader": readers["main"]}
        changes |= {"controls": ("reader",)}
        if family in ("memory_model", "autoencoder", "retriever"):
            load_config(tree_with(changes | READING))
            continue
        message = message_of(changes | READING)
        assert "config.model.decoder has place_heads and blind_memories" in message, family


@pytest.mark.parametrize("layout", ["fixed", "variable"])
def test_memories_are_read_by_their_place_in_one_layout(layout):
    message = message_of(READING | {"model.layout": layout, "model.chunk_positions": True})
    assert "config.model.decoder has place_heads and blind_memories" in message


def test_constant_addresses_are_those_of_place_heads():
    message = message_of(READING | {"model.decoder.place_heads": 0})
    assert "needs config.model.decoder.place_heads greater than 0" in message
    message = message_of(READING | {"model.decoder.place_heads": 5})
    assert message.startswith("config.model.decoder.place_heads=5, expected at most")
