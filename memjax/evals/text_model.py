"""A trained model and its tokenizer, asked in text: how likely a continuation is, how likely a text, and what comes next.

A context and its continuation are encoded together and parted at a border of tokens, so that the continuation begins with the token it has
in the text. White space at the end of a context belongs to the continuation, and so does a token that reaches over the border.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from memjax.data import Tokenizer
from memjax.evals.errors import EvalError
from memjax.evals.likelihood import BATCH, Likelihood, MakeBar, Scorer
from memjax.inference import GenerationError, Generator, Sampling
from memjax.inference.reader import bucket
from memjax.instruments.system import special_ids
from memjax.loading import read_stage
from memjax.training.progress import Reporter

TOKENS = 256
"""That are generated at most, where a request does not say."""
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEUTRAL = (None, False, 0, 1, "", [])
"""Values of settings that are not known here and mean what is done anyway, such as `num_beams=1`."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """How one text is to be written."""

    stop: tuple[str, ...]
    """Texts that end it; they are not part of it."""
    tokens: int
    sampling: Sampling


def read_ask(given: Mapping[str, Any]) -> Ask:
    """What generation settings in the harness's words ask for.

    Raises:
      EvalError: one asks for what is not done here.
    """
    given = dict(given)
    until = given.pop("until", None) or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    limits = [given.pop(name) for name in _TOKEN_LIMITS if given.get(name) is not None]
    drawn = given.pop("do_sample", None)
    temperature = float(given.pop("temperature", None) or (1.0 if drawn else 0.0))
    top_k, top_p = given.pop("top_k", None), given.pop("top_p", None)
    odd = sorted(name for name, value in given.items() if value not in _NEUTRAL)
    if odd:
        raise EvalError(
            f"generation_kwargs has {odd[0]}={given[odd[0]]!r}, which memjax does not do; it knows until, {', '.join(_TOKEN_LIMITS)},"
            " do_sample, temperature, top_k and top_p"
        )
    sampling = Sampling() if drawn is False or not temperature else Sampling(temperature, int(top_k or 0), float(top_p or 1.0))
    return Ask(tuple(text for text in stop if text), int(limits[0]) if limits else TOKENS, sampling)


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
    """A scorer and a generator of one model, asked in text.

    Attributes:
      scorer: the model.
      tokenizer: its tokenizer.
      about: what is known of it: workdir, stage, family, step, and the tokenizer's fingerprint.
      bar: draws progress, as `Reporter.bar`; by default nothing is shown.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bar: MakeBar = dataclasses.field(default_factory=lambda: Reporter().silenced().bar)

    @functools.cached_property
    def generator(self) -> Generator:
        """The same model as a writer. Of a text that outgrows what it keeps it loses the oldest part."""
        return Generator(self.scorer.module, self.scorer.params, self.scorer.ids, self.scorer.compat)

    @property
    def prefix(self) -> np.ndarray:
        """What stands before a text that has no context: nothing where rows have a start token, else the end of another document."""
        return np.array([self.tokenizer.eos_id] if self.scorer.layout.needs_context else [], np.int32)

    def encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the context and of the continuation, as they stand in the whole text."""
        return self.encode_pairs([(context, continuation)])[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`encode_pair` of each."""
        found = []
        texts = [context + continuation for context, continuation in pairs]
        for (context, _), text, both in zip(pairs, texts, self.tokenizer.encode_batch(texts), strict=True):
            before = context.rstrip()
            ends = np.cumsum(self.tokenizer.byte_lengths[both])
            if len(ends) and ends[-1] == len(text.encode()):
                border = int(np.searchsorted(ends, len(before.encode()), side="right"))
            else:
                # A vocabulary that changes what it is given: as harnesses do, by the number of tokens that the context has alone.
                border = len(self.tokenizer.encode(before))
            found.append(((both[:border] if border else self.prefix), both[border:]))
        return found

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """The likelihood of each continuation after its context, which may be empty."""
        return self.scorer.score(self.encode_pairs(pairs), self.bar)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether the model would have said it) of each pair, as a harness asks for it."""
        return [(found.log_probability, found.greedy) for found in self.score(pairs)]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each text as a whole, every token scored once.

        A causal language model reads disjoint windows of a row, the last one filled up in front with what was scored before. A memory
        model reads each chunk after as many memories as it keeps, recurrent memory everything.
        """
        pairs = [(self.prefix, ids) for ids in self.tokenizer.encode_batch(texts)]
        return [found.log_probability for found in self.scorer.score(pairs, self.bar)]

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]], seed: int = 0) -> list[str]:
        """What the model writes after each context until a stop text, the end of the document, or enough tokens.

        Greedy unless a request asks otherwise. What chance gives a request depends on `seed` and its place among those asked alike.

        Raises:
          EvalError: a request asks for what is not done here.
        """
        asked = [(json.dumps(dict(kwargs), sort_keys=True), read_ask(kwargs)) for _, kwargs in requests]
        written = [""] * len(requests)
        with self.bar("texts", len(requests)) as shown:
            for name in dict.fromkeys(name for name, _ in asked):
                group = [i for i, (own, _) in enumerate(asked) if own == name]
                ask = asked[group[0]][1]
                prompts = {i: self._prompt(requests[i][0]) for i in group}
                if not ask.sampling.temperature:
                    # Like lengths together; chance depends on the place and stays as it was asked.
                    group = sorted(group, key=lambda i, prompts=prompts: -len(prompts[i]))
                for start in range(0, len(group), self.scorer.batch):
                    part = group[start : start + self.scorer.batch]
                    texts = self._write([prompts[i] for i in part], ask, start, seed)
                    for i, text in zip(part, texts, strict=True):
                        written[i] = text
                    shown.advance(len(part))
        return written

    def _prompt(self, context: str) -> np.ndarray:
        ids = self.tokenizer.encode(context)
        return ids if len(ids) else self.prefix

    def _write(self, prompts: list[np.ndarray], ask: Ask, first_row: int, seed: int) -> list[str]:
        """One batch: `Generator.generate`, but that a row also ends where its text says so."""
        made: list[list[int]] = [[] for _ in prompts]
        texts, going = [""] * len(prompts), set(range(len(prompts)))
        if ask.tokens <= 0:
            return texts
        key = jax.random.key(seed)
        # Filled up, so that few numbers of rows are compiled for.
        rows = bucket(len(prompts), self.scorer.batch)
        state = self.generator.prefill(prompts + prompts[:1] * (rows - len(prompts)), first_row)
        for _ in range(ask.tokens):
            tokens, state = self.generator.step(state, key, ask.sampling)
            found = np.asarray(tokens).tolist()
            for row in sorted(going):
                if found[row] == self.tokenizer.eos_id:
                    going.remove(row)
                    continue
                made[row].append(found[row])
                texts[row], ended = _until(self.tokenizer.decode(made[row]), ask.stop)
                if ended:
                    going.remove(row)
            if not going:
                break
        return texts


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there is one."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def open_text_model(workdir: str | os.PathLike, stage: str = "", batch: int = BATCH, bar: MakeBar | None = None) -> TextModel:
    """The model that a stage of a run left.

    Args:
      workdir: as `memjax.load` takes it.
      stage: name of the stage; by default the last of the curriculum.
      batch: pieces of text at a time.
      bar: draws progress; by default nothing is shown.

    Raises:
      CheckpointError, TokenizerError: as `memjax.load`.
      GenerationError: the stage's model does not say what comes next in a text.
      EvalError: the weights were imported, and their tokenizer is not known.
    """
    found = read_stage(workdir, stage)
    if found.tokenizer is None:
        raise EvalError(f"{workdir} holds imported weights, whose tokenizer is not known: text has no ids")
    settings = found.config.stages[found.name]
    about = {
        "workdir": str(workdir),
        "stage": found.name,
        "family": settings.family,
        "step": found.step,
        "tokenizer": found.tokenizer.fingerprint,
    }
    try:
        scorer = Scorer(found.module(), found.params, special_ids(found.tokenizer), settings.compat, batch)
    except GenerationError as error:
        raise GenerationError(f"{workdir}, stage {found.name}: {error}") from error
    return TextModel(scorer, found.tokenizer, about, *([bar] if bar else []))


__all__ = ["TOKENS", "Ask", "TextModel", "open_text_model", "read_ask"]
