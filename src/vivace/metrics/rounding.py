"""How many decimals numbers need so that they are still told apart."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["digits_that_tell"]

# more than a float64 of some hundreds has
MAX_DIGITS = 17


def digits_that_tell(limits: Sequence[tuple[float, float]]) -> int:
    """The decimals, 0 to 17, with which no two ranges (from, to) read the same, and none seems to be a single value."""
    for digits in range(MAX_DIGITS):
        told = [(f"{least:.{digits}f}", f"{most:.{digits}f}") for least, most in limits]
        has_width = all(one[0] != one[1] or least == most for one, (least, most) in zip(told, limits, strict=True))
        if has_width and len(set(told)) == len(told):
            return digits
    return MAX_DIGITS
