"""The one error for what the user can fix."""


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and how to fix it.

    The launch scripts print it without a traceback and exit with 2; every other exception is a bug in WMTP.
    """
