"""What the Hub answers, and what its client makes of it, in a sentence that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from llmprune.checkpoint.offline import HTTP_ERROR, UNREACHABLE, by_storage
from llmprune.errors import JobError, LlmpruneError, one_line

CLIENT_ERRORS = (*UNREACHABLE, ValueError, KeyError, RuntimeError)
ANSWERS = {
    400: "what was sent was not taken; push again, and files that the Hub lacks are sent anew",
    401: "the token is not valid; log in again with `hf auth login`, or set HF_TOKEN",
    402: "the namespace has no room for this; free some, or name another repository",
    403: "the token may not write there; use one with write access, or name a repository of yours",
    404: "the repository or branch is not there, or hidden from this token; check the names and the token",
    409: "something else is being done in the repository; push again in a moment",
    412: "the repository was changed by somebody else meanwhile; push again",
    429: "too much was asked of it; push again in a few minutes",
}
TROUBLE = "the Hub has trouble of its own; push again later"
REFUSAL = "that is a refusal; mend what it names, then push again"
STORED = re.compile(r"HTTP status \w+ error \((\d{3}) ([^)]*)\)")  # as the client's storage words it


@contextmanager
def explained(repo: str, folder: Path, token: str) -> Iterator[None]:
    """Turn what the client raises while a folder is pushed into a sentence.

    Args:
        repo: where it was to go.
        folder: what was to go there.
        token: what no sentence may repeat; empty if there is none.

    Raises:
        JobError: in place of whatever the client raised; a bug's RuntimeError stays what it is.
    """
    try:
        yield
    except LlmpruneError:
        raise
    except CLIENT_ERRORS as error:
        if isinstance(error, RuntimeError) and not by_storage(error):
            raise
        why = _reason(error)
        if token:  # a server may repeat what it was sent; its own words are in no traceback either
            why = why.replace(token, "(token)")
        raise JobError(f"cannot push to {repo}: {why} ({folder} is kept)") from None


def _reason(error: BaseException) -> str:
    """What went wrong, and what to do."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, HTTP_ERROR):
        inner = inner.__cause__  # the client wraps what went wrong with a single file
    if answer := _answer(inner) or STORED.findall(str(error)):
        status, said = answer[0]
        todo = TROUBLE if int(status) >= 500 else ANSWERS.get(int(status), REFUSAL)
        return f"the Hub answered {status} ({said}): {todo}"
    if inner is not None or isinstance(error, ConnectionError | TimeoutError):
        said = one_line(inner or error)
        return (
            f"the connection to {constants.ENDPOINT} failed ({said}); push again when it is back, and files "
            "that arrived are not sent again"
        )
    if isinstance(error, KeyError | json.JSONDecodeError):
        return f"{constants.ENDPOINT} does not answer as a Hub does; look at HF_ENDPOINT and the network"
    return f"{one_line(error)}; mend that, then push again"


def _answer(error: BaseException | None) -> list[tuple[str, str]]:
    """The status and the words of the answer that an error holds, if it holds one."""
    response = getattr(error, "response", None)
    if response is None:
        return []
    said = getattr(error, "server_message", None) or response.reason_phrase
    return [(str(response.status_code), one_line(said))]
