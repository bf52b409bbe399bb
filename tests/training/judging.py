"""Validations with a given outcome."""

from __future__ import annotations

from vivace.training.loop.validation import Validation


def judged_as(top1: float) -> Validation:
    """Every accuracy is `top1`, the loss 1."""
    return Validation(loss=1.0, top1=top1, macro_f1=top1, balanced_accuracy=top1)
