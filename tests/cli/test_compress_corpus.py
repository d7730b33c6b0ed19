"""`memjax compress` of a prepared corpus, by an encoder of any family, and the stage that
reads them.

Shapes: B row, C chunk, L token.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from memjax.checkpoints import CheckpointError, Checkpoints, load_params, transplant
from memjax.checkpoints.identity import encoder_settings, fingerprint
from memjax.cli import compress
from memjax.cli.arguments import UsageError, parse
from memjax.config import Backbone, Config, ConfigError, Model, Optimizer, Stage, to_json
from memjax.data import (
    CorpusError,
    MemoriesError,
    Prepared,
    RowsError,
    TokenizerError,
    open_memories,
    prepare,
)
from memjax.evaluation.evaluators import open_evaluators
from memjax.models import build, example
from memjax.objectives import load_config
from memjax.progress import Reporter
from memjax.testing import tiny_config, write_corpus
from memjax.training.encode_corpus import check_frozen, stored_memories
from memjax.training.init_state import Run
from memjax.training.loop import train_stage
from memjax.training.optimizer import split
from memjax.training.step import TrainState

CHUNKS, LENGTH = 4, 8
SPLITS = ("train", "validation")
SMALL = Backbone(kind="transformer", width=16, layers=1, heads=2, mlp_ratio=2.0)


@dataclasses.dataclass
class Place:
    """A workdir whose data is there and whose stages are checkpoints of drawn weights, all with the
    same encoder."""

    config: Config
    workdir: Path
    data: Prepared
    params: dict

    def stage(self, name: str) -> str:
        return str(self.workdir / "stages" / name)

    def tokens(self) -> np.ndarray:
        return np.stack([self.data.train[i] for i in range(len(self.data.train))]).reshape(
            -1, CHUNKS, LENGTH
        )


def save(workdir: Path, name: str, params: dict, config: Config, tokenizer: str, step: int) -> None:
    meta = {
        "stage": name,
        "config": to_json(config),
        "tokenizer": tokenizer,
        "next_row": 0,
        "seconds": 0.0,
    }
    with Checkpoints(workdir / "stages" / name / "checkpoints") as checkpoints:
        checkpoints.save(step, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(step)}, meta)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draw) -> Place:
    folder = tmp_path_factory.mktemp("encode")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=2, optimizer=Optimizer())
    stages = dict(config.stages)
    for family, objective in (
        ("oracle", "next_token"),
        ("retriever", "ngram_retrieval"),
        ("causal_lm", "next_token"),
    ):
        stages[family] = Stage(
            family=family, objectives={objective: 1.0}, batch_size=8, steps=2, warmup_steps=1
        )
    config = dataclasses.replace(config, stages=stages, curriculum=tuple(stages), controls=())
    data = prepare(config.data, folder / "a" / "data", lambda _: None)
    drawn = {}
    for seed, (name, stage) in enumerate(stages.items()):
        module = build(config, stage)
        drawn[name] = draw(module, example(module, config), seed=seed)["params"]
        if "encoder" in drawn[name]:
            drawn[name] = transplant(drawn[name], drawn["autoencoder"], "encoder", "there")
        save(folder / "a", name, drawn[name], config, data.tokenizer.fingerprint, step=7)
    return Place(config, folder / "a", data, drawn)


@pytest.fixture(scope="module")
def expected(place: Place, quick) -> np.ndarray:
    """The memories of all chunks by the memory model's own `encode`."""
    module = build(place.config, place.config.stages["combined"])
    encode = quick(lambda params, tokens: module.apply({"params": params}, tokens, method="encode"))
    return encode(place.params["combined"], place.tokens())


def encode(
    place: Place, out: Path, *more: str, stage: str = "autoencoder", data: Path | None = None
) -> None:
    run(place.stage(stage), str(data or place.workdir), f"--out={out}", *more)


def run(*args: str) -> None:
    compress.run(parse(compress.ARGUMENTS, args))


