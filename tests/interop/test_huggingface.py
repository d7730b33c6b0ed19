"""Pretrained decoders of ../golden/hf: what transformers computes with them, and the files they are
in.

Shapes: B row, T token, V vocabulary, D width, S prefix.
"""

import dataclasses
import filecmp
import gc
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from memjax.config import Backbone, Model
from memjax.config.checks import ATTENTION_SETTINGS
from memjax.interop.huggingface.settings import HuggingFaceError, decoder_settings, ratio_of
from memjax.interop.huggingface.weights import open_pretrained, pretrained_config, save_pretrained
from memjax.layers.attention import KeyValues
from memjax.models import MemoryModel, build

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hf"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
TIED = "llama32_gqa_tied"


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """(what is expected, module, variables, config)."""
    return dict(np.load(GOLDEN / request.param / "expected.npz")), *load_pretrained(
        GOLDEN / request.param, row_tokens=40
    )


def load_pretrained(folder, vocabulary=0, row_tokens=1024):
    """(module, variables, config) of a folder."""
    pretrained = open_pretrained(folder, vocabulary)
    config = pretrained_config(pretrained, "it", row_tokens)
    return build(config, config.stages["pretrained"]), {"params": pretrained.read_all()}, config


def close(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


# What it computes


@pytest.mark.quick_cases("llama32_gqa_tied", "qwen3_qknorm")
def test_logits_are_those_of_transformers(case, quick):
    expected, module, variables, _ = case
    close(quick(module.apply)(variables, expected["input_ids"]), expected["logits"])
    valid = expected["attention_mask"].astype(bool)
    assert not valid.all()
    masked = quick(module.apply)(variables, expected["input_ids"], valid)
    close(masked[valid], expected["logits_masked"][valid])


def test_memories_are_read_as_embeddings_before_the_tokens(case, quick):
    """A memory model without marks and positions of its own, whose memories are as wide as the
    decoder."""
    expected, _, variables, config = case
    prefix_BSD, tokens_BT = expected["prefix_embeddings"], expected["input_ids"]
    slots = prefix_BSD.shape[1]
    decoder = config.model.decoder
    model = Model(
        chunk_length=tokens_BT.shape[1],
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
        encoder=Backbone(width=decoder.width),
        decoder=decoder,
    )
    module = MemoryModel(model, slots + 1, config.data.vocab_size)

    @quick
    def read(variables, memories):
        last, shown = (
            {"slots": np.arange(slots)[None], "chunk": np.array([slots])},
            tokens_BT[:, None],
        )
        logits = module.apply(variables, shown, memories, method="decode", **last)
        return logits[:, 0], module.apply(
            variables, shown, shown, memories, method="score", **last
        )[0]

    found, nats = read(variables, prefix_BSD[:, :, None])
    close(found, expected["logits_with_prefix"][:, slots:])
    logits = expected["logits_with_prefix"][:, slots:].astype(np.float64)
    wanted = (
        np.log(np.exp(logits).sum(-1))
        - np.take_along_axis(logits, tokens_BT[..., None], -1)[..., 0]
    )
    close(nats[:, 0], wanted.astype(np.float32))


def test_greedy_text_from_cached_keys_and_values_is_that_of_transformers(case, quick):
    expected, module, variables, _ = case
    prompt, total = 8, expected["greedy"].shape[1]

    def read(module, tokens):
        states, cache = module.backbone.read(
            module.embed(tokens), jnp.arange(prompt)[None], jnp.ones((1, prompt), bool)
        )
        room = ((0, 0), (0, 0), (0, 0), (0, total - prompt), (0, 0))
        return jnp.argmax(module.head(states[:, -1]), axis=-1), KeyValues(
            *(jnp.pad(x, room) for x in cache)
        )

    def step(module, token, cache, at):
        state, cache = module.backbone.cached_step(
            module.embed(token), cache, at, at, jnp.ones((1, total), bool)
        )
        return jnp.argmax(module.head(state), axis=-1), cache

    def generate(variables):
        first, cache = module.apply(
            variables, jnp.asarray(expected["greedy"][:, :prompt]), method=read
        )

        def body(carry, at):
            token, cache = module.apply(variables, *carry, at[None], method=step)
            return (token, cache), token

        _, said = jax.lax.scan(body, (first, cache), jnp.arange(prompt, total - 1))
        return jnp.concatenate([first, said[:, 0]])

    np.testing.assert_array_equal(quick(generate)(variables), expected["greedy"][0, prompt:])


# Files


def sharded(folder, name=TIED, dtype=ml_dtypes.bfloat16):
    """The model `name` in two files and another type, with an index."""
    shutil.copytree(GOLDEN / name, folder)
    tensors = {
        key: tensor.astype(dtype) for key, tensor in load_file(folder / "model.safetensors").items()
    }
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in parts.items():
        save_file(
            {key: tensors[key] for key in part},
            folder / file,
            metadata={"format": "pt", "part": file[:11]},
        )
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {key: file for file, part in parts.items() for key in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_comes_back_byte_for_byte(name, tmp_path):
    loaded = load_pretrained(GOLDEN / name)
    save_pretrained(loaded[1]["params"], GOLDEN / name, tmp_path / "out")
    files = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert filecmp.cmpfiles(GOLDEN / name, tmp_path / "out", files, shallow=False) == (
        files,
        [],
        [],
    )
    assert ("head" in loaded[1]["params"]) == (name == "llama_mha_untied")
    # Other numbers are written where they belong.
    params = jax.tree.map(lambda x: x + 1, loaded[1]["params"])
    save_pretrained(params, GOLDEN / name, tmp_path / "more")
    old, new = (
        load_file(GOLDEN / name / "model.safetensors"),
        load_file(tmp_path / "more" / "model.safetensors"),
    )
    assert old.keys() == new.keys()
    for key, tensor in old.items():
        np.testing.assert_array_equal(new[key], tensor + 1)


def test_shards_of_bfloat16_come_back_with_ids_added_and_left_out_again(tmp_path):
    folder = sharded(tmp_path / "in")
    module, variables, config = load_pretrained(folder, vocabulary=80)
    table = np.asarray(variables["params"]["embed"]["embedding"])
    with safe_open(folder / "model-00001-of-00002.safetensors", "numpy") as file:
        theirs = file.get_tensor("model.embed_tokens.weight").astype(np.float32)
    np.testing.assert_array_equal(table[:71], theirs)
    mean = theirs.mean(0).astype(table.dtype)
    np.testing.assert_array_equal(table[71:], np.broadcast_to(mean, (9, 32)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(ml_dtypes.bfloat16)}
    assert module.vocab_size == config.data.vocab_size == 80
    save_pretrained(variables["params"], folder, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == sorted({path.name for path in folder.iterdir()} - {"expected.npz"})
    assert filecmp.cmpfiles(folder, tmp_path / "out", files, shallow=False) == (files, [], [])


def test_added_ids_are_added_to_a_head_of_its_own_too():
    params = load_pretrained(GOLDEN / "llama_mha_untied", vocabulary=70)[1]["params"]
    kernel = np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(
        kernel[:, 67:], np.repeat(kernel[:, :67].mean(1, keepdims=True), 3, 1), atol=1e-7
    )


def test_a_tensor_that_no_parameter_is_made_of_is_kept_and_a_tied_head_that_is_there_too(tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(GOLDEN / TIED, folder)
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.arange(4, dtype=np.float32)}
    extra["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors | extra, folder / "model.safetensors")
    params = load_pretrained(folder)[1]["params"]
    save_pretrained(jax.tree.map(lambda x: x + 1, params), folder, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(
        found["model.layers.0.self_attn.rotary_emb.inv_freq"], np.arange(4)
    )
    np.testing.assert_array_equal(found["lm_head.weight"], extra["lm_head.weight"] + 1)


def deep(folder, layers=24, width=128, hidden=512, vocabulary=600):
    """A model of many equal layers, 25 MiB."""
    said = json.loads((GOLDEN / TIED / "config.json").read_text())
    said |= {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }
    said |= {"num_key_value_heads": 4, "head_dim": None}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(said))
    shapes = dict.fromkeys(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        (width, width),
    )
    shapes |= {
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    shapes |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    of_layers = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(layers)
        for name, shape in shapes.items()
    }
    of_layers |= {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    rng = np.random.default_rng(0)
    save_file(
        {k: rng.random(s, np.float32) for k, s in of_layers.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def peak(function):
    """Bytes that Python and numpy hold at most while it runs, beside those before; arrays of JAX do
    not count."""
    # As outside of tests, which collect garbage less often.
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = function()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()
        gc.set_threshold(*thresholds)


@pytest.mark.slow
def test_no_more_than_a_tensor_is_in_host_memory_beside_the_parameters(tmp_path):
    folder = deep(tmp_path / "in")
    tensor = 512 * 128 * 4
    total = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert total > 90 * tensor
    # A slice as it is read, and as it is handed on; the rest is names and compilation.
    load_pretrained(folder)
    held, loaded = peak(lambda: load_pretrained(folder))
    assert held < 8 * tensor < total / 11
    written, _ = peak(lambda: save_pretrained(loaded[1]["params"], folder, tmp_path / "out"))
    assert written < 8 * tensor
    assert filecmp.cmp(
        folder / "model.safetensors", tmp_path / "out" / "model.safetensors", shallow=False
    )
    # What is measured would show a whole model.
    whole, _ = peak(lambda: load_file(folder / "model.safetensors"))
    assert whole >= total


MANY_DEVICES = """
import sys
import jax, numpy as np
from flax.traverse_util import flatten_dict
from memjax.config import Mesh, SHARDING
from memjax.interop.huggingface.files import Files
from memjax.interop.huggingface.weights import open_pretrained, pretrained_config
from memjax.models import build
from memjax.sharding import make_mesh, shardings
folder = sys.argv[1]
mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2))
largest = []
read = Files.read
def counted(self, name, index):
    found = read(self, name, index)
    largest.append((name, found.size))
    return found
pretrained = open_pretrained(folder, 80)
config = pretrained_config(pretrained, "it")
module = build(config, config.stages["pretrained"])
alone = pretrained.read_all()
Files.read = counted
variables = {"params": pretrained.read_all(lambda x: shardings(x, SHARDING, mesh))}
flat = flatten_dict(variables["params"], sep="/")
places = flatten_dict(shardings(variables["params"], SHARDING, mesh), sep="/")
for path, one in flatten_dict(alone, sep="/").items():
    assert flat[path].sharding.is_equivalent_to(places[path], one.ndim), path
    np.testing.assert_array_equal(np.asarray(flat[path]), np.asarray(one), err_msg=path)
up = flat["backbone/blocks/mlp/up/kernel"]
assert up.addressable_shards[0].data.size * 4 == up.size
# A quarter of a matrix at a time is read, and of a matrix that all hold, each part once.
ups = [size for name, size in largest if "layers.1.mlp.up_proj" in name]
assert ups == [32 * 96 // 4] * 4, ups
norms = [size for name, size in largest if name == "model.norm.weight"]
assert norms == [32], norms
with jax.set_mesh(mesh):
    expected = np.load(folder + "/expected.npz")
    logits = jax.jit(module.apply)(variables, expected["input_ids"])
np.testing.assert_allclose(np.asarray(logits)[..., :71], expected["logits"], atol=1e-4)
print("agreed")
"""


@pytest.mark.slow
def test_every_device_gets_its_part_by_the_rules_of_sharding(tmp_path):
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", MANY_DEVICES, str(GOLDEN / TIED)],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PATH": "",
        },
    )
    assert done.returncode == 0 and "agreed" in done.stdout, done.stderr[-3000:]


def test_transformers_loads_what_is_saved(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for name in NAMES:
        module, variables, _ = load_pretrained(GOLDEN / name)
        params = jax.tree.map(lambda x: x * 1.01, variables["params"])
        save_pretrained(params, GOLDEN / name, tmp_path / name)
        tokens = np.load(GOLDEN / name / "expected.npz")["input_ids"]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float32
        )
        with torch.inference_mode():
            theirs = model(torch.as_tensor(tokens.astype(np.int64))).logits.numpy()
        close(np.asarray(module.apply({"params": params}, tokens)), theirs)


# Settings


def changed(tmp_path, name=TIED, **changes):
    folder = tmp_path / "changed"
    shutil.copytree(GOLDEN / name, folder)
    said = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        said.pop(key) if value is ... else said.update({key: value})
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_settings_are_those_of_config_json():
    stack = decoder_settings(GOLDEN / "qwen3_qknorm").stack
    assert (
        stack.width,
        stack.heads,
        stack.kv_heads,
        stack.attention_head_dim,
        stack.attention_dim,
    ) == (32, 4, 2, 16, 64)
    assert stack.qk_norm and stack.tie_embeddings and stack.hidden_width == 72
    stack, vocabulary, dtype, window = decoder_settings(GOLDEN / TIED)
    assert dtype == "float32" and window == 0
    assert vocabulary == 71
    assert stack == dataclasses.replace(
        Backbone(),
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        mlp_ratio=3.0,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=(32.0, 1.0, 4.0, 16.0),
        tie_embeddings=True,
    )
    # What is as ours keeps its default.
    stack = decoder_settings(GOLDEN / "llama_mha_untied").stack
    assert all(getattr(stack, name) == getattr(Backbone(), name) for name in ATTENTION_SETTINGS)


def test_older_files_say_the_same_of_rotary_positions(tmp_path):
    scaling = {"type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 16
    older = changed(
        tmp_path, rope_parameters=..., rope_theta=500000.0, rope_scaling=scaling, head_dim=...
    )
    assert decoder_settings(older) == decoder_settings(GOLDEN / TIED)


def test_a_ratio_gives_every_hidden_width_exactly():
    rng = np.random.default_rng(0)
    widths, hidden = (
        rng.integers(1, 10_000, 20_000).tolist(),
        rng.integers(1, 50_000, 20_000).tolist(),
    )
    pairs = list(zip(widths, hidden, strict=True))
    assert all(int(width * ratio_of(wanted, width)) == wanted for width, wanted in pairs)
    # A plain division does not.
    assert any(int(width * (wanted / width)) != wanted for width, wanted in pairs)


def test_rope_scaling_replaces_rope_parameters(tmp_path):
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    folder = changed(tmp_path, rope_scaling=llama3)
    with pytest.raises(
        HuggingFaceError,
        match=r"rope_scaling replaces rope_parameters and has no rope_theta.*"
        r"Move rope_parameters\.rope_theta=500000\.0 into it",
    ):
        decoder_settings(folder)
    for moved in ({"rope_scaling": llama3 | {"rope_theta": 500000.0}}, {"rope_theta": 500000.0}):
        shutil.rmtree(folder)
        stack = decoder_settings(changed(tmp_path, **{"rope_scaling": llama3} | moved)).stack
        assert (stack.rope_theta, stack.rope_scaling) == (500000.0, (8.0, 1.0, 4.0, 32.0))
    shutil.rmtree(folder)
    for none in ({}, None):
        stack = decoder_settings(changed(tmp_path, rope_scaling=none)).stack
        assert stack.rope_scaling == (32.0, 1.0, 4.0, 16.0)
        shutil.rmtree(folder)
    plain = {"rope_type": "default", "rope_theta": 1e4}
    assert decoder_settings(changed(tmp_path, rope_scaling=plain)).stack.rope_scaling == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "gemma"},
            "model_type='gemma' is not supported; it can be llama, mistral, qwen2, qwen3",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "expected LlamaForCausalLM"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config is there; weights must be whole",
        ),
        ({"attention_bias": True}, "attention_bias=True has no form here; it can be False"),
        ({"mlp_bias": True}, "mlp_bias=True has no form here"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' has no form here; it can be 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True has no form here"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types names sliding_attention",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_parameters.rope_type='yarn' has no form here",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "rope_parameters.factor=None must be a number",
        ),
        *(
            (
                {"rope_scaling": {"rope_type": kind, "factor": 4.0}},
                f"rope_scaling.rope_type='{kind}' has no form here",
            )
            for kind in ("linear", "dynamic", "yarn", "longrope")
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.rope_type='linear' has no form here"),
        (
            {"rope_scaling": {"rope_type": "llama3", "rope_theta": 1e4}},
            "rope_scaling.factor=None must be a number",
        ),
        ({"rms_norm_eps": ...}, "rms_norm_eps=None must be a number greater than 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2' must be a whole number"),
        ({"num_key_value_heads": 3}, r"config\.model\.decoder\.kv_heads=3, expected a divisor of"),
        ({"head_dim": 7}, "head_dim=7, expected 0 .* or an even number"),
    ],
)
def test_what_has_no_form_here_is_refused_by_the_name_of_its_key(changes, said, tmp_path):
    folder = changed(tmp_path, **changes)
    with pytest.raises(HuggingFaceError, match=said) as error:
        decoder_settings(folder)
    assert str(folder / "config.json") in str(error.value)


def test_folders_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(HuggingFaceError, match=r"absent/config\.json: no such file"):
        decoder_settings(tmp_path / "absent")
    with pytest.raises(
        HuggingFaceError,
        match=r"vocabulary of 71, and config\.data\.vocab_size=70 is less; use 71 or more",
    ):
        open_pretrained(GOLDEN / TIED, 70)
    wide = changed(tmp_path, intermediate_size=80)
    with pytest.raises(
        HuggingFaceError, match=r"'model.layers.0.mlp.down_proj.weight' has shape \(32, 96\)"
    ):
        open_pretrained(wide)
    shutil.rmtree(wide)
    with pytest.raises(
        HuggingFaceError, match=r"has no tensor 'lm_head\.weight', which its config\.json names"
    ):
        open_pretrained(changed(tmp_path, tie_word_embeddings=False))
    weights = wide / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(HuggingFaceError, match=r"model\.safetensors is no whole safetensors file"):
        open_pretrained(wide)
    weights.unlink()
    with pytest.raises(
        HuggingFaceError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"
    ):
        open_pretrained(wide)
    two = sharded(tmp_path / "two")
    first, second = sorted(two.glob("*.safetensors"))
    tensors = load_file(second)
    save_file(tensors | dict([load_file(first).popitem()]), second)
    with pytest.raises(
        HuggingFaceError,
        match=r"00002\.safetensors: tensor '.*' is in model-00001-of-00002\.safetensors too,",
    ):
        open_pretrained(two)
    second.unlink()
    with pytest.raises(
        HuggingFaceError,
        match=r"names 'model-00002-of-00002\.safetensors', and there is no such file",
    ):
        open_pretrained(two)


def test_parameters_of_another_model_are_not_saved(tmp_path, monkeypatch):
    params = load_pretrained(GOLDEN / TIED)[1]["params"]
    with pytest.raises(HuggingFaceError, match=r"parameter '.*' (is of shape|is not there)"):
        save_pretrained(params, GOLDEN / "qwen3_qknorm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    query = params["backbone"]["blocks"]["mix"]["query"] | {"lora_in": 0}
    blocks = params["backbone"]["blocks"] | {
        "mix": params["backbone"]["blocks"]["mix"] | {"query": query}
    }
    adapted = params | {"backbone": params["backbone"] | {"blocks": blocks}}
    with pytest.raises(
        HuggingFaceError,
        match="'backbone/blocks/mix/query/lora_in' is an adapter's; merge them first",
    ):
        save_pretrained(adapted, GOLDEN / TIED, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(HuggingFaceError, match="out: is there already, expected a new or empty"):
        save_pretrained(params, GOLDEN / TIED, tmp_path / "out")
    (tmp_path / "out" / "mine").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pretrained(params, GOLDEN / TIED, "~/out")
    assert (tmp_path / "out" / "config.json").is_file()
    assert set(flatten_dict(params, sep="/")) >= {"embed/embedding", "backbone/norm/scale"}
