"""Texts to vectors by the encoder of any family, as one pure function: what a probe asks of a model, whatever it was trained for.

| family | vectors of a text |
|---|---|
| autoencoder, memory_model, oracle, retriever, ranker | what its encoder hands on; in a retriever before they are normalised |
| causal_lm | the state (after the final norm) at the text's last token or the last but one, which still foretells a token of the text |
| recurrent_memory | its write slots after reading the text as the first chunk |

Shapes: B text of a batch, T text, L token, N token of a row, K vector, E its width, D decoder width.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.checkpoints import CheckpointError, load_params
from memjax.checkpoints.reading import absolute
from memjax.config import Config, Model, from_json
from memjax.data import Tokenizer
from memjax.instruments.system import special_ids, stage_tokenizer
from memjax.instruments.texts import TextsError, batches, trimmed
from memjax.instruments.vectors import Vectors, VectorsInfo
from memjax.models import CausalLM, Encoder, RecurrentMemory, build, example
from memjax.objectives import SpecialIds
from memjax.training.initialize import reference_init

Params = Mapping[str, Any]
Encode = Callable[[Params, Int[Array | np.ndarray, "B L"]], Float[Array, "B K E"]]
READ_OUTS: Mapping[int, str] = {-1: "last", -2: "second_to_last"}
"""Where a vector is read, counted from a text's end; padding does not count."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """An encoder with its parameters."""

    encode: Encode
    """Pure and jitted."""
    params: Params
    draw: Callable[[jax.Array], Params]
    """Parameters as training would begin with, from a key."""
    name: str
    """The stage's folder."""
    family: str
    length: int
    """L."""
    shape: tuple[int, int]
    """(K, E)."""
    vocabulary: int
    ids: SpecialIds
    tokenizer: Tokenizer | None
    """None of imported weights."""
    untrained: bool = False

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer; empty where it is not known."""
        return self.tokenizer.fingerprint if self.tokenizer else ""

    @property
    def data(self) -> Path:
        """Where the run that trained it keeps its rows."""
        return Path(self.name).parent.parent / "data"

    @property
    def info(self) -> VectorsInfo:
        """What its vectors say of themselves."""
        name = f"{self.name} untrained" if self.untrained else self.name
        ids = self.ids
        return VectorsInfo(name, self.vocabulary, self.fingerprint, ids.pad, ids.bos, ids.first_content)

    def fresh(self, seed: int) -> "TextEncoder":
        """The same architecture before training."""
        return dataclasses.replace(self, params=self.draw(jax.random.key(seed)), untrained=True)


def open_encoder(
    checkpoint: str | os.PathLike, read_out: int | None = None, untrained: bool = False, seed: int = 0, length: int = 0
) -> TextEncoder:
    """The encoder that a stage left.

    Args:
      checkpoint: folder of the stage, as in runs/quickstart/stages/autoencoder.
      read_out: -1 reads at a text's last token, -2 at the last but one; None where the model itself reads, which in a causal
        language model is the last.
      untrained: parameters drawn anew in place of those of the checkpoint.
      seed: they are drawn with.
      length: L of a causal language model, at most its rows; 0 is config.model.chunk_length. Of other families not read.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, its tokenizer is another, or its model has no vectors of a text, or none
        there.
      TokenizerError: the tokenizer cannot be read.
    """
    folder = absolute(checkpoint)
    if read_out is not None and read_out not in READ_OUTS:
        raise ValueError(f"read_out={read_out}: vectors are read at a text's last token (-1) or the last but one (-2)")
    params, meta = load_params(folder / "checkpoints")
    config, name = from_json(meta["config"]), meta["stage"]
    stage, model = config.stages[name], config.model
    tokenizer = stage_tokenizer(folder, meta)
    ids = special_ids(tokenizer)
    part = ("encoder",) if "encoder" in params else ()
    if part:
        params = params["encoder"]
        encode = _encoder(_read_at(model, read_out, folder), config.data.vocabulary, "up" in params, ids.pad)
        length = model.chunk_length
    elif stage.family == "causal_lm":
        length = length or model.chunk_length
        if length > config.data.row_tokens:
            raise CheckpointError(f"{folder}: reads texts of up to {config.data.row_tokens} tokens, a row, and not of {length}")
        encode = _causal(build(config, stage), ids.pad, read_out or -1)
    elif stage.family == "recurrent_memory":
        if read_out == -2:
            raise CheckpointError(f"{folder}: a recurrent memory is read at its write slots; leave read_out out")
        encode, length = _recurrent(build(config, stage), ids.pad), model.chunk_length
    else:
        raise CheckpointError(f"{folder}: a model of family {stage.family} that has no encoder; give a stage that has one")
    shapes = jax.eval_shape(encode, params, jax.ShapeDtypeStruct((1, length), jnp.int32))
    encoder = TextEncoder(
        encode=jax.jit(encode),
        params=params,
        draw=_drawer(config, name, part),
        name=str(folder),
        family=stage.family,
        length=length,
        shape=shapes.shape[1:],
        vocabulary=config.data.vocabulary,
        ids=ids,
        tokenizer=tokenizer,
    )
    return encoder.fresh(seed) if untrained else encoder


def _read_at(model: Model, read_out: int | None, folder: Any) -> Model:
    """The settings of an encoder that reads there."""
    if read_out is None:
        return model
    if model.readout not in READ_OUTS.values():
        if read_out == -1:
            return model
        raise CheckpointError(f"{folder}: reads its vectors at learned {model.readout}, not at a token; leave read_out out")
    return dataclasses.replace(model, readout=READ_OUTS[read_out])


def _encoder(model: Model, vocabulary: int, expand: bool, pad: int) -> Encode:
    # An oracle's encoder may lack the map back from the bottleneck: its vectors are as wide as that.
    module = Encoder(model, vocabulary, expand)

    def encode(params: Params, tokens: Any) -> Any:
        return module.apply({"params": params}, tokens, tokens != pad)

    return encode


def _causal(module: Any, pad: int, read_out: int) -> Encode:
    assert isinstance(module, CausalLM)
    # A mixer's weights belong to positions, of which there are as many as in a row; a transformer's do not.
    row = module.length if module.config.decoder.kind != "transformer" else 0

    def encode(params: Params, tokens: Any) -> jax.Array:
        whole = jnp.pad(tokens, ((0, 0), (0, max(row - tokens.shape[1], 0))), constant_values=pad)
        valid = whole != pad
        hidden: Any = module.apply({"params": params}, whole, valid, method="hidden")
        passed = jnp.cumsum(valid, axis=1)
        # The first position by which so many tokens have passed is that of the last (but one) of them.
        wanted = jnp.maximum(passed[:, -1:] + 1 + read_out, 1)
        return jnp.take_along_axis(hidden, jnp.argmax(passed >= wanted, axis=1)[:, None, None], axis=1)

    return encode


def _recurrent(module: Any, pad: int) -> Encode:
    assert isinstance(module, RecurrentMemory)
    vectors = module.config.vectors

    def encode(params: Params, tokens: Any) -> jax.Array:
        chunk = tokens[:, None]
        states: Any = module.apply({"params": params}, chunk, chunk != pad, method="states")
        return states[:, 0, -vectors:]

    return encode


def _drawer(config: Config, name: str, part: tuple[str, ...]) -> Callable[[jax.Array], Params]:
    """First parameters of a stage, or of a part of its model, as training draws them."""
    stage = config.stages[name]
    module = build(config, stage)

    @jax.jit
    def draw(key: jax.Array) -> Any:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        params: Any = module.init(key, example(module, config))["params"]
        if "reference_init" in config.model.compat:
            params = reference_init(params, config, stage, key)
        for step in part:
            params = params[step]
        return params

    return draw


def encode_texts(
    encoder: TextEncoder,
    texts: Int[np.ndarray, "T L"],
    batch: int = 256,
    advance: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "T K E"]:
    """Vectors of texts in float32, on the host; a batch is fetched while the next is computed.

    Args:
      encoder: what reads them.
      texts: in the words of its tokenizer.
      batch: texts at a time.
      advance: called when a batch is done.

    Raises:
      TextsError: there are no texts, they are of another length, or an id is outside the vocabulary.
    """
    if texts.ndim != 2 or texts.shape[1] != encoder.length:
        raise TextsError(
            f"{encoder.name}: reads texts of {encoder.length} tokens, [T, {encoder.length}], not {list(texts.shape)}"
        )
    if not len(texts):
        raise TextsError(f"{encoder.name}: there are no texts to read; give at least one")
    if not 0 <= texts.min() <= texts.max() < encoder.vocabulary:
        raise TextsError(
            f"{encoder.name}: ids {texts.min()} to {texts.max()} are not all of its vocabulary of {encoder.vocabulary}; give texts of"
            " its tokenizer"
        )
    parts: list[np.ndarray] = []
    computing: jax.Array | None = None
    for tokens in batches(texts, batch):
        before, computing = computing, encoder.encode(encoder.params, jnp.asarray(tokens))
        if before is not None:
            parts.append(np.asarray(before, np.float32))
            advance()
    parts.append(np.asarray(computing, np.float32))
    advance()
    return trimmed(parts, len(texts))


def vectors_of(
    encoder: TextEncoder, texts: Int[np.ndarray, "T L"], batch: int = 256, advance: Callable[[], None] = lambda: None
) -> Vectors:
    """`encode_texts` with the texts, as a probe takes them.

    Raises:
      TextsError: as `encode_texts`.
      VectorsError: a vector is not finite.
    """
    return Vectors(encode_texts(encoder, texts, batch, advance), texts, encoder.info, encoder.info.encoder)
