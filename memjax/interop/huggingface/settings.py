"""The Hugging Face config.json of a Llama, Mistral, Qwen2 or Qwen3 as settings of a decoder."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memjax.config import HUGGINGFACE, Backbone, ConfigError, Data
from memjax.config.checks import RANGES, check_backbone, check_range
from memjax.errors import MemjaxError
from memjax.files import read_json, require_shape

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Architectures by model_type."""
_MISTRAL_WINDOW, _MISTRAL_LONGEST = 4096, 131_072
"""Window and longest sequence of a Mistral whose config.json names none, as in transformers."""
CONFIG = "config.json"
_SHAPE = {
    "model_type": str,
    "architectures?": [str],
    "layer_types?": [str],
    "tie_word_embeddings?": bool,
    "rope_parameters?": dict,
    "rope_scaling?": dict,
}
"""The shape of its settings; those that are counted are checked one by one."""


_NAMES = "Llama, Mistral, Qwen2 or Qwen3"


class HuggingFaceError(MemjaxError):
    """A folder holds no model that memjax supports; the message names the file and the unsupported
    value.
    """


class DecoderSettings(NamedTuple):
    """A pretrained language model as settings."""

    stack: Backbone
    """`config.model.decoder`."""
    vocabulary: int
    """Rows of its token table."""
    dtype: str
    """Type of its weights: `bfloat16`, or `float32`, which holds every other type."""
    window: int
    """Tokens that a token attends to, in models with longer sequences; 0 is all."""


def folder_of(init_from: str) -> str:
    """Return the folder of `hf:FOLDER`; empty for any other name."""
    return init_from.removeprefix(HUGGINGFACE) if init_from.startswith(HUGGINGFACE) else ""


