"""Models of published size have as many parameters as published, once what no forward pass reads is
counted too.

Nothing is allocated: modules are traced. What memjax leaves out is listed tensor by tensor, under
the published names.
"""

import functools
import math
import re

import jax
import pytest

from memjax.interop.reference.names import unused
from memjax.interop.reference.spec import STAGE, to_config
from memjax.layers import Backbone
from memjax.models import build, example

VOCABULARY = 8000


def size(shapes):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def table(part, width):
    """The token table inside a Llama that is fed embeddings."""
    return {f"{part}.embed_tokens.weight": (VOCABULARY, width)}


def linear(name, width_in, width_out):
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def llama_layer(name, width):
    attention = {f"self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
    mlp = {f"mlp.{x}_proj.weight": (4 * width, width) for x in ("gate", "up")} | {
        "mlp.down_proj.weight": (width, 4 * width)
    }
    norms = {f"{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    return {f"{name}.{key}": shape for key, shape in (attention | mlp | norms).items()}


def half_used(part, width, layers):
    """What an abbreviated stack has beyond its 8 layers."""
    later = {
        k: s
        for i in range(8, layers)
        for k, s in llama_layer(f"{part}.model.layers.{i}", width).items()
    }
    return later | {f"{part}.model.norm.weight": (width,)} | table(f"{part}.model", width)


TRANSFORMER = {"vocab": VOCABULARY, "heads": 4}
MIXER = {"vocab": VOCABULARY, "mixer": True}
CHUNKED = {"kind": "memory_model", "layers": 16, "context": 256, "chunks": 4}
RECURRENT = {"kind": "recurrent_memory", "layers": 16, "context": 256, "chunks": 4}
AUTOENCODER = {"kind": "autoencoder", "dim": 1024, "layers": 8, "context": 512}
ORACLE = {"kind": "oracle", "layers": 16, "context": 1024}
MODELS = {
    "causal lm, transformer 512": (
        75_317_760,
        TRANSFORMER | {"kind": "causal_lm", "dim": 512, "layers": 16, "context": 512},
        {},
    ),
    "causal lm, mixer 1024": (
        154_951_680,
        MIXER | {"kind": "causal_lm", "dim": 1024, "layers": 16, "context": 512},
        {},
    ),
    "causal lm, mixer 512": (
        46_022_656,
        MIXER | {"kind": "causal_lm", "dim": 512, "layers": 16, "context": 512},
        {},
    ),
    "memory model, transformer 256 to 512": (
        100_427_008,
        TRANSFORMER | CHUNKED | {"encoder_dim": 256, "dim": 512},
        table("encoder", 256) | table("decoder", 512),
    ),
    "memory model, transformer 512 to 512": (
        154_731_520,
        TRANSFORMER | CHUNKED | {"encoder_dim": 512, "dim": 512},
        table("encoder", 512) | table("decoder", 512),
    ),
    "memory model, transformer 512 without memory": (
        81_593_344,
        TRANSFORMER | CHUNKED | {"encoder_dim": 256, "dim": 512, "no_memory": True},
        table("decoder", 512)
        | {"wte.weight": (VOCABULARY, 256)}
        | linear("decoder_proj", 256, 512),
    ),
    "memory model, mixer 512 to 1024": (
        198_477_120,
        MIXER | CHUNKED | {"encoder_dim": 512, "dim": 1024, "kernel": 8},
        {},
    ),
    "recurrent memory, transformer 512": (
        79_413_760,
        TRANSFORMER | RECURRENT | {"dim": 512},
        table("decoder", 512),
    ),
    "recurrent memory, mixer 1024": (
        159_207_568,
        MIXER | RECURRENT | {"dim": 1024, "kernel": 8},
        {},
    ),
    "autoencoder, mixer 1024, kernel 16": (218_391_552, MIXER | AUTOENCODER | {"kernel": 16}, {}),
    "autoencoder, mixer 1024, kernel 1": (155_476_992, MIXER | AUTOENCODER, {}),
    "autoencoder, mixer 1024, 4 heads": (201_671_680, MIXER | AUTOENCODER | {"heads": 4}, {}),
    "autoencoder, mixer 512, kernel 4": (
        83_976_704,
        MIXER | {"kind": "autoencoder", "dim": 512, "layers": 16, "context": 256, "kernel": 4},
        {},
    ),
    "autoencoder, transformer 512": (
        150_767_104,
        TRANSFORMER
        | {"kind": "autoencoder", "dim": 512, "layers": 16, "context": 512, "final_norm": False},
        half_used("encoder", 512, 16) | half_used("decoder", 512, 16),
    ),
    "oracle, transformer 256 to 512": (
        98_412_096,
        TRANSFORMER | ORACLE | {"encoder_dim": 256, "dim": 512, "compression": 4},
        table("decoder", 512),
    ),
    "oracle, transformer 1024": (
        301_238_272,
        TRANSFORMER
        | {"kind": "oracle", "layers": 8, "context": 512, "encoder_dim": 1024, "dim": 1024},
        table("decoder", 1024),
    ),
    "oracle, mixer 256 beside 960": (
        194_330_944,
        MIXER | ORACLE | {"encoder_dim": 256, "dim": 960, "compression": 4, "combine": "embedding"},
        linear("up", 64, 256),
    ),
    "oracle, mixer 1024": (
        192_569_416,
        MIXER
        | {
            "kind": "oracle",
            "layers": 8,
            "context": 512,
            "encoder_dim": 1024,
            "dim": 1024,
            "kernel": 8,
        },
        {},
    ),
}


@pytest.mark.quick_cases(
    "causal lm, mixer 512",
    "causal lm, transformer 512",
    "memory model, mixer 512 to 1024",
    "recurrent memory, transformer 512",
    "autoencoder, mixer 1024, kernel 16",
    "autoencoder, transformer 512",
    "oracle, mixer 256 beside 960",
)
@pytest.mark.parametrize(("published", "spec", "dead"), MODELS.values(), ids=MODELS.keys())
def test_a_model_of_published_size_has_the_published_parameters(published, spec, dead):
    config = to_config(spec)
    module = build(config, config.stages[STAGE])
    shapes = jax.eval_shape(
        functools.partial(module.init, jax.random.key(0)), example(module, config)
    )
    assert size(shapes) + sum(math.prod(shape) for shape in dead.values()) == published
    # An import accepts exactly these as unused.
    assert all(re.fullmatch(unused(spec), name) for name in dead)


LAYERS = {
    "transformer 512": (4_195_328, TRANSFORMER | {"dim": 512}),
    "transformer 1024": (16_779_264, TRANSFORMER | {"dim": 1024}),
    "mixer 1024, kernel 1": (8_660_480, MIXER | {"dim": 1024}),
    "mixer 1024, kernel 16": (12_592_640, MIXER | {"dim": 1024, "kernel": 16}),
    "mixer 1024, 4 heads": (11_547_648, MIXER | {"dim": 1024, "heads": 4}),
}


@pytest.mark.parametrize(("published", "spec"), LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_of_published_size_has_the_published_parameters(published, spec):
    layers = 3
    config = to_config(spec | {"kind": "causal_lm", "layers": layers, "context": 512}).model.decoder
    x = jax.ShapeDtypeStruct((1, 512, config.width), "float32")
    shapes = jax.eval_shape(functools.partial(Backbone(config, 512).init, jax.random.key(0)), x)[
        "params"
    ]
    assert size(shapes["blocks"]) == layers * published
