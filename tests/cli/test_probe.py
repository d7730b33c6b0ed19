"""`memjax probe`: stages and files side by side, and what it says where something does not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.cli import probe
from memjax.cli.arguments import UsageError, parse
from memjax.config import Optimizer, to_json
from memjax.data import prepare
from memjax.evaluation.instruments.encoders import vector_reader, vectors_of
from memjax.evaluation.instruments.probe import CONTROLS, ProbeError
from memjax.evaluation.instruments.probe_decoders import Protocol
from memjax.evaluation.instruments.vectors import VectorsError, open_vectors, save_vectors
from memjax.inference import load
from memjax.inference.texts import held_out
from memjax.models import build, example
from memjax.testing import tiny_config, write_corpus

PROTOCOL = "--protocol=width=16,layers=1,heads=2,steps=10,batch=16,evaluate_every=5"
SMALL = (PROTOCOL, "--limit=100", "--seeds=0")


def run(*args: str) -> None:
    probe.run(parse(probe.ARGUMENTS, args))


@pytest.fixture(scope="module")
def stage(tmp_path_factory, draw) -> str:
    """A stage of drawn weights in a workdir whose data is there."""
    folder = tmp_path_factory.mktemp("probe")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), optimizer=Optimizer())
    config = dataclasses.replace(
        config, stages={"ae": config.stages["autoencoder"]}, curriculum=("ae",), controls=()
    )
    data = prepare(config.data, folder / "data", lambda _: None)
    module = build(config, config.stages["ae"])
    params = draw(module, example(module, config))["params"]
    meta = {
        "stage": "ae",
        "config": to_json(config),
        "tokenizer": data.tokenizer.fingerprint,
        "next_row": 0,
        "seconds": 0.0,
    }
    with Checkpoints(folder / "stages" / "ae" / "checkpoints") as checkpoints:
        checkpoints.save(4, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(4)}, meta)
    return str(folder / "stages" / "ae")


@pytest.fixture(scope="module")
def file(stage, tmp_path_factory) -> str:
    """Vectors of that stage's training texts."""
    model = load(stage)
    encoder = vector_reader(model)
    path = tmp_path_factory.mktemp("vectors") / "ae.arrayrecord"
    save_vectors(
        path, vectors_of(encoder, held_out(model.data, 8, 60, model.required_tokenizer, "train"))
    )
    return str(path)


@pytest.mark.slow
def test_a_stage_and_a_file_are_probed_alike(stage, file, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "probe.json"
    run(stage, file, "--eval_examples=40", *SMALL, f"--out={out}")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "one-shot probe" in said
        and "random_tokens" in said
        and "Still learning after 10 steps" in said
    )
    of_stage, of_file = json.loads(out.read_text())["results"]
    assert (of_stage["encoder"], of_file["encoder"]) == (stage, file)
    assert list(of_stage["controls"]) == ["constant", "untrained", "shuffled", "random_tokens"]
    assert list(of_file["controls"]) == ["constant", "shuffled"]
    assert (of_stage["train_texts"], of_stage["held_out_texts"]) == (100, 40)
    assert (of_file["train_texts"], of_file["held_out_texts"]) == (54, 6), (
        "the last tenth is held out"
    )
    for result in (of_stage, of_file):
        assert (result["vocabulary"], result["length"], result["shape"]) == (320, 8, [1, 16])
        assert result["protocol"]["steps"] == 10 and result["protocol"]["learning_rate"] == 3e-3
        assert (
            0
            < result["own"]["nats"]["low"]
            <= result["own"]["nats"]["value"]
            <= result["own"]["nats"]["high"]
        )
        assert len(result["own"]["runs"]) == 1 and result["own"]["runs"][0]["curve"][0][0] == 0


@pytest.mark.slow
def test_another_file_can_be_held_out(file, tmp_path, monkeypatch) -> None:
    """Found equal where it is the file itself, cut where the command would have cut it."""
    monkeypatch.chdir(tmp_path)
    shuffled = (f"{PROTOCOL},controls=shuffled", *SMALL[1:])
    run(f"{file},{file}", "--eval_examples=7", *shuffled)
    (result,) = json.loads((tmp_path / "probe.json").read_text())["results"]
    assert (result["train_texts"], result["held_out_texts"]) == (60, 7)
    assert result["bits_a_dimension"] is None, "there is no constant to compare with"
    assert result["encoder"] == file


