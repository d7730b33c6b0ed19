"""A trained stage as one object: text to memories, memories to text, generation and scores."""

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int

from memjax.checkpoints import CheckpointError
from memjax.checkpoints.export_writing import SHARD_BYTES, Trained, write_export
from memjax.checkpoints.reading import Step
from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import StoreError
from memjax.config.choices import FULL_PACKINGS
from memjax.inference.chunking import Chunks, Source, cut, read_sources
from memjax.inference.codec import MemoryCodec, make_codec, own_objective
from memjax.inference.compression import compress, document_of
from memjax.inference.expansion import document_texts, expand
from memjax.inference.generator import Generator, text_pieces
from memjax.inference.likelihood import BATCH, Scorer, TokenScores
from memjax.inference.recall import Recalling
from memjax.inference.sampling import GenerationError, Sampling
from memjax.inference.stage_model import StageModel
from memjax.interop.stage import open_stage
from memjax.models import build
from memjax.models.elastic import reads_fewer
from memjax.models.initialize import initial_params
from memjax.models.memory import VECTORS, Memories
from memjax.sharding import local_layouts, local_mesh


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel(StageModel, Recalling):
    """A trained stage, wherever it lies; made by `load`.

    Methods that a family cannot provide raise an error that names the stage: an autoencoder does
    not generate, a causal language model does not encode.
    """

    def __repr__(self) -> str:
        """Return where it lies and what it is; not its parameters."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"TrainedModel({self._name}, {self.family}, step {self.step}, {count:,} parameters)"

    @functools.cached_property
    def reconstructor(self) -> "TrainedModel":
        """The model that reconstructs chunks from memories of this encoder.

        It is the autoencoder that a frozen encoder came from, and else this model.
        """
        if not self.autoencoder:
            return self
        found = load(self.autoencoder)
        if found.tokenizer is None and self.tokenizer is not None:
            found = found.with_tokenizer(self.tokenizer)
        return found if found.provenance.sha256 == self.provenance.sha256 else self

    def codec(self, recall_objective: str = "") -> MemoryCodec:
        """The encoder and the decoder that reads its memories as one.

        Args:
          recall_objective: the objective by which a memory model reconstructs; other families do
            not use it. The default is blank_copy, and for a stage that recalls blank_recall, or
            recall if it was trained on that alone.

        Raises:
          CheckpointError: no decoder reads memories of a text.
        """
        objective = recall_objective or own_objective(self.config, self.settings)
        arguments = (self.module, self.ids, objective, self.settings.compat)
        return self._make(make_codec, arguments, CheckpointError)

    def generator(self, overflow: str = "evict", chunk_length: int | None = None) -> Generator:
        """The model as a generator of ids, for batches.

        Args:
          overflow: what happens to a text of more tokens than the model keeps, see `Generator`.
          chunk_length: tokens per chunk, for memories of shorter ones; None for
            `config.model.chunk_length`.

        Raises:
          GenerationError: the family does not generate, or has no shorter chunks.
        """
        self._check_side()
        encoder = (lambda: self.provenance) if self.tokenizer else None
        how = {"overflow": overflow, "encoder": encoder, "chunk_length": chunk_length}
        make = functools.partial(Generator, **how, mesh=local_mesh())
        arguments = (self.module, self.params, self.ids, self.settings.compat)
        return self._make(make, arguments, GenerationError)

    def scorer(self, batch: int = BATCH, chunk_length: int | None = None) -> Scorer:
        """The model as a scorer of ids, for batches.

        Args:
          batch: pieces of text per batch.
          chunk_length: as in `generator`.

        Raises:
          GenerationError: the family does not generate, or has no shorter chunks.
        """
        self._check_side()
        arguments = (self.module, self.params, self.ids, self.settings.compat, batch, chunk_length)
        return self._make(Scorer, arguments, GenerationError)

    def untrained(self, seed: int) -> "TrainedModel":
        """Return the same architecture with the parameters that training begins with.

        Args:
          seed: the seed of the draw.
        """
        draw = functools.partial(initial_params, self.module, self.config, self.settings)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(self.stage.encode()))
        return dataclasses.replace(self, params=jax.jit(draw)(key), step=0)

    def chunks(
        self,
        source: str | os.PathLike | Sequence[str],
        limit: int = 0,
        chunk_length: int | None = None,
    ) -> Chunks:
        """Cut texts into chunks.

        Args:
          source: a path (.txt, .jsonl, both also .gz, .zst, a folder, a glob), or texts.
          limit: chunks, at most; 0 is all.
          chunk_length: tokens per chunk; None for the encoder's `config.model.chunk_length`.

        Raises:
          CheckpointError: the model has no encoder or no tokenizer.
          CorpusError: the path matches nothing, or a file cannot be read.
          StoreError: there is no text, or the encoder has no chunks of such a length.
          TokenizerError: what is given in place of a text is none.
        """
        length = self.encoder.config.chunk_length
        if chunk_length is not None:
            length = self.stored_as(chunk_length=chunk_length).chunk_length
        texts = (
            read_sources([os.fspath(source)])
            if isinstance(source, str | os.PathLike)
            else (Source(f"text {i}", text, 0) for i, text in enumerate(source))
        )
        return cut(texts, self.required_tokenizer, length, limit, self.padding_side)

    def encode(self, texts: Sequence[str]) -> Memories:
        """Encode texts; no chunk holds tokens of two.

        Args:
          texts: one document each.

        Returns:
          Memories in float32, a row per chunk, the chunks of one text after those of another.
          `compress` keeps where texts begin as well.

        Raises:
          CheckpointError: the model has no encoder or no tokenizer.
          StoreError: there is no text, or one alone and not a sequence of them.
        """
        StoreError.require(
            not isinstance(texts, str), "texts: a string, expected several. Pass [it]."
        )
        return self.compress(list(texts), dtype="float32").memories

    def compress(
        self,
        source: str | os.PathLike | Sequence[str] | Chunks,
        *,
        dtype: str = "bfloat16",
        batch: int = 256,
        vectors: int | None = None,
        chunk_length: int | None = None,
    ) -> MemoryStore:
        """Encode texts into a store, which `MemoryStore.save` writes.

        Args:
          source: a path (.txt, .jsonl, both also .gz, .zst, a folder, a glob), texts, or chunks
            of them.
          dtype: how memories are stored: float32, bfloat16, float8_e4m3, int8 or int4.
          batch: chunks per batch.
          vectors: vectors of each memory that are kept, the first ones; None keeps all. A model
            reads fewer well if it was trained on fewer (`dials.fewest_vectors` of its stage).
          chunk_length: tokens per chunk, at most those of `config.model.chunk_length`; None for as
            many, or for those of chunks that are given. A model reads shorter ones well if it was
            trained on them (`dials.shortest_chunk`).

        Raises:
          CheckpointError: the model has no encoder or no tokenizer.
          CorpusError: the path matches nothing, or a file cannot be read.
          StoreError: there is no text, no such dtype, a memory is not finite, the model has fewer
            vectors or shorter chunks, or the chunks that are given have another length.
        """
        provenance = self.stored_as(vectors, chunk_length)
        given = isinstance(source, Chunks)
        chunks = source if given else self.chunks(source, chunk_length=chunk_length)
        found = chunks.tokens.shape[1]
        StoreError.require(
            chunk_length in (None, found),
            f"chunk_length: {chunk_length}, expected the {found} tokens of the chunks that are"
            " given. Leave it out, or cut the text again",
        )
        provenance = self.stored_as(vectors, found)
        encoder = (self.encoder, self.params["encoder"], provenance)
        tokenizer = self.required_tokenizer
        # Rows of documents one after another have chunks that are full: an end id ends a text.
        full = self.config.data.packing in FULL_PACKINGS
        fill = tokenizer.eos_id if full else None
        return compress(*encoder, tokenizer.pad_id, chunks, dtype, batch, fill)

    def reconstruct(self, memories: MemoryStore | Memories, *, batch: int = 32) -> list[str]:
        """Reconstruct texts from memories alone, by the most likely token at every position.

        A model on the frozen encoder of an autoencoder reconstructs by that one (`reconstructor`).

        Args:
          memories: of this model's encoder; `Memories` are taken for full chunks of one document,
            of `config.model.chunk_length` tokens.
          batch: texts per batch.

        Returns:
          One text per document.

        Raises:
          CheckpointError: no decoder reads memories of a text.
          StoreError: the memories are of another encoder or not opened, or the model cannot
            reconstruct from memories alone.
        """
        store = self.as_store(memories)
        found = self.reconstruct_tokens(store, batch=batch)
        return [text for _, text in document_texts(self.required_tokenizer, store, found)]

    def reconstruct_tokens(
        self, memories: MemoryStore, *, batch: int = 32
    ) -> Int[np.ndarray, "N L"]:
        """Reconstruct the tokens of every chunk, as `reconstruct`, with padding as in training."""
        model = self.reconstructor
        fewer = reads_fewer(model.module)
        memories.provenance.require_same(self.provenance, "the store", fewer)
        codec = model.codec()
        if codec.shift:
            raise StoreError(
                f"{self._name}: trained under 'unscored_first_tokens' it never predicts the first"
                " token of a chunk, expected a model that does. Pass another stage."
            )
        return expand(codec, model.params, memories, batch, self.padding_side)

    def as_store(self, memories: MemoryStore | Memories) -> MemoryStore:
        """Return memories as a store."""
        _require_opened(memories)
        if isinstance(memories, MemoryStore):
            return memories
        vectors, most = memories.leaves.get(VECTORS), self.provenance.leaves[VECTORS][0]
        shape = () if vectors is None else np.shape(vectors)
        fewer = len(shape) == 3 and 1 <= shape[1] < most
        provenance = self.provenance.of_vectors(shape[1]) if fewer else self.provenance
        return document_of(memories, provenance)

    def generate(
        self,
        prompt: str,
        max_new_tokens: int,
        memories: MemoryStore | Memories | None = None,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        overflow: str = "evict",
    ) -> Iterator[str]:
        """Continue a prompt, greedily unless a temperature is given.

        Args:
          prompt: the text to continue; may be empty.
          max_new_tokens: tokens, at most; the end of a document ends the text earlier.
          memories: memories of a text before the prompt, for a memory model: a store of its own
            encoder, of which full chunks are read, or `Memories` of `config.model.chunk_length`
            tokens. After a store of shorter chunks the text is cut as the store is.
          temperature: sampling temperature; 0 is greedy.
          top_k: samples from the k most likely tokens; 0 is all.
          top_p: samples from the most likely tokens that have this probability together.
          seed: random seed.
          overflow: what happens to a text of more tokens than the model keeps, see `Generator`.

        Returns:
          Pieces of text of whole characters, as they come.

        Raises:
          CheckpointError: the weights came without a tokenizer.
          GenerationError: the family does not generate, or the memories cannot be read.
          StoreError: the store is of another encoder or tokenizer, or not opened.
        """
        _require_opened(memories)
        length = None
        if isinstance(memories, MemoryStore) and reads_fewer(self.module):
            length = min(memories.provenance.chunk_length, self.config.model.chunk_length)
        generator, tokenizer = self.generator(overflow, length), self.required_tokenizer
        before = memories.leaves[VECTORS] if isinstance(memories, Memories) else memories
        steps = generator.stream(
            [generator.strategy.prompt(tokenizer, prompt)],
            max_new_tokens,
            Sampling(temperature, top_k, top_p),
            seed,
            stop=(tokenizer.eos_id,),
            memories=None if before is None else [before],
        )
        return text_pieces(tokenizer, (token for step in steps for _, token in step), not prompt)

    def score(self, text: str, *, chunk_length: int | None = None) -> TokenScores:
        """Score every token of a text given those before it.

        Args:
          text: the text.
          chunk_length: as in `generator`.

        Raises:
          CheckpointError: the weights came without a tokenizer.
          GenerationError: the family does not generate, or has no shorter chunks.
        """
        scorer, tokenizer = self.scorer(chunk_length=chunk_length), self.required_tokenizer
        tokens = tokenizer.encode(text)
        context = scorer.strategy.prompt(tokenizer)
        pieces = tuple(tokenizer.pieces(tokens))
        return TokenScores(tokens, pieces, *scorer.score_tokens(context, tokens))

    def save(
        self,
        path: str | os.PathLike,
        card: str = "",
        *,
        dtype: str = "float32",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Write the model as a folder that `load` reads anywhere; all of it, or nothing.

        The folder has weights as safetensors, every setting, and the tokenizer.

        Args:
          path: a new or empty folder on this machine.
          card: the text of README.md; empty for none.
          dtype: `float32`, which keeps every bit, or `bfloat16`, half as large.
          shard_bytes: bytes of a file of weights, at most, unless one tensor is larger.

        Raises:
          ExportError: `path` is taken or in a bucket, or a setting cannot be.
        """
        other = self.reconstructor if self.autoencoder else self
        beside = None if other is self else _exported(other)
        write_export(path, *_exported(self), card, dtype, shard_bytes, beside)


