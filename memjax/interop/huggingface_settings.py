"""What a Hugging Face config.json of a Llama or Qwen3 says, as settings of a decoder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memjax.config import Backbone, ConfigError
from memjax.config.checks import check_backbone

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""By model_type."""
CONFIG = "config.json"
PREFIX = "hf:"
"""What `config.stages.NAME.init_from` begins with where a Hugging Face folder follows."""


class HuggingFaceError(ValueError):
    """A folder is of no Llama or Qwen3 that memjax can hold; the message names the file and what in it does not fit."""


class DecoderSettings(NamedTuple):
    """A pretrained language model as settings."""

    stack: Backbone
    """`config.model.decoder`."""
    vocabulary: int
    """Rows of its token table."""


def folder_of(init_from: str) -> str:
    """The folder that `hf:FOLDER` names; empty where it names something else."""
    return init_from.removeprefix(PREFIX) if init_from.startswith(PREFIX) else ""


def decoder_settings(folder: str | os.PathLike) -> DecoderSettings:
    """The settings of the decoder that a Hugging Face folder holds; its config.json alone is read.

    Raises:
      HuggingFaceError: there is no config.json, a key is missing, or one has a value that our transformer has no form for.
    """
    path = Path(folder) / CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HuggingFaceError(
            f"{path} cannot be read ({error.strerror}); give a folder with a config.json and safetensors files"
        ) from error
    except ValueError as error:
        raise HuggingFaceError(f"{path} is no JSON ({error})") from error
    if not isinstance(said, dict):
        raise HuggingFaceError(f"{path} holds no JSON object")
    _check(said, path)
    width, heads = _count(said, "hidden_size", path), _count(said, "num_attention_heads", path)
    if said.get("head_dim") is None and width % heads:
        raise HuggingFaceError(
            f"{path}: num_attention_heads={heads} does not divide hidden_size={width}, and there is no head_dim"
        )
    head_width = width // heads if said.get("head_dim") is None else _count(said, "head_dim", path)
    kv_heads = heads if said.get("num_key_value_heads") is None else _count(said, "num_key_value_heads", path)
    epsilon, (base, scaling) = _number(said, "rms_norm_eps", path), _rotary(said, path)
    form: dict[str, Any] = {
        "head_width": head_width if head_width * heads != width else None,
        "query_key_norm": True if said["model_type"] == "qwen3" else None,
        "norm_epsilon": epsilon if epsilon != Backbone().norm_epsilon else None,
        "rotary_base": base if base != Backbone().rotary_base else None,
        "rotary_scaling": scaling or None,
        "tied_head": True if said.get("tie_word_embeddings", False) else None,
    }
    stack = Backbone(
        kind="transformer",
        width=width,
        layers=_count(said, "num_hidden_layers", path),
        heads=heads,
        kv_heads=0 if kv_heads == heads else kv_heads,
        mlp="swiglu",
        mlp_ratio=ratio_of(_count(said, "intermediate_size", path), width),
        norm="rms",
        pretrained=tuple((name, value) for name, value in form.items() if value is not None),
    )
    try:
        check_backbone(stack, "model.decoder.")
    except ConfigError as error:
        raise HuggingFaceError(f"{path}: {error}") from error
    return DecoderSettings(stack, _count(said, "vocab_size", path))


def ratio_of(hidden: int, width: int) -> float:
    """The `mlp_ratio` that gives exactly `hidden` channels, whatever a division rounds off."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _check(said: Mapping[str, Any], path: Path) -> None:
    """Refuses what our transformer has no form for."""
    kind = said.get("model_type")
    if kind not in ARCHITECTURES:
        raise HuggingFaceError(f"{path}: model_type={kind!r} is not known here; it can be {', '.join(ARCHITECTURES)}")
    named = said.get("architectures") or [ARCHITECTURES[kind]]
    if ARCHITECTURES[kind] not in named:
        raise HuggingFaceError(
            f"{path}: architectures={named} is no language model of its kind; that would be {ARCHITECTURES[kind]}"
        )
    if said.get("quantization_config"):
        raise HuggingFaceError(f"{path}: quantization_config is there; weights must be whole: float32, float16 or bfloat16")
    wanted: dict[str, Any] = {
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "hidden_act": "silu",
        "partial_rotary_factor": 1.0,
    }
    for key, value in wanted.items():
        if said.get(key, value) not in (value, None):
            raise HuggingFaceError(f"{path}: {key}={said[key]!r} has no form here; it can be {value!r}")
    layers = set(said.get("layer_types") or ()) - {"full_attention"}
    if layers:
        raise HuggingFaceError(f"{path}: layer_types names {', '.join(sorted(layers))}; it can be full_attention")


def _rotary(said: Mapping[str, Any], path: Path) -> tuple[float, tuple[float, ...]]:
    """Base and scaling. Older files have rope_theta and rope_scaling apart, newer ones rope_parameters."""
    key = "rope_parameters" if said.get("rope_parameters") else "rope_scaling"
    rope = said.get(key) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise HuggingFaceError(f"{path}: {key}={rope!r} must be one group of numbers for all layers")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise HuggingFaceError(
            f"{path}: {key}.partial_rotary_factor={rope['partial_rotary_factor']} has no form here; it can be 1"
        )
    base = _number(rope if "rope_theta" in rope else {"rope_theta": 10_000.0} | dict(said), "rope_theta", path)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise HuggingFaceError(f"{path}: {key}.rope_type={kind!r} has no form here; it can be default or llama3")
    if kind == "default":
        return base, ()
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return base, tuple(_number(rope, name, path, f"{key}.") for name in names)


def _number(said: Mapping[str, Any], key: str, path: Path, group: str = "") -> float:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise HuggingFaceError(f"{path}: {group}{key}={value!r} must be a number greater than 0")
    return float(value)


def _count(said: Mapping[str, Any], key: str, path: Path) -> int:
    value = said.get(key)
    if type(value) is not int or value <= 0:
        raise HuggingFaceError(f"{path}: {key}={value!r} must be a whole number greater than 0")
    return value
