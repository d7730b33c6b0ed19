"""What all errors of instruments are."""


class InstrumentError(ValueError):
    """An instrument cannot measure what it was given, and the message says why in full."""