def _exported(model: TrainedModel) -> Trained:
    """Return what an export has of a model."""
    return model.config, model.stage, model.step, model.params, model.tokenizer


def _require_opened(memories: object) -> None:
    path = isinstance(memories, str | os.PathLike)
    StoreError.require(
        not path, f"memories: {memories!r}, expected a store. Open it by memjax.open_store."
    )


def load(path: str | os.PathLike, stage: str = "", step: Step = None) -> TrainedModel:
    """Load a trained model, whole on each device of this process.

    Args:
      path: one of

        - a workdir of `memjax train`, or what `memjax import` wrote; of
          gs://BUCKET/FOLDER, checkpoints are read there and the rest here, in ./BUCKET/FOLDER;
        - the folder of one stage in it, `runs/NAME/stages/STAGE`;
        - an export, of `memjax export` or `TrainedModel.save`;
        - the name of a released model: `small-en`;
        - `hf:FOLDER`, a Llama, Mistral, Qwen2 or Qwen3 of Hugging Face.
      stage: the stage of a workdir; by default the last of its curriculum.
      step: the step of a stage's checkpoint, or `best`, the one that config.checkpoint_best kept;
        by default the last.

    Raises:
      CheckpointError: there is no trained stage at `path`, it cannot be read, or its files do not
        belong together.
      TokenizerError: the tokenizer cannot be read.
    """
    found = open_stage(path, stage, step=step)
    layouts = functools.partial(local_layouts, rules=found.config.mesh.rules)
    return TrainedModel(
        module=build(found.config, found.settings),
        tokenizer=found.read_tokenizer(),
        params=found.read(layouts if local_mesh() else None),
        config=found.config,
        stage=found.name,
        step=found.step,
        path=found.path,
        folder=found.folder,
        data=found.data,
        autoencoder=found.autoencoder,
    )
