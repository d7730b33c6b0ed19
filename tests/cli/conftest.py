"""A run whose stages share an encoder that has learned, and a text to compress: for the commands
about stores; and one of drawn weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import memjax.inference
from memjax.checkpoints import Checkpoints, load_params
from memjax.config import Optimizer, Stage, to_json
from memjax.data import prepare
from memjax.experiment.run import claim_workdir
from memjax.models import build, example
from memjax.progress import Reporter
from memjax.testing import WORDS, tiny_config, tiny_model, write_corpus
from memjax.testing.workdir import write_stage
from memjax.training.init_state import Run
from memjax.training.loop import train_stage

OBJECTIVES = {
    "autoencoder": "reconstruction",
    "memory_model": "next_token",
    "causal_lm": "next_token",
}


@pytest.fixture(scope="session")
def place(tmp_path_factory, draw):
    """A folder with a workdir, `run`, whose stages are checkpoints of drawn weights, and
    `imported`, of weights without a tokenizer."""
    folder = tmp_path_factory.mktemp("drawn")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=2, optimizer=Optimizer())
    stages = {
        family: Stage(family=family, objectives={name: 1.0}, batch_size=8, steps=2, warmup_steps=1)
        for family, name in OBJECTIVES.items()
    }
    config = dataclasses.replace(config, stages=stages, curriculum=tuple(stages), controls=())
    data = prepare(config.data, folder / "run" / "data", lambda _: None)
    for workdir, tokenizer in (("run", data.tokenizer.fingerprint), ("imported", "")):
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
                checkpoints.save(2, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(2)}, meta)
        (folder / workdir / "config.json").write_text(to_json(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, draw):
    """An autoencoder that has learned, memory models of drawn weights on its encoder, a retriever,
    and a model without an encoder."""
    folder = tmp_path_factory.mktemp("compress")
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), steps=2, optimizer=Optimizer())
    stages, workdir = config.stages, folder / "run"
    autoencoder = dataclasses.replace(
        stages["autoencoder"], batch_size=16, steps=80, warmup_steps=5, learning_rate=1e-2
    )
    others = {
        "blanks": dataclasses.replace(stages["combined"], objectives={"blank_copy": 1.0}),
        "combined": stages["combined"],
        "oracle": Stage(family="oracle", objectives={"next_token": 1.0}),
        "retriever": Stage(family="retriever", objectives={"ngram_retrieval": 1.0}),
        "causal_control": Stage(family="causal_lm", objectives={"next_token": 1.0}),
    }
    chosen = {"autoencoder": autoencoder, **others}
    config = dataclasses.replace(
        config, stages=chosen, curriculum=tuple(chosen), controls=(), checkpoint_every=100
    )
    claim_workdir(config, workdir)
    data = prepare(config.data, workdir / "data", lambda _: None)
    train_stage(Run(config, workdir, data, Reporter(Console(quiet=True))), "autoencoder")
    learned = load_params(workdir / "stages" / "autoencoder" / "checkpoints")[0]["encoder"]
    for name, stage in others.items():
        module = build(config, stage)
        params = draw(module, example(module, config))["params"]
        params = params | {"encoder": learned} if stage.family == "memory_model" else params
        meta = {
            "stage": name,
            "config": to_json(config),
            "tokenizer": data.tokenizer.fingerprint,
            "next_row": 0,
            "seconds": 0.0,
        }
        with Checkpoints(workdir / "stages" / name / "checkpoints") as checkpoints:
            checkpoints.save(1, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(1)}, meta)
    return workdir


@pytest.fixture(scope="session")
def elastic(tmp_path_factory, draw):
    """A workdir of an autoencoder and a reading decoder of drawn weights, with one encoder of three
    vectors, and a book beside it."""
    folder = tmp_path_factory.mktemp("elastic")
    model = tiny_model(
        memory_vectors=3,
        readout="memory_tokens",
        expansion="unroll_each",
        layout="text",
        chunk_positions=False,
    )
    decoder = dataclasses.replace(model.decoder, place_heads=1, features=("rotary_values",))
    config = tiny_config(write_corpus(folder / "corpus.jsonl"), optimizer=Optimizer())
    dials = {"fewest_vectors": 1, "shortest_chunk": 4}
    stages = {
        "autoencoder": Stage(
            family="autoencoder", objectives={"reconstruction": 1.0}, dials=dials, warmup_steps=0
        ),
        "reading": Stage(
            objectives={"blank_recall": 1.0, "next_token": 1.0}, dials=dials, warmup_steps=0
        ),
    }
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(model, decoder=decoder),
        stages=stages,
        curriculum=tuple(stages),
        controls=(),
    )
    workdir = folder / "run"
    claim_workdir(config, workdir)
    tokenizer = prepare(config.data, workdir / "data", lambda _: None).tokenizer
    encoder = None
    for name, stage in stages.items():
        module = build(config, stage)
        params = draw(module, example(module, config))["params"]
        encoder = encoder or params["encoder"]
        params = jax.tree.map(lambda x: 2 * x, params | {"encoder": encoder})
        write_stage(workdir, config, name, tokenizer.fingerprint, params)
    (folder / "book.txt").write_text(" ".join(WORDS * 3))
    return workdir


@pytest.fixture(scope="session")
def models(elastic):
    """Its stages, loaded once."""
    return {name: memjax.load(elastic / "stages" / name) for name in ("autoencoder", "reading")}


@pytest.fixture(scope="module")
def loaded_once():
    """Every model is loaded and compiled once for all commands of a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memjax.inference, "load", functools.cache(memjax.inference.load))
        yield


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Two texts in one file, of words the stages know."""
    generator = np.random.default_rng(5)
    first, second = (" ".join(generator.choice(WORDS, words)) for words in (150, 70))
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(f"{first}.\n<|endoftext|>\n{second}.\n")
    return path
