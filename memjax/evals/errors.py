"""What all errors of evaluations are."""


class EvalError(ValueError):
    """An evaluation cannot be made of what it was given; the message says why in full."""
