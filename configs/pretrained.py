"""A pretrained language model, such as Llama, that learns to read memories of a small encoder.

Badger 2026, pretrained decoders.

    memjax train --config=configs/pretrained.py:VARIANT,FOLDER --workdir=runs/pretrained/VARIANT
    --config.data.corpus=PATH

FOLDER holds a Hugging Face model: config.json, safetensors files and its vocabulary (tokenizer.json
or tokenizer.model). The run reads the decoder's settings from there, and its weights when it
starts. Without `,FOLDER` the config is that of Llama-3.2-1B in the folder Llama-3.2-1B. Sequences
have four chunks of 256 tokens; the encoder is 512 wide and has 16 layers and 8 heads. 34,000 steps
of copying with a batch size of 16, at a learning rate that falls from 5e-5 to 0.

What is trained is float32. A frozen decoder keeps the type of its folder, such as bfloat16.

The variants differ in what is trained:

- all: everything, as in the published runs (llm_copy.py).
- lora: encoder, bridge, and adapters of rank 64 for queries, keys, values and the MLP of the
  decoder, which is frozen.
- bridge: encoder and bridge; the decoder is frozen.
- bridge_only: the bridge alone, with the encoder that `bridge` trained; starts from
  runs/pretrained/bridge.
- no_memory: everything, without memories; this is the control.
- small: `lora` of rank 4 in miniature: a small FOLDER, chunks of 16 tokens, 20 steps; about a
  minute on a laptop.

`next_token_empty/nats` shows damage to the language model: its loss on held-out sequences with no
memory in view. It is logged before the first step and at every evaluation, and results.json holds
the last value.

The model's own vocabulary tokenizes the text; ids that memjax adds start from the mean embedding. A
folder without a vocabulary, as in tests, gets one that is trained on the corpus, and the model must
learn it.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from memjax import config as c
from memjax.config import published as p
from memjax.data.tokenizers.base import FILES
from memjax.interop.huggingface.settings import DecoderSettings, decoder_settings

FOLDER = "Llama-3.2-1B"
LLAMA = DecoderSettings(
    p.llama(
        2048,
        16,
        32,
        kv_heads=8,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=(32.0, 1.0, 4.0, 8192.0),
        tie_embeddings=True,
    ),
    vocabulary=128_256,
    dtype="bfloat16",
    window=0,
)
"""Llama-3.2-1B, as its config.json describes it."""
RESERVED = 8
"""Rows for added ids, so that the vocabulary of Llama 3 stays a multiple of devices."""
ADAPTED = r"^backbone/blocks/(mix/(query|key|value)|mlp/(gate|up|down))/kernel$"
"""Matrices with adapters: all of a block except the output of its attention."""


def adapters(rank: int) -> c.Rules:
    """Return rules that train encoder, bridge, and adapters in the decoder."""
    return ((ADAPTED, rank), *c.FREEZING["encoder_and_bridge"])


def frozen_dtypes(dtype: str) -> c.Rules:
    """Return rules that keep a frozen decoder in its own type, and a frozen encoder in float32."""
    own = {} if dtype == "float32" else {"^(encoder|bridge)/": "float32"}
    return (*own.items(), (".*", dtype))


CHANGES = {
    "all": {},
    "lora": {"trainable": adapters(64)},
    "bridge": {"trainable": c.FREEZING["encoder_and_bridge"]},
    "bridge_only": {
        "trainable": c.FREEZING["bridge_only"],
        "init_from": p.trained("pretrained", "bridge"),
    },
    "no_memory": {"memory": False},
    "small": {
        "trainable": adapters(4),
        "steps": 20,
        "batch_size": 8,
        "warmup_steps": 4,
        "learning_rate": 1e-3,
    },
}
"""Settings of the stage per variant."""
VARIANTS = tuple(CHANGES)


def get_config(argument: str = "all") -> ml_collections.ConfigDict:
    """Return the config of `VARIANT` or `VARIANT,FOLDER`."""
    variant, _, folder = argument.partition(",")
    if variant not in CHANGES:
        raise ValueError(
            f"pretrained.py has no variant {variant!r}; it has {', '.join(VARIANTS)}, each also"
            " with ,FOLDER"
        )
    found = decoder_settings(folder) if folder else LLAMA
    decoder, vocabulary, dtype = found.stack, found.vocabulary, found.dtype
    settings: dict[str, Any] = {
        "steps": 34_000,
        "batch_size": 16,
        "learning_rate": 5e-5,
        "warmup_steps": 100,
        "init_from": f"hf:{folder or FOLDER}",
    }
    if "trainable" in CHANGES[variant]:
        settings["frozen_dtypes"] = frozen_dtypes(dtype)
    stage = p.stage("memory_model", "plain_copy", decoder, **settings | CHANGES[variant])
    encoder, chunk_length = (
        (p.llama(64, 2, 4), 16) if variant == "small" else (p.llama(512, 16, 8), 256)
    )
    rows = max(vocabulary + RESERVED, 400)
    # A folder that is not there yet is looked for when the run starts.
    known = not folder or any((pathlib.Path(folder) / name).exists() for name in FILES)
    tokenizer = (folder or FOLDER) if known else ""
    model = p.model(chunk_length, encoder, decoder)
    config = p.single(model, 4 * chunk_length, stage, vocab_size=rows, tokenizer=tokenizer)
    config = dataclasses.replace(
        config,
        name=f"pretrained-{variant}",
        evaluators=_evaluators(config, every=2000, examples=2048),
    )
    return c.to_config_dict(_small(config) if variant == "small" else config)


def _small(config: c.Config) -> c.Config:
    """Return the config in float32, with frequent and short evaluations."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation_share=0.1),
        model=dataclasses.replace(config.model, dtype="float32", remat="none"),
        checkpoint_every=10,
        evaluators=_evaluators(config, every=10, examples=32),
        log_every=2,
    )


def _evaluators(config: c.Config, every: int, examples: int) -> dict[str, c.Evaluator]:
    """The usual evaluators, and losses of a pretrained decoder without memories."""
    base = {
        "base_validation": c.Evaluator("base_validation", every=every),
        "base_accuracy": c.Evaluator("base_accuracy", examples=examples),
    }
    pretrained = any(stage.init_from.startswith("hf:") for stage in config.stages.values())
    return c.usual_evaluators(every, examples) | (base if pretrained else {})
