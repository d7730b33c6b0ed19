"""How much each token says beyond the tokens before it, by one oracle alone (Badger 2026, entropy by shifting).

A text cut off behind token t costs the bits of its memory and S(t) nats given that memory. The memory has as many bits wherever the text is
cut off, so that of the difference S(t) - S(t - 1) it takes no part: what is left is an estimate of the conditional entropy of token t. It is
as good as the oracle is on short texts, which stand at the end of its window behind padding. An oracle that saw full texts alone in training
knows padding no better than chance where its stacks are mixers; attention masks it.

Shapes: N text, B text of a batch, T token of a text.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.instruments.errors import InstrumentError
from memjax.instruments.information import check_texts
from memjax.instruments.system import Params, System, scores_of
from memjax.instruments.texts import batches, trimmed
from memjax.models import Oracle


class EntropyError(InstrumentError):
    """The model does not give entropies; the message says which do."""


def token_entropy(
    system: System, params: Params, texts: Int[np.ndarray, "N T"], batch: int, advance: Callable[[], None] = lambda: None
) -> Float[np.ndarray, "N T"]:
    """Nats of each token beyond those before it, in float64; 0 at padding. Estimates, so that some are below 0.

    The model runs T times, once for every length of text; the differences are taken on the host.

    Args:
      system: an oracle.
      params: its parameters.
      texts: of T = `system.length` tokens each; those that are shorter have their padding on the left.
      batch: texts at a time.
      advance: called when a batch is done.

    Raises:
      EntropyError: the model is no oracle.
      TextsError: there are no texts, or they are of another length.
    """
    require_oracle(system)
    check_texts(system, texts)
    parts = []
    for tokens in batches(texts, batch):
        # Added up in float64: differences of float32 sums would be noise.
        parts.append(np.asarray(_nats_of_prefixes(system, params, tokens)).sum(axis=-1, dtype=np.float64).T)
        advance()
    sums = trimmed(parts, len(texts))
    # Of nothing at all, before the first token, no nats are left.
    before = np.concatenate([np.zeros((len(texts), 1)), sums[:, :-1]], axis=1)
    return np.where(texts != system.ids.pad, sums - before, 0.0)


def require_oracle(system: System) -> None:
    """Raises EntropyError if the system is none."""
    if not isinstance(system.module, Oracle):
        raise EntropyError(
            f"entropy of tokens is asked of a family oracle, which is shown the tokens before; this is a {type(system.module).__name__}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _nats_of_prefixes(system: System, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "T B T"]:
    """Nats of every token of the texts up to their first, second, ... token."""
    length = tokens.shape[1]
    place = jnp.arange(length)

    def of_prefix(cut: jax.Array) -> jax.Array:
        scores = scores_of(system, params, jnp.where(place >= cut, jnp.roll(tokens, cut, axis=1), system.ids.pad))
        # Where no start token is inserted, padding may be asked for the first token, which a full text is not.
        return (scores.nats * scores.weight)[:, 0] * (place >= cut)

    return jax.lax.map(of_prefix, length - 1 - place)
