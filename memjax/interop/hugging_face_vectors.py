"""Vectors of texts by a Hugging Face encoder, in a file that `memjax probe` reads. The only file that imports torch and transformers.

Both come with the extra `hf` and are imported when a model is opened. Documents are tokenised by the model's own tokenizer without special
tokens, joined with nothing between them and cut into texts of equal length. A text is read alone; its vector is a hidden state, at the
last token or the last but one, or the mean over its tokens. Of an encoder-decoder the encoder is read.

Shapes: T text, L token of a text, B texts of a batch, E width of the hidden states; of each text there is one vector (K is 1).
"""

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError

from memjax.config import ConfigError
from memjax.data import CorpusError, read_corpus
from memjax.instruments.vectors import SUFFIXES, Vectors, VectorsError, VectorsInfo, save_vectors
from memjax.training.progress import Reporter

READ_OUTS = ("-1", "-2", "mean")
"""Where a vector is read: at a text's last token, at the last but one, or as the mean over all."""


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceEncoder:
    """A model of transformers and its tokenizer."""

    model: Any
    """A torch module that gives hidden states."""
    tokenizer: Any
    name: str
    """Folder or name it was loaded by."""
    vocabulary: int
    """V: rows of the token table."""
    device: str

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer's vocabulary: `hf:` and 16 hex digits."""
        digest = hashlib.sha256()
        for number, token in sorted((number, repr(token)) for token, number in self.tokenizer.get_vocab().items()):
            digest.update(f"{number} {token}\n".encode())
        return f"hf:{digest.hexdigest()[:16]}"

    def tokenise(self, text: str) -> Int[np.ndarray, " L"]:
        """Ids of a text as it stands: no special tokens around it."""
        # Not verbose: it would warn of every document that is longer than the model reads at once.
        given = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return np.array(given["input_ids"], np.int32)

    def encode(self, tokens: Int[np.ndarray, "B L"], layer: int = -1, read_out: str = "-1") -> Float[np.ndarray, "B E"]:
        """Vectors of texts, in float32.

        Args:
          tokens: ids below `vocabulary`.
          layer: number among the hidden states: 0 is what enters the first layer, -1 what the model hands on.
          read_out: one of READ_OUTS.

        Raises:
          ConfigError: the model gives no hidden states, or has no such layer.
        """
        torch = _extra("torch")
        with torch.inference_mode():
            ids = torch.as_tensor(tokens.astype(np.int64), device=self.device)
            # Said, so that no model takes an id of the text for padding.
            given = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            states = getattr(given, "hidden_states", None)
            if not states:
                raise ConfigError(f"{self.name}: the model gives no hidden states; give a text encoder or a language model")
            if not -len(states) <= layer < len(states):
                raise ConfigError(
                    f"--layer={layer}: {self.name} has hidden states 0 to {len(states) - 1}, or -{len(states)} to -1 from its end"
                )
            hidden = states[layer].float()
            return (hidden.mean(1) if read_out == "mean" else hidden[:, int(read_out)]).cpu().numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class _Computed:
    """A column of `Vectors` that is computed when it is read, so that a file is written without all of it in memory."""

    encode: Callable[[np.ndarray], np.ndarray]
    tokens: Int[np.ndarray, "T L"]
    shape: tuple[int, int, int]
    """(T, 1, E)."""
    batch: int
    name: str
    advance: Callable[[int], None]
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B 1 E"]:
        vectors = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for start in range(0, len(indices), self.batch):
            part = indices[start : start + self.batch]
            vectors[start : start + len(part), 0] = self.encode(self.tokens[part])
            finite = np.isfinite(vectors[start : start + len(part)]).all(axis=(1, 2))
            if not finite.all():
                raise VectorsError(
                    f"{self.name}: the vector of text {part[~finite][0]} holds NaN or infinity; read another layer, or give another model"
                )
            self.advance(len(part))
        return vectors


