"""A pretrained language model, Llama or Qwen3, learns to read memories of a small encoder (Badger 2026, pretrained decoders).

    memjax train --config=configs/pretrained.py:VARIANT,FOLDER --workdir=runs/pretrained/VARIANT --config.data.corpus=PATH

FOLDER holds a Hugging Face model: config.json, safetensors files and its vocabulary (tokenizer.json or tokenizer.model). The decoder's
settings are read from there, and its weights when the run starts. Without `,FOLDER` the config is that of Llama-3.2-1B in the folder
Llama-3.2-1B. Four chunks of 256 tokens; the encoder is 512 wide and has 16 layers and 8 heads; 34,000 steps of 16 rows of copying, at 5e-5,
with the rate falling to 0 over them.

| variant | what moves |
|---|---|
| all | everything, as in the published runs (llm_copy.py) |
| lora | encoder and bridge, and products of rank 64 beside queries, keys, values and the MLP of the decoder, which stays |
| bridge | encoder and bridge; the decoder stays as it came |
| bridge_only | the bridge alone, behind the encoder that `bridge` trained; starts from runs/pretrained/bridge |
| no_memory | everything, and no memories: the control |
| small | as `lora`, of rank 4, in miniature: a small FOLDER, chunks of 16 tokens, 20 steps; on a laptop about a minute |

What the language model loses by it is `next_token_empty/nats`, its loss on held-out rows with every slot empty: logged before the first step
and at every look since, and in results.json at the end.

The text is cut by the model's own vocabulary; ids that are added behind it take the mean vector. A folder without one, as of a test, gets a
vocabulary that is learned from the corpus, and the model must learn it.
"""

import dataclasses
import pathlib

import ml_collections

from memjax import config as c
from memjax.config import published as p
from memjax.data.tokenizer import FILES
from memjax.interop import decoder_settings

FOLDER = "Llama-3.2-1B"
LLAMA = p.llama(
    2048,
    16,
    32,
    kv_heads=8,
    pretrained=(
        ("norm_epsilon", 1e-5),
        ("rotary_base", 500_000.0),
        ("rotary_scaling", (32.0, 1.0, 4.0, 8192.0)),
        ("tied_head", True),
    ),
)
"""Llama-3.2-1B."""
VOCABULARY, RESERVED = 128_256, 8
"""Of Llama 3, and the rows after it for ids that memjax adds, up to a number that devices divide."""
ADAPTED = r"^backbone/blocks/(mix/(query|key|value)|mlp/(gate|up|down))/kernel$"
"""Matrices that have adapters: all of a block but the last of its attention."""


def adapters(rank: int) -> c.Rules:
    """Encoder and bridge move, and adapters in the decoder."""
    return ((ADAPTED, rank), *c.FREEZING["encoder_and_bridge"])


CHANGES = {
    "all": {},
    "lora": {"trainable": adapters(64)},
    "bridge": {"trainable": c.FREEZING["encoder_and_bridge"]},
    "bridge_only": {"trainable": c.FREEZING["bridge_only"], "init_from": p.trained("pretrained", "bridge")},
    "no_memory": {"memory": False},
    "small": {"trainable": adapters(4), "steps": 20, "rows": 8, "warmup_steps": 4, "learning_rate": 1e-3},
}
"""Settings of the stage that set a variant apart."""
VARIANTS = tuple(CHANGES)


def get_config(argument: str = "all") -> ml_collections.ConfigDict:
    """The config of `VARIANT` or `VARIANT,FOLDER`."""
    variant, _, folder = argument.partition(",")
    if variant not in CHANGES:
        raise ValueError(f"pretrained.py has no variant {variant!r}; it has {', '.join(VARIANTS)}, each also with ,FOLDER")
    decoder, vocabulary = decoder_settings(folder) if folder else (LLAMA, VOCABULARY)
    settings = {"steps": 34_000, "rows": 16, "learning_rate": 5e-5, "warmup_steps": 100, "init_from": f"hf:{folder or FOLDER}"}
    stage = p.stage("memory_model", "plain_copy", decoder, **settings | CHANGES[variant])
    encoder, chunk_length = (p.llama(64, 2, 4), 16) if variant == "small" else (p.llama(512, 16, 8), 256)
    rows = max(vocabulary + RESERVED, 400)
    # A folder that is not there yet is looked for when the run starts.
    known = not folder or any((pathlib.Path(folder) / name).exists() for name in FILES)
    tokenizer = (folder or FOLDER) if known else ""
    model = p.model(chunk_length, encoder, decoder)
    config = p.single(model, 4 * chunk_length, stage, vocabulary=rows, tokenizer=tokenizer)
    config = dataclasses.replace(config, name=f"pretrained-{variant}")
    return c.to_config_dict(_small(config) if variant == "small" else config)


def _small(config: c.Config) -> c.Config:
    """Float32, and looked at often and briefly."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation_share=0.1),
        model=dataclasses.replace(config.model, dtype="float32", remat="none"),
        checkpoint_every=10,
        evaluate_every=10,
        log_every=2,
        evaluation_rows=32,
    )
