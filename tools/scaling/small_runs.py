"""The formulas against small models that really run, in this process and on two."""

from collections.abc import Iterator

from scaling.check import Check
from scaling.checked_buffers import check_buffers, check_files
from scaling.checked_engines import check_engines
from scaling.checked_model import check_activations, check_operations, check_parameters


def checks() -> Iterator[Check]:
    """All of them; the two processes start last."""
    yield from check_parameters()
    yield from check_activations()
    yield from check_operations()
    yield from check_buffers()
    yield from check_files()
    yield from check_engines()
