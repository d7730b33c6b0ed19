"""Scores and generations of texts by a trained model and its tokenizer.

A context and its continuation are tokenised together and split between two tokens, so that the
continuation begins with the same token as in the text. White space at the end of a context belongs
to the continuation, and so does a token that spans the border.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from memjax.data import Tokenizer
from memjax.errors import MemjaxError
from memjax.inference import Generator, Sampling
from memjax.inference.likelihood import BATCH, Scorer
from memjax.inference.strategy import bucket
from memjax.inference.trained_model import TrainedModel
from memjax.progress import bar
from memjax.sharding import gather, local_mesh, own

TOKENS = 256
"""Tokens of a generation, at most, where a request has no limit."""
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEUTRAL = (None, False, 0, 1, "", [])
"""Values of unsupported settings that do not change the generation, such as `num_beams=1`."""


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Settings of the generation of one text."""

    stop: tuple[str, ...]
    """Stop texts, which are not part of the generation."""
    tokens: int
    sampling: Sampling


def read_settings(given: Mapping[str, Any]) -> GenerationSettings:
    """Return the generation settings of a request of the harness.

    Decoding is greedy at temperature 0, or without a temperature or `do_sample`; `do_sample=False`
    ignores a temperature, as in transformers.

    Raises:
      MemjaxError: a setting is not supported, of another type or out of its range, or two limits of
        tokens differ.
    """
    given = dict(given)
    until = _take(given, "until", (str, list, tuple), "a text or a list of texts") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    for text in stop:
        _take({"until": text}, "until", str, "a text or a list of texts")
    limits = {_take(given, name, int, "a whole number") for name in _TOKEN_LIMITS} - {None}
    MemjaxError.require(
        len(limits) < 2 and min(limits, default=1) > 0,
        f"generation_kwargs: {sorted(limits)} tokens at most, expected one number above 0. Give one"
        f" of {', '.join(_TOKEN_LIMITS)}",
    )
    drawn = _take(given, "do_sample", bool, "true or false")
    temperature = _take(given, "temperature", (int, float), "a number")
    if temperature is None:
        temperature = 1.0 if drawn else 0.0
    top_k, top_p = (
        _take(given, name, kinds, what)
        for name, kinds, what in (
            ("top_k", int, "a whole number"),
            ("top_p", (int, float), "a number"),
        )
    )
    odd = sorted(name for name, value in given.items() if value not in _NEUTRAL)
    if odd:
        raise MemjaxError(
            f"generation_kwargs has {odd[0]}={given[odd[0]]!r}, which is not supported;"
            f" expected until, {', '.join(_TOKEN_LIMITS)},"
            " do_sample, temperature, top_k and top_p"
        )
    sampling = Sampling(float(temperature), top_k or 0, 1.0 if top_p is None else float(top_p))
    return GenerationSettings(
        tuple(text for text in stop if text),
        max(limits, default=TOKENS),
        sampling if sampling.temperature and drawn is not False else Sampling(),
    )


