"""Frozen parameters that keep the type of the folder they come from, from the start to the export.

Shapes: V vocabulary.
"""

import dataclasses
import filecmp
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.checkpoints import CheckpointError, load_params
from memjax.config import FREEZING, Backbone, Config, ConfigError, Data, Model, Stage, check
from memjax.data import Prepared, prepare
from memjax.experiment import preflight
from memjax.interop.huggingface.settings import decoder_settings
from memjax.interop.huggingface.weights import save_pretrained
from memjax.layers.lora import is_adapter
from memjax.objectives import SpecialIds
from memjax.progress import SILENT
from memjax.sharding import make_mesh
from memjax.testing import write_corpus
from memjax.testing.huggingface import KINDS, SMALL, write_folder
from memjax.training.compiled_steps import StageSteps
from memjax.training.init_state import Run, init_train_state
from memjax.training.loop import train_stage
from memjax.training.step import train_step

NARROW, WIDE = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
RULES = (("^(encoder|bridge)/", "float32"), (".*", "bfloat16"))
LORA = ((r"^backbone/.*/(query|up)/kernel$", 2), *FREEZING["encoder_and_bridge"])
ADAPTERS = (LORA[0], (".*", False))


class Made(NamedTuple):
    """A folder in bfloat16 and rows for models with its decoder."""

    folder: Path
    data: Prepared
    here: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    here = tmp_path_factory.mktemp("types")
    folder = write_folder(here / "folder", KINDS["llama"] | SMALL)
    corpus = write_corpus(here / "corpus.jsonl", documents=20)
    settings = Data(corpus=str(corpus), vocab_size=320, sequence_length=32)
    return Made(folder, prepare(settings, here / "data", lambda _: None), here)


def config_of(made: Made, **stage: Any) -> Config:
    settings: dict[str, Any] = {
        "objectives": {"plain_copy": 1.0},
        "batch_size": 4,
        "steps": 4,
        "warmup_steps": 0,
        "trainable": LORA,
        "frozen_dtypes": RULES,
        "init_from": f"hf:{made.folder}",
    }
    model = Model(
        chunk_length=8,
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
        encoder=Backbone(width=16, layers=1, heads=2, mlp_ratio=1.0),
        decoder=decoder_settings(made.folder).stack,
    )
    return Config(
        data=Data(vocab_size=320, sequence_length=32),
        model=model,
        stages={"train": Stage(**settings | stage)},
        curriculum=("train",),
        checkpoint_every=2,
        log_every=1,
    )


def types(tree: Any) -> dict[str, np.dtype]:
    return {path: np.dtype(leaf.dtype) for path, leaf in flatten_dict(tree, sep="/").items()}


def start(made: Made, config: Config) -> tuple[Any, StageSteps]:
    steps = StageSteps(config, "train", make_mesh())
    run = Run(config, made.here, made.data, SILENT)
    return init_train_state(run, "train", steps.module, steps.optimizer), steps


def test_frozen_parameters_keep_the_type_of_their_folder(made: Made) -> None:
    rules = ((LORA[0][0], 2), ("^bridge/", True), (".*", False))
    state, steps = start(made, config_of(made, trainable=rules))
    assert set(types(state.trainable).values()) == {WIDE}
    assert any(map(is_adapter, types(state.trainable)))
    for path, dtype in types(state.frozen).items():
        assert dtype == (WIDE if path.startswith("encoder/") else NARROW), path
    # What a checkpoint is restored onto, and what is compiled for, is the same.
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), steps.state)
    assert wanted == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert types(steps.shapes) == types(state.params)


def test_loss_and_update_are_those_of_the_same_numbers_in_float32(
    made: Made, quick: Callable[..., Any]
) -> None:
    tokens = np.random.default_rng(0).integers(6, 320, (4, 32)).astype(np.int32)
    config = config_of(made, family="causal_lm", objectives={"next_token": 1.0}, trainable=ADAPTERS)
    state, steps = start(made, config)
    step = functools.partial(
        train_step,
        module=steps.module,
        stage=steps.stage,
        optimizer=steps.optimizer,
        ids=SpecialIds(),
    )
    widened = state.replace(frozen=jax.tree.map(lambda x: x.astype(WIDE), state.frozen))
    (after, ours), (_, theirs) = (quick(step)(given, tokens) for given in (state, widened))
    assert ours.loss > 3 and ours.gradient_norm > 0
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-6)
    np.testing.assert_allclose(ours.gradient_norm, theirs.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(ours.update_norm, theirs.update_norm, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, jax.device_get(state.frozen))


@pytest.mark.slow
def test_a_run_resumes_bitwise_and_exports_the_very_bytes(made: Made) -> None:
    config = config_of(made, trainable=FREEZING["encoder_and_bridge"])
    run = Run(config, made.here / "run", made.data, SILENT)
    checkpoints = made.here / "run/stages/train/checkpoints"
    train_stage(run, "train")
    whole = load_params(checkpoints)[0]
    shutil.rmtree(checkpoints / "4")
    train_stage(run, "train")
    again = load_params(checkpoints)[0]
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert types(whole) == types(again)
    assert types(whole)["embed/embedding"] == NARROW
    assert types(whole)["encoder/embed/embedding"] == WIDE
    save_pretrained(whole, made.folder, made.here / "out")
    files = sorted(path.name for path in made.folder.iterdir())
    assert filecmp.cmpfiles(made.folder, made.here / "out", files, False) == (files, [], [])


def test_weights_that_would_be_rounded_are_refused(made: Made, tmp_path: Path) -> None:
    wide = write_folder(tmp_path / "wide", KINDS["llama"] | SMALL | {"torch_dtype": "float32"})
    config = config_of(made, init_from=f"hf:{wide}")
    said = (
        r"^config\.stages\.train\.frozen_dtypes: bfloat16 for '[\w/]+', expected float32, as"
        rf" {re.escape(str(wide))} has it in float32\. Change the rule$"
    )
    with pytest.raises(CheckpointError, match=said):
        preflight.check_stages(config, make_mesh())
    # What is trained is float32, whatever the rules.
    everything = dataclasses.replace(config.stages["train"], trainable=FREEZING["trainable"])
    preflight.check_stages(dataclasses.replace(config, stages={"train": everything}), make_mesh())


def test_a_type_that_cannot_be_is_refused(made: Made) -> None:
    said = r"config\.stages\.train\.frozen_dtypes\['\.\*'\].*'float16'.*float32, bfloat16"
    with pytest.raises(ConfigError, match=said):
        check(config_of(made, frozen_dtypes=((".*", "float16"),)))


def test_memory_is_counted_in_the_stored_types(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory", lambda device: 0)
    needed = []
    for rules in (RULES, Stage().frozen_dtypes):
        with pytest.raises(ConfigError, match="bytes of parameters and ids per device") as caught:
            preflight.check_stages(config_of(made, frozen_dtypes=rules), make_mesh())
        needed.append(int(re.findall(r": ([\d,]+) bytes", str(caught.value))[0].replace(",", "")))
    shapes = StageSteps(config_of(made), "train", make_mesh()).shapes
    narrow = sum(x.size for x in jax.tree.leaves(shapes) if x.dtype == NARROW)
    assert narrow > 20_000 and needed[1] - needed[0] == 2 * narrow
