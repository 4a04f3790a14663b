"""The two errors that users see: the request was wrong, or the job failed."""

from collections.abc import Iterator
from contextlib import contextmanager


class LlmpruneError(ValueError):
    """Any failure that llmprune explains in one sentence."""


class RequestError(LlmpruneError):
    """The request cannot be carried out as asked; nothing was written. Exit code 2."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.said = field, message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.field, self.said)  # so that it crosses to another process


@contextmanager
def of_step(number: int) -> Iterator[None]:
    """Name the step of a recipe, counted from 1, whose request cannot be carried out."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"steps.{number}.{error.field}", error.said) from error


class JobError(LlmpruneError):
    """The request was sound, and carrying it out failed. Exit code 1."""


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(what: object) -> str:
    """Its words, on one line and without the last full stop; its type where it has none."""
    return " ".join(str(what).split()).rstrip(".") or type(what).__name__
