"""What a family of models has to say for its texts to be continued.

A row's text is cut in two: its last tokens, which the model is shown as tokens (the window), and what it keeps of all before them. A
token is added to the window; when the window is full it turns: its oldest tokens leave it, and what is kept changes.

Shapes: B row, W token of the window, M chunk before the window, L token of a chunk, D width, G memory that is given, K vector of it, E its
width.
"""

import abc
import dataclasses
from typing import Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.config import Backbone, Model
from memjax.inference.errors import GenerationError
from memjax.layers.attention import KeyValues

Params = Any
M = TypeVar("M", bound=nn.Module)


class Prompt(NamedTuple):
    """One prompt, cut as its row would be."""

    chunks: np.ndarray
    """Int[M, L]: whole chunks before the window that are still kept, the oldest first."""
    window: np.ndarray
    """Int[tokens]: fewer than W."""


class Given(NamedTuple):
    """Memories that stand before the text of each row, where earlier chunks would be."""

    vectors: Float[Array | np.ndarray, "B G K E"]
    """The oldest first; what stands behind `count` means nothing."""
    count: Int[Array | np.ndarray, " B"]


@dataclasses.dataclass(frozen=True)
class Reader(abc.ABC, Generic[M]):
    """How one model reads on. All methods but `cut` are pure and are traced.

    `place` is how many tokens a row's window holds, `held` what is kept of those before, `cache` what the decoder keeps of the window.
    """

    module: M
    start: int | None
    """Id that a window begins with; None where it begins with its first token."""

    @property
    def model(self) -> Model:
        """The module's settings."""
        config: Any = self.module
        return config.config

    @property
    def stack(self) -> Backbone:
        """Settings of the stack that predicts."""
        return self.model.decoder

    @property
    @abc.abstractmethod
    def window(self) -> int:
        """W: tokens at which the window turns."""

    @property
    @abc.abstractmethod
    def limit(self) -> int | None:
        """Tokens that a row may have before something of it is lost; None if that never happens."""

    @property
    @abc.abstractmethod
    def turned(self) -> int:
        """Tokens in a window that has just turned."""

    def kept(self, chunks: int) -> int:
        """How many given memories still stand before so many whole chunks of a prompt; those left out are the oldest."""
        return 0

    @property
    def cached(self) -> bool:
        """Whether `extend` is there. Without it every token reads the window again, from its start."""
        return self.stack.kind == "transformer"

    @abc.abstractmethod
    def cut(self, prompt: np.ndarray) -> Prompt:
        """A prompt cut where its row would have turned, had it been read token by token."""

    @abc.abstractmethod
    def hold(self, params: Params, chunks: Int[Array, "B M L"], count: Int[Array, " B"], given: Given | None = None) -> Any:
        """What is kept of what stands before the window; all in one call. Leaves begin with the axis B.

        Args:
          params: of the module.
          chunks: of which row r has `count[r]`.
          count: of each row.
          given: memories before them, of a memory model; with the chunks they are no more than are kept.
        """

    @abc.abstractmethod
    def open(
        self, params: Params, held: Any, tokens: Int[Array, "B W"], place: Int[Array, " B"], span: int
    ) -> tuple[Float[Array, "B D"], Any]:
        """The state that scores the next token, and the cache of the window, whose leaves have B as their second axis.

        Args:
          params: of the module.
          held: what is kept.
          tokens: the windows.
          place: tokens in each; what stands behind them is not read.
          span: the greatest place of a row whose results are used.
        """

    @abc.abstractmethod
    def extend(
        self, params: Params, held: Any, cache: Any, token: Int[Array, " B"], place: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], Any]:
        """`open` for one token more, from the cache of the window before it; asked where `cached`.

        Where the window is full the result means nothing.

        Args:
          params: of the module.
          held: what is kept.
          cache: of the window without the token.
          token: the new one.
          place: tokens in each window, the new one counted.
        """

    @abc.abstractmethod
    def turn(
        self, params: Params, held: Any, tokens: Int[Array, "B W"], place: Int[Array, " B"]
    ) -> tuple[Any, Int[Array, "B W"], Int[Array, " B"]]:
        """(held, tokens, place) after the window of every row turned; of a row whose window is not full the result means nothing."""

    def logits(self, params: Params, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Float32, of the next token."""
        return self.apply(params, hidden, method=lambda module, h: module.head(h)).astype(jnp.float32)

    def apply(self, params: Params, *args: Any, method: Any) -> Any:
        """A method of the module, or a function of it."""
        return self.module.apply({"params": params}, *args, method=method)


def bucket(n: int, most: int) -> int:
    """`n` rounded up to a power of two, but to no more than `most`: for few lengths to compile."""
    return min(most, 1 << (n - 1).bit_length()) if n > 0 else 0


def require_causal(model: Model) -> None:
    """Raises GenerationError where a position of the decoder reads later ones."""
    if not model.decoder.causal:
        raise GenerationError(
            "config.model.decoder.causal=False: the decoder reads the tokens that it is to predict and cannot write text"
        )


def in_window(cache: KeyValues, length: int) -> KeyValues:
    """A cache with room for `length` positions."""
    return KeyValues(*(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, length - x.shape[3]), (0, 0))) for x in cache))


def at_place(states_BTD: jax.Array, at_B: jax.Array) -> jax.Array:
    """One state of each row."""
    return jnp.take_along_axis(states_BTD, at_B[:, None, None], axis=1, mode="clip")[:, 0]
