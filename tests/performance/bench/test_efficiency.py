"""A memory model against its decoder alone with the whole context: what is counted, what is timed,
and `memjax bench --context_lengths`."""

import dataclasses
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.cli.main import main
from memjax.config import Backbone, ConfigError, Stage
from memjax.inference import Generator
from memjax.models import CausalLM
from memjax.objectives import SpecialIds
from memjax.performance.bench import decoding, efficiency
from memjax.performance.bench.decoding import (
    flops_per_token,
    held_bytes,
    modules,
    parameters,
)
from memjax.performance.bench.efficiency import (
    Efficiency,
    check,
    measure_efficiency,
)
from memjax.performance.bench.timing import quartiles
from memjax.testing import tiny_config, tiny_model, write_config

STACK = Backbone(width=16, layers=2, heads=4, mlp_ratio=2.0)
NARROW = Backbone(width=8, layers=1, heads=2, mlp_ratio=2.0)
STAGE = Stage(batch_size=2, objectives={"next_token": 1.0})
CONFIG = tiny_config(
    "unused",
    model=tiny_model(encoder=NARROW, decoder=STACK),
    stages={"reading": STAGE, "control": dataclasses.replace(STAGE, memory=False)},
    curriculum=("reading",),
    controls=(),
)
TEXT = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(
        CONFIG.model,
        layout="text",
        chunk_positions=False,
        decoder=dataclasses.replace(STACK, place_heads=2, features=("blind_memories",)),
    ),
)
"""As CONFIG, with positions of the text and entries that are blind to one another."""


def shapes(module):
    """Of its parameters, as the command draws them."""
    chunk = jnp.zeros((1, 1, 8), jnp.int32)
    if isinstance(module, CausalLM):
        return jax.eval_shape(module.init, jax.random.key(0), chunk[0])["params"]
    return jax.eval_shape(
        lambda key: module.init(key, chunk, method=decoding.all_parts), jax.random.key(0)
    )["params"]


@pytest.fixture(scope="module")
def found():
    """Two texts, of 4 chunks."""
    (point,) = measure_efficiency(CONFIG, "reading", [32], rows=2, rounds=3).points
    return point


def test_bytes_are_those_of_paper_and_pencil_and_of_the_state(found):
    # Of 2 rows: keys and values of 2 layers, 16 wide, at 5 slots and 8 tokens; memories 8 wide,
    # whether each is one of text, and how many there are.
    assert found.memory.cache_bytes == 2 * (2 * 2 * 16 * 4 * (5 + 8) + 5 * (8 * 4 + 1) + 4)
    # At the context, the start token and a chunk.
    assert found.full.cache_bytes == 2 * 2 * 2 * 16 * 4 * (32 + 1 + 8)
    # And the matrices of two blocks and of the head.
    matrices = 4 * (2 * (4 * 16**2 + 3 * 16 * 32) + 16 * 320)
    assert found.memory.read_bytes - found.memory.cache_bytes == matrices
    assert found.full.read_bytes - found.full.cache_bytes == matrices
    assert found.smaller == found.full.cache_bytes / found.memory.cache_bytes


@pytest.mark.slow
def test_bytes_of_another_model_are_those_of_paper_and_pencil():
    stack = dataclasses.replace(STACK, kv_heads=2)
    model = dataclasses.replace(
        CONFIG.model, decoder=stack, dtype="bfloat16", readout="memory_tokens", memory_vectors=2
    )
    config = dataclasses.replace(CONFIG, model=model)
    memory, full = modules(config, STAGE, 16)
    # Of 3 rows: keys and values of 2 layers, 2 heads 4 wide, in 2 bytes, at 3 slots of 2 vectors
    # and 8 tokens; the memories 8 wide, whether each is one of text, and how many there are; and
    # at 25 tokens.
    ours = 3 * (2 * 2 * 8 * 2 * (3 * 2 + 8) + 3 * (2 * 8 * 2 + 1) + 4)
    expected_bytes = ours, 3 * 2 * 2 * 8 * 2 * 25
    for module, expected in zip((memory, full), expected_bytes, strict=True):
        params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(module))
        assert (
            held_bytes(Generator(module, params, SpecialIds()).prefill([np.full(16, 7)] * 3))
            == expected
        )


