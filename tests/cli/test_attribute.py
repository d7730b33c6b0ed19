"""`memjax attribute`: the page, the values and the file to train on, from a checkpoint alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from memjax.checkpoints import CheckpointError, Checkpoints
from memjax.cli.attribute import run
from memjax.cli.main import main
from memjax.config import Optimizer, Stage, to_json
from memjax.data import RowsError, TokenizerError, open_attributions, prepare
from memjax.instruments.attribution import attribute, normalise
from memjax.instruments.system import open_system
from memjax.instruments.texts import held_out
from memjax.instruments.uncertainty import ratio
from memjax.models import build, example
from memjax.testing import tiny_config, write_corpus


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
    objectives = {"autoencoder": "reconstruction", "oracle": "next_token", "causal_lm": "next_token"}
    stages = {
        family: Stage(family=family, objectives={name: 1.0}, rows=8, steps=2, warmup_steps=1)
        for family, name in objectives.items()
    }
    config = dataclasses.replace(config, stages=stages, curriculum=tuple(stages), controls=())
    data = prepare(config.data, folder / "a" / "data", lambda _: None)
    for workdir, tokenizer in (("a", data.tokenizer.fingerprint), ("imported", "")):
        for name, stage in stages.items():
            module = build(config, stage)
            params = draw(module, example(module, config))["params"]
            meta = {"stage": name, "config": to_json(config), "tokenizer": tokenizer, "next_row": 0, "seconds": 0.0}
            with Checkpoints(folder / workdir / "stages" / name / "checkpoints") as checkpoints:
                checkpoints.save(7, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(7)}, meta)
    return Place(folder, data)


def test_the_page_and_the_values_are_those_of_held_out_texts(place, tmp_path, capsys):
    page, values = tmp_path / "a.html", tmp_path / "a.json"
    arguments = [f"--checkpoint={place.stage('oracle')}", f"--out={page}", f"--json={values}", "--limit=5", "--batch=4"]
    assert main(["attribute", *arguments, "--measure=occlusion_l1,entropy"]) == 0
    trained = open_system(place.stage("oracle"))
    texts = held_out(place.folder / "a" / "data", 8, 5, place.data.tokenizer)
    expected = attribute(trained.system, trained.params, texts, "occlusion_l1", batch=4)
    told = json.loads(values.read_text())
    assert (told["stage"], told["step"], len(told["texts"])) == ("oracle", 7, 5)
    np.testing.assert_array_equal([text["ids"] for text in told["texts"]], texts)
    np.testing.assert_allclose([text["values"]["occlusion_l1"] for text in told["texts"]], expected, rtol=1e-5)
    assert told["texts"][0]["pieces"] == place.data.tokenizer.pieces(texts[0])
    mean = ratio(expected.sum(axis=1), np.full(5, 8))
    assert told["means"]["occlusion_l1"] == pytest.approx(mean.to_json(), rel=1e-5)
    assert set(told["means"]) == {"occlusion_l1", "entropy"}
    said, shown = capsys.readouterr().out, page.read_text()
    assert f"occlusion_l1: {mean} a token" in said and f"{page}: 5 texts" in said
    assert shown.count('<span class="t"') == 40
    assert f"id {texts[2, 3]}\nocclusion_l1 {expected[2, 3]:.6g}\nentropy " in shown
    assert "5 held-out texts of 8 tokens, by the stage oracle at step 7." in shown


@pytest.mark.parametrize("scaled", [True, False])
def test_the_file_is_of_all_rows_of_a_split(place, tmp_path, capsys, scaled):
    path = tmp_path / "a.npy"
    more = [f"--dataset={path}", "--limit=4", "--batch=4", f"--out={tmp_path / 'a.html'}"] + ([] if scaled else ["--noscaled"])
    assert run(["attribute", f"--checkpoint={place.stage('autoencoder')}", *more]) == 0
    rows = np.stack([place.data.train[i] for i in range(len(place.data.train))])
    assert f"{path}: occlusion_loss of {len(rows)} train rows of 32 tokens" in capsys.readouterr().out
    found = open_attributions(str(path))
    trained = open_system(place.stage("autoencoder"))
    texts = rows[:2].reshape(-1, 8)
    expected = attribute(trained.system, trained.params, texts, "occlusion_loss", batch=4)
    expected = normalise(expected, texts != 0) if scaled else expected
    assert found.shape == rows.shape and found.dtype == np.float32
    np.testing.assert_allclose(found[:2].reshape(-1, 8), expected, rtol=1e-4, atol=1e-5)


def test_imported_weights_take_the_tokenizer_of_the_data(place, tmp_path):
    page, values = tmp_path / "a.html", tmp_path / "a.json"
    arguments = [f"--checkpoint={place.stage('autoencoder', 'imported')}", f"--out={page}", f"--json={values}", "--limit=4"]
    with pytest.raises(TokenizerError, match=r"imported/data/tokenizer\.model: cannot be read"):
        run(["attribute", *arguments])
    assert run(["attribute", *arguments, f"--data={place.folder / 'a' / 'data'}", "--batch=4"]) == 0
    assert len(json.loads(values.read_text())["texts"]) == 4
    other = dataclasses.replace(tiny_config(place.folder / "corpus.jsonl").data, vocabulary=330)
    prepare(other, tmp_path / "data", lambda _: None)
    with pytest.raises(RowsError, match=r"of a vocabulary of 330, while .* was trained with 320"):
        run(["attribute", *arguments, f"--data={tmp_path / 'data'}"])


def test_help_says_how_it_is_used(capsys):
    assert run(["attribute", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--config.data.attributions=runs/a/attributions.npy" in said and "--[no]scaled" in said


COMMAND_LINES = {
    "no checkpoint": ([], "--checkpoint is missing; for example: memjax attribute"),
    "no measure": (["--checkpoint=c", "--measure="], "--measure is missing"),
    "a stray word": (["--checkpoint=c", "all"], "'all' is no flag"),
    "no texts": (["--checkpoint=c", "--limit=0"], "limit"),
    "a bucket": (["--checkpoint=gs://b/c"], "--data is missing"),
    "two in a file": (
        ["--checkpoint=c", "--measure=noise,gradient", "--dataset=a.npy"],
        "--dataset holds one measure, not noise, gradient",
    ),
}


@pytest.mark.parametrize(("args", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line_is_explained(args, message):
    with pytest.raises(flags.Error, match=message):
        run(["attribute", *args])


def test_what_does_not_fit_is_one_line(place, tmp_path, capsys):
    page = tmp_path / "a.html"

    def said(*more, stage="autoencoder"):
        assert main(["attribute", f"--checkpoint={place.stage(stage)}", f"--out={page}", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("memjax: ") and error.count("\n") == 1
        return error

    assert "measure='saliency': there are occlusion_l1" in said("--measure=saliency")
    assert "asked of a family oracle, which is shown the tokens before; this is a Autoencoder" in said("--measure=entropy")
    with pytest.raises(CheckpointError, match="CausalLM has no decoder that reads a memory"):
        run(["attribute", f"--checkpoint={place.stage('causal_lm')}", f"--out={page}"])
    assert not page.exists()
    assert "rows-48" in said("--limit=4", "--batch=4", "--row_tokens=48", f"--dataset={tmp_path / 'a.npy'}")
    assert not (tmp_path / "a.npy").exists()
