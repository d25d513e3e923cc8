"""The one error for what a person can mend."""


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where it stands and how to mend it.

    The launch scripts print it without a traceback and exit with 2; every other exception is a defect of ours.
    """