def test_both_have_the_same_decoder_and_the_rest_is_counted_apart(found):
    memory, full = modules(CONFIG, STAGE, 16)
    ours, theirs = shapes(memory), shapes(full)
    # All that the whole row would have.
    row = jnp.zeros((1, memory.chunks, 8), jnp.int32)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(
        jnp.shape, jax.eval_shape(memory.init, jax.random.key(0), row)["params"]
    )
    assert jax.tree.map(jnp.shape, decoding.decoder_of(ours)) == jax.tree.map(jnp.shape, theirs)
    decoder, others = parameters(ours)
    # Two blocks of 4 * 16^2 + 3 * 16 * 32 and two norms, the last norm, the table and the head.
    assert decoder == 2 * (4 * 16**2 + 3 * 16 * 32 + 32) + 16 + 2 * 320 * 16
    # A block 8 wide, its norms, the last norm and the table; the bridge; positions in a chunk and
    # of 4 chunks, and marks.
    assert others == (4 * 8**2 + 3 * 8 * 16 + 16) + 8 + 320 * 8 + (8 * 16 + 16) + (8 + 4 + 2) * 16
    # With 32 tokens of context there are two chunks more to mark.
    assert (found.memory.decoder_parameters, found.memory.other_parameters) == (
        decoder,
        others + 2 * 16,
    )
    assert (found.full.decoder_parameters, found.full.other_parameters) == (decoder, 0)


def test_flops_are_those_of_paper_and_pencil(found):
    block, head = 4 * 16**2 + 3 * 16 * 32, 16 * 320

    def written(before):
        """Mean of the 8 tokens behind that many positions and the start token."""
        read = [before + 1 + at for at in range(1, 9)]
        return 2 * (2 * block + head) + sum(2 * 2 * 2 * 16 * number for number in read) / 8

    encoded = 2 * (4 * 8**2 + 3 * 8 * 16) * 8 + 4 * 8**2 * 8 / 2
    for context in (16, 32):
        slots = context // 8 + 1
        # Through the bridge and the blocks, one reading another.
        opened = slots * 2 * (8 * 16 + 2 * block) + sum(
            2 * 2 * 2 * 16 * at for at in range(1, slots + 1)
        )
        expected = written(slots - 1) + (encoded + opened) / 8, written(context)
        assert flops_per_token(CONFIG, STAGE, context) == pytest.approx(expected)
    assert found.full.token_flops == written(32)


def test_neither_model_loses_any_of_the_context_or_of_a_chunk_more():
    for module in modules(CONFIG, STAGE, 16):
        strategy = Generator(module, shapes(module), SpecialIds()).strategy
        assert strategy.limit >= 16 + 8
        cut = strategy.cut(np.arange(16))
        assert cut.chunks.size + cut.window.size == 16


class Clock:
    """Counts what is done and answers with made-up seconds."""

    def __init__(self, first):
        self.first, self.done = first, []

    def writer(self, name):
        outer = self

        class Writer(decoding.Writer):
            def prefill(self):
                super().prefill()
                outer.done.append((name(self), "prefill"))
                times = sum(what == outer.done[-1] for what in outer.done)
                return outer.first if times == 1 else 7.0

            def step(self):
                super().step()
                outer.done.append((name(self), "step"))
                place = int(self.state.position[0])
                # The memory model's step that fills its chunk is the long one.
                return {"memory": 9.0 if place == 0 else 1.0, "full": 4.0}[name(self)]

        return Writer


