"""memjax: memory models for language in JAX and Flax."""

__version__ = "0.1.0"
