"""Released models: found by name wherever a stage is asked for, and a name that is none."""

import dataclasses
from pathlib import Path

import pytest

from memjax import released
from memjax.cli.main import main
from memjax.config import Config, ConfigError, Data, Stage
from memjax.data import load_tokenizer
from memjax.inference import load
from memjax.objectives.checks import check


@pytest.fixture
def named(place, tmp_path, monkeypatch):
    """A released model `tiny`, and no other."""
    monkeypatch.setattr(released, "_FOLDER", tmp_path / "package")
    model = load(place / "run", "autoencoder")
    model.save(tmp_path / "package" / "tiny")
    monkeypatch.chdir(tmp_path)
    return model


def test_a_name_is_a_released_model_and_a_path_is_none(named, tmp_path):
    assert released.names() == ("tiny",)
    assert load("tiny").provenance == named.provenance
    assert load("tiny").tokenizer.fingerprint == load_tokenizer("tiny").fingerprint
    for path in ("./tiny", Path("tiny"), str(tmp_path / "tiny")):
        with pytest.raises(Exception, match=r"not found, expected .* tiny"):
            load(path)
    named.save(tmp_path / "tiny")
    assert load("./tiny").path == "./tiny" and load(Path("tiny")).folder == Path("tiny")
    assert load("tiny").folder == tmp_path / "package" / "tiny", "the name is still ours"


def test_an_unknown_name_lists_the_known(named, capsys):
    assert main(["compress", "tiny-fr", "a.txt", "--out=b"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("memjax: tiny-fr: not found, expected ") and "tiny," in message
    assert message.count("\n") == 1


def test_nothing_is_written_into_the_package(named, capsys):
    Path("a.txt").write_text("a text")
    for args in (["measure"], ["eval", "--tasks=long_recall", "--corpus=a.txt"]):
        assert main([args[0], "tiny", *args[1:]]) == 2
        message = "--out: missing, expected a file: tiny is part of the package. For example --out="
        assert message in capsys.readouterr().err


def test_a_stage_may_begin_with_a_released_model(named):
    stage = Stage(family="autoencoder", objectives={"reconstruction": 1.0}, init_from="tiny")
    config = Config(
        data=Data(vocab_size=named.config.data.vocab_size, tokenizer="tiny"),
        model=named.config.model,
        stages={"more": stage},
        curriculum=("more",),
    )
    check(config)
    wrong = dataclasses.replace(stage, init_from="tiny-fr")
    with pytest.raises(ConfigError, match=r"nor a released model \(tiny\), nor a folder path"):
        check(dataclasses.replace(config, stages={"more": wrong}))
