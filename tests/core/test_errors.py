"""errors.py: one error for what a person can mend."""

from wmtp_core import UserError


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
