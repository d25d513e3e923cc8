"""The public names of wmtp_core."""

import wmtp_core


def test_every_public_name_exists_and_is_documented():
    assert len(wmtp_core.__all__) > 20
    for name in wmtp_core.__all__:
        assert getattr(wmtp_core, name).__doc__, name
