"""The benchmark's plot: an axis names a few round values, whatever it shows."""

from __future__ import annotations

import pytest
from bench.plot import Axis


@pytest.mark.parametrize("high", [1, 1.9, 2, 5.9, 6, 6.1, 7.3, 9.99, 10, 64, 65, 99, 126, 650, 999])
def test_an_axis_has_a_few_ticks(high: float) -> None:
    """At least three, at most seven, none beyond its end."""
    ticks = Axis(0, high, 0, 100, logarithmic=False).ticks()
    assert 3 <= len(ticks) <= 7
    assert ticks[-1] <= high