def decoder_settings(folder: str | os.PathLike) -> DecoderSettings:
    """Return the settings of the decoder in a Hugging Face folder; only its config.json is read.

    Raises:
      HuggingFaceError: there is no config.json, a key is missing, or a value is not supported.
    """
    path = Path(folder) / CONFIG
    expected = f"Give the settings of a {_NAMES}, beside its safetensors files"
    found = read_json(path, HuggingFaceError, dict, expected)
    # Null is the default.
    said = {key: value for key, value in found.items() if value is not None}
    require_shape(said, _SHAPE, path, HuggingFaceError, expected)
    _check(said, path)
    width, heads = (
        _positive(said, "hidden_size", path),
        _positive(said, "num_attention_heads", path),
    )
    if "head_dim" not in said and width % heads:
        raise HuggingFaceError(
            f"{path}: num_attention_heads={heads} does not divide hidden_size={width}, and there"
            " is no head_dim"
        )
    head_dim = _positive({"head_dim": width // heads} | said, "head_dim", path)
    kv_heads = _positive({"num_key_value_heads": heads} | said, "num_key_value_heads", path)
    epsilon, (base, scaling) = _positive(said, "rms_norm_eps", path, float), _rotary(said, path)
    vocabulary = _positive(said, "vocab_size", path)
    stack = Backbone(
        kind="transformer",
        width=width,
        layers=_positive(said, "num_hidden_layers", path),
        heads=heads,
        kv_heads=0 if kv_heads == heads else kv_heads,
        mlp="swiglu",
        mlp_ratio=ratio_of(_positive(said, "intermediate_size", path), width),
        norm="rms",
        head_dim=head_dim if head_dim * heads != width else 0,
        qk_norm=said["model_type"] == "qwen3",
        features=("attention_bias",) if said["model_type"] == "qwen2" else (),
        norm_eps=epsilon if epsilon != Backbone().epsilon else 0.0,
        rope_theta=base,
        rope_scaling=scaling,
        tie_embeddings=said.get("tie_word_embeddings", False),
    )
    try:
        check_backbone(stack, "model.decoder.")
        check_range("data.vocab_size", vocabulary, RANGES[Data]["vocab_size"])
    except ConfigError as error:
        raise HuggingFaceError(f"{path}: {error}") from error
    dtype = said.get("dtype", said.get("torch_dtype"))
    dtype = dtype if dtype == "bfloat16" else "float32"
    return DecoderSettings(stack, vocabulary, dtype, _window(found, path))


def ratio_of(hidden: int, width: int) -> float:
    """Return the `mlp_ratio` that gives exactly `hidden` channels, whatever the rounding of a
    division.
    """
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _check(said: Mapping[str, Any], path: Path) -> None:
    """Raise HuggingFaceError for the first unsupported value."""
    kind = said.get("model_type")
    if kind not in ARCHITECTURES:
        raise HuggingFaceError(
            f"{path}: model_type={kind!r} is not supported; it can be {', '.join(ARCHITECTURES)}"
        )
    named = said.get("architectures") or [ARCHITECTURES[kind]]
    if ARCHITECTURES[kind] not in named:
        raise HuggingFaceError(
            f"{path}: architectures={named} is not a language model of its kind, expected"
            f" {ARCHITECTURES[kind]}"
        )
    if said.get("quantization_config"):
        raise HuggingFaceError(
            f"{path}: quantization_config is there; weights must be whole: float32, float16 or"
            " bfloat16"
        )
    wanted: dict[str, Any] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "hidden_act": "silu",
        "partial_rotary_factor": 1.0,
        "no_rope_layers": None,
    }
    for key, value in wanted.items():
        if said.get(key, value) != value:
            raise HuggingFaceError(
                f"{path}: {key}={said[key]!r} has no form here; it can be {value!r}"
            )
    layers = set(said.get("layer_types", ())) - {"full_attention"}
    if layers:
        raise HuggingFaceError(
            f"{path}: layer_types names {', '.join(sorted(layers))}; it can be full_attention"
        )


def _window(found: Mapping[str, Any], path: Path) -> int:
    """Return the window of a Mistral, 0 if it holds the longest sequence. Null is none, and an
    absent one the default. Other models have one only with use_sliding_window, which is refused.
    """
    if found["model_type"] != "mistral" or found.get("sliding_window", 0) is None:
        return 0
    wide = {"sliding_window": _MISTRAL_WINDOW, "max_position_embeddings": _MISTRAL_LONGEST}
    window, longest = (_positive(wide | dict(found), key, path) for key in wide)
    return window if window < longest else 0


def _rotary(said: Mapping[str, Any], path: Path) -> tuple[float, tuple[float, ...]]:
    """Return base and scaling; older files have rope_theta and rope_scaling, newer ones
    rope_parameters. As in transformers, rope_scaling replaces rope_parameters.
    """
    key = "rope_scaling" if said.get("rope_scaling") else "rope_parameters"
    rope = said.get(key) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise HuggingFaceError(
            f"{path}: {key}={rope!r} must be one group of numbers for all layers"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise HuggingFaceError(
            f"{path}: {key}.partial_rotary_factor={rope['partial_rotary_factor']} has no form"
            " here; it can be 1"
        )
    owner = rope if "rope_theta" in rope else {"rope_theta": 10_000.0} | dict(said)
    base = _positive(owner, "rope_theta", path, float)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise HuggingFaceError(
            f"{path}: {key}.rope_type={kind!r} has no form here; it can be default or llama3"
        )
    replaced = said.get("rope_parameters") or {}
    if "rope_theta" in replaced and "rope_theta" not in {**said, **rope}:
        raise HuggingFaceError(
            f"{path}: {key} replaces rope_parameters and has no rope_theta, expected one there."
            f" Move rope_parameters.rope_theta={replaced['rope_theta']!r} into it"
        )
    if kind == "default":
        return base, ()
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return base, tuple(_positive(rope, name, path, float, f"{key}.") for name in names)


def _positive(
    said: Mapping[str, Any], key: str, path: Path, kind: type = int, group: str = ""
) -> Any:
    value: Any = said.get(key)
    if type(value) not in (int, kind) or not 0 < value < math.inf:
        what = "a whole number" if kind is int else "a number"
        raise HuggingFaceError(f"{path}: {group}{key}={value!r} must be {what} greater than 0")
    return kind(value)
