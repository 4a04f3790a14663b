"""What can go wrong, from the user's side: the request was wrong, or the job failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LlmpruneError(ValueError):
    """Any failure that llmprune explains in one sentence."""


class RequestError(LlmpruneError):
    """The request cannot be carried out as asked; nothing was written. Exit code 2."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self._message = field, message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.field, self._message)  # so that it crosses to another process


class JobError(LlmpruneError):
    """The request was sound, and carrying it out failed. Exit code 1."""


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(what: object) -> str:
    """Its words, on one line and without the last full stop; its type where it has none."""
    return " ".join(str(what).split()).rstrip(".") or type(what).__name__


def sentence(error: ValidationError, prefix: str = "") -> RequestError:
    """The first thing that a check found wrong, as one sentence."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return cause
    field = ".".join([prefix] * bool(prefix) + [str(part) for part in first["loc"]])
    found = (
        "" if first["type"] in ("missing", "unexpected_keyword_argument") else f" (found {first['input']!r})"
    )
    message = first["msg"]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message, found = "there is no such option", ""
    return RequestError(field or "recipe", message[0].lower() + message[1:] + found)
