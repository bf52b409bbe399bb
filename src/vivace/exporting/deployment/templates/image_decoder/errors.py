"""What is raised for an image that can't be used."""

from __future__ import annotations

__all__ = ["ImageError"]


class ImageError(Exception):
    """One image can't be used: the cause, the value received, how to fix it; `problem` is a short name of the fault."""

    def __init__(self, message: str, *, problem: str) -> None:
        super().__init__(message)
        self.problem = problem