@pytest.mark.slow
@pytest.mark.parametrize(("first", "again"), [(25.0, 2), (61.0, 0)])
def test_a_round_is_a_whole_chunk_and_the_other_model_steps_in_between(monkeypatch, first, again):
    clock = Clock(first)

    def kind(writer):
        return "memory" if hasattr(writer.generator.module, "chunks") else "full"

    monkeypatch.setattr(efficiency, "Writer", clock.writer(kind))
    (point,) = measure_efficiency(CONFIG, "reading", [16], rounds=3).points
    # The eighth of 8 steps encodes the chunk.
    assert point.memory.border_seconds == (9.0, 9.0, 9.0) and not point.full.border_seconds
    assert point.memory.token_seconds == (2.0, 2.0, 2.0)
    assert point.full.token_seconds == (4.0, 4.0, 4.0)
    assert point.faster.value == 2.0 and point.to_json()["memory"]["tokens_per_second"] == 0.5
    assert point.full.prefill_seconds == ((7.0,) * again or (first,))
    assert point.full.first_prefill == (not again)
    assert point.memory.prefill_seconds == point.full.prefill_seconds
    assert point.memory.first_prefill == (not again)
    rounds = [
        (name, len(list(group)))
        for name, group in itertools.groupby(
            what for what, kind in clock.done[4:] if kind == "step"
        )
    ]
    # 7 steps that a state has room for, in 3 rounds: 2 of each, spread over the round.
    assert rounds == [("memory", 4), ("full", 1)] * 6


def test_what_is_reported_is_json_and_follows_from_what_was_timed(found):
    told = json.loads(json.dumps(Efficiency("here", [found]).to_json()))
    assert told.keys() == {"devices", "points"} and told["devices"] == "here"
    (point,) = told["points"]
    assert (point["context"], point["rows"]) == (32, 2)
    assert point["faster"]["low"] <= point["faster"]["value"] <= point["faster"]["high"]
    assert point["allowed"] == point["full"]["token_flops"] / point["memory"]["token_flops"]
    for side in (point["memory"], point["full"]):
        assert (
            len(side["token_seconds"]) == len(side["prefill_seconds"]) == 3
            and min(side["token_seconds"]) > 0
        )
        assert side["token_spread"] == quartiles(side["token_seconds"])
        assert side["tokens_per_second"] == pytest.approx(2 / side["token_spread"]["median"])
        assert math.isfinite(side["prefill_spread"]["median"])


