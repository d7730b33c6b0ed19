"""A trained stage with its settings, tokenizer and encoder, without what is done with it."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from memjax.checkpoints import CheckpointError
from memjax.checkpoints.store_records import EncoderProvenance, StoreError
from memjax.config import Config, Stage
from memjax.config.choices import PACKINGS
from memjax.data import Tokenizer
from memjax.data.packing import check_side
from memjax.errors import MemjaxError
from memjax.inference.compression import provenance_of
from memjax.inference.sampling import GenerationError
from memjax.interop.stage import check_tokenizer, encoder_of
from memjax.models import Encoder, can
from memjax.objectives import SpecialIds

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class StageModel:
    """The module of a trained stage, its parameters, and what belongs to them."""

    module: nn.Module
    params: dict[str, Any]
    config: Config
    """The config of the run."""
    tokenizer: Tokenizer | None
    """The tokenizer; None where the weights came without one."""
    stage: str
    """The name of the stage; its settings are `config.stages[stage]`."""
    step: int = 0
    """Steps that the stage was trained."""
    path: str = ""
    """The path that was loaded, for messages."""
    folder: Path = Path()
    """The stage's folder on this machine (metrics, instruments), or that of the export."""
    data: Path = Path()
    """Where the run keeps tokenizer and rows."""
    autoencoder: str = ""
    """The path of the autoencoder that its encoder began as; empty for none."""

    @property
    def settings(self) -> Stage:
        """The settings of the stage."""
        return self.config.stages[self.stage]

    @property
    def family(self) -> str:
        """The model family."""
        return self.settings.family

    @property
    def vocab_size(self) -> int:
        """Rows of the token table."""
        return self.config.data.vocab_size

    @property
    def ids(self) -> SpecialIds:
        """Reserved ids of the tokenizer; memjax's own where there is none."""
        return SpecialIds.of(self.tokenizer) if self.tokenizer else SpecialIds()

    @property
    def padding_side(self) -> str:
        """The side of padding in the rows of its training, and so in chunks of texts."""
        return PACKINGS[self.config.data.packing][1]

    @property
    def required_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          CheckpointError: the weights came without one.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self._name}: weights without a tokenizer, expected one to read text. Add it by"
                " model.with_tokenizer(memjax.data.load_tokenizer(FILE))."
            )
        return self.tokenizer

    def with_tokenizer(self, tokenizer: Tokenizer, where: str | os.PathLike = "") -> Self:
        """Return the same model with a tokenizer, for weights that came without one.

        Args:
          tokenizer: the tokenizer; one that the model has already must be the same.
          where: where it was read, for messages.

        Raises:
          CheckpointError: it is another than the model's, or has more entries than its token table.
        """
        fingerprint = self.tokenizer.fingerprint if self.tokenizer else ""
        check_tokenizer(tokenizer, fingerprint, self.vocab_size, self._name, where)
        return dataclasses.replace(self, tokenizer=tokenizer)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder; its parameters are `params["encoder"]`.

        Raises:
          CheckpointError: the model has none.
        """
        return encoder_of(self.config, self.stage, self.params, self.path)

    @functools.cached_property
    def provenance(self) -> EncoderProvenance:
        """The encoder and the tokenizer, as a store of its memories records them.

        All parameters of the encoder are hashed.

        Raises:
          CheckpointError: the model has no encoder or no tokenizer.
        """
        tokenizer = self.required_tokenizer.fingerprint
        encoder, params = self.encoder, jax.tree.map(jnp.asarray, self.params["encoder"])
        trained = (self.family, self.stage, self.step, tokenizer, self.path)
        return provenance_of(encoder, params, *trained)

    def stored_as(
        self, vectors: int | None = None, chunk_length: int | None = None
    ) -> EncoderProvenance:
        """Return `provenance` as a store of fewer vectors or of shorter chunks records it.

        Args:
          vectors: vectors of each memory that are kept, the first ones; None for all.
          chunk_length: tokens per chunk; None for `config.model.chunk_length`.

        Raises:
          CheckpointError: the model has no encoder or no tokenizer.
          StoreError: the encoder has fewer vectors or shorter chunks, or its chunks are padded on
            the left and none is shorter.
        """
        found = self.provenance if vectors is None else self.provenance.of_vectors(vectors)
        if chunk_length is None or chunk_length == found.chunk_length:
            return found
        StoreError.require(
            self.padding_side == "right",
            f"chunk_length: {chunk_length}, expected the {found.chunk_length} of"
            f" config.model.chunk_length with config.data.packing={self.config.data.packing!r},"
            " which pads on the left. Leave it out",
        )
        return found.of_length(chunk_length)

    @property
    def _name(self) -> str:
        return f"{self.path}, stage {self.stage}" if self.path else f"stage {self.stage}"

    def _check_side(self) -> None:
        """Raise GenerationError for rows padded on the left: texts are read from their beginning.
        Places in a row do not matter to a transformer that reads it whole.
        """
        whole = can(self.family, "keeps_tokens") and self.config.model.decoder.kind == "transformer"
        where, remedy = f"{self._name}: a text", "Train on rows padded on the right"
        side = "" if whole else "right"
        check_side(side, self.config.data.packing, where, remedy, GenerationError)

    def _make(self, make: Callable[..., T], arguments: tuple, error: type[MemjaxError]) -> T:
        """Call a function whose errors do not name the model."""
        try:
            return make(*arguments)
        except ValueError as caught:
            raise error(f"{self._name}: {caught}") from caught
