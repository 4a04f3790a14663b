"""Network errors of the Hub's client are recognised; bugs are not taken for them."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch

from llmprune.checkpoint import source
from llmprune.checkpoint.offline import by_storage
from llmprune.errors import RequestError

# As releases of the client's storage have worded them.
STORED = [
    "Task error: File reconstruction error: CAS Client Error: Request error: HTTP status server error (500 "
    "Internal Server Error), domain: http://127.0.0.1/cas/v2/reconstructions/33",
    "Data processing error: CAS service error : ReqwestMiddleware Error: Request failed after 5 retries",
    "Data processing error: I/O error: No space left on device",
]
BUGS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("the client's task error is not at the beginning"),
    RuntimeError(),
    NotImplementedError("not yet"),
    torch.OutOfMemoryError("CUDA out of memory"),
]


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("words", STORED)
def test_a_download_that_the_storage_fails_is_one_sentence(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "snapshot_download", raising(RuntimeError(words)))
    with pytest.raises(RequestError, match=r"^model: me/small .* could not be fetched: ") as caught:
        source.find("me/small")
    assert words in str(caught.value)


@pytest.mark.parametrize("bug", BUGS, ids=repr)
def test_a_bug_in_a_download_stays_a_bug(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not by_storage(bug)
    for name in ("snapshot_download", "HfApi"):
        monkeypatch.setattr(source, name, raising(bug))
    for look_up in (source._download, source._listing, source._sizes_on_hub):
        with pytest.raises(type(bug)) as caught:
            look_up("me/small", "main")
        assert caught.value is bug


@pytest.mark.parametrize("error", [OSError("gone"), ConnectionError("cut"), TimeoutError("late")], ids=repr)
def test_a_hub_out_of_reach_is_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "snapshot_download", raising(error))
    with pytest.raises(RequestError, match=f"could not be fetched: {error}$"):
        source.find("me/small")
