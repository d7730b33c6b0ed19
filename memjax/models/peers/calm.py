"""Continuous autoregressive language model (CALM; Shao et al. 2025, arXiv 2510.27688).

A patch is q tokens. Tokens pass networks one by one, are squeezed into one state, and give the mean
and the logarithm of the variance of a Gaussian latent; a decoder mirrors it. A causal transformer
reads latents (next_vector.py). Its state and uniform noise pass a generator whose last matrix
begins at 0, and what leaves is a sample of the next latent. Without a random generator the noise is
0, nothing is dropped, and a latent is its mean.

The latents of a chunk's patches are its memory. All patches of a chunk are predicted in one pass
here, as nothing of the chunk is known at its start, and the decoder of tokens reads the rows that
the autoencoder's decoder makes of them. Everything is trained by the nats of tokens. The published
losses, the energy score and the nats of latents beyond a standard Gaussian, are in
next_vector_losses.py, and `next_vectors` and `gaussian` return what they compare.

Not claimed: BrierLM of the published models.

Shapes: N chunk, P patch of a chunk, q token of a patch, E number of a latent, R row that the
decoder reads, L token, D width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers import MLP, Linear
from memjax.layers.norm import make_norm
from memjax.models.memory import VECTORS
from memjax.models.peers.adapters import peer
from memjax.models.peers.next_vector import NextVector
from memjax.models.peers.peer import GENERATOR, Leaves


class Residuals(nn.Module):
    """Networks that are added to what they read, position by position."""

    config: Backbone
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        for number in range(self.layers):
            norm = make_norm(self.config, self.dtype, f"norm_{number}")
            x = x + MLP(self.config, self.dtype, name=f"mlp_{number}")(norm(x))
        return x


@dataclasses.dataclass(frozen=True)
class Dials:
    """Settings of CALM."""

    patch: int = 4
    """q: tokens of a patch."""
    numbers: int = 128
    """E: numbers of a latent."""
    layers: int = 2
    """Networks of the generator, and of each half of the encoder and of the decoder."""
    dropout: float = 0.15
    """Share of tokens and of numbers of latents that are dropped where there is a generator."""


class Calm(NextVector):
    """A chunk is Gaussian latents of its patches, and a generator predicts the next ones."""

    dials: Dials = Dials()

    def setup(self) -> None:
        self.setup_vectors()
        stack, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        how, width = (stack, self.dials.layers, dtype), stack.width
        self.token_in, self.patch_in = Residuals(*how), Residuals(*how)
        self.patch_out, self.token_out = Residuals(*how), Residuals(*how)
        self.squeeze, self.grow = Linear(width, dtype=dtype), Linear(width, dtype=dtype)
        self.latent = Linear(2 * self.dials.numbers, use_bias=True, dtype=dtype)
        self.stretch = Linear(self.dials.patch * width, dtype=dtype)
        self.noise_in, self.generator = Linear(width, dtype=dtype), Residuals(*how)
        zeros = nn.initializers.zeros
        self.sample = Linear(self.dials.numbers, dtype=dtype, kernel_init=zeros)

    @property
    def shape(self) -> tuple[int, int]:
        """See `NextVector.shape`; the last patch of a chunk may be filled up."""
        return -(-self.config.chunk_length // self.dials.patch), self.dials.numbers

    def gaussian(
        self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]
    ) -> tuple[Float[Array, "N P E"], Float[Array, "N P E"]]:
        """Return means and logarithms of variances of the latents of each chunk's patches."""
        length, patch = tokens.shape[1], self.dials.patch
        shown = valid & self._kept(valid.shape)
        x = jnp.where(shown[..., None], self.token_in(self.embed(tokens)), 0)
        x = jnp.pad(x, ((0, 0), (0, -length % patch), (0, 0)))
        patches = self.squeeze(x.reshape(len(x), -1, patch * x.shape[-1]))
        mean, log_variance = jnp.split(self.latent(self.patch_in(patches)), 2, axis=-1)
        return mean, log_variance

    def encode(self, tokens: Int[Array, "N L"], valid: Bool[Array, "N L"]) -> Leaves:
        """See `BankPeer.encode`."""
        mean, log_variance = self.gaussian(tokens, valid)
        if not self.has_rng(GENERATOR):
            return {VECTORS: mean}
        noise = jax.random.normal(self.make_rng(GENERATOR), mean.shape, mean.dtype)
        return {VECTORS: mean + jnp.exp(log_variance / 2) * noise}

    def predict(self, states: Float[Array, "N P D"]) -> Float[Array, "N P E"]:
        """See `NextVector.predict`; a sample, or that of no noise."""
        noise = jnp.zeros((*states.shape[:2], self.dials.numbers), states.dtype)
        if self.has_rng(GENERATOR):
            key = self.make_rng(GENERATOR)
            noise = jax.random.uniform(key, noise.shape, noise.dtype, -0.5, 0.5)
        return self.sample(self.generator(states + self.noise_in(noise)))

    def expand(self, vectors: Float[Array, "N P E"]) -> Float[Array, "N R D"]:
        """See `NextVector.expand`; the autoencoder's decoder, a row for each token."""
        kept = jnp.where(self._kept(vectors.shape), vectors, 0)
        x = self.stretch(self.patch_out(self.grow(kept)))
        x = x.reshape(len(x), -1, self.config.decoder.width)
        return self.token_out(x)[:, : self.config.chunk_length]

    def _kept(self, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        if not self.has_rng(GENERATOR):
            return jnp.ones(shape, bool)
        return jax.random.bernoulli(self.make_rng(GENERATOR), 1 - self.dials.dropout, shape)


ADAPTER = peer(
    "calm",
    Calm,
    "A chunk is latents of its patches of tokens; those of the next chunk are predicted, and the"
    " decoder reads the prediction.",
    published="Continuous Autoregressive Language Models, arXiv 2510.27688",
    dials=Dials,
    sized="numbers",
    tiny={"patch": 2, "numbers": 6, "layers": 1},
    unclaimed="BrierLM of the published language models",
)
