from pathlib import Path

import pytest
import torch

from wmtp_core import UserError
from wmtp_models.formats.roundtrip import require_close, require_equal, require_same_weights


def test_equal_means_to_the_bit_and_of_one_dtype() -> None:
    one = torch.tensor([1.0, 2.0])
    require_equal(one, one.clone(), "it")
    for other in (one.nextafter(torch.tensor(9.0)), one.double(), torch.tensor([1.0, torch.nan]), one[:1]):
        with pytest.raises(UserError, match="it differ from the model's after reading them back"):
            require_equal(one, other, "it")


def test_close_means_a_few_roundings_of_the_largest() -> None:
    one = torch.tensor([1.0, 100.0])
    assert require_close(one, one + 0.5, 1e-3, "they") == pytest.approx(0.5)
    for other in (one + 7, one * torch.nan):
        with pytest.raises(UserError, match="they differ"):
            require_close(one, other, 1e-3, "they")


@pytest.mark.parametrize("found", [{}, {"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.zeros(1)}])
def test_no_weight_may_be_missing_or_new_or_other(found: dict[str, torch.Tensor]) -> None:
    require_same_weights({"a": torch.ones(1)}, {"a": torch.ones(1)}, Path("folder"))
    with pytest.raises(UserError, match="folder"):
        require_same_weights({"a": torch.ones(1)}, found, Path("folder"))
