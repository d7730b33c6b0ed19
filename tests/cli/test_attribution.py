"""`memjax measure --instruments=attribution`: the page, the values and the file to train on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.cli import measure
from memjax.cli.arguments import UsageError, parse
from memjax.cli.main import main
from memjax.config import Optimizer, Stage, to_json
from memjax.data import TokenizerError, open_attributions, prepare
from memjax.evaluation.instruments.attribution import attribute, normalise
from memjax.inference import load
from memjax.inference.texts import held_out
from memjax.models import build, example
from memjax.objectives.uncertainty import ratio
from memjax.testing import tiny_config, write_corpus


def run(*args: str) -> None:
    measure.run(parse(measure.ARGUMENTS, args))


@dataclasses.dataclass
class Place:
    """A workdir whose data is there and whose stages are checkpoints of drawn weights."""

    folder: object
    data: object

    def stage(self, name, workdir="a"):
        return str(self.folder / workdir / "stages" / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory, draw):
    folder = tmp_path_factory.mktemp("attribute")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=2, optimizer=Optimizer())
    objectives = {
        "autoencoder": "reconstruction",
        "oracle": "next_token",
        "causal_lm": "next_token",
    }
    stages = {
        family: Stage(family=family, objectives={name: 1.0}, batch_size=8, steps=2, warmup_steps=1)
        for family, name in objectives.items()
    }
    config = dataclasses.replace(config, stages=stages, curriculum=tuple(stages), controls=())
    data = prepare(config.data, folder / "a" / "data", lambda _: None)
    for workdir, tokenizer in (("a", data.tokenizer.fingerprint), ("imported", "")):
        for name, stage in stages.items():
            module = build(config, stage)
            params = draw(module, example(module, config))["params"]
            meta = {
                "stage": name,
                "config": to_json(config),
                "tokenizer": tokenizer,
                "next_row": 0,
                "seconds": 0.0,
            }
            with Checkpoints(folder / workdir / "stages" / name / "checkpoints") as checkpoints:
                checkpoints.save(7, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(7)}, meta)
    return Place(folder, data)


def test_the_page_and_the_values_are_those_of_held_out_texts(place, tmp_path, capsys):
    page, values = tmp_path / "attribution.html", tmp_path / "attribution.json"
    arguments = [
        place.stage("oracle"),
        f"--out={tmp_path / 'found.json'}",
        "--limit=5",
        "--batch_size=4",
        "--instruments=attribution:occlusion_l1,attribution:entropy",
    ]
    assert main(["measure", *arguments]) == 0
    assert not (tmp_path / "found.json").exists(), "no other instrument was chosen"
    trained = load(place.stage("oracle"))
    texts = held_out(place.folder / "a" / "data", 8, 5, place.data.tokenizer)
    expected = attribute(trained.codec(), trained.params, texts, "occlusion_l1", batch=4)
    told = json.loads(values.read_text())
    assert (told["stage"], told["step"], len(told["texts"])) == ("oracle", 7, 5)
    np.testing.assert_array_equal([text["ids"] for text in told["texts"]], texts)
    np.testing.assert_allclose(
        [text["values"]["occlusion_l1"] for text in told["texts"]], expected, rtol=1e-5
    )
    assert told["texts"][0]["pieces"] == place.data.tokenizer.pieces(texts[0])
    mean = ratio(expected.sum(axis=1), np.full(5, 8))
    assert told["means"]["occlusion_l1"] == pytest.approx(vars(mean), rel=1e-5)
    assert set(told["means"]) == {"occlusion_l1", "entropy"}
    said, shown = capsys.readouterr().out, page.read_text()
    assert f"occlusion_l1: {mean} per token" in said and f"{page}: 5 texts" in said
    assert shown.count('<span class="t"') == 40
    assert f"id {texts[2, 3]}\nocclusion_l1 {expected[2, 3]:.6g}\nentropy " in shown
    assert "5 held-out texts of 8 tokens, by the stage oracle at step 7." in shown


@pytest.mark.parametrize("scaled", [True, False])
def test_the_file_is_of_all_rows_of_a_split(place, tmp_path, capsys, scaled):
    path = tmp_path / "a.npy"
    more = [f"--save={path}", "--limit=4", "--batch_size=4", f"--out={tmp_path / 'a.json'}"] + (
        [] if scaled else ["--unscaled"]
    )
    run(place.stage("autoencoder"), "--instruments=attribution", *more)
    rows = np.stack([place.data.train[i] for i in range(len(place.data.train))])
    assert (
        f"{path}: occlusion_loss of {len(rows)} train sequences of 32 tokens"
        in capsys.readouterr().out
    )
    found = open_attributions(str(path))
    trained = load(place.stage("autoencoder"))
    texts = rows[:2].reshape(-1, 8)
    expected = attribute(trained.codec(), trained.params, texts, "occlusion_loss", batch=4)
    expected = normalise(expected, texts != 0) if scaled else expected
    assert found.shape == rows.shape and found.dtype == np.float32
    np.testing.assert_allclose(found[:2].reshape(-1, 8), expected, rtol=1e-4, atol=1e-5)


def test_imported_weights_take_the_tokenizer_of_the_data(place, tmp_path):
    values = tmp_path / "attribution.json"
    arguments = [
        place.stage("autoencoder", "imported"),
        "--instruments=attribution",
        f"--out={tmp_path / 'found.json'}",
        "--limit=4",
    ]
    with pytest.raises(TokenizerError, match=r"imported/data/tokenizer\.model: cannot be read"):
        run(*arguments)
    run(*arguments, f"--data={place.folder / 'a' / 'data'}", "--batch_size=4")
    assert len(json.loads(values.read_text())["texts"]) == 4
    arguments[1] = "--instruments=compression"
    run(*arguments, f"--data={place.folder / 'a' / 'data'}", "--batch_size=4")
    assert list(json.loads((tmp_path / "found.json").read_text())["instruments"]) == ["compression"]
    other = dataclasses.replace(tiny_config(place.folder / "corpus.jsonl").data, vocab_size=330)
    prepare(other, tmp_path / "data", lambda _: None)
    with pytest.raises(CheckpointError, match="tokenizer of 330 entries, expected at most 320"):
        run(*arguments, f"--data={tmp_path / 'data'}")


COMMAND_LINES = {
    "no stage": ([], "PATH: missing, expected PATH. For example: memjax measure"),
    "a stray word": (["c", "all"], "'all': unexpected argument"),
    "no texts": (["c", "--limit=0"], "--limit: 0, expected a whole number of at least 2"),
    "an unknown measure": (
        ["c", "--instruments=attribution:saliency"],
        "--instruments: 'attribution:saliency', expected some of information",
    ),
    "two in a file": (
        ["c", "--instruments=attribution:noise,attribution:gradient", "--save=a.npy"],
        "--save: 2 attribution measures, expected one",
    ),
    "none in a file": (["c", "--save=a.npy"], "--save: 0 attribution measures, expected one"),
}


@pytest.mark.parametrize(("args", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line_is_explained(args, message):
    with pytest.raises(UsageError, match=message):
        run(*args)


def test_what_does_not_fit_is_one_line(place, tmp_path, capsys):
    page, out = tmp_path / "attribution.html", f"--out={tmp_path / 'found.json'}"

    def said(*more, stage="autoencoder"):
        chosen = [] if "--instruments" in str(more) else ["--instruments=attribution"]
        assert main(["measure", place.stage(stage), out, *chosen, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("memjax: ") and error.count("\n") == 1
        return error

    assert "family autoencoder, expected oracle for the entropy of tokens" in said(
        "--instruments=attribution:entropy"
    )
    with pytest.raises(
        CheckpointError, match="family causal_lm has no decoder that reads a memory"
    ):
        run(place.stage("causal_lm"), out, "--instruments=attribution")
    assert not page.exists()
    assert "rows-48" in said(
        "--limit=4", "--batch_size=4", "--sequence_length=48", f"--save={tmp_path / 'a.npy'}"
    )
    assert not (tmp_path / "a.npy").exists()
