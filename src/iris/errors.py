"""The two ways a command ends badly. The message is one sentence that says what to do."""


class InputError(Exception):
    """Something the user gave is wrong: exit code 2."""


class RunError(Exception):
    """The work itself failed: exit code 1. What was finished before is kept."""
