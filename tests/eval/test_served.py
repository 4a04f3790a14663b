"""What a server answers is what the model answers, and a server that does not answer is one sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from llmprune_eval import served, talk, tasks
from llmprune_eval.engine import Engine
from llmprune_eval.evaluation import evaluate, rows
from llmprune_eval.served import Endpoint, Served
from llmprune_eval.tasks import Ask
from llmprune_eval.windows import Protocol
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune.errors import JobError, RequestError
from llmprune.export.gguf import export
from llmprune.loading import load
from tests.conftest import SHARED
from tests.eval.test_talk import dense as dense
from tests.program import run

MODEL, DATA = SHARED / "models" / "stories260K", SHARED / "data"
Answer = Callable[[dict[str, Any]], tuple[int, Any]]
needs_shared = pytest.mark.skipif(
    not (MODEL.is_dir() and DATA.is_dir()), reason="needs ../shared/models and ../shared/data"
)


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server whose completions are what a function makes of each request, with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            said = self.rfile.read(int(self.headers["Content-Length"]))
            self.send(*answer(json.loads(said)))

        def send(self, status: int, what: Any) -> None:
            body = what if isinstance(what, bytes) else json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def llama_cpp(dense: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Stock llama.cpp's server for a file."""
    xllamacpp: Any = pytest.importorskip("xllamacpp", reason="needs xllamacpp==2026.10.11549: pip install it")
    file = export(dense, tmp_path / "dense.gguf", "f32")
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_gpu_layers, asked.n_ctx, asked.warmup = str(file), 0, 1024, False
    asked.cpuparams.n_threads, asked.port = 1, 0
    server = xllamacpp.Server(asked)
    yield server.listening_address, file


def test_a_server_answers_as_its_file_does(
    llama_cpp: tuple[str, Path], dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "BUDGET", 12)
    url, file = llama_cpp
    tokenizer = AutoTokenizer.from_pretrained(dense)
    there = talk.measure(Endpoint(url, 1024), tokenizer, 20)
    here = talk.measure(Engine(file, 1024), tokenizer, 20)
    pairs = zip(there["answers"], here["answers"], strict=True)
    assert [one["text"] for one, _ in pairs] == [one["text"] for one in here["answers"]]
    assert there["stopped"] == here["stopped"]
    assert there["protocol"].endswith(f"at {url.rstrip('/')}/v1")


@needs_shared
def test_tasks_whose_answers_are_written_are_scored_and_others_refused(
    llama_cpp: tuple[str, Path], dense: Path
) -> None:
    url, _ = llama_cpp
    asked = Ask(("boolq-seq2seq",), limit=3, data=DATA)
    found = evaluate({"model": Served(str(dense), url)}, [], Protocol(), asked)["model"]
    assert found["tasks"]["boolq-seq2seq"]["questions"]["asked"] == 3
    assert type(found["tasks"]["boolq-seq2seq"]["exact_match"]) is float  # a card's metadata must be plain
    assert "served as" in dict(rows(found))["  boolq-seq2seq"]
    with pytest.raises(RequestError, match=r"^tasks: arc_easy need the likelihood of given text, and http"):
        evaluate({"model": Served(str(dense), url)}, [], Protocol(), Ask(("arc_easy",), limit=2, data=DATA))


@needs_shared
def test_likelihoods_of_a_server_that_echoes_are_lm_evals_own() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval()

    @torch.no_grad()  # in the server's thread
    def echo(asked: dict[str, Any]) -> tuple[int, Any]:
        choices = []
        prompts = asked["prompt"] if isinstance(asked["prompt"][0], list) else [asked["prompt"]]
        for number, ids in enumerate(prompts):
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            own = [None, *(float(logs[n, token]) for n, token in enumerate(ids[1:])), 0.0]
            top = [None, *({"t": float(row.max())} for row in logs)]
            choices.append({"index": number, "logprobs": {"token_logprobs": own, "top_logprobs": top}})
        return 200, {"choices": choices}

    asked = Ask(("arc_easy",), limit=4, data=DATA)
    _, tokenizer = load(str(MODEL), kernels="none")
    with serving(echo) as url:
        endpoint = Endpoint(f"{url}/v1/", 512)
        theirs = tasks.score(endpoint, tokenizer, asked, served.scorer())["tasks"]["arc_easy"]
    ours = tasks.score(model, tokenizer, asked)["tasks"]["arc_easy"]
    assert theirs["examples"] == ours["examples"] and theirs["acc"] == ours["acc"]


@needs_shared
@pytest.mark.parametrize(
    ("task", "answer", "said"),
    [
        ("boolq-seq2seq", {}, "text"),
        ("boolq-seq2seq", {"choices": [{"index": 0, "text": None}]}, "text"),
        ("arc_easy", {"choices": [{"index": 0}]}, "log-probabilities"),
        (
            "arc_easy",
            {"choices": [{"index": 0, "logprobs": {"token_logprobs": [], "top_logprobs": []}}]},
            "log-pro",
        ),
    ],
)
def test_an_answer_that_lacks_a_part_scores_nothing(
    task: str, answer: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endpoint, "echoes", True)
    _, tokenizer = load(str(MODEL), kernels="none")
    with (
        serving(lambda _: (200, answer)) as url,
        pytest.raises(JobError, match=f"gave an answer without .*{said}"),
    ):
        tasks.score(Endpoint(url, 512), tokenizer, Ask((task,), limit=1, data=DATA), served.scorer())


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PAUSE", 0.0)
    answers = iter([(503, {}), (500, {}), (200, {"choices": [{"text": "a", "finish_reason": "length"}]})])
    with serving(lambda _: next(answers)) as url:
        assert Endpoint(url, 64).complete([1], 4) == ("a", False)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, b"<html>"), "gave no answer to completions"),
        ((200, []), "gave an answer without choices"),
        ((200, {"choices": []}), "gave an answer without choices"),
        ((200, {"choices": [{"text": None, "finish_reason": "stop"}]}), "gave an answer without text"),
        ((404, {}), "gave no answer to completions \\(404"),
        ((500, {}), "gave no answer to completions"),
    ],
)
def test_nonsense_is_one_sentence(
    answer: tuple[int, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "PAUSE", 0.0)
    with serving(lambda _: answer) as url:
        endpoint = Endpoint(url, 64)
        with pytest.raises(JobError, match=said):
            endpoint.complete([1], 4)
        assert not endpoint.echoes


def test_the_command_refuses_what_no_server_tells(dense: Path) -> None:
    there = "http://127.0.0.1:9"  # nobody listens to this port
    for more, code, said in (
        (["--suite", "talk"], 1, "http://127.0.0.1:9/v1 gave no answer to models"),
        (["--perplexity", "builtin"], 2, "perplexity: it reads logits, which no server tells"),
        ([dense, "--suite", "talk"], 2, "served: one model is served there, and 2 were named"),
        (["--suite", "talk", "--served", "localhost"], 2, "served: 'localhost' is no address; give one"),
        (["--draft-for", dense], 2, "draft_for: a draft is measured here"),
    ):
        done = run("eval", dense, "--served", there, *more)
        assert done.returncode == code, done.stderr
        assert said in done.stderr and "Traceback" not in done.stderr
