"""A model as a server answers for it, vLLM's or llama.cpp's: what is served is what is measured.

The server speaks OpenAI's completions, and takes the ids of tokens as a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from llmprune.errors import JobError, RequestError, one_line

TRIES, PAUSE, PATIENCE = 3, 0.5, 600.0  # repeated requests, seconds before the first, seconds of one
BUSY = (429, 500, 502, 503, 504)  # that another try may mend


@dataclass(frozen=True)
class Served:
    """A model and where it is served."""

    name: str
    """A folder or Hub id, whose tokenizer and chat template are used."""

    url: str

    def __str__(self) -> str:
        return self.name


class Endpoint:
    """A server that answers for one model.

    Args:
        url: of the server, with or without `/v1`.
        context: tokens that the model holds.

    Raises:
        JobError: nothing answers there, or nothing that speaks so.
    """

    def __init__(self, url: str, context: int) -> None:
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.context = context
        self._session = requests.Session()
        again = Retry(TRIES, backoff_factor=PAUSE, status_forcelist=BUSY, allowed_methods=None)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again))
        self.model = str(self._found(self._asked("models", None), "data", "id"))
        self.where = f"served as {self.model} at {self.url}"

    def complete(self, ids: list[int], budget: int) -> tuple[str, bool]:
        """The greedy continuation of a prompt, and whether it ended within the budget."""
        answer = self.ask({"prompt": ids, "max_tokens": budget, "temperature": 0})
        text, ended = (self._found(answer, "choices", key) for key in ("text", "finish_reason"))
        if not isinstance(text, str):
            raise JobError(f"{self.url} gave an answer without text; check which server it is")
        return text, ended == "stop"

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to a request for a completion."""
        return self._asked("completions", {"model": self.model, **what})

    def require(self, answer: dict[str, Any], prompts: list[Any], *, likelihoods: bool) -> None:
        """Refuse an answer that lacks a prompt, its text, or the log-probabilities of its tokens.

        Raises:
            JobError: it does.
        """
        try:
            choices = {int(one["index"]): one for one in answer["choices"]}
            whole = all(
                len(choices[n]["logprobs"]["token_logprobs"]) == len(choices[n]["logprobs"]["top_logprobs"])
                and len(choices[n]["logprobs"]["token_logprobs"]) > len(prompt)
                if likelihoods
                else isinstance(choices[n]["text"], str)
                for n, prompt in enumerate(prompts)
            )
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            what = "the log-probabilities of a prompt" if likelihoods else "text"
            raise JobError(f"{self.url} gave an answer without {what}; check which server it is")

    @cached_property
    def echoes(self) -> bool:
        """Whether it tells the log-probabilities of a prompt."""
        prompt = [1, 2, 3]
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            told = self._found(self.ask(asked), "choices", "logprobs")
            return len(told["token_logprobs"]) > len(prompt)
        except (JobError, KeyError, TypeError):
            return False

    def _asked(self, path: str, what: dict[str, Any] | None) -> dict[str, Any]:
        """The JSON of a response; retried while the server is busy."""
        send = self._session.get if what is None else self._session.post
        try:
            answer = send(f"{self.url}/{path}", json=what, timeout=PATIENCE)
            answer.raise_for_status()
            return dict(answer.json())
        except (requests.RequestException, ValueError, TypeError) as error:
            said = f"{self.url} gave no answer to {path} ({one_line(error)[:200]})"
            raise JobError(
                f"{said}; check that it is an OpenAI-compatible server, and that it runs"
            ) from error

    def _found(self, answer: dict[str, Any], part: str, key: str) -> Any:
        try:
            return answer[part][0][key]
        except (KeyError, IndexError, TypeError) as error:
            raise JobError(f"{self.url} gave an answer without {part}; check which server it is") from error


def scorer() -> type:
    """lm-eval's own model of such a server, made of an `Endpoint` and a tokenizer."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Scorer(LocalCompletionsAPI):  # type: ignore[misc] # an untyped package
        """Its requests go through the endpoint, as tokens."""

        def __init__(self, pretrained: Endpoint, tokenizer: Any, batch_size: str | int) -> None:
            size = {"batch_size": batch_size, "max_length": pretrained.context}
            super().__init__(
                pretrained.url, "none", model=pretrained.model, max_retries=1, num_concurrent=1, **size
            )
            self._endpoint, self.tokenizer = pretrained, tokenizer
            self.tokenizer_backend, self.tokenized_requests = "huggingface", True

        def require(self, needy: list[str]) -> None:
            """Refuse tasks that need likelihoods, where the server does not tell them.

            Raises:
                RequestError: it names them.
            """
            if needy and not self._endpoint.echoes:
                said = f"{', '.join(needy)} need the likelihood of given text"
                how = "ask for tasks whose answers are written, or serve with vLLM"
                raise RequestError("tasks", f"{said}, and {self._endpoint.url} does not tell it; {how}")

        def tok_encode(self, string: str | list[str], left_truncate_len: int | None = None, **_: Any) -> Any:
            """Begin a text as the tokenizer does, once, as lm-eval's `HFLM` does."""
            if not isinstance(string, str):
                return [self.tok_encode(one, left_truncate_len) for one in string]
            begun = bool(bos := self.tokenizer.bos_token) and string.startswith(bos)
            ids = self.tokenizer(string, add_special_tokens=not begun)["input_ids"]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def model_call(self, messages: Any, *, gen_kwargs: Any = None, **how: Any) -> dict[str, Any]:
            """Ask once: the endpoint repeats what failed."""
            written = {"gen_kwargs": dict(gen_kwargs or {}), "seed": self._seed, "eos": self.eos_string}
            asked = self._create_payload(
                self.create_message(messages), **{"generate": True, **how}, **written
            )
            answer = self._endpoint.ask(asked)
            self._endpoint.require(answer, messages, likelihoods=not how.get("generate", True))
            return answer

    return Scorer
