"""RoBERTa pretraining: raw text to a published checkpoint, and delta tuning on it."""

__version__ = "0.1.0"


class UserError(ValueError):
    """A fault that the user can mend: printed as one message without a traceback, exit code 2.

    The message says what was found, what was expected and what to do.
    """


class Unproven(UserError):
    """Something that was made fails its own proof, and is kept apart: a fault of the software, or
    of a library. Printed likewise, exit code 1."""


class StartAgain(UserError):
    """A fault of the machines: printed likewise, exit code 75. The same command may well get
    further."""
