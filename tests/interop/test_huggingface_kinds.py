"""Every architecture against a forward pass in NumPy, and those that are refused.

Shapes: T position, D width, H head, G key and value head, E head width.
"""

import dataclasses
import filecmp
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import memjax
from memjax.checkpoints import CheckpointError
from memjax.config import Config, Data, Model, Stage
from memjax.experiment.preflight import check_stages
from memjax.interop.huggingface.settings import HuggingFaceError, decoder_settings
from memjax.interop.huggingface.weights import open_pretrained, save_pretrained
from memjax.models import build
from memjax.sharding import make_mesh
from memjax.testing.huggingface import KINDS, SMALL, write_folder

TOKENS = np.random.default_rng(0).integers(0, SMALL["vocab_size"], 20)
Settings = Mapping[str, Any]


def small(kind: str, **changes: Any) -> dict[str, Any]:
    return KINDS[kind] | SMALL | changes


@pytest.fixture(scope="module", params=sorted(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("kinds") / request.param, small(request.param))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    found = {name: x for file in files for name, x in load_file(file).items()}
    return {name: x.astype(np.float64) for name, x in found.items()}


def norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def frequencies(settings: Settings) -> np.ndarray:
    half = settings["head_dim"] // 2
    rates = settings["rope_theta"] ** (-np.arange(half) / half)
    scaling = settings.get("rope_scaling")
    if not scaling:
        return rates
    periods, old = 2 * math.pi / rates, scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = np.clip((old / periods - low) / (high - low), 0, 1)
    return (1 - share) * rates / scaling["factor"] + share * rates


def rotated(x_THE: np.ndarray, settings: Settings) -> np.ndarray:
    angles = np.arange(len(x_THE))[:, None, None] * frequencies(settings)
    first, second = np.split(x_THE, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def forward(settings: Settings, tensors: Mapping[str, np.ndarray], tokens: np.ndarray) -> Any:
    """Return the logits [T, V] of a sequence as transformers computes them, in float64."""
    eps, width = settings["rms_norm_eps"], settings["head_dim"]
    x_TD = tensors["model.embed_tokens.weight"][tokens]
    unseen = np.triu(np.full((len(tokens),) * 2, -np.inf), 1)
    for layer in range(settings["num_hidden_layers"]):
        at = f"model.layers.{layer}"

        def linear(x: np.ndarray, name: str, at: str = at) -> np.ndarray:
            bias = tensors.get(f"{at}.{name}.bias", 0.0)
            return x @ tensors[f"{at}.{name}.weight"].T + bias

        normed = norm(x_TD, tensors[f"{at}.input_layernorm.weight"], eps)
        parts = {}
        for name in "qkv":
            one = linear(normed, f"self_attn.{name}_proj").reshape(len(tokens), -1, width)
            if f"{at}.self_attn.{name}_norm.weight" in tensors:
                one = norm(one, tensors[f"{at}.self_attn.{name}_norm.weight"], eps)
            parts[name] = one if name == "v" else rotated(one, settings)
        share = settings["num_attention_heads"] // settings["num_key_value_heads"]
        keys, values = (np.repeat(parts[name], share, axis=1) for name in "kv")
        scores = np.einsum("thd,shd->hts", parts["q"], keys) / math.sqrt(width) + unseen
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", weights, values).reshape(len(tokens), -1)
        x_TD = x_TD + linear(mixed, "self_attn.o_proj")
        normed = norm(x_TD, tensors[f"{at}.post_attention_layernorm.weight"], eps)
        gate = linear(normed, "mlp.gate_proj")
        hidden = gate / (1 + np.exp(-gate)) * linear(normed, "mlp.up_proj")
        x_TD = x_TD + linear(hidden, "mlp.down_proj")
    head = "embed_tokens" if settings["tie_word_embeddings"] else "lm_head"
    table = tensors["model.embed_tokens.weight" if head == "embed_tokens" else "lm_head.weight"]
    return norm(x_TD, tensors["model.norm.weight"], eps) @ table.T


def test_logits_are_those_of_a_forward_pass_in_numpy_and_bytes_come_back(
    folder: Path, quick: Callable[..., Any], tmp_path: Path
) -> None:
    tensors, settings = tensors_of(folder), json.loads((folder / "config.json").read_text())
    model = memjax.load(f"hf:{folder}")
    biases = [name for name in tensors if name.endswith(".bias")]
    assert len(biases) == (6 if folder.name == "qwen2" else 0)
    found = quick(model.module.apply)({"params": model.params}, TOKENS[None])[0]
    wanted = forward(settings, tensors, TOKENS)
    assert np.abs(wanted).max() > 0.3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    # Without its biases it is another model.
    if biases:
        other = forward(settings, tensors | {name: tensors[name] * 0 for name in biases}, TOKENS)
        assert np.abs(other - wanted).max() > 1e-3
    save_pretrained(model.params, folder, tmp_path / "out")
    files = sorted(path.name for path in folder.iterdir())
    assert filecmp.cmpfiles(folder, tmp_path / "out", files, False) == (files, [], [])


def test_transformers_loads_what_is_saved_with_the_same_logits(
    folder: Path, quick: Callable[..., Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = memjax.load(f"hf:{folder}")
    changed = jax.tree.map(lambda x: x * 1.5, model.params)
    save_pretrained(changed, folder, tmp_path / "out")
    params = memjax.load(f"hf:{tmp_path / 'out'}").params
    found = quick(model.module.apply)({"params": params}, TOKENS[None])
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        theirs = other(torch.as_tensor(TOKENS[None])).logits.numpy()
    assert np.abs(theirs).max() > 0.3
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5)


def stage_of(folder: Path, **changes: Any) -> Config:
    decoder = dataclasses.replace(decoder_settings(folder).stack, **changes)
    settings = {"family": "causal_lm", "objectives": {"next_token": 1.0}, "batch_size": 8}
    return Config(
        data=Data(vocab_size=320, sequence_length=64),
        model=Model(chunk_length=64, decoder=decoder),
        stages={"train": Stage(**settings, init_from=f"hf:{folder}")},
        curriculum=("train",),
    )


def test_biases_are_a_setting_that_a_stage_must_share(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", small("qwen2"))
    check_stages(stage_of(folder), make_mesh())
    said = r"has features=\('attention_bias',\), this run has config\.model\.decoder\.features=\(\)"
    with pytest.raises(CheckpointError, match=said):
        check_stages(stage_of(folder, features=()), make_mesh())
    module = build(stage_of(folder), stage_of(folder).stages["train"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 64), np.int32))
    mix = shapes["params"]["backbone"]["blocks"]["mix"]
    assert {name for name, leaves in mix.items() if "bias" in leaves} == {"query", "key", "value"}


def test_a_sliding_window_is_refused_where_a_sequence_is_longer(tmp_path: Path) -> None:
    def written(name: str, **changes: Any) -> Path:
        return write_folder(tmp_path / name, small("mistral", **changes))

    folder = written("narrow", sliding_window=63, max_position_embeddings=128)
    said = rf"config\.data\.sequence_length=64, expected at most 63, the sliding_window of {folder}"
    with pytest.raises(CheckpointError, match=said):
        check_stages(stage_of(folder), make_mesh())
    with pytest.raises(HuggingFaceError, match="sliding_window=63, expected null"):
        memjax.load(f"hf:{folder}")
    fits = written("fits", sliding_window=64, max_position_embeddings=128)
    check_stages(stage_of(fits), make_mesh())
    windows = {
        "whole": ({"sliding_window": 128, "max_position_embeddings": 128}, 0),
        "none": ({"sliding_window": None}, 0),
    }
    for name, (changes, window) in windows.items():
        assert decoder_settings(written(name, **changes)).window == window
    # An absent one is the default of transformers.
    settings = small("mistral")
    settings.pop("sliding_window")
    assert decoder_settings(write_folder(tmp_path / "absent", settings)).window == 4096


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": kind}, f"model_type='{kind}' is not supported; it can be llama, mistral,")
        for kind in ("gemma", "gemma2", "phi3", "smollm3", "mixtral", "qwen3_moe", "gpt2", "olmo2")
    ]
    + [
        ({"no_rope_layers": [1, 0]}, "no_rope_layers=\\[1, 0\\] has no form here"),
        ({"attention_bias": True}, "attention_bias=True has no form here; it can be False"),
        ({"sliding_window": -1, "model_type": "mistral"}, "sliding_window=-1 must be a whole"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    settings = small("llama") | changes
    settings["architectures"] = [f"{settings['model_type'].title()}ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(HuggingFaceError, match=said):
        decoder_settings(tmp_path)


def test_shapes_that_its_config_does_not_have_are_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "folder", small("qwen2"))
    (folder / "config.json").write_text(json.dumps(small("qwen2", intermediate_size=65)))
    said = (
        r"model-0000\d-of-00002\.safetensors: tensor 'model\.layers\.\d\.mlp\.\w+_proj\.weight' has"
        r" shape \(\d+, \d+\), expected \(\d+, \d+\) by its config\.json$"
    )
    with pytest.raises(HuggingFaceError, match=said):
        open_pretrained(folder)
    with pytest.raises(CheckpointError, match=said):
        check_stages(stage_of(folder), make_mesh())
