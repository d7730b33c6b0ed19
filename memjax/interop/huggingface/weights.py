"""Import and export of pretrained language models in Hugging Face folders, of the architectures in
settings.py; needs neither torch nor transformers.

The import reads config.json and safetensors files. One part of one tensor at a time is in host
memory: it is read, converted if another type is wanted, and put on its device. The export writes
files with their original headers: the same names, types and order. Ids that were added to the
pretrained vocabulary start from the mean vector, and the export leaves them out.

Shapes: N layer, V vocabulary, D width; linear maps are [out, in] there and [in, out] here.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.interop.huggingface.files import DTYPES, Files, open_files, write_like
from memjax.interop.huggingface.settings import DecoderSettings, HuggingFaceError, decoder_settings
from memjax.layers.lora import is_adapter
from memjax.models import CausalLM
from memjax.objectives import check
from memjax.sharding.mesh import memory

Tree = Mapping[str, Any]
STAGE = "pretrained"
"""The only stage of a loaded model's config."""
BLOCK = {
    "mix_norm/scale": "input_layernorm",
    "mix/query/kernel": "self_attn.q_proj",
    "mix/query/bias": "self_attn.q_proj",
    "mix/key/kernel": "self_attn.k_proj",
    "mix/key/bias": "self_attn.k_proj",
    "mix/value/kernel": "self_attn.v_proj",
    "mix/value/bias": "self_attn.v_proj",
    "mix/query_norm/scale": "self_attn.q_norm",
    "mix/key_norm/scale": "self_attn.k_norm",
    "mix/out/kernel": "self_attn.o_proj",
    "mlp_norm/scale": "post_attention_layernorm",
    "mlp/gate/kernel": "mlp.gate_proj",
    "mlp/up/kernel": "mlp.up_proj",
    "mlp/down/kernel": "mlp.down_proj",
}
"""Tensors of a block by the parameters here."""
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OTHER = {
    "embed/embedding": _TABLE,
    "backbone/norm/scale": "model.norm.weight",
    "head/kernel": _HEAD,
}
SEQUENCE_LENGTH = 1024
"""Tokens per sequence of a loaded model, which reads sequences of any length."""
_MEAN_ROWS = 4096
"""Rows of a table per read, for their mean."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is still in files, for `Pretrained.read`."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    """Type to read it in."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A Hugging Face folder with consistent files; no value of it is in memory."""

    settings: DecoderSettings
    files: Files
    vocabulary: int
    """V: the vocabulary size of the files, or more."""

    @property
    def stack(self) -> Backbone:
        """Settings of the decoder."""
        return self.settings.stack

    def parameters(self) -> Tree:
        """`backbone`, `embed` and, unless tied, `head`, with a `Stored` per leaf, of the type that
        the files have it in. Layers of several types have one that holds all.
        """
        flat = _shapes(self.stack, self.vocabulary)
        return unflatten_dict(
            {path: Stored(path, shape, self._dtype(path)) for path, shape in flat.items()}, sep="/"
        )

    def _dtype(self, path: str) -> np.dtype:
        types = {DTYPES[self.files.tensors[name].dtype] for name in tensor_names(self.stack, path)}
        return functools.reduce(jnp.promote_types, types)

    def read(self, stored: Stored, place: jax.sharding.Sharding | None = None) -> jax.Array:
        """Return a parameter with the sharding `place`; by default it is on this process's first
        device.

        Every device gets its part of one tensor after another, so that host memory holds only one
        part beside the result.
        """
        place = place or SingleDeviceSharding(jax.local_devices()[0])
        names = tensor_names(self.stack, stored.path)
        if not stored.path.startswith("backbone/blocks/"):
            return self._put(names[0], stored.shape, stored.dtype, place)
        layer_place = (
            NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
            if isinstance(place, NamedSharding)
            else place
        )
        stack = jax.jit(
            functools.partial(jnp.zeros, stored.shape, stored.dtype), out_shardings=place
        )()
        for layer, name in enumerate(names):
            one = self._put(name, stored.shape[1:], stored.dtype, layer_place)
            stack = _set_layer(stack, one, jnp.int32(layer))
            # Wait, so that the next layer is not read before this one is copied.
            stack.block_until_ready()
        return stack

    def read_each(
        self,
        stored: Mapping[str, Stored],
        places: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """Return parameters by path; see `read`.

        Whole tables come before layers: a copy of one, which is large, is then held beside little.
        """
        order = sorted(stored, key=lambda path: path.startswith("backbone/blocks/"))
        return {path: self.read(stored[path], places[path] if places else None) for path in order}

    def read_all(self, place: Callable[[Tree], Tree] | None = None) -> dict[str, Any]:
        """Return all parameters, in the types that the files have them in.

        Args:
          place: maps the tree of parameters, which have shapes, to a sharding per leaf; by default
            all leaves are on this process's first device.

        Raises:
          HuggingFaceError: the model has a sliding window, or is larger than the devices.
        """
        window = self.settings.window
        HuggingFaceError.require(
            not window,
            f"{self.files.folder}: sliding_window={window}, expected null, as sequences of any"
            " length are read. Start a stage of shorter ones from it (init_from)",
        )
        tree = self.parameters()
        stored = flatten_dict(tree, sep="/")
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in stored.values())
        there = sum(map(memory, jax.devices() if place else jax.local_devices()[:1]))
        HuggingFaceError.require(
            size <= there,
            f"{self.files.folder}: {size:,} bytes of parameters, expected at most the {there:,} of"
            " the devices. Use a smaller model or more devices",
        )
        places = flatten_dict(place(tree), sep="/") if place else None
        return dict(unflatten_dict(self.read_each(stored, places), sep="/"))

    def check(self) -> None:
        """Raise HuggingFaceError if a tensor is missing or its shape differs from config.json."""
        for name, shape in tensor_shapes(self.settings).items():
            self.files.require(name, shape)

    def _put(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, place: jax.sharding.Sharding
    ) -> jax.Array:
        parts: dict[str, np.ndarray] = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            index = tuple(index or ())
            index += (slice(None),) * (len(shape) - len(index))
            # Devices with the same part share its values.
            if str(index) not in parts:
                parts[str(index)] = self._part(name, index, shape, dtype)
            return parts[str(index)]

        return jax.make_array_from_callback(shape, place, part, dtype=dtype)

    def _part(
        self, name: str, index: tuple[slice, ...], shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        """Return the part of a parameter that `index` selects."""
        turned = len(shape) == 2 and name != _TABLE
        there = [slice(*i.indices(size)[:2]) for i, size in zip(index, shape, strict=True)][
            :: -1 if turned else 1
        ]
        out = np.empty([i.stop - i.start for i in there][:: -1 if turned else 1], dtype)
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
        """Return the mean row of a table."""
        rows, total = self.settings.vocabulary, np.zeros(self.stack.width)
        for start in range(0, rows, _MEAN_ROWS):
            block = self.files.read(
                name, (slice(start, min(start + _MEAN_ROWS, rows)), slice(None))
            )
            total += block.astype(np.float64).sum(axis=0)
        return total / rows


def tensor_names(stack: Backbone, path: str) -> list[str]:
    """Return the tensors of a parameter in files, one per layer where it is stacked."""
    if path in _OTHER:
        return [_OTHER[path]]
    name = BLOCK[path.removeprefix("backbone/blocks/")]
    end = "bias" if path.endswith("/bias") else "weight"
    return [f"model.layers.{layer}.{name}.{end}" for layer in range(stack.layers)]


def tensor_shapes(settings: DecoderSettings) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the files of a model with these settings, by name."""
    found = {}
    for path, shape in _shapes(settings.stack, settings.vocabulary).items():
        shape = shape[1:] if path.startswith("backbone/blocks/") else shape
        shape = shape[::-1] if path.endswith("kernel") else shape
        found |= dict.fromkeys(tensor_names(settings.stack, path), shape)
    return found


@functools.lru_cache(maxsize=8)
def _shapes(stack: Backbone, vocabulary: int) -> Mapping[str, tuple[int, ...]]:
    module = CausalLM(Model(decoder=stack), 1, vocabulary)
    shapes: Any = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    )
    return {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer_array: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer_array, layer, 0)


def open_pretrained(folder: str | os.PathLike, vocabulary: int = 0) -> Pretrained:
    """Open a Hugging Face folder; only headers are read.

    Args:
      folder: with config.json, and model.safetensors or model.safetensors.index.json and its files.
      vocabulary: V; 0 is that of the files. Additional rows are the mean of the others.

    Raises:
      HuggingFaceError: files are missing, damaged or inconsistent, or the model is not supported;
        or V is too small.
    """
    settings = decoder_settings(folder)
    if vocabulary and vocabulary < settings.vocabulary:
        raise HuggingFaceError(
            f"{folder} has a vocabulary of {settings.vocabulary}, and"
            f" config.data.vocab_size={vocabulary} is less; use"
            f" {settings.vocabulary} or more"
        )
    pretrained = Pretrained(settings, open_files(folder), vocabulary or settings.vocabulary)
    pretrained.check()
    return pretrained


def pretrained_config(
    pretrained: Pretrained,
    name: str,
    sequence_length: int = SEQUENCE_LENGTH,
    begins: bool | None = True,
) -> Config:
    """Return the config of a causal language model (family `causal_lm`) with these weights.

    Args:
      pretrained: the weights.
      name: the config's name.
      sequence_length: tokens per sequence of the module.
      begins: `Tokenizer.begins`; a model whose texts begin with no token gets none.
    """
    compat = () if begins else ("unscored_first_tokens",)
    config = Config(
        name=name,
        data=Data(corpus="", vocab_size=pretrained.vocabulary, sequence_length=sequence_length),
        model=Model(chunk_length=sequence_length, encoder=Backbone(), decoder=pretrained.stack),
        stages={STAGE: Stage(family="causal_lm", objectives={"next_token": 1.0}, compat=compat)},
        curriculum=(STAGE,),
    )
    check(config)
    return config


def save_pretrained(params: Tree, like: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write a Hugging Face folder with a decoder's weights, which transformers loads.

    Args:
      params: of a causal language model, or of a memory model with the decoder of `like`, with
        adapters merged (`memjax.layers.lora`); other parts are left out.
      like: the folder of the decoder. It provides files, names, types and order of tensors; its
        config and tokenizer are copied.
      out: the folder to write.

    Raises:
      HuggingFaceError: `out` exists, `like` cannot be read, or parameters belong to another model.
    """
    flat = flatten_dict(params, sep="/")
    adapter = next(filter(is_adapter, flat), "")
    if adapter:
        raise HuggingFaceError(
            f"parameter {adapter!r} is an adapter's; merge them first"
            " (memjax.layers.lora.merge_lora)"
        )
    settings = decoder_settings(like)
    pretrained = open_pretrained(
        like, max(len(flat.get("embed/embedding", ())), settings.vocabulary)
    )
    sources: dict[str, tuple[str, int | None]] = {}
    for path, leaf in flatten_dict(pretrained.parameters(), sep="/").items():
        if path not in flat or flat[path].shape != leaf.shape:
            given = f"is of shape {flat[path].shape}" if path in flat else "is not there"
            raise HuggingFaceError(f"parameter {path!r} {given}; {like} needs it in {leaf.shape}")
        stacked = path.startswith("backbone/blocks/")
        sources |= {
            name: (path, i if stacked else None)
            for i, name in enumerate(tensor_names(pretrained.stack, path))
        }
    if pretrained.stack.tie_embeddings:
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
