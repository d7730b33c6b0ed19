"""Decoder loss from memories as the encoder returns them and as a store keeps them."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from memjax.config.choices import FULL_PACKINGS
from memjax.data import evenly_spaced
from memjax.evaluation.instruments.information import token_scores
from memjax.evaluation.instruments.quantisation import STORED, Quantisation, quantisation
from memjax.inference.chunking import Chunks
from memjax.inference.compression import grouped, groups, padded
from memjax.inference.trained_model import TrainedModel
from memjax.objectives.uncertainty import ratio

KINDS: Mapping[str, str] = {dtype: kind for kind, dtype in STORED.items()}
"""Names of a store's roundings in `quantisation`; float32 is not rounded."""


def rounding_loss(
    model: TrainedModel,
    chunks: Chunks,
    dtype: str,
    sample: int = 64,
    batch: int = 32,
    vectors: int = 0,
) -> Quantisation:
    """Score a sample of the text from unrounded and from rounded memories, paired.

    The decoder is that of `TrainedModel.reconstruct`.

    `rounded` is one result, or none for float32, which is not rounded. Of a model that was trained
    on full chunks alone, chunks that are not full are left out, unless there are no others: then
    end ids fill them, as in a store.

    Args:
      model: encoder and decoder.
      chunks: the text; the sample is spread evenly over it.
      dtype: dtype of the store.
      sample: texts, at most and at least one, each as many chunks as the decoder reads at once.
      batch: texts per batch.
      vectors: vectors of each memory that are kept; 0 is all.

    Raises:
      CheckpointError: no decoder reads memories of a text.
    """
    decoder = model.reconstructor
    system, params = dataclasses.replace(decoder.codec(), vectors=vectors), decoder.params
    whole = (chunks.tokens != model.ids.pad).all(axis=1)
    full = model.config.data.packing in FULL_PACKINGS
    if not full or not whole.any():
        whole[:] = True
    numbers = groups(chunks.spans[whole, 0], system.held)
    picked = numbers[evenly_spaced(len(numbers), sample)]
    texts = grouped(chunks.tokens[whole], picked, model.ids.pad)
    if full:
        filled = texts == model.ids.pad
        filled &= ~filled.all(axis=-1, keepdims=True)  # Not chunks that are none.
        texts = np.where(filled, model.required_tokenizer.eos_id, texts)
    texts = padded(texts, system.length // system.held, model.ids.pad)
    texts = texts.reshape(len(picked), system.length)
    if dtype not in KINDS:
        sums = token_scores(system, params, texts, batch).of_texts()
        return Quantisation(ratio(sums.nats, sums.tokens), ratio(sums.correct, sums.tokens), ())
    return quantisation(system, params, texts, [KINDS[dtype]], batch, places=["memory"])