@pytest.fixture(scope="module")
def read():
    """A text of 4 chunks, by a model whose cache grows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficiency, "LONGEST_FULL", 31)
        (point,) = measure_efficiency(TEXT, "reading", [32], rounds=2).points
    return point


@pytest.mark.slow
def test_entries_are_counted_as_held_and_spare_room_apart(read):
    # Keys and values of 2 layers, 16 wide, at 8 tokens and 4 entries; whether each is one of text,
    # and how many there are.
    position = 2 * 2 * 16 * 4
    assert read.memory.cache_bytes == position * (8 + 4) + 4 + 4
    # Doubled, by 16 entries at least.
    assert read.memory.spare_bytes == (position + 1) * 16
    assert read.full.spare_bytes == 0


@pytest.mark.slow
def test_a_context_too_long_for_the_decoder_alone_is_counted_and_not_timed(read):
    made = read.to_json()
    assert read.full.cache_bytes == 2 * 2 * 16 * 4 * (32 + 1 + 8)
    assert made["faster"] is made["prefill_faster"] is made["full"]["token_spread"] is None
    assert not made["full"]["first_prefill"] and made["memory"]["border_spread"]["median"] > 0


@pytest.mark.slow
def test_flops_of_entries_blind_to_one_another_are_those_of_paper_and_pencil(read):
    block, head = 4 * 16**2 + 3 * 16 * 32, 16 * 320
    positions = [4 + 1 + at for at in range(1, 9)]
    written = 2 * (2 * block + head) + sum(2 * 2 * 2 * 16 * number for number in positions) / 8
    encoded = 2 * (4 * 8**2 + 3 * 8 * 16) * 8 + 4 * 8**2 * 8 / 2
    entered = 2 * (8 * 16 + 2 * block) + 2 * 2 * 2 * 16
    assert read.memory.token_flops == pytest.approx(written + (encoded + entered) / 8)


@pytest.mark.slow
def test_a_step_within_a_chunk_encodes_nothing():
    """The compiler moves what does not change out of a loop, also out of one that may not run."""
    module, _ = modules(TEXT, STAGE, 16)
    params = decoding.draw_params(module, 0)
    generator = Generator(module, params, SpecialIds())
    state = generator.prefill([np.full(19, 7)])
    append = generator._programs.append.lower(params, state, jnp.zeros(1, jnp.int32))
    text = append.compile().as_text()
    every_step = text[text.index("\nENTRY") :]
    # Its last norm; constants such as masks may stand outside.
    assert "encoder/backbone/backbone._finish" in text
    assert "encoder/backbone/backbone._finish" not in every_step


WRONG = {
    "no stage": (
        {"stage_name": "combined"},
        "--stage: got 'combined', expected a stage of this config: control, reading",
    ),
    "no memories": (
        {"stage_name": "control"},
        "--context_lengths: got stage 'control' without memories, expected a stage",
    ),
    "half a chunk": (
        {"contexts": [16, 20]},
        "--context_lengths: got 20, expected a positive multiple of the chunk length 8",
    ),
    "no round": (
        {"rounds": 0},
        "--steps: got 0, expected 1 to 7, fewer than the tokens of a chunk",
    ),
    "too many rounds": (
        {"rounds": 8},
        "--steps: got 8, expected 1 to 7, fewer than the tokens of a chunk",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_measured_is_refused_before_anything_is_compiled(changes, message):
    given = {"config": CONFIG, "stage_name": "reading", "contexts": [16], "rows": 1, "rounds": 1}
    with pytest.raises(ConfigError) as caught:
        measure_efficiency(**(given | changes), log=lambda text: pytest.fail(text))
    assert str(caught.value).startswith(message)


def test_a_decoder_without_keys_and_values_is_refused():
    mixer = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, decoder=Backbone(kind="mixer", width=16))
    )
    with pytest.raises(
        ConfigError, match=r"config\.model\.decoder\.kind: got 'mixer', expected 'transformer'"
    ):
        check(mixer, "reading", [16], 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A config file."""
    path = tmp_path_factory.mktemp("efficiency") / "tiny.py"
    write_config(path, CONFIG)
    return path


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_the_numbers(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "found.json"
    assert (
        main(["bench", f"--config={file}", "--context_lengths=16", "--steps=2", f"--out={out}"])
        == 0
    )
    said = capsys.readouterr().out
    told = json.loads(out.read_text())
    (point,) = told["points"]
    assert (point["context"], point["rows"]) == (16, 1) and told["devices"] in said
    shown = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    for name, side in (("16 memories", point["memory"]), ("full context", point["full"])):
        (line,) = (line for line in shown if line.startswith(name))
        assert f" {side['tokens_per_second']:,.1f} " in line
        assert f" {side['cache_bytes'] / 2**20:.2f} " in line
    assert f"16 tokens: with memories the cache is {point['smaller']:.1f} times smaller" in said
    assert re.search(
        r"^both have the same 0\.0 M decoder parameters; encoder, bridge and positions are 0\.0 M"
        r" more$",
        said,
        re.M,
    )


FLAGS = {
    "no numbers": (
        ["--context_lengths=1k"],
        "--context_lengths: '1k', expected a whole number of at least 1.",
    ),
    "none": (["--context_lengths="], "--context_lengths: no value, expected numbers such as"),
    "less than none": (
        ["--context_lengths=-16"],
        "--context_lengths: -16, expected a whole number of at least 1.",
    ),
    "half a chunk": (
        ["--context_lengths=20"],
        "--context_lengths: got 20, expected a positive multiple of the chunk length 8",
    ),
    "another comparison": (
        ["--context_lengths=16", "--against.seed=2"],
        "--against: given, expected none with --context_lengths.",
    ),
    "programs": (
        ["--context_lengths=16", "--program=encode", "--profile=1"],
        "--program, --profile: given, expected none with --context_lengths.",
    ),
    "borders of slots": (
        ["--border_entries=4"],
        "config.model.layout: got 'fixed', expected 'text', as --border_entries times a cache",
    ),
    "both": (
        ["--border_entries=4", "--context_lengths=16"],
        "--border_entries: given, expected none with --context_lengths.",
    ),
    "rows of nothing": (["--batch_size=2"], "--batch_size: 2, expected none without"),
}


@pytest.mark.parametrize(("args", "message"), FLAGS.values(), ids=FLAGS.keys())
def test_wrong_flags_are_one_clear_line(file, args, message, capsys):
    assert main(["bench", f"--config={file}", *args]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert said.count("memjax:") == 1 and "Traceback" not in said