@pytest.fixture(scope="module")
def encoded(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Memories in float32."""
    out = tmp_path_factory.mktemp("memories")
    encode(place, out, "--dtype=float32", "--batch_size=16")
    return out


# What is written


@pytest.mark.parametrize("stage", ["autoencoder", "combined", "oracle", "retriever"])
def test_every_family_with_an_encoder_gives_its_memories(
    place, expected, tmp_path, capsys, stage
) -> None:
    encode(place, tmp_path / "new" / "m", stage=stage)
    said = " ".join(capsys.readouterr().out.split())
    assert f"memories of {len(expected)} train rows, [4, 1, 16] bfloat16 each, " in said
    memories = open_memories(tmp_path / "new" / "m", "train")
    assert len(memories) == len(expected) == len(place.data.train)
    assert len(expected) % 64, "the last batch is not full"
    found = np.stack([memories[i] for i in range(len(memories))])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-8, atol=1e-5)


def test_float32_keeps_what_the_encoder_gives_whatever_the_batch(place, expected, encoded) -> None:
    assert len(expected) % 16
    memories = open_memories(encoded, "train")
    found = np.stack([memories[i] for i in range(len(memories))])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_description_says_whose_memories_they_are(place, encoded) -> None:
    about = json.loads((encoded / "train.json").read_text())
    assert about["encoder"] == {
        "checkpoint": place.stage("autoencoder"),
        "step": 7,
        "settings": encoder_settings(place.config.model),
        "sha256": fingerprint(load_params(place.stage("combined") + "/checkpoints")[0]["encoder"]),
    }
    assert about["shape"] == [CHUNKS, 1, 16] and about["dtype"] == "float32"
    assert about["of"]["tokenizer"] == place.data.tokenizer.fingerprint
    assert sorted(path.name for path in encoded.iterdir()) == [
        "train-00000-of-00001.arrayrecord",
        "train.json",
    ]


def test_held_out_rows_stand_beside_those_to_train_on(place, encoded, tmp_path) -> None:
    both = shutil.copytree(encoded, tmp_path / "both")
    encode(place, both, "--split=validation")
    held_out = open_memories(both, "validation")
    held_out.check_rows(place.data.validation)
    assert len(held_out) == len(place.data.validation) != len(open_memories(both, "train"))


def test_a_fingerprint_is_of_every_bit_and_every_name() -> None:
    params = {"embed": {"embedding": jnp.arange(6.0).reshape(2, 3)}, "down": {"bias": jnp.zeros(2)}}
    ours = fingerprint(params)
    assert ours == fingerprint(dict(reversed(params.items())))
    others = (
        params | {"down": {"bias": jnp.array([0.0, -0.0])}},
        params | {"down": {"kernel": jnp.zeros(2)}},
        params | {"down": {"bias": jnp.zeros((2, 1))}},
        params | {"down": {"bias": jnp.zeros(2, jnp.int32)}},
        {"embed": params["embed"]},
    )
    assert len({ours, *map(fingerprint, others)}) == 6


def test_settings_tell_encoders_apart_that_their_parameters_do_not() -> None:
    model = Model(encoder=SMALL, bottleneck=8, noise=0.5)
    for changes in (
        {"encoder": dataclasses.replace(SMALL, heads=4)},
        {"readout": "second_to_last"},
        {"chunk_length": 16},
        {"compat": ("residual_noise",)},
    ):
        assert encoder_settings(dataclasses.replace(model, **changes)) != encoder_settings(model)
    for changes in (
        {"decoder": SMALL},
        {"noise": 0.0},
        {"compat": ("slots_of_ones",)},
        {"dtype": "bfloat16"},
    ):
        assert encoder_settings(dataclasses.replace(model, **changes)) == encoder_settings(model)
    assert json.loads(json.dumps(encoder_settings(model))) == encoder_settings(model)


# What is refused


WRONG = {
    "texts beside it": (["more.txt"], "SOURCE: 2 sources with a prepared corpus"),
    "a limit": (["--limit=3"], "--limit: given, expected none with a prepared corpus"),
    "a dtype of texts": (["--dtype=int8"], "--dtype: 'int8', expected float32 or bfloat16"),
    "a dtype that is none": (["--dtype=float8"], "--dtype: 'float8', expected one of"),
    "no rows at a time": (["--batch_size=0"], "--batch_size: 0, expected a whole number"),
}


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line_is_explained(place, args, message) -> None:
    with pytest.raises(UsageError, match=message):
        run("stage", str(place.workdir / "data"), *args, "--out=m")


def test_what_does_not_fit_is_named_and_nothing_is_written(place, tmp_path) -> None:
    out = tmp_path / "m"
    with pytest.raises(
        CheckpointError, match=r"stage causal_lm \(family causal_lm\) has no encoder, expected"
    ):
        encode(place, out, stage="causal_lm")
    with pytest.raises(CheckpointError, match=r"stages/absent: no folder of a stage, expected"):
        encode(place, out, stage="absent")
    with pytest.raises(
        RowsError, match=r"rows-64: there are no rows of 64 tokens here \(there are: rows-32\)"
    ):
        encode(place, out, "--sequence_length=64")
    with pytest.raises(
        RowsError, match=r"rows of 36 tokens are no whole number of chunks, which are of 8"
    ):
        encode(place, out, "--sequence_length=36")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "prepared.json").write_text("{}")
    with pytest.raises(TokenizerError, match="bare"):
        encode(place, out, data=tmp_path / "bare")
    with pytest.raises(CorpusError, match="absent"):
        encode(place, out, data=tmp_path / "absent")
    assert not out.exists()


def test_data_of_another_tokenizer_is_refused(place, tmp_path) -> None:
    corpus = write_corpus(tmp_path / "other.jsonl", seed=5)
    for vocabulary in (320, 330):
        prepare(
            dataclasses.replace(place.config.data, corpus=str(corpus), vocab_size=vocabulary),
            tmp_path / str(vocabulary),
        )
    with pytest.raises(
        CheckpointError,
        match=r"320: tokenizer \w+, expected \w+, which .*stages/autoencoder.* was trained with",
    ):
        encode(place, tmp_path / "m", data=tmp_path / "320")
    # Imported weights do not say which tokenizer is theirs.
    save(tmp_path, "autoencoder", place.params["autoencoder"], place.config, "", step=0)
    imported, out = str(tmp_path / "stages" / "autoencoder"), f"--out={tmp_path / 'm'}"
    with pytest.raises(
        CheckpointError, match=r"330: tokenizer of 330 entries, expected at most 320, the token"
    ):
        run(imported, str(tmp_path / "330"), out)
    run(imported, str(tmp_path / "320"), out)


def test_memories_that_are_there_are_not_written_over(place, encoded) -> None:
    with pytest.raises(MemoriesError, match="train memories exist, expected none"):
        encode(place, encoded)


# The stage that reads them


def reading(place: Place, memories: Path | str, **changes: object) -> Config:
    """A run of a decoder on the encoder, with stored memories."""
    stage = dataclasses.replace(
        place.config.stages["combined"], init_from=place.stage("autoencoder"), **changes
    )
    data = dataclasses.replace(place.config.data, memories=str(memories))
    return dataclasses.replace(
        place.config, data=data, stages={"combined": stage}, curriculum=("combined",)
    )


def run_of(place: Place, config: Config, workdir: Path) -> Run:
    return Run(config, workdir, place.data, Reporter(Console(quiet=True)))


def state_of(config: Config, params: dict) -> TrainState:
    trainable, frozen = split(
        jax.tree.map(jnp.asarray, params), config.stages["combined"].trainable, "trainable"
    )
    return TrainState(jnp.int32(0), trainable, frozen, ())


def test_a_stage_opens_the_memories_of_its_encoder(place, encoded, tmp_path) -> None:
    config = reading(place, encoded)
    memories = stored_memories(
        run_of(place, config, tmp_path), "combined", state_of(config, place.params["combined"])
    )
    assert memories is not None and memories.folder == encoded
    for other in (reading(place, ""), reading(place, encoded, memory=False)):
        state = state_of(other, place.params["combined"])
        assert stored_memories(run_of(place, other, tmp_path), "combined", state) is None


def test_a_stage_refuses_the_memories_of_another_encoder(place, encoded, tmp_path) -> None:
    config = reading(place, encoded)
    params = jax.tree.map(np.array, place.params["combined"])
    params["head"] = jax.tree.map(lambda x: x + 1, params["head"])
    assert (
        stored_memories(run_of(place, config, tmp_path), "combined", state_of(config, params))
        is not None
    )
    params["encoder"]["embed"]["embedding"][3, 5] += 1e-6
    with pytest.raises(
        MemoriesError,
        match=r"made by the encoder of .*stages/autoencoder, step 7 .*this stage's encoder is"
        r" another",
    ):
        stored_memories(run_of(place, config, tmp_path), "combined", state_of(config, params))
    model = dataclasses.replace(
        config.model, encoder=dataclasses.replace(config.model.encoder, final_norm=False)
    )
    other = dataclasses.replace(config, model=model)
    with pytest.raises(MemoriesError, match=r"made by an encoder with config\.model\.encoder="):
        stored_memories(
            run_of(place, other, tmp_path), "combined", state_of(other, place.params["combined"])
        )


def test_a_stage_that_trains_its_encoder_is_refused(place, encoded, tmp_path) -> None:
    config = reading(place, encoded, trainable=(("^encoder/backbone/", False), (".*", True)))
    state = state_of(config, place.params["combined"])
    with pytest.raises(
        ConfigError, match=r"config\.stages\.combined\.trainable lets encoder/embed/embedding move"
    ):
        stored_memories(run_of(place, config, tmp_path), "combined", state)
    check_frozen(reading(place, ""), "combined", state.trainable)
    check_frozen(reading(place, encoded), "combined", {"decoder": state.trainable})


def test_a_stage_of_the_run_writes_its_memories_once(place, expected, tmp_path) -> None:
    workdir = shutil.copytree(place.workdir, tmp_path / "run")
    stages = {name: place.config.stages[name] for name in ("autoencoder", "combined")}
    stages["control"] = dataclasses.replace(
        stages["combined"], init_from="", init_part="", trainable=((".*", True),)
    )
    data = dataclasses.replace(place.config.data, memories="autoencoder")
    config = dataclasses.replace(
        place.config, data=data, stages=stages, curriculum=tuple(stages), controls=()
    )
    load_config(to_json(config))
    run, state = run_of(place, config, workdir), state_of(config, place.params["combined"])
    memories = stored_memories(run, "combined", state)
    assert memories is not None and memories.folder == workdir / "memories"
    found = np.stack([memories[i] for i in range(len(memories))])
    assert found.dtype == np.float32, "the dtype of the model"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    written = (workdir / "memories" / "train.json").stat().st_mtime_ns
    assert stored_memories(run, "combined", state) is not None
    assert (workdir / "memories" / "train.json").stat().st_mtime_ns == written
    moves = TrainState(jnp.int32(0), place.params["combined"], {}, ())
    assert stored_memories(run, "control", moves) is None, "its encoder moves"


def test_memories_of_a_stage_without_an_encoder_are_refused(place) -> None:
    data = dataclasses.replace(place.config.data, memories="causal_lm")
    with pytest.raises(
        ConfigError,
        match=r"config\.data\.memories='causal_lm' is a stage of family 'causal_lm', expected",
    ):
        load_config(to_json(dataclasses.replace(place.config, data=data)))


@pytest.mark.slow
def test_a_stage_trains_on_memories_as_on_its_encoder(place, tmp_path, monkeypatch) -> None:
    """To their rounding; the memories of the next row, in place of a row's own, would move losses
    by 5e-4 of themselves."""
    memories, trained = tmp_path / "memories", {}
    monkeypatch.setattr("memjax.data.memories.SHARD_TOKENS", 2048)
    encode(place, memories)
    assert len(open_memories(memories, "train").info["files"]) > 1
    for name, folder in (("encoder", ""), ("stored", memories)):
        run = run_of(place, reading(place, folder, grad_accum_steps=2), tmp_path / name)
        train_stage(run, "combined", open_evaluators(run, "combined", training=True))
        stage = tmp_path / name / "stages" / "combined"
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        losses = {
            kind: [line.get("loss", line["copy/nats"]) for line in lines if line["split"] == kind]
            for kind in SPLITS
        }
        trained[name] = losses, fingerprint(load_params(stage / "checkpoints")[0]["encoder"])
    (losses, kept), (expected, as_given) = trained["stored"], trained["encoder"]
    assert {kind: len(values) for kind, values in expected.items()} == {"train": 2, "validation": 1}
    for kind in SPLITS:
        assert losses[kind] == pytest.approx(expected[kind], rel=2e-5)
    assert losses["train"] != expected["train"], "the memories were not read"
    assert kept == as_given, "the encoder is in the checkpoint all the same"
