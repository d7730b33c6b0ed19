"""Map texts to vectors by the encoder of any family, as one pure function for probes.

Vectors of a text, by family:

- autoencoder, memory_model, oracle, retriever, ranker: the encoder's output, in a retriever before
  normalisation.
- causal_lm: the state (after the final norm) at the text's last token, or at the second-to-last,
  which still predicts a token of the text.
- recurrent_memory: its write slots after reading the text as the first chunk.

Shapes: B text of a batch, T text, L token, N token of a sequence, K vector, E its width, D decoder
width.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.checkpoints import CheckpointError
from memjax.config import Model
from memjax.evaluation.instruments.vectors import Vectors, VectorsInfo
from memjax.inference.texts import TextsError, over_batches
from memjax.inference.trained_model import TrainedModel
from memjax.models import Encoder, can

Params = Mapping[str, Any]
Encode = Callable[[Params, Int[Array | np.ndarray, "B L"]], Float[Array, "B K E"]]
READ_OUTS: Mapping[int, str] = {-1: "last", -2: "second_to_last"}
"""Positions of a vector, counted from a text's end without padding."""
_UNTRAINED = " untrained"


@dataclasses.dataclass(frozen=True, eq=False)
class VectorReader:
    """Function and description of an encoder whose vectors are read from a trained model."""

    model: TrainedModel
    encode: Encode
    """Pure, jitted function of `params` and tokens."""
    length: int
    """L."""
    shape: tuple[int, int]
    """(K, E)."""
    name: str
    """The name of the vectors."""

    def __call__(self, tokens: Int[np.ndarray, "B L"]) -> Float[Array, "B K E"]:
        """Return vectors of texts by the trained parameters."""
        return self.encode(self.params, jnp.asarray(tokens))

    @property
    def params(self) -> Params:
        """The encoder's parameters, or those of a whole model that has none."""
        return self.model.params.get("encoder", self.model.params)

    @property
    def info(self) -> VectorsInfo:
        """Return the description of the vectors."""
        model, ids = self.model, self.model.ids
        fingerprint = model.tokenizer.fingerprint if model.tokenizer else ""
        return VectorsInfo(
            self.name, model.vocab_size, fingerprint, ids.pad, ids.bos, ids.first_content
        )

    def untrained(self, seed: int) -> "VectorReader":
        """Return the same architecture before training."""
        name = f"{self.name.removesuffix(_UNTRAINED)}{_UNTRAINED}"
        return dataclasses.replace(self, model=self.model.untrained(seed), name=name)


def vector_reader(model: TrainedModel, readout: int | None = None, length: int = 0) -> VectorReader:
    """Return a reader of vectors of texts from a model of any family that has them.

    Args:
      model: the model.
      readout: -1 reads at a text's last token, -2 at the last but one; None at the model's own
        position, which in a causal language model is the last.
      length: L of a causal language model, at most its sequence length; 0 is
        config.model.chunk_length. Other families do not use it.

    Raises:
      CheckpointError: the model has no vectors of a text, or none at `readout`.
    """
    if readout is not None and readout not in READ_OUTS:
        raise ValueError(
            f"readout={readout}: expected -1, a text's last token, or -2, the last but one"
        )
    config, settings, pad = model.config, model.config.model, model.ids.pad
    if can(model.family, "keeps_tokens"):
        length = length or settings.chunk_length
        CheckpointError.require(
            length <= config.data.sequence_length,
            f"{model.path}: length={length}, expected at most {config.data.sequence_length},"
            " the model's sequence length",
        )
        encode = functools.partial(_causal, model.module, pad, readout or -1)
    elif can(model.family, "keeps_state"):
        CheckpointError.require(
            readout != -2,
            f"{model.path}: readout={readout}, expected none for a recurrent memory, which is"
            " read at its write slots. Leave readout out",
        )
        encode, length = functools.partial(_recurrent, model.module, pad), settings.chunk_length
    else:
        encoder = model.encoder.clone(config=_read_at(settings, readout, model.path))
        encode, length = functools.partial(_encoder, encoder, pad), settings.chunk_length
    params = model.params.get("encoder", model.params)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shapes = jax.eval_shape(encode, params, tokens)
    return VectorReader(model, jax.jit(encode), length, shapes.shape[1:], model.path)


def _read_at(model: Model, readout: int | None, folder: Any) -> Model:
    """Return the settings of an encoder that reads at `readout`."""
    learned = model.readout not in READ_OUTS.values()
    if readout is None or (learned and readout == -1):
        return model
    if learned:
        raise CheckpointError(
            f"{folder}: readout={readout}, expected none for vectors of learned {model.readout}."
            " Leave readout out"
        )
    return dataclasses.replace(model, readout=READ_OUTS[readout])


def _encoder(module: Encoder, pad: int, params: Params, tokens: Any) -> Any:
    return module.apply({"params": params}, tokens, tokens != pad)


def _causal(module: Any, pad: int, readout: int, params: Params, tokens: Any) -> jax.Array:
    # A mixer has weights per position and needs a whole row; a transformer has none.
    row = module.length if module.config.decoder.kind != "transformer" else 0
    whole = jnp.pad(tokens, ((0, 0), (0, max(row - tokens.shape[1], 0))), constant_values=pad)
    valid = whole != pad
    hidden: Any = module.apply({"params": params}, whole, valid, method="hidden")
    passed = jnp.cumsum(valid, axis=1)
    # The first position with the wanted count of tokens is the last (or last but one) token's.
    wanted = jnp.maximum(passed[:, -1:] + 1 + readout, 1)
    return jnp.take_along_axis(hidden, jnp.argmax(passed >= wanted, axis=1)[:, None, None], axis=1)


def _recurrent(module: Any, pad: int, params: Params, tokens: Any) -> jax.Array:
    chunk = tokens[:, None]
    states: Any = module.apply({"params": params}, chunk, chunk != pad, method="states")
    return states[:, 0, -module.config.memory_vectors :]


def encode_texts(
    encoder: VectorReader,
    texts: Int[np.ndarray, "T L"],
    batch: int = 256,
) -> Float[np.ndarray, "T K E"]:
    """Return vectors of texts in float32, on the host, fetched while the next batch runs.

    Args:
      encoder: a reader of vectors.
      texts: ids of its tokenizer.
      batch: texts per batch.

    Raises:
      TextsError: there are no texts, they have another length, or an id is outside the
        vocabulary.
    """
    TextsError.require(
        texts.shape[1:] == (encoder.length,),
        f"{encoder.name}: texts of shape {list(texts.shape)}, expected [T, {encoder.length}]",
    )
    TextsError.require(len(texts), f"{encoder.name}: no texts, expected at least one")
    TextsError.require(
        0 <= texts.min() <= texts.max() < encoder.model.vocab_size,
        f"{encoder.name}: ids {texts.min()} to {texts.max()}, expected ids of its vocabulary of"
        f" {encoder.model.vocab_size}. Pass texts of its tokenizer",
    )
    return over_batches(encoder, texts, batch, "encode", np.float32)


def vectors_of(
    encoder: VectorReader,
    texts: Int[np.ndarray, "T L"],
    batch: int = 256,
) -> Vectors:
    """Return the vectors of `encode_texts` with the texts, as input of a probe.

    Raises:
      TextsError: see `encode_texts`.
      VectorsError: a vector is not finite.
    """
    return Vectors(encode_texts(encoder, texts, batch), texts, encoder.info, encoder.info.encoder)
