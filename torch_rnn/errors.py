"""The one kind of error that a script answers with a sentence and exit status 2, not with a traceback."""


class RunError(ValueError):
    """What was asked for cannot be done with this data, in this folder or on this machine."""
