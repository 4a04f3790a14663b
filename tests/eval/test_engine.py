"""A .gguf file is measured as llama.cpp runs it, with the figures of the folder that it was written from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llmprune_eval import bench, engine, logits, models, runs
from llmprune_eval.engine import Engine
from llmprune_eval.evaluation import evaluate
from llmprune_eval.runner import FileRunner, Load
from llmprune_eval.windows import Protocol
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import prune
from llmprune.errors import JobError, RequestError
from llmprune.export.gguf import export
from llmprune.export.vocabulary import tokenizer_of
from tests.export.test_gguf import UNEVEN, saved
from tests.program import run
from tests.vocabulary import tokenizers_here

pytest.importorskip("xllamacpp", reason="needs xllamacpp==2026.10.11549: pip install it")

PROTOCOL = Protocol(length=64, windows=3)


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = saved("llama", tmp_path / "dense")
    tokenizers_here.tokenizer("byte level").save_pretrained(folder)
    return folder


@pytest.fixture
def pruned(dense: Path, tmp_path: Path) -> Path:
    prune(dense, UNEVEN, out=tmp_path / "out")
    return tmp_path / "out"


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 100, 256, 257, 600])
def test_logits_are_those_of_the_folder(length: int, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "dense", max_position_embeddings=1024)
    file = export(folder, tmp_path / "dense.gguf", "f32")
    ids = torch.randint(3, 440, (length,), generator=torch.Generator().manual_seed(0))
    ours, model = Engine(file, 1024), AutoModelForCausalLM.from_pretrained(folder).eval()
    for _ in range(2):  # nothing of the first text precedes the second
        found = list(ours.pieces(ids))
        assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(length))
        both = torch.cat([piece for _, piece in found]), model(ids[None]).logits[0]
        torch.testing.assert_close(*(x.log_softmax(-1) for x in both), rtol=0, atol=0.05)  # float16 keys
    ours.forget()
    assert ours.read(ids.tolist()) == int(found[-1][1][-1].argmax())
    assert (ours.vocabulary, logits.rows_of(ours), logits.dtype_of(ours)) == (448, 448, "f32 in llama.cpp")
    assert ours.kv_bytes == 3 * 2 * 2 * 32 * 2  # blocks, keys and values, heads, their size, float16


def test_figures_of_an_uneven_model_are_those_of_its_folder(
    dense: Path, pruned: Path, tmp_path: Path
) -> None:
    file = export(pruned, tmp_path / "pruned.gguf", "f32")
    where = {"trust_remote_code": True, "device": "cpu"}
    names = {"baseline": str(dense), "model": str(pruned), "model-2": str(file)}
    found = evaluate(names, ["builtin"], PROTOCOL, None, where)
    ours, theirs = found["model"], found["model-2"]
    for key in ("perplexity", "bits_per_byte"):
        assert theirs["perplexity"][0][key] == pytest.approx(ours["perplexity"][0][key], rel=1e-3)
    assert theirs["agreement"][0]["kl"] == pytest.approx(ours["agreement"][0]["kl"], abs=1e-3)
    assert theirs["perplexity"][0]["dtype"] == "f32 in llama.cpp"


def test_the_tokenizer_of_a_file_is_that_of_its_folder(dense: Path, tmp_path: Path) -> None:
    ours = tokenizer_of(export(dense, tmp_path / "dense.gguf", "f32"))
    theirs = AutoTokenizer.from_pretrained(dense)
    assert ours.get_vocab() == theirs.get_vocab()
    for text in (tokenizers_here.text(), "<s>a <tool> 日本 é\n\n  12 345's</s>", ""):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.decode(ours("a b").input_ids, skip_special_tokens=True) == "a b"


def test_rules_that_are_not_known_are_named(dense: Path, tmp_path: Path) -> None:
    file = export(dense, tmp_path / "dense.gguf", "f32")
    other = file.read_bytes().replace(b"gpt-2", b"gpt-9")
    (tmp_path / "other.gguf").write_bytes(other)
    with pytest.raises(RequestError, match=r"gpt-9.* is not known here; known are gpt-2"):
        tokenizer_of(tmp_path / "other.gguf")
    assert models.engine_file(str(file)) == file
    assert models.engine_file(str(tmp_path / "other.gguf")) is None  # transformers may know it


def test_commands_measure_files_and_keep_what_they_found(dense: Path, tmp_path: Path) -> None:
    small, file = export(dense, tmp_path / "q.gguf", "q8_0"), export(dense, tmp_path / "f.gguf", "f32")
    sizes = ["--prompt", "32", "--new-tokens", "4", "--repeats", "2", "--seconds", "1"]
    for words in (
        ["eval", small, "--baseline", dense, "--perplexity", "builtin", "--length", "64", "--windows", "2"],
        ["bench", small, "--baseline", file, *sizes],
    ):
        done = run(*words, "--save")
        assert done.returncode == 0, done.stderr
    kept = json.loads(runs.beside(small).read_text())
    alike = kept["model"]["agreement"][0]
    assert 0 < alike["kl"] < 0.02 and alike["interval"] is None  # of two windows
    dense_one, pruned_one = kept["bench"]["models"]
    assert pruned_one["weight_bytes"] < 0.5 * dense_one["weight_bytes"]
    assert pruned_one["parameters"] == dense_one["parameters"]
    assert "llama.cpp" in pruned_one["device"] and kept["bench"]["ratios"]["decode_tokens_per_s"]
    page = tmp_path / "page.html"
    done = run("report", small, "--out", page)
    assert done.returncode == 0, done.stderr
    told = page.read_text()
    assert all(said in told for said in ("1  q.gguf", "KL divergence, nats", "decode, tokens per second"))
    done = run("report", file, "--out", page)
    assert done.returncode == 2
    assert f"{file} has no figures beside it; run llmprune eval {file} --save" in done.stderr


@pytest.mark.usefixtures("models_forked")
def test_several_prompts_at_a_time_are_refused(dense: Path, tmp_path: Path) -> None:
    file = export(dense, tmp_path / "f.gguf", "f32")
    with pytest.raises(RequestError, match="batch: 2 prompts"):
        FileRunner(file, Load(batch=2, prompt=8, new_tokens=2))
    with pytest.raises(RequestError, match="batch: 2 prompts"):
        bench.compare([str(file)], Load(2, 8, 2, 1, 1.0), {"device": "cpu"})


def test_another_device_than_the_cpu_is_refused(dense: Path, tmp_path: Path) -> None:
    file = export(dense, tmp_path / "f.gguf", "f32")
    with pytest.raises(RequestError, match="cuda was asked, and"):
        bench.compare([str(file)], Load(1, 8, 2, 1, 1.0), {"device": "cuda"})
    with pytest.raises(RequestError, match="cuda was asked, and"):
        evaluate({"model": str(file)}, ["builtin"], PROTOCOL, None, {"device": "cuda"})


def test_a_broken_file_is_one_sentence(dense: Path, tmp_path: Path) -> None:
    file = export(dense, tmp_path / "f.gguf", "f32")
    whole = file.read_bytes()
    for cut in (10, 1000):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(RequestError, match="no whole GGUF file"):
            evaluate({"model": str(tmp_path / "cut.gguf")}, ["builtin"], PROTOCOL)
    (tmp_path / "cut.gguf").write_bytes(whole[:-5000])
    with pytest.raises((JobError, RequestError)):
        evaluate({"model": str(tmp_path / "cut.gguf")}, ["builtin"], PROTOCOL)


def test_without_llama_cpp_transformers_measures_it(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export(dense, tmp_path / "f.gguf", "f32")
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine, "is_there", lambda: False)
    found = evaluate({"model": str(file)}, ["builtin"], PROTOCOL, None, {"device": "cpu"})
    assert found["model"]["perplexity"][0]["dtype"] == "float32"
