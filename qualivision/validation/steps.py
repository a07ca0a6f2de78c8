"""In which steps MOS were given: the mean of three ratings in whole points is a multiple of a third.

Owns the arithmetic, with the rounding of what stands in the file. Knows no table and no finding.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STEPS = 10
"""Steps of a whole, a half, ... down to a tenth of a point are looked for."""


def decimals(cells: Sequence[str]) -> int:
    """To how many decimals a column is written: those of its longest number."""
    return max((max(0, -int(Decimal(cell).as_tuple().exponent)) for cell in cells), default=0)


def rows_off(mos: NDArray[np.float64], written: Sequence[int], parts: int) -> NDArray[np.bool_]:
    """Which rows hold a MOS that is no multiple of 1 / parts.

    Args:
        mos: (N, D) MOS; NaN where there is none, which is off no step.
        written: to how many decimals each of the D columns is written; a multiple counts when it rounds to that.
        parts: 1 or more.
    Returns:
        (N,) booleans.
    """
    half = 0.5 * 10.0 ** -np.asarray(written, dtype=float) + 1e-9
    off: NDArray[np.bool_] = np.abs(np.round(mos * parts) / parts - mos) > half
    return np.any(off, axis=1)


def step(mos: NDArray[np.float64], written: Sequence[int]) -> int | None:
    """The fewest parts of a point, up to `STEPS`, of which every MOS is a multiple; None where there are none."""
    return next((parts for parts in range(1, STEPS + 1) if not rows_off(mos, written, parts).any()), None)
