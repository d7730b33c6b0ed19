"""Vectors of texts by a Hugging Face encoder, in a file for `memjax probe`.

Only this file imports torch and transformers.

Both belong to the extra `embed` and are imported when a model is opened. The model's own tokenizer
encodes documents without special tokens. Their ids are joined without separators and split into
texts of equal length. Each text is encoded alone. Its vector is a hidden state at the last or
second-to-last token, or the mean over its tokens. Encoder-decoders use their encoder.

Shapes: T text, L token of a text, B texts of a batch, E width of the hidden states; each text has
one vector (K is 1).
"""

import contextlib
import dataclasses
import functools
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
from memjax.data import CorpusError, open_source
from memjax.evaluation.instruments.vectors import (
    SUFFIXES,
    Vectors,
    VectorsError,
    VectorsInfo,
    save_vectors,
)
from memjax.progress import Reporter, track

READ_OUTS = ("-1", "-2", "mean")
"""The position of the vector: the last token of a text, the second-to-last, or the mean over all.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceEncoder:
    """A model of transformers and its tokenizer."""

    model: Any
    """A torch module that returns hidden states."""
    tokenizer: Any
    name: str
    """The folder or name that it was loaded from."""
    vocabulary: int
    """V: rows of the token table."""
    device: str

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the tokenizer's vocabulary: `hf:` and 16 hex digits."""
        numbered = sorted(
            (number, repr(token)) for token, number in self.tokenizer.get_vocab().items()
        )
        text = "".join(f"{number} {token}\n" for number, token in numbered)
        return f"hf:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def tokenise(self, text: str) -> Int[np.ndarray, " L"]:
        """Return the ids of a text without special tokens."""
        # Not verbose: it would warn about every document that is longer than the context.
        given = self.tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return np.array(given["input_ids"], np.int32)

    def encode(
        self, tokens: Int[np.ndarray, "B L"], layer: int = -1, readout: str = "-1"
    ) -> Float[np.ndarray, "B E"]:
        """Return vectors of texts, in float32.

        Args:
          tokens: ids below `vocabulary`.
          layer: number among the hidden states: 0 is the input of the first layer, -1 the output of
            the last.
          readout: one of READ_OUTS.

        Raises:
          ConfigError: the model returns no hidden states, or has no such layer.
        """
        torch = _extra("torch")
        with torch.inference_mode():
            ids = torch.as_tensor(tokens.astype(np.int64), device=self.device)
            # Explicit, so that no model treats an id of the text as padding.
            given = self.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            )
            states = getattr(given, "hidden_states", None)
            if not states:
                raise ConfigError(
                    f"{self.name}: the model gives no hidden states; give a text encoder or a"
                    " language model"
                )
            ConfigError.require(
                -len(states) <= layer < len(states),
                f"layer={layer}: {self.name} has hidden states 0 to {len(states) - 1}, or"
                f" -{len(states)} to -1 from its end",
            )
            hidden = states[layer].float()
            return (hidden.mean(1) if readout == "mean" else hidden[:, int(readout)]).cpu().numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class _Computed:
    """A column of `Vectors` that is computed when it is read, a batch at a time.

    A file is thereby written without the whole column in memory.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    tokens: Int[np.ndarray, "T L"]
    shape: tuple[int, int, int]
    """Return (T, 1, E)."""
    batch: int
    name: str
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B 1 E"]:
        parts = (indices[i : i + self.batch] for i in range(0, len(indices), self.batch))
        vectors = np.concatenate([self.encode(self.tokens[part]) for part in parts])
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise VectorsError(
                f"{self.name}: the vector of text {indices[~finite][0]} holds NaN or infinity;"
                " read another layer, or give another model"
            )
        return vectors[:, None]


def embed(
    model: str,
    corpus: str,
    out: str | os.PathLike,
    length: int = 16,
    limit: int = 20_000,
    readout: str = "-1",
    layer: int = -1,
    batch: int = 32,
    device: str = "cpu",
    text_field: str = "text",
    reporter: Reporter | None = None,
) -> VectorsInfo:
    """Write vectors and tokens of the first texts of a corpus; return the metadata of the file.

    An .arrayrecord file is written as vectors are computed; those of a .npz file are first gathered
    in memory.

    Args:
      model: a folder, of which only files are read, or a name that transformers finds.
      corpus: as in `open_source`.
      out: the file to write, .npz or .arrayrecord.
      length: L, in the model's own tokens.
      limit: T, at most; nothing else of the corpus is read.
      readout: one of READ_OUTS.
      layer: number of the hidden state; 0 is the input of the first layer.
      batch: texts per batch.
      device: the name of a torch device.
      text_field: field of a JSON line that holds the document.
      reporter: shows progress.

    Raises:
      ConfigError: an argument is invalid, the extra `embed` is not installed, or the model cannot
        be loaded or does not fit.
      CorpusError: the corpus cannot be read, or is shorter than one text.
      VectorsError: `out` has another ending, or a vector is not finite.
    """
    out, reporter = Path(out), reporter or Reporter()
    _check(out, length, limit, readout, batch)
    encoder = open_model(model, device, reporter.log)
    longest = getattr(encoder.model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < length:
        raise ConfigError(
            f"--sequence_length={length}: {model} reads up to {longest} tokens; give a length of at"
            " most that"
        )
    documents = (encoder.tokenise(document.text) for document in open_source(corpus, text_field))
    texts = itertools.islice(cut(documents, length), limit)
    with reporter.active():
        tokens = np.fromiter(track(texts, "read", limit), np.dtype((np.int32, (length,))))
    CorpusError.require(
        len(tokens), f"{corpus}: holds less than one text of {length} tokens of {model}"
    )
    ConfigError.require(
        0 <= tokens.min() <= tokens.max() < encoder.vocabulary,
        f"{model}: its tokenizer has ids {tokens.min()} to {tokens.max()}, and its table"
        f" {encoder.vocabulary} rows; they are not of"
        " one model",
    )

    encode = functools.partial(encoder.encode, layer=layer, readout=readout)
    width = encode(tokens[:1]).shape[-1]
    info = VectorsInfo(
        f"{model} layer {layer} read out {readout}", encoder.vocabulary, encoder.fingerprint
    )
    computed: Any = _Computed(encode, tokens, (len(tokens), 1, width), batch, model)
    with reporter.active():
        save_vectors(out, Vectors(computed, tokens, info, str(out)))
    reporter.log(
        f"{out}: {len(tokens)} texts of {length} tokens, a vector of {width} numbers each, by"
        f" {info.encoder}"
    )
    return info


def _check(out: Path, length: int, limit: int, readout: str, batch: int) -> None:
    """Raise ConfigError for the first invalid argument, before anything is loaded."""
    VectorsError.require(
        out.suffix in SUFFIXES,
        f"--save={out}: vectors are in files that end in {' or '.join(SUFFIXES)}",
    )
    for name, value in (("length", length), ("limit", limit), ("batch", batch)):
        ConfigError.require(value >= 1, f"--{name}={value}: must be at least 1")
    ConfigError.require(
        readout in READ_OUTS, f"--readout={readout}: vectors are read at {', '.join(READ_OUTS)}"
    )
    ConfigError.require(
        readout != "-2" or length >= 2,
        f"--readout=-2: a text of --sequence_length={length} has no last token but one; give a"
        " length of 2 at least",
    )


def cut(documents: Iterable[Int[np.ndarray, " L"]], length: int) -> Iterator[Int[np.ndarray, " L"]]:
    """Join the ids of documents without separators and split them into texts of `length`.

    An incomplete last text is dropped.
    """
    rest = np.zeros(0, np.int32)
    for ids in documents:
        rest = np.concatenate([rest, ids])
        whole = len(rest) - len(rest) % length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]


def open_model(
    model: str, device: str = "cpu", warn: Callable[[str], None] = lambda text: None
) -> HuggingFaceEncoder:
    """Return a model in float32, ready to encode, and its tokenizer.

    Args:
      model: a folder or a name.
      device: the name of a torch device.
      warn: gets a message about weights that the model's files lack.

    Raises:
      ConfigError: the extra `embed` is not installed, there is no such device, or the model or its
        tokenizer cannot be loaded.
    """
    torch, transformers = _extra("torch"), _extra("transformers")
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device={device}: cannot be used ({_line(error)})") from error
    local = {"local_files_only": Path(model).is_dir()}
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, **local)
            module, loaded = transformers.AutoModel.from_pretrained(
                model, output_loading_info=True, **local
            )
    except (
        ImportError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        KeyError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"{model}: cannot be loaded as a Hugging Face encoder with its tokenizer"
            f" ({type(error).__name__}: {_line(error)}); give a"
            " folder that save_pretrained of both wrote, or a name of the hub"
        ) from error
    if module.config.is_encoder_decoder:
        module = module.get_encoder()
    _tell_missing(loaded, module, model, warn)
    module = module.float().eval().to(device)
    return HuggingFaceEncoder(
        module, tokenizer, model, module.get_input_embeddings().weight.shape[0], device
    )


def _tell_missing(
    loaded: Mapping[str, Any], module: Any, model: str, warn: Callable[[str], None]
) -> None:
    """Warn about weights that the files lack and that are therefore random.

    Weights of a pooler or of a decoder are not counted, since they have no effect.
    """
    read = set(module.state_dict())
    missing = sorted(
        key
        for key in loaded["missing_keys"]
        if "pooler" not in key and (key in read or key.removeprefix("encoder.") in read)
    )
    if missing:
        first = ", ".join(missing[:3]) + (" and others" if missing[3:] else "")
        warn(
            f"{model}: {len(missing)} tensors that are read are not in its files, and are random:"
            f" {first}"
        )


def _extra(name: str) -> Any:
    """Return a module of the extra `embed`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"Hugging Face encoders need {name} ({error}); install it by: pip install torch"
            " transformers"
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Suppress the bars and tables of loading."""
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
    """Return the first line of the message."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
