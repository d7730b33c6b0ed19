"""The whole reproduction at the smallest scale, and what it refuses."""

import json

import pytest

from memjax.cli.main import main
from memjax.config import to_config_dict
from memjax.experiment.reproduce.claims import CLAIMS
from memjax.experiment.reproduce.plan import SCALES, configs
from memjax.experiment.reproduce.run import conclude
from memjax.models import build
from memjax.objectives import load_config
from memjax.progress import Reporter
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import make_optimizer, split


def refused(args, capsys):
    assert main(["reproduce", *args]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said
    return said


def test_what_cannot_be_run_is_one_clear_line(tmp_path, capsys):
    assert "--out: missing" in refused([], capsys)
    out = f"--out={tmp_path / 'run'}"
    assert "at least two different seeds" in refused([out, "--seeds=1,1"], capsys)
    assert "expected a whole number" in refused([out, "--seeds=one,two"], capsys)
    assert "scale" in refused([out, "--scale=huge"], capsys)
    assert "/absent.txt" in refused([out, "--corpus=/absent.txt"], capsys)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text(
        json.dumps({"scale": "small", "corpus": "python-docs"})
    )
    said = refused([f"--out={tmp_path / 'other'}", "--scale=tiny"], capsys)
    assert "as in the reproduction there" in said
    assert "use another --out" in said
    said = refused([f"--out={tmp_path / 'other'}", "--limit=8"], capsys)
    assert "'limit': 8" in said, "numbers of 8 sequences are others"


def test_the_command_has_every_flag_that_changes_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("memjax.experiment.reproduce.run.CLAIMS", ())
    corpus = "0.7*/home/ann/a.jsonl + 0.3*/home/ann/b/"
    for limit, more in ((0, ""), (8, " --limit=8")):
        found = conclude(tmp_path, "tiny", corpus, (0, 1), limit, [], 1.0, Reporter())
        corpus_flag = "'--corpus=0.7*a.jsonl + 0.3*b'"
        assert found["command"] == (
            f"memjax reproduce --scale=tiny {corpus_flag} --seeds=0,1{more}"
        )
        assert found["corpus"] == "0.7*a.jsonl + 0.3*b"


@pytest.mark.quick_cases("tiny")
@pytest.mark.parametrize("name", SCALES)
def test_every_config_of_every_scale_can_be_built(name, tmp_path):
    """Shapes alone: nothing is allocated, so the published sizes are looked at too."""
    for config in configs(SCALES[name], "python-docs", 1, tmp_path).values():
        assert load_config(to_config_dict(config)) == config
        assert config.seed == 1
        for stage in config.stages.values():
            params = abstract_params(build(config, stage), config)
            make_optimizer(config.optimizer, stage, split(params, stage.trainable, "trainable")[0])


def test_decoders_are_compared_at_equal_steps_and_rows(tmp_path):
    stages = configs(SCALES["small"], "python-docs", 0, tmp_path)["memory"].stages
    whole = ("at_once", "next_token", "no_memory", "full_context", "recurrent")
    totals = [stages[name].steps for name in whole]
    totals += [
        sum(stages[f"{source}_{part}"].steps for part in ("blank", "copy", "combined"))
        for source in ("autoencoder", "causal")
    ]
    assert len(set(totals)) == 1
    assert len({stage.batch_size for stage in stages.values()}) == 1


@pytest.mark.night
def test_the_smallest_reproduction_ends_in_a_page(tmp_path):
    out = tmp_path / "run"
    assert main(["reproduce", f"--out={out}", "--scale=tiny"]) == 0
    results = json.loads((out / "reproduction.json").read_text())
    assert [one["claim"]["name"] for one in results["claims"]] == [claim.name for claim in CLAIMS]
    assert "claims hold" in (out / "reproduction.html").read_text()
    before = (out / "seed-0" / "numbers.json").read_bytes()
    assert main(["reproduce", f"--out={out}", "--scale=tiny"]) == 0, "nothing is done again"
    assert (out / "seed-0" / "numbers.json").read_bytes() == before
