import pytest

from wmtp_core import UserError
from wmtp_train.run import head_coefficients


@pytest.mark.parametrize(("given", "found"), [([3, 0, 1], [3, 0, 1]), (0.5, [1, 0.5, 0.25]), (1.0, [1, 1, 1])])
def test_a_list_or_a_decay(processes, make_settings, given, found):
    assert head_coefficients(make_settings(head_coefficients=given), processes).tolist() == found


def test_none_by_default(processes, make_settings):
    assert head_coefficients(make_settings(), processes) is None


@pytest.mark.parametrize("given", [[1.0, 1.0], [0.0, 0.0, 0.0]])
def test_one_for_each_head_and_not_all_0(make_trainer, given):
    with pytest.raises(UserError, match=r"head_coefficients is \[.*; give a number for each of the 3 heads, and not"):
        make_trainer(head_coefficients=given)


@pytest.mark.parametrize("given", [-0.5, 0.0, 1.5, [-1.0, 1, 1]])
def test_numbers_out_of_bounds(make_settings, given):
    with pytest.raises(ValueError, match="head_coefficients"):
        make_settings(head_coefficients=given)
