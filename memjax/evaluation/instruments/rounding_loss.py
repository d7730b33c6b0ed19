"""Decoder loss from memories as the encoder returns them and as a store keeps them."""

from collections.abc import Mapping

from memjax.config.choices import FULL_PACKINGS
from memjax.data import evenly_spaced
from memjax.evaluation.instruments.information import token_scores
from memjax.evaluation.instruments.quantisation import STORED, Quantisation, quantisation
from memjax.inference.chunking import Chunks
from memjax.inference.compression import grouped, groups
from memjax.inference.trained_model import TrainedModel
from memjax.objectives.uncertainty import ratio

KINDS: Mapping[str, str] = {dtype: kind for kind, dtype in STORED.items()}
"""Names of a store's roundings in `quantisation`; float32 is not rounded."""


def rounding_loss(
    model: TrainedModel, chunks: Chunks, dtype: str, sample: int = 64, batch: int = 32
) -> Quantisation:
    """Score a sample of the text from unrounded and from rounded memories, paired.

    `rounded` is one result, or none for float32, which is not rounded. Of a model that was trained
    on full chunks alone, chunks that are not full are left out.

    Args:
      model: encoder and decoder.
      chunks: the text; the sample is spread evenly over it.
      dtype: dtype of the store.
      sample: texts, at most and at least one, each as many chunks as the decoder reads at once.
      batch: texts per batch.

    Raises:
      CheckpointError: no decoder reads memories of a text.
    """
    system = model.codec()
    whole = (chunks.tokens != model.ids.pad).all(axis=1)
    if model.config.data.packing not in FULL_PACKINGS or not whole.any():
        whole[:] = True
    numbers = groups(chunks.spans[whole, 0], system.held)
    picked = numbers[evenly_spaced(len(numbers), sample)]
    texts = grouped(chunks.tokens[whole], picked, model.ids.pad)
    texts = texts.reshape(len(picked), system.length)
    if dtype not in KINDS:
        sums = token_scores(system, model.params, texts, batch).of_texts()
        return Quantisation(ratio(sums.nats, sums.tokens), ratio(sums.correct, sums.tokens), ())
    return quantisation(system, model.params, texts, [KINDS[dtype]], batch, places=["memory"])