def _take(given: dict[str, Any], name: str, kinds: Any, what: str) -> Any:
    """Remove a setting and return it, None if it is absent.

    Raises:
      MemjaxError: it is of another type.
    """
    value = given.pop(name, None)
    # In Python a truth value is a number.
    right = isinstance(value, kinds) and isinstance(value, bool) == (kinds is bool)
    MemjaxError.require(
        value is None or right, f"generation_kwargs: {name}={value!r}, expected {what}"
    )
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class TextScorer:
    """Answer the text requests of an evaluation by a scorer and a generator of one model.

    Attributes:
      scorer: the model.
      tokenizer: its tokenizer.
      about: its workdir, stage, family, step, and the tokenizer's fingerprint.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def generator(self) -> Generator:
        """The generator of the model; it drops the oldest part of a text beyond its capacity."""
        scorer = self.scorer
        return Generator(scorer.module, scorer.params, scorer.ids, scorer.compat, mesh=local_mesh())

    @property
    def prefix(self) -> np.ndarray:
        """Ids before a text without context; see `DecodingStrategy.prompt`."""
        return self.scorer.strategy.prompt(self.tokenizer)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return ids of each context and continuation, as they occur in the whole text."""
        found = []
        texts = [context + continuation for context, continuation in pairs]
        for (context, _), text, both in zip(
            pairs, texts, self.tokenizer.encode_batch(texts), strict=True
        ):
            before = context.rstrip()
            ends = self.tokenizer.ends(text, both)
            border = int(np.searchsorted(ends, len(before.encode()), side="right")) if before else 0
            found.append(((both[:border] if border else self.prefix), both[border:]))
        return found

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return (log-probability of the continuation, greedy decoding gives it) of each pair.

        A context may be empty.
        """
        found = self.scorer.score(self.encode_pairs(pairs))
        return [(one.log_probability, one.greedy) for one in found]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Return the log-probability of each text as a whole, every token scored once.

        A causal language model reads disjoint windows of a row; the last one begins with tokens
        that are already scored. A memory model reads each chunk after as many memories as it keeps.
        Recurrent memory reads the whole text. As in the harness's own models, a begin that the
        settings of a pretrained model put before a text is scored too.
        """
        begin = np.array([self.tokenizer.bos_id] * bool(self.tokenizer.begins), np.int32)
        pairs = [
            (self.prefix, np.concatenate([begin, ids]))
            for ids in self.tokenizer.encode_batch(texts)
        ]
        return [found.log_probability for found in self.scorer.score(pairs)]

    def generate_until(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], seed: int = 0
    ) -> list[str]:
        """Generate a text after each context, until a stop text or the end of the document.

        Decoding is greedy unless a request sets a temperature. The random numbers of a request
        depend on `seed` and on its position among requests with the same settings.

        Raises:
          MemjaxError: a request needs an unsupported setting.
        """
        groups: dict[GenerationSettings, list[int]] = {}
        for number, (_, kwargs) in enumerate(requests):
            groups.setdefault(read_settings(kwargs), []).append(number)
        written: dict[int, str] = {}
        with bar("texts", len(requests)) as shown:
            for settings, group in groups.items():
                prompts = {
                    i: self.scorer.strategy.prompt(self.tokenizer, requests[i][0]) for i in group
                }
                if not settings.sampling.temperature:
                    # Batch similar lengths; random numbers depend on the original position.
                    group = sorted(group, key=lambda i, prompts=prompts: -len(prompts[i]))
                for start in own(range(0, len(group), self.scorer.batch)):
                    part = group[start : start + self.scorer.batch]
                    texts = self._write([prompts[i] for i in part], settings, start, seed)
                    written.update(zip(part, texts, strict=True))
                    shown.advance(len(part))
        everyone = {number: text for part in gather(written) for number, text in part.items()}
        return [everyone[number] for number in range(len(requests))]

    def _write(
        self, prompts: list[np.ndarray], settings: GenerationSettings, first_row: int, seed: int
    ) -> list[str]:
        """Generate one batch: `Generator.generate`, but a sequence also ends at its stop text."""
        made: list[list[int]] = [[] for _ in prompts]
        texts, going = [""] * len(prompts), set(range(len(prompts)))
        key = jax.random.key(seed)
        # Filled up, so that few batch sizes are compiled.
        rows = bucket(len(prompts), self.scorer.batch)
        state = self.generator.prefill(prompts + prompts[:1] * (rows - len(prompts)), first_row)
        for _ in range(settings.tokens):
            tokens, state = self.generator.step(state, key, settings.sampling)
            found = np.asarray(tokens).tolist()
            for row in sorted(going):
                ended = found[row] == self.tokenizer.eos_id
                if not ended:
                    made[row].append(found[row])
                    texts[row], ended = _until(self.tokenizer.decode(made[row]), settings.stop)
                if ended:
                    going.remove(row)
            if not going:
                break
        return texts


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop text, and whether there is one."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def text_scorer(model: TrainedModel, batch: int = BATCH) -> TextScorer:
    """Prepare a trained model for the requests of an evaluation.

    Args:
      model: of a family that predicts the next token, with a tokenizer.
      batch: pieces of text per batch.

    Raises:
      CheckpointError: the model has no tokenizer.
      GenerationError: the model does not predict the next token.
    """
    tokenizer = model.required_tokenizer
    return TextScorer(
        model.scorer(batch),
        tokenizer,
        about={
            "workdir": model.path,
            "stage": model.stage,
            "family": model.family,
            "step": model.step,
            "tokenizer": tokenizer.fingerprint,
        },
    )
