"""Hugging Face folders with random weights, in the shapes of published models or smaller ones."""

import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from memjax.checkpoints.export_manifest import SHARD
from memjax.checkpoints.export_writing import split_shards
from memjax.data import load_tokenizer
from memjax.files import write_json
from memjax.files.tensors import INDEX, save_tensors
from memjax.interop.huggingface.settings import CONFIG, decoder_settings
from memjax.interop.huggingface.weights import tensor_shapes

SCALE = 0.02
"""Standard deviation of matrices; vectors are near 1."""
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_MEANINGS = (
    "model_type",
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)


def _settings(*values: Any, **others: Any) -> dict[str, Any]:
    named = dict(zip(_MEANINGS, values, strict=True)) | others
    return named | {"architectures": [named["architectures"]], "torch_dtype": "bfloat16"}


# fmt: off
KINDS: dict[str, dict[str, Any]] = {
    # Llama-3.2-1B, SmolLM2-135M, Mistral-7B-v0.3, Qwen2.5-0.5B, Qwen3-0.6B
    "llama": _settings(
        "llama", "LlamaForCausalLM", 2048, 16, 32, 8, 8192, 128_256, 1e-5, 500_000.0, True,
        head_dim=64, rope_scaling=_LLAMA3, hidden_act="silu", attention_bias=False, mlp_bias=False,
    ),
    "smollm": _settings(
        "llama", "LlamaForCausalLM", 576, 30, 9, 3, 1536, 49_152, 1e-5, 100_000.0, True,
        hidden_act="silu", attention_bias=False, mlp_bias=False, rope_scaling=None,
    ),
    "mistral": _settings(
        "mistral", "MistralForCausalLM", 4096, 32, 32, 8, 14_336, 32_768, 1e-5, 1e6, False,
        head_dim=128, hidden_act="silu", sliding_window=None,
    ),
    "qwen2": _settings(
        "qwen2", "Qwen2ForCausalLM", 896, 24, 14, 2, 4864, 151_936, 1e-6, 1e6, True,
        hidden_act="silu", sliding_window=32_768, use_sliding_window=False, max_window_layers=21,
    ),
    "qwen3": _settings(
        "qwen3", "Qwen3ForCausalLM", 1024, 28, 16, 8, 3072, 151_936, 1e-6, 1e6, True,
        head_dim=128, hidden_act="silu", attention_bias=False, use_sliding_window=False,
    ),
}
"""The config.json of published models, without what does not change their function."""
# fmt: on
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 312,
}
"""Sizes of a small model, whatever its kind."""


def write_folder(
    out: Path, settings: dict[str, Any], shards: int = 2, tokenizer: str = "", seed: int = 0
) -> Path:
    """Write a folder with random weights; one file's tensors at a time are in memory.

    Args:
      out: the folder; files in it are replaced.
      settings: its config.json, such as one of KINDS; `torch_dtype` is the type of its weights.
      shards: files of weights, about as large as each other, with an index.
      tokenizer: a path as `memjax.data.load_tokenizer` reads it; empty writes none.
      seed: of the weights.

    Raises:
      HuggingFaceError: the settings are not of a model that memjax reads.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CONFIG, settings)
    shapes = tensor_shapes(decoder_settings(out))
    wide = settings.get("torch_dtype") != "bfloat16"
    dtype = np.dtype(np.float32 if wide else ml_dtypes.bfloat16)
    sizes = {name: dtype.itemsize * math.prod(shape) for name, shape in shapes.items()}
    largest = max(sizes.values())
    groups = split_shards(
        sizes, max(largest, math.ceil(sum(sizes.values()) / shards) + largest // 2)
    )
    names = [SHARD.format(number, len(groups)) for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        tensors = {path: _draw(path, shapes[path], seed).astype(dtype) for path in group}
        save_tensors(out / name, tensors, {"format": "pt"})
    weight_map = {path: name for name, group in zip(names, groups, strict=True) for path in group}
    metadata = {"total_size": sum(sizes.values())}
    write_json(out / INDEX, {"metadata": metadata, "weight_map": weight_map})
    if tokenizer:
        load_tokenizer(tokenizer).save(out)
    return out


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape, np.float32)
    values *= SCALE if len(shape) > 1 else 0.1
    return values + np.float32(name.endswith("norm.weight"))
