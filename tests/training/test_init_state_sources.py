"""A stage with a decoder of a Hugging Face folder and the encoder of an autoencoder."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.checkpoints import CheckpointError
from memjax.checkpoints.export_writing import write_export
from memjax.config import (
    FREEZING,
    Backbone,
    Config,
    ConfigError,
    Data,
    Model,
    Source,
    Stage,
    check,
    from_config_dict,
    from_json,
    to_config_dict,
    to_json,
)
from memjax.data import Prepared, prepare
from memjax.experiment.preflight import check_stages
from memjax.interop.huggingface.settings import decoder_settings
from memjax.interop.huggingface.weights import open_pretrained
from memjax.models import build, example
from memjax.progress import SILENT
from memjax.sharding import make_mesh
from memjax.testing import write_corpus
from memjax.testing.huggingface import KINDS, SMALL, write_folder
from memjax.testing.workdir import write_stage
from memjax.training.compiled_steps import StageSteps
from memjax.training.init_state import Run, init_train_state

BRIDGE = FREEZING["bridge_only"]
AUTOENCODER = Stage(family="autoencoder", objectives={"reconstruction": 1.0}, batch_size=8)


class Made(NamedTuple):
    """A folder, rows, and an autoencoder as an export and as a stage of a run."""

    folder: Path
    data: Prepared
    here: Path
    params: dict[str, Any]
    export: str
    stage: str


def config_of(folder: Path, **stage: Any) -> Config:
    small: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 1.0}
    model = Model(
        chunk_length=8,
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
        encoder=Backbone(**small),
        decoder=decoder_settings(folder).stack,
        reconstructor=Backbone(**small),
    )
    whole = Stage(objectives={"plain_copy": 1.0}, batch_size=8, trainable=BRIDGE)
    return Config(
        data=Data(vocab_size=320, sequence_length=32),
        model=model,
        stages={"auto": AUTOENCODER, "train": dataclasses.replace(whole, **stage)},
        curriculum=("auto", "train"),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., Any]) -> Made:
    here = tmp_path_factory.mktemp("sources")
    folder = write_folder(here / "folder", KINDS["llama"] | SMALL)
    settings = Data(
        corpus=str(write_corpus(here / "corpus.jsonl", documents=20)),
        vocab_size=320,
        sequence_length=32,
    )
    data = prepare(settings, here / "run" / "data", lambda _: None)
    config = config_of(folder)
    module = build(config, config.stages["auto"])
    params = draw(module, example(module, config))["params"]
    write_export(here / "export", config, "auto", 7, params, data.tokenizer)
    write_stage(here / "other", config, "auto", data.tokenizer.fingerprint, params)
    stage = f"{here}/other/stages/auto"
    return Made(folder, data, here, flatten_dict(params, sep="/"), f"{here}/export", stage)


@pytest.mark.parametrize("kind", ["export", "stage"])
def test_every_part_comes_from_its_source_and_the_rest_is_drawn(made: Made, kind: str) -> None:
    parts = {"encoder": getattr(made, kind)}
    config = config_of(made.folder, init_from=f"hf:{made.folder}", init_parts=parts)
    assert [source.path for source in config.stages["train"].sources] == [
        f"hf:{made.folder}",
        parts["encoder"],
    ]
    check_stages(config, make_mesh())
    steps = StageSteps(config, "train", make_mesh())
    run = Run(config, made.here, made.data, SILENT)
    state = init_train_state(run, "train", steps.module, steps.optimizer)
    decoder = flatten_dict(open_pretrained(made.folder, 320).read_all(), sep="/")
    found = flatten_dict(state.params, sep="/")
    drawn = set(found) - set(decoder)
    for path in found:
        if path.startswith("encoder/"):
            np.testing.assert_array_equal(found[path], made.params[path], err_msg=path)
            drawn.remove(path)
        elif path in decoder:
            theirs = decoder[path].astype(np.float32)
            # The mean of added ids is rounded in the folder's own type.
            rows = slice(SMALL["vocab_size"]) if path == "embed/embedding" else slice(None)
            np.testing.assert_array_equal(found[path][rows], theirs[rows], err_msg=path)
    assert drawn == {path for path in found if path.startswith("bridge/")}
    assert set(flatten_dict(state.trainable, sep="/")) == drawn


def test_a_stage_of_the_same_run_can_give_a_part(made: Made) -> None:
    config = config_of(made.folder, init_from=f"hf:{made.folder}", init_parts={"encoder": "auto"})
    check(config)
    check_stages(config, make_mesh())
    write_stage(
        made.here / "same",
        config,
        "auto",
        made.data.tokenizer.fingerprint,
        unflatten_dict(made.params, sep="/"),
    )
    steps = StageSteps(config, "train", make_mesh())
    run = Run(config, made.here / "same", made.data, SILENT)
    state = init_train_state(run, "train", steps.module, steps.optimizer)
    for path, leaf in flatten_dict(state.params["encoder"], sep="/").items():
        np.testing.assert_array_equal(leaf, made.params[f"encoder/{path}"])


def test_a_source_of_another_encoder_or_none_is_refused_by_its_key(made: Made) -> None:
    key = re.escape("config.stages.train.init_parts.encoder='./nowhere'")
    config = config_of(made.folder, init_parts={"encoder": "./nowhere"})
    with pytest.raises(CheckpointError, match=f"^{key}: ./nowhere: not found"):
        check_stages(config, make_mesh())
    config = config_of(made.folder, init_parts={"encoder": made.export})
    wide = dataclasses.replace(config.model.encoder, mlp_ratio=2.0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=wide))
    steps = StageSteps(config, "train", make_mesh())
    run = Run(config, made.here, made.data, SILENT)
    with pytest.raises(CheckpointError, match=r"was trained with config\.model\.encoder="):
        init_train_state(run, "train", steps.module, steps.optimizer)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"encoder": "later"}, r"train\.init_parts\.encoder='later' is neither an earlier stage"),
        ({"": "auto"}, r"train\.init_parts names an empty part; use init_from for a whole model"),
    ],
)
def test_parts_that_cannot_be_are_refused(made: Made, parts: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(config_of(made.folder, init_parts=parts))


def test_parts_are_set_from_the_command_line_and_survive_json(made: Made) -> None:
    tree = to_config_dict(config_of(made.folder))
    config = from_config_dict(tree, [("stages.train.init_parts.encoder", "runs/a/stages/b")])
    assert config.stages["train"].sources == (
        Source("init_parts.encoder", "runs/a/stages/b", "encoder"),
    )
    assert from_json(to_json(config)) == config
