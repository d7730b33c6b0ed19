"""Hugging Face folders with values of other types, and sizes beyond all memory."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from memjax.errors import MemjaxError
from memjax.interop.stage import open_stage

GOLDEN = Path(__file__).parents[1] / "golden" / "hf" / "llama32_gqa_tied"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN, tmp_path / "folder")


def refused(folder: Path) -> str:
    with pytest.raises(MemjaxError) as caught:
        open_stage(f"hf:{folder}")
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1600
    return said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", True),
        ("architectures", [{}]),
        ("model_type", ["llama"]),
        ("layer_types", [{}]),
        ("layer_types", 3),
        ("tie_word_embeddings", "yes"),
        ("rope_parameters", [1]),
        ("hidden_size", [64]),
        ("hidden_size", 10**12),
        ("vocab_size", 10**12),
        ("num_hidden_layers", 10**30),
        ("num_hidden_layers", 10**9),
        ("rms_norm_eps", math.inf),
        ("rms_norm_eps", 1e300),
    ],
)
def test_a_setting_of_another_type_or_size_is_named(folder: Path, key: str, value: Any) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: value}))
    said = refused(folder)
    names = {"hidden_size": "width", "num_hidden_layers": "layers", "rms_norm_eps": "norm_eps"}
    assert "config.json: " in said and (key in said or names.get(key, key) in said)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"weight_map": True}, "weight_map: True, expected an object"),
        ({"weight_map": {"a": 3}}, "weight_map.a: 3, expected text"),
        ({"weight_map": {"a": "../model.safetensors"}}, "expected one beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "expected one beside it"),
        ({"weight_map": {"a": "x" * 300}}, "expected one beside it"),
        ({}, "no weight_map, expected it there"),
        ([], "[], expected an object"),
    ],
)
def test_an_index_of_another_shape_is_named(folder: Path, contents: Any, message: str) -> None:
    (folder / INDEX).write_text(json.dumps(contents))
    said = refused(folder)
    assert f"{folder / INDEX}" in said and message in said


def test_weights_beyond_all_memory_are_refused_before_any_is_read(folder: Path) -> None:
    """A sparse file of 300 GB, which takes no room on the disk."""
    width, rows, hidden = 2**14, 2**22, 2**16
    sizes = {"hidden_size": width, "vocab_size": rows, "intermediate_size": hidden}
    sizes |= dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 128)
    settings = json.loads((folder / "config.json").read_text()) | sizes | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(settings))
    names = {
        **{f"self_attn.{name}_proj": [width, width] for name in "qkvo"},
        **{f"mlp.{name}_proj": [hidden, width] for name in ("gate", "up")},
        "mlp.down_proj": [width, hidden],
        **{f"{name}_layernorm": [width] for name in ("input", "post_attention")},
    }
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in names.items()}
    shapes |= {"model.embed_tokens.weight": [rows, width], "model.norm.weight": [width]}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    stored = open_stage(f"hf:{folder}")
    with pytest.raises(MemjaxError, match="bytes of parameters, expected at most the"):
        stored.read(None)