def test_the_defaults_are_those_of_the_protocol() -> None:
    given = parse(probe.ARGUMENTS, ["a"]).protocol
    assert given.pop("controls") is None
    assert Protocol(**given) == Protocol()
    assert probe.CONTROLS == CONTROLS


COMMAND_LINES = {
    "no encoder": ([], "ENCODER: missing, expected ENCODER... For example: memjax probe"),
    "a kind that is none": (["a", "--protocol=kind=slow"], "--protocol: kind='slow', expected one"),
    "a read-out that is none": (["a", "--readout=-3"], "--readout: '-3', expected one of -1, -2"),
    "a mean of a stage": (["a", "--readout=mean"], "--readout: 'mean', expected -1 or -2"),
    "no seeds": (["a", "--seeds="], "--seeds: no value, expected seeds such as 0,1"),
    "three files": (["a.npz,b.npz,c.npz"], "expected FILE or FILE,HELD_OUT_FILE"),
    "no corpus": (["hf:a"], "--corpus: missing, expected text for hf:a"),
    "nothing to save": (["a", "--save=b.npz"], "--save: given with 0 encoders hf:MODEL"),
    "no steps": (["a", "--protocol=steps=0"], "--protocol: steps=0, expected only with"),
}


@pytest.mark.parametrize(("args", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line_is_explained(args, message) -> None:
    with pytest.raises(UsageError, match=message):
        run(*args)


def test_what_does_not_fit_is_named(stage, file, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"absent: not found, expected a workdir"):
        run(str(tmp_path / "absent"))
    with pytest.raises(VectorsError, match=r"absent\.npz: no such file"):
        run(str(tmp_path / "absent.npz"))
    with pytest.raises(ProbeError, match="heads=16, expected a divisor of width=40"):
        run(stage, "--protocol=width=40")
    with pytest.raises(ProbeError, match="'untrained' needs the encoder"):
        run(file, "--protocol=controls=untrained")
    np.savez(tmp_path / "one.npz", vectors=np.ones((1, 16)), tokens=np.ones((1, 8), int))
    with pytest.raises(VectorsError, match=r"one\.npz: 1 texts, expected"):
        run(str(tmp_path / "one.npz"))
    np.savez(tmp_path / "wide.npz", vectors=np.ones((9, 17)), tokens=np.ones((9, 8), int))
    with pytest.raises(
        VectorsError,
        match=r"wide\.npz: vectors and width \(K, E\) \(1, 17\), expected \(1, 16\) as in"
        r" .*ae\.arrayrecord",
    ):
        run(f"{file},{tmp_path / 'wide.npz'}")


@pytest.mark.slow
def test_vectors_of_hugging_face_are_written_where_asked_and_probed(
    file, tmp_path, monkeypatch
) -> None:
    """The encoder itself is tested in tests/interop: here its vectors come from a file."""
    calls = []

    def embed(model, corpus, out, **settings) -> None:
        calls.append((model, corpus, settings))
        save_vectors(out, open_vectors(file))

    monkeypatch.setattr("memjax.evaluation.huggingface_encoder.embed", embed)
    out, saved = tmp_path / "probe.json", tmp_path / "bert.npz"
    own = ("hf:models/bert", "--corpus=a.txt", "--transformers=layer=2,text_field=body")
    run(*own, f"--save={saved}", "--protocol=steps=0", "--readout=mean")
    assert not out.exists() and len(open_vectors(saved)) == 60
    run(*own, *SMALL, "--sequence_length=8", f"--out={out}")
    (result,) = json.loads(out.read_text())["results"]
    assert (result["encoder"], result["train_texts"]) == ("hf:models/bert", 54)
    settings = {"layer": 2, "batch": 32, "device": "cpu", "text_field": "body"}
    assert calls == [
        (
            "models/bert",
            "a.txt",
            settings | {"length": 16, "limit": 20_000, "readout": "mean"},
        ),
        ("models/bert", "a.txt", settings | {"length": 8, "limit": 100, "readout": "-1"}),
    ]


def test_data_of_another_tokenizer_is_refused(stage, tmp_path) -> None:
    config = tiny_config(write_corpus(tmp_path / "other.jsonl", seed=5))
    prepare(config.data, tmp_path / "data", lambda _: None)
    with pytest.raises(
        CheckpointError,
        match=r"data: tokenizer \w+, expected \w+, which .*stages/ae.* was trained with",
    ):
        run(stage, f"--data={tmp_path / 'data'}")
