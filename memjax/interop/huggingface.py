"""Pretrained Llama and Qwen3 models of a Hugging Face folder as our Transformer, and back; needs neither torch nor transformers.

Read from config.json and safetensors files, of which a part of one tensor at a time is in host memory: what a device is to hold is read,
made float32 and put there. Written back, files have the headers they had: the same names, types and order. Ids that were added behind the
pretrained vocabulary have the mean of its vectors, and are left out again.

Shapes: N layer, V vocabulary, D width; linear maps are [out, in] there and [in, out] here.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from memjax.config import SHARDING, Backbone, Config, Data, Model, Rules, Stage
from memjax.interop.huggingface_files import Files, open_files, write_like
from memjax.interop.huggingface_settings import DecoderSettings, HuggingFaceError, decoder_settings
from memjax.layers.lora import is_adapter
from memjax.models import CausalLM
from memjax.sharding import shardings

Tree = Mapping[str, Any]
STAGE = "pretrained"
"""The only stage of a loaded model's config."""
_BLOCK = {
    "mix_norm/scale": "input_layernorm",
    "mix/query/kernel": "self_attn.q_proj",
    "mix/key/kernel": "self_attn.k_proj",
    "mix/value/kernel": "self_attn.v_proj",
    "mix/query_norm/scale": "self_attn.q_norm",
    "mix/key_norm/scale": "self_attn.k_norm",
    "mix/out/kernel": "self_attn.o_proj",
    "mlp_norm/scale": "post_attention_layernorm",
    "mlp/gate/kernel": "mlp.gate_proj",
    "mlp/up/kernel": "mlp.up_proj",
    "mlp/down/kernel": "mlp.down_proj",
}
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OTHER = {"embed/embedding": _TABLE, "backbone/norm/scale": "model.norm.weight", "head/kernel": _HEAD}
_MEAN_ROWS = 4096
"""Rows of a table that are read at a time for their mean."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is still in files: what `Pretrained.read` is asked for."""

    path: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A Hugging Face folder whose files fit together; no number of it is in memory."""

    settings: DecoderSettings
    files: Files
    vocabulary: int
    """V here: that of the files, or more."""

    @property
    def stack(self) -> Backbone:
        """Settings of the decoder."""
        return self.settings.stack

    def parameters(self) -> Tree:
        """`backbone`, `embed` and, where it is not tied, `head`, each leaf a `Stored`."""
        module = CausalLM(Model(decoder=self.stack), 1, self.vocabulary)
        shapes: Any = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
        flat = flatten_dict(shapes["params"], sep="/")
        return unflatten_dict({path: Stored(path, leaf.shape) for path, leaf in flat.items()}, sep="/")

    def read(self, stored: Stored, place: jax.sharding.Sharding | None = None) -> jax.Array:
        """A parameter in float32, where `place` says: by default on this process's first device.

        Every device gets its part of one tensor after another, so that on the way no more than that is in host memory beside what is
        there for good.
        """
        place = place or SingleDeviceSharding(jax.local_devices()[0])
        names = self._names(stored.path)
        if not stored.path.startswith("backbone/blocks/"):
            return self._put(names[0], stored.shape, place)
        layer_place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:])) if isinstance(place, NamedSharding) else place
        stack = jax.jit(functools.partial(jnp.zeros, stored.shape, jnp.float32), out_shardings=place)()
        for layer, name in enumerate(names):
            stack = _set_layer(stack, self._put(name, stored.shape[1:], layer_place), jnp.int32(layer))
            # So that the next layer is not read while this one is still waiting to be copied.
            stack.block_until_ready()
        return stack

    def _names(self, path: str) -> list[str]:
        if path in _OTHER:
            return [_OTHER[path]]
        name = _BLOCK[path.removeprefix("backbone/blocks/")]
        return [f"model.layers.{layer}.{name}.weight" for layer in range(self.stack.layers)]

    def check(self) -> None:
        """Raises HuggingFaceError if a tensor is missing, or is of another shape than config.json says."""
        for path, leaf in flatten_dict(self.parameters(), sep="/").items():
            shape = leaf.shape[1:] if path.startswith("backbone/blocks/") else leaf.shape
            shape = shape[::-1] if path.endswith("kernel") else shape
            for name in self._names(path):
                rows = (self.settings.vocabulary,) if name in (_TABLE, _HEAD) else shape[:1]
                self.files.require(name, (*rows, *shape[1:]))

    def _put(self, name: str, shape: tuple[int, ...], place: jax.sharding.Sharding) -> jax.Array:
        parts: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            index = tuple(index or ())
            index += (slice(None),) * (len(shape) - len(index))
            # Devices that hold the same are given the same.
            if str(index) not in parts:
                parts[str(index)] = self._part(name, index, shape)
            return parts[str(index)]

        return jax.make_array_from_callback(shape, place, part, dtype=jnp.float32)

    def _part(self, name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
        """What `index` takes of a parameter."""
        turned = len(shape) == 2 and name != _TABLE
        there = [slice(*i.indices(size)[:2]) for i, size in zip(index, shape, strict=True)][:: -1 if turned else 1]
        out = np.empty([i.stop - i.start for i in there][:: -1 if turned else 1], np.float32)
        view = out.T if turned else out
        if name in (_TABLE, _HEAD) and there[0].stop > self.settings.vocabulary:
            rows, last = there[0], self.settings.vocabulary
            kept = max(last - rows.start, 0)
            view[kept:] = self._mean(name)[there[1]]
            if not kept:
                return out
            there[0], view = slice(rows.start, last), view[:kept]
        view[...] = self.files.read(name, tuple(there))
        return out

    def _mean(self, name: str) -> np.ndarray:
        """The mean row of a table."""
        rows, total = self.settings.vocabulary, np.zeros(self.stack.width)
        for start in range(0, rows, _MEAN_ROWS):
            block = self.files.read(name, (slice(start, min(start + _MEAN_ROWS, rows)), slice(None)))
            total += block.astype(np.float64).sum(axis=0)
        return (total / rows).astype(np.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer_array: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer_array, layer, 0)


def open_pretrained(folder: str | os.PathLike, vocabulary: int = 0) -> Pretrained:
    """A Hugging Face folder, looked through but not read.

    Args:
      folder: with config.json, and model.safetensors or model.safetensors.index.json and the files it names.
      vocabulary: V; 0 is that of the files. Rows beyond those are the mean of the others.

    Raises:
      HuggingFaceError: files are missing, damaged, do not fit together, or are of a model that has no form here; or V is too small.
    """
    settings = decoder_settings(folder)
    if vocabulary and vocabulary < settings.vocabulary:
        raise HuggingFaceError(
            f"{folder} has a vocabulary of {settings.vocabulary}, and config.data.vocabulary={vocabulary} is less; use"
            f" {settings.vocabulary} or more"
        )
    pretrained = Pretrained(settings, open_files(folder), vocabulary or settings.vocabulary)
    pretrained.check()
    return pretrained


class LoadedDecoder(NamedTuple):
    """A pretrained language model; unpacks as (module, variables, config)."""

    module: nn.Module
    variables: dict[str, Any]
    config: Config


def load_pretrained(
    folder: str | os.PathLike,
    vocabulary: int = 0,
    row_tokens: int = 1024,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules = SHARDING,
) -> LoadedDecoder:
    """A causal language model (family `causal_lm`) with the weights of a Hugging Face folder, in float32.

    Args:
      folder: as `open_pretrained`.
      vocabulary: as `open_pretrained`.
      row_tokens: N of the module; it reads rows of any length.
      mesh: the devices that parameters are laid out on; by default this process's first.
      rules: how, as `config.mesh.rules`.

    Raises:
      HuggingFaceError: as `open_pretrained`.
    """
    pretrained = open_pretrained(folder, vocabulary)
    model = Model(chunk_length=row_tokens, encoder=Backbone(), decoder=pretrained.stack)
    config = Config(
        name=Path(folder).name,
        data=Data(corpus="", vocabulary=pretrained.vocabulary, row_tokens=row_tokens),
        model=model,
        stages={STAGE: Stage(family="causal_lm", objectives={"next_token": 1.0})},
        curriculum=(STAGE,),
    )
    stored = pretrained.parameters()
    places = (shardings(stored, rules, mesh),) if mesh else ()
    params: Any = jax.tree.map(pretrained.read, stored, *places)
    return LoadedDecoder(CausalLM(model, row_tokens, pretrained.vocabulary), {"params": params}, config)


def save_pretrained(params: Tree, like: str | os.PathLike, out: str | os.PathLike) -> None:
    """Writes a Hugging Face folder with a decoder's weights, which transformers loads.

    Args:
      params: of a causal language model or a memory model whose decoder is that of `like`, with adapters merged (`memjax.layers.lora`); other
        parts are left out.
      like: the folder the decoder came from. Files, names, types and order of tensors are taken from there, and its config and tokenizer
        are copied.
      out: the folder to write.

    Raises:
      HuggingFaceError: `out` is there, `like` cannot be read, or parameters are of another model.
    """
    flat = flatten_dict(params, sep="/")
    adapter = next(filter(is_adapter, flat), "")
    if adapter:
        raise HuggingFaceError(f"parameter {adapter!r} is an adapter's; merge them first (memjax.layers.lora.merge_lora)")
    table = flat.get("embed/embedding")
    settings = decoder_settings(like)
    pretrained = open_pretrained(like, settings.vocabulary if table is None else max(len(table), settings.vocabulary))
    sources: dict[str, tuple[str, int | None]] = {}
    for path, leaf in flatten_dict(pretrained.parameters(), sep="/").items():
        if path not in flat or flat[path].shape != leaf.shape:
            given = f"is of shape {flat[path].shape}" if path in flat else "is not there"
            raise HuggingFaceError(f"parameter {path!r} {given}; {like} needs it in {leaf.shape}")
        stacked = path.startswith("backbone/blocks/")
        sources |= {name: (path, i if stacked else None) for i, name in enumerate(pretrained._names(path))}
    if pretrained.stack.tied_head:
        sources[_HEAD] = ("embed/embedding", None)

    def tensor(name: str) -> np.ndarray | None:
        if name not in sources:
            return None
        path, layer = sources[name]
        leaf = flat[path] if layer is None else flat[path][layer]
        values = np.asarray(jax.device_get(leaf))
        values = values.T if path.endswith("kernel") else values
        return values[: settings.vocabulary] if name in (_TABLE, _HEAD) else values

    write_like(Path(like), Path(out), tensor)
