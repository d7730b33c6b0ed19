"""Programs that are timed: that they do what they are called for, and their FLOPs worked out by
hand."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import FREEZING, Backbone, ConfigError, Stage
from memjax.performance.bench import programs
from memjax.performance.bench.programs import (
    OF_MEMORY_MODELS,
    PROGRAMS,
    flops,
    make_program,
    tokens,
)
from memjax.testing import tiny_config, tiny_model
from memjax.training.flops import model_flops

BOTH = {"next_token": 1.0, "copy": 1.0}
STACK = Backbone(width=16, layers=1, heads=2, mlp_ratio=2.0)


def with_stages(memories="", **stages):
    """A config whose curriculum is those stages."""
    config = tiny_config(
        "unused",
        model=tiny_model(encoder=STACK, decoder=STACK),
        stages=stages,
        curriculum=tuple(stages),
    )
    return dataclasses.replace(
        config, controls=(), data=dataclasses.replace(config.data, memories=memories)
    )


PLAIN = with_stages(combined=Stage(batch_size=8, objectives=BOTH))


@pytest.fixture(scope="module")
def made():
    """Every program of one stage, from weights that are drawn once for all."""
    draw, drawn = programs._BenchPrograms.draw_state, []

    def once(self):
        if not drawn:
            drawn.append(draw(self))
        return jax.tree.map(jnp.copy, drawn[0])  # A training step takes its state away.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs._BenchPrograms, "draw_state", once)
        return {name: make_program(PLAIN, "combined", name) for name in PROGRAMS}


@pytest.mark.slow
def test_programs_compute_what_they_are_called_for(made):
    for name in ("evaluate", "decode"):
        terms = jax.device_get(made[name].step())
        counts = {objective: float(term.count) for objective, term in terms.items()}
        # All tokens are content: what a decoder reads on is all of it, what it copies half.
        assert (
            counts
            == {"evaluate": {"next_token": 256, "copy": 128}, "decode": {"next_token": 256}}[name]
        )
        assert all(
            float(term.nats) / float(term.count) == pytest.approx(np.log(320), rel=0.2)
            for term in terms.values()
        )
    assert made["encode"].step().shape == (8, 4, 1, 16)
    said, held = made["generate"].step()
    assert said.shape == held.shape == (8, 2, 8)
    assert int(held.min()) >= 6 and int(held.max()) < 320


@pytest.mark.slow
def test_training_programs_go_on_from_their_own_state_and_agree(made):
    losses = {}
    for name in ("train", "two_passes"):
        steps = [jax.device_get(made[name].step()) for _ in range(3)]
        assert [int(state.step) for state, _ in steps] == [1, 2, 3]
        losses[name] = [float(metrics.loss) for _, metrics in steps]
    assert losses["train"][2] < losses["train"][0]
    assert losses["two_passes"] == pytest.approx(losses["train"], rel=1e-4)
    still = [float(jax.device_get(made["gradients"].step()[1].loss)) for _ in range(2)]
    assert still == pytest.approx([losses["train"][0]] * 2, rel=1e-5)


@pytest.mark.slow
def test_programs_say_how_large_they_are(made):
    for name, (_, _, report) in made.items():
        assert report.parameters == 20_800
        assert report.planned_bytes > 4 * report.parameters
        assert report.compile_seconds > 0
        assert report.model_flops == flops(PLAIN, PLAIN.stages["combined"], name)
    # Weights and two moments are arguments, and results are written over them.
    assert made["train"].report.planned_bytes > 3 * 4 * made["train"].report.parameters


def test_tokens_are_those_read_or_said():
    stage = PLAIN.stages["combined"]
    assert [tokens(PLAIN, stage, name) for name in PROGRAMS] == [256] * 5 + [128, 256]


def test_flops_are_those_of_the_formula_and_of_paper_and_pencil():
    stage = PLAIN.stages["combined"]
    needed = model_flops(PLAIN, stage)
    assert flops(PLAIN, stage, "train") == flops(PLAIN, stage, "gradients") == needed.total
    assert flops(PLAIN, stage, "evaluate") == needed.forward
    # A chunk of 8 positions through 4 * 16^2 + 3 * 16 * 32 = 2560 weights, and causal attention.
    encoded = 2 * 2560 * 8 + 4 * 8**2 * 16 / 2
    # The same for 3 entries and 4 chunks, which see 0 to 3 of them, and 320 logits for each token.
    pairs = (3**2 + 4 * 8**2) / 2 + 8 * (0 + 1 + 2 + 3)
    decoded = 2 * 2560 * (3 + 4 * 8) + 4 * pairs * 16 + 2 * 16 * 320 * 4 * 8
    # Two chunks are copied from 3 entries, of which they see 2 and 3.
    pairs = (3**2 + 2 * 8**2) / 2 + 8 * (2 + 3)
    copied = 2 * 2560 * (3 + 2 * 8) + 4 * pairs * 16 + 2 * 16 * 320 * 2 * 8
    assert flops(PLAIN, stage, "encode") == 8 * 4 * encoded
    assert flops(PLAIN, stage, "decode") == 8 * decoded
    assert flops(PLAIN, stage, "evaluate") == 8 * (3 * encoded + decoded + copied)
    # Both factors of every product have a gradient.
    assert flops(PLAIN, stage, "two_passes") == 3 * 8 * (8 * encoded + 2 * decoded)
    # Chunk 2 reads 2 memories, chunk 3 reads 3, and both the tokens up to each: scores, and values
    # weighed by them.
    read = sum(memories + position for memories in (2, 3) for position in range(1, 9))
    assert flops(PLAIN, stage, "generate") == 8 * (16 * 2 * (2560 + 16 * 320) + read * 2 * 2 * 16)


@pytest.mark.slow
def test_with_stored_memories_a_step_has_no_encoder():
    frozen = Stage(batch_size=8, objectives=BOTH, trainable=FREEZING["frozen_all"])
    run, read = with_stages(train=frozen), with_stages(memories="nowhere", train=frozen)
    both = [make_program(config, "train", "train") for config in (run, read)]
    encoding = re.compile(r'op_name="[^"]*MemoryModel\.encode')
    assert [bool(encoding.search(program.compiled.as_text())) for program in both] == [True, False]
    whole, decoder = (program.report.model_flops for program in both)
    assert whole - decoder == 8 * 3 * (2 * 2560 * 8 + 4 * 8**2 * 16 / 2)
    assert decoder == model_flops(read, frozen, stored=True).total
    _, metrics = both[1].step()
    assert float(metrics.terms["copy"].count) == 128
    # Held-out rows are encoded whatever training reads.
    assert flops(read, frozen, "evaluate") == flops(run, frozen, "evaluate")


@pytest.mark.slow
def test_other_families_are_timed_too():
    regression = Stage(
        family="entropy_regressor", batch_size=8, objectives={"entropy_regression": 1.0}
    )
    config = with_stages(train=regression)
    _, metrics = make_program(config, "train", "train").step()
    assert float(metrics.terms["entropy_regression"].count) > 0


def refused(config, stage, name):
    with pytest.raises(ConfigError) as caught:
        make_program(config, stage, name)
    return str(caught.value)


def test_what_there_is_not_is_refused():
    assert (
        refused(PLAIN, "combind", "train")
        == "--stage: got 'combind', expected a stage of this config: combined"
    )
    control = with_stages(control=Stage(batch_size=8, objectives={"next_token": 1.0}, memory=False))
    for name in OF_MEMORY_MODELS:
        assert refused(control, "control", name).startswith(
            f"--program={name}: got stage 'control' without memories, expected a stage"
        )
    assert "lets encoder/" in refused(
        with_stages(memories="nowhere", train=Stage(batch_size=8, objectives=BOTH)),
        "train",
        "train",
    )
