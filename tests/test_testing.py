"""The comparison fails for large differences, NaN, a wrong dtype and a wrong shape."""

import numpy as np
import pytest
import torch

from torch_rnn.testing import TOLERANCES, assert_parity, compare, tolerance, twice_the_error

WANT = np.array([1.0, -4.0, 0.5])


def test_difference_is_relative_to_the_largest_entry():
    row = compare("x", torch.tensor([1.0, -4.0, 0.502], dtype=torch.float64), WANT, torch.float64)
    assert row.absolute == pytest.approx(0.002)
    assert row.relative == pytest.approx(0.0005)
    assert not row.holds
    assert compare("x", torch.tensor(WANT), WANT, torch.float64).holds


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (torch.tensor(WANT).float(), r"x is torch\.float32"),
        (torch.tensor(WANT)[None], r"x has shape \(1, 3\)"),
        (torch.tensor([1.0, torch.nan, 0.5]).double(), "x has NaN"),
        (torch.tensor([1.0, torch.inf, 0.5]).double(), "x differs by inf"),
        (torch.tensor(WANT) * (1 + 1e-11), r"x differs by 1\.0e-11; allowed is 1\.0e-12"),
    ],
)
def test_wrong_tensors_fail(got, message):
    with pytest.raises(AssertionError, match=message):
        assert_parity("x", got, WANT, torch.float64)


def test_nan_in_the_reference_and_nonzero_values_against_zeros_fail():
    with pytest.raises(AssertionError, match="the reference for x has NaN"):
        assert_parity("x", torch.zeros(1).double(), np.array([np.nan]), torch.float64)
    with pytest.raises(AssertionError, match="x differs by inf"):
        assert_parity("x", torch.full((1,), 1e-30).double(), np.zeros(1), torch.float64)
    assert_parity("x", torch.zeros(0).double(), np.zeros(0), torch.float64)


def test_tolerances_grow_with_steps_and_passes():
    assert tolerance(torch.float32, 100, passes=1) == TOLERANCES[torch.float32] == 2e-6
    assert tolerance(torch.float32, 400, passes=2) == pytest.approx(4 * 2e-6)
    eager, truth = torch.tensor([1.0, 1 + 1e-5]), torch.ones(2).double()
    assert twice_the_error(eager, truth) == pytest.approx(2e-5, rel=0.05)