def embed(
    model: str,
    corpus: str,
    out: str | os.PathLike,
    length: int = 16,
    limit: int = 20_000,
    read_out: str = "-1",
    layer: int = -1,
    batch: int = 32,
    device: str = "cpu",
    text_field: str = "text",
    reporter: Reporter | None = None,
) -> VectorsInfo:
    """Writes vectors and tokens of the first texts of a corpus, and returns what the file says of them.

    An .arrayrecord file is written as vectors are computed; for a .npz they are gathered in memory first.

    Args:
      model: a folder, of which nothing but its files is read, or a name that transformers finds.
      corpus: as `read_corpus` takes it.
      out: file to write, .npz or .arrayrecord.
      length: L, in the model's own tokens.
      limit: T, at most; no more of the corpus is read.
      read_out: one of READ_OUTS.
      layer: of the hidden states, 0 being what enters the first layer.
      batch: texts computed at a time.
      device: as torch names it.
      text_field: field of a JSON line that holds the document.
      reporter: where progress is shown.

    Raises:
      ConfigError: an argument cannot be, the extra `hf` is not installed, or the model cannot be loaded or does not fit.
      CorpusError: the corpus cannot be read, or is shorter than one text.
      VectorsError: `out` ends otherwise, or a vector is not finite.
    """
    out, reporter = Path(out), reporter or Reporter()
    _check(out, length, limit, read_out, batch)
    encoder = open_model(model, device, reporter.say)
    longest = getattr(encoder.model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < length:
        raise ConfigError(f"--length={length}: {model} reads up to {longest} tokens; give a length of at most that")
    with reporter.bar("read", limit) as bar:
        documents = (encoder.tokenise(document.text) for document in read_corpus(corpus, text_field))
        tokens = _gather(cut(documents, length), length, limit, bar.advance)
    if not len(tokens):
        raise CorpusError(f"{corpus}: holds less than one text of {length} tokens of {model}")
    if not 0 <= tokens.min() <= tokens.max() < encoder.vocabulary:
        raise ConfigError(
            f"{model}: its tokenizer has ids {tokens.min()} to {tokens.max()}, and its table {encoder.vocabulary} rows; they are not of"
            " one model"
        )

    def encode(tokens: np.ndarray) -> np.ndarray:
        return encoder.encode(tokens, layer, read_out)

    width = encode(tokens[:1]).shape[-1]
    info = VectorsInfo(f"{model} layer {layer} read out {read_out}", encoder.vocabulary, encoder.fingerprint)
    with reporter.bar("encode", len(tokens)) as bar:
        computed: Any = _Computed(encode, tokens, (len(tokens), 1, width), batch, model, bar.advance)
        save_vectors(out, Vectors(computed, tokens, info, str(out)))
    reporter.say(f"{out}: {len(tokens)} texts of {length} tokens, a vector of {width} numbers each, by {info.encoder}")
    return info


def _check(out: Path, length: int, limit: int, read_out: str, batch: int) -> None:
    """What can be known to be wrong before anything is loaded."""
    if out.suffix not in SUFFIXES:
        raise VectorsError(f"--out={out}: vectors are in files that end in {' or '.join(SUFFIXES)}")
    for name, value in (("length", length), ("limit", limit), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"--{name}={value}: must be at least 1")
    if read_out not in READ_OUTS:
        raise ConfigError(f"--read_out={read_out}: vectors are read at {', '.join(READ_OUTS)}")
    if read_out == "-2" and length < 2:
        raise ConfigError(f"--read_out=-2: a text of --length={length} has no last token but one; give a length of 2 at least")


def cut(documents: Iterable[Int[np.ndarray, " L"]], length: int) -> Iterator[Int[np.ndarray, " L"]]:
    """Joins the ids of documents, nothing between them, and cuts them into texts of `length`; an unfilled tail is dropped."""
    rest = np.zeros(0, np.int32)
    for ids in documents:
        rest = np.concatenate([rest, ids])
        whole = len(rest) - len(rest) % length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]


def _gather(texts: Iterator[np.ndarray], length: int, limit: int, advance: Callable[[], None]) -> Int[np.ndarray, "T L"]:
    def counted() -> Iterator[np.ndarray]:
        for text in itertools.islice(texts, limit):
            advance()
            yield text

    return np.fromiter(counted(), np.dtype((np.int32, (length,))))


def open_model(model: str, device: str = "cpu", warn: Callable[[str], None] = lambda text: None) -> HuggingFaceEncoder:
    """A model in float32, ready to be read, and its tokenizer.

    Args:
      model: a folder or a name.
      device: as torch names it.
      warn: told of weights that the model's files lack.

    Raises:
      ConfigError: the extra `hf` is not installed, there is no such device, or the model or its tokenizer cannot be loaded.
    """
    torch, transformers = _extra("torch"), _extra("transformers")
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"--device={device}: cannot be used ({_line(error)})") from error
    local = {"local_files_only": Path(model).is_dir()}
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, **local)
            module, loaded = transformers.AutoModel.from_pretrained(model, output_loading_info=True, **local)
    except (ImportError, OSError, RuntimeError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{model}: cannot be loaded as a Hugging Face encoder with its tokenizer ({type(error).__name__}: {_line(error)}); give a"
            " folder that save_pretrained of both wrote, or a name of the hub"
        ) from error
    if module.config.is_encoder_decoder:
        module = module.get_encoder()
    _tell_missing(loaded, module, model, warn)
    module = module.float().eval().to(device)
    return HuggingFaceEncoder(module, tokenizer, model, module.get_input_embeddings().weight.shape[0], device)


def _tell_missing(loaded: Mapping[str, Any], module: Any, model: str, warn: Callable[[str], None]) -> None:
    """Weights that the files lack were drawn at random; those of a pooler or of a decoder beside the encoder are not read."""
    read = set(module.state_dict())
    missing = sorted(
        key for key in loaded["missing_keys"] if "pooler" not in key and (key in read or key.removeprefix("encoder.") in read)
    )
    if missing:
        first = ", ".join(missing[:3]) + (" and others" if missing[3:] else "")
        warn(f"{model}: {len(missing)} tensors that are read are not in its files, and are random: {first}")


def _extra(name: str) -> Any:
    """A module of the extra `hf`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"Hugging Face encoders need {name} ({error}); install it by: pip install 'memjax[embed]'") from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the bars and tables that loading prints."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    """The first line of its message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
