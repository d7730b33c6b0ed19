"""What all errors of generation are."""


class GenerationError(ValueError):
    """A model cannot generate, or not what it was asked for; the message says why in full."""
