"""`memjax generate`: the continuation of a prompt on stdout, as the generator gives it, and every wrong input as one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints import Checkpoints
from memjax.cli.generate import Writer
from memjax.cli.main import main
from memjax.config import Optimizer, Stage, to_json
from memjax.data import prepare
from memjax.inference import Sampling, open_generator
from memjax.models import build, example
from memjax.testing import tiny_config, write_corpus

OBJECTIVES = {"autoencoder": "reconstruction", "memory_model": "next_token", "causal_lm": "next_token"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, draw):
    """A workdir whose data is there and whose stages are checkpoints of drawn weights; and one of imported weights."""
    folder = tmp_path_factory.mktemp("generate")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=2, optimizer=Optimizer())
    stages = {
        family: Stage(family=family, objectives={name: 1.0}, rows=8, steps=2, warmup_steps=1)
        for family, name in OBJECTIVES.items()
    }
    config = dataclasses.replace(config, stages=stages, curriculum=tuple(stages), controls=())
    data = prepare(config.data, folder / "run" / "data", lambda _: None)
    for workdir, tokenizer in (("run", data.tokenizer.fingerprint), ("imported", "")):
        for name, stage in stages.items():
            module = build(config, stage)
            params = draw(module, example(module, config))["params"]
            meta = {"stage": name, "config": to_json(config), "tokenizer": tokenizer, "next_row": 0, "seconds": 0.0}
            with Checkpoints(folder / workdir / "stages" / name / "checkpoints") as checkpoints:
                checkpoints.save(2, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(2)}, meta)
        (folder / workdir / "config.json").write_text(to_json(config), encoding="utf-8")
    return folder


def says(capsys, *args):
    assert main(["generate", *map(str, args)]) == 0
    return capsys.readouterr().out


def expected(place, stage, prompt, tokens, sampling=Sampling(), seed=0):  # noqa: B008
    generator, tokenizer = open_generator(place / "run", stage)
    (made,) = generator.generate([tokenizer.encode(prompt)], tokens, sampling, seed, stop=(tokenizer.eos_id,))
    return tokenizer.decode(made) + "\n"


def test_the_continuation_is_written(place, capsys):
    workdir = f"--workdir={place / 'run'}"
    prompt = "a memory holds what the chunk said and the decoder"
    greedy = says(capsys, workdir, "--stage=memory_model", f"--prompt={prompt}", "--tokens=30")
    assert greedy == expected(place, "memory_model", prompt, 30)
    assert len(greedy) > 15
    (place / "prompt.txt").write_text(prompt, encoding="utf-8")
    assert says(capsys, workdir, "--stage=memory_model", f"--prompt_file={place / 'prompt.txt'}", "--tokens=30") == greedy
    # The last stage of the curriculum unless another is named.
    chance = ("--prompt=", "--tokens=12", "--temperature=1.2", "--top_k=50", "--top_p=0.9", "--seed=5")
    drawn = says(capsys, workdir, *chance)
    assert drawn == expected(place, "causal_lm", "", 12, Sampling(1.2, 50, 0.9), 5)
    assert drawn != says(capsys, workdir, *chance[:-1], "--seed=6")


def test_characters_are_written_when_they_are_whole(place, capsys):
    _, tokenizer = open_generator(place / "run", "memory_model")
    text = "naïve – 𝄞 λόγος\n\N{REPLACEMENT CHARACTER} end"
    writer, written = Writer(tokenizer), []
    for token in tokenizer.encode(text):
        writer.add(token)
        written.append(capsys.readouterr().out)
    writer.end()
    assert "".join(written) + capsys.readouterr().out == text + "\n"
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in written[:-4] if part.strip("\N{REPLACEMENT CHARACTER}"))
    broken = [6 + 0xE2, 6 + 0x82, *tokenizer.encode("abcd")]
    for token in broken:
        writer.add(token)
    writer.end()
    assert capsys.readouterr().out == tokenizer.decode(broken) + "\n"


WRONG = {
    "no workdir": (["--prompt=a"], "--workdir is missing"),
    "no prompt": (["--workdir={run}"], "--prompt and --prompt_file are both missing"),
    "two prompts": (["--workdir={run}", "--prompt=a", "--prompt_file=b"], "--prompt and --prompt_file are both given"),
    "a stray word": (["--workdir={run}", "--prompt=a", "word"], "'word' is no flag"),
    "no file": (["--workdir={run}", "--prompt_file=/nowhere/at/all"], "/nowhere/at/all"),
    "no text": (["--workdir={run}", "--prompt_file={bytes}"], "is no UTF-8 text"),
    "an unknown stage": (
        ["--workdir={run}", "--prompt=a", "--stage=copy"],
        "has no stage 'copy'; its stages are autoencoder, causal_lm, memory_model",
    ),
    "a family without a next token": (
        ["--workdir={run}", "--prompt=a", "--stage=autoencoder"],
        "stage autoencoder: Autoencoder does not say what comes next in a text; MemoryModel, CausalLM, RecurrentMemory do",
    ),
    "imported weights": (["--workdir={imported}", "--prompt=a"], "holds imported weights, whose tokenizer is not known"),
    "a negative temperature": (
        ["--workdir={run}", "--prompt=a", "--temperature=-1"],
        "temperature=-1.0 must be a number from 0",
    ),
    "no tokens": (["--workdir={run}", "--prompt=a", "--tokens=0"], "--tokens"),
    "too many tokens": (
        ["--workdir={run}", "--prompt=a", "--tokens=100", "--beyond=error"],
        "max_new_tokens=100 are more than the 32 tokens",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(place, capsys, case):
    args, message = WRONG[case]
    bad = place / "bytes.txt"
    bad.write_bytes(b"\xff\xfe")
    args = [arg.format(run=place / "run", imported=place / "imported", bytes=bad) for arg in args]
    assert main(["generate", *args]) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert said.err.count("memjax:") == 1 and not said.out


def test_help_says_how(capsys):
    assert main(["generate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--top_p" in said and "memjax generate --workdir=" in said
    assert np.all([name in said for name in ("--temperature", "--beyond", "--prompt_file")])
