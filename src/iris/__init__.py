"""Iris: fine-tune an open language model, prove whether it got better, and let it write poems."""

__version__ = "0.1.0"


class InputError(Exception):
    """Something the user gave is wrong, and can be mended: exit code 2, one sentence that says what to do."""


class RunError(Exception):
    """The work itself failed: exit code 1. What was finished before is kept."""
