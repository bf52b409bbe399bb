"""Refusals: what a client is told in place of an answer, as JSON of one shape in every protocol.

    {"error": "the cause, the value received, and how to fix it", "code": "queue_full", "request_id": "…"}

`error` is text because Open Inference Protocol v2 and Hugging Face's clients read it as such.
"""

from __future__ import annotations

from vivace.errors import ImageError, first_line, one_line

__all__ = ["Refusal", "internal", "of_image", "too_busy"]

# an image that the bytes do not hold, against one that is refused for what it is
NO_IMAGE = ("not_an_image", "format_not_allowed", "missing_extra")


class Refusal(Exception):
    """A request that gets no answer. Its text is one line, safe for any terminal."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
        close: bool = False,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None: the same request will be refused again."""
        self.close = close
        """Whether the connection ends with it: what the client still sends can't be told from a next request."""
        self.detail = detail
        """For the log alone: what the client is not to know."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def of_image(error: ImageError, what: str = "the image") -> Refusal:
    """415 for what is no image of a format that is taken, 422 for an image that can't be used."""
    status = 415 if error.problem in NO_IMAGE else 422
    text = str(error)
    return Refusal(status, error.problem, text if what == "the image" else f"{what}: {text}")


def too_busy(cause: str, seconds: float, *, code: str = "queue_full") -> Refusal:
    """503, to be tried again after about as many seconds, at least one."""
    wait = max(1, min(60, round(seconds)))
    return Refusal(503, code, f"{cause}. Try again in {wait} s, or send fewer requests at once.", retry_after=wait)


def internal(error: BaseException) -> Refusal:
    """500, whose cause is in the log: it may name folders of the server."""
    detail = one_line(f"{type(error).__name__}: {first_line(error)}")
    return Refusal(
        500,
        "internal",
        "the server failed on this request. Its log has the cause, under the request id.",
        detail=detail,
    )
