"""The page tells what the reports hold, loads nothing, and lets no file speak for it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llmprune_eval import beside, figures, page, runs, tables
from llmprune_eval.markup import Markup, element
from llmprune_eval.runs import read, read_all, read_files

from llmprune.errors import RequestError
from llmprune.report import FILE as REPORT
from llmprune.run import card_results
from tests.eval.pages import Reader, copied, folders, judged, recovered
from tests.program import run

__all__ = ["folders"]
EVIL = "<script>alert(1)</script>\"'&<!--"
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="drawing PNGs needs pip install llmprune[plot]"
)


def test_the_page_of_every_run_is_whole_and_loads_nothing(folders):
    for folder in folders.values():
        read = Reader(page.page(read_all([folder])))
        assert not {"script", "link", "img", "iframe", "object"} & set(read.seen)
        assert read.loaded == []
        assert "AutoModelForCausalLM.from_pretrained" in read.words
        assert "Not measured yet" in read.words
        assert json.loads((folder / REPORT).read_text())["about"] in read.words
    text = page.page(read_all(list(folders.values())))
    together = Reader(text)
    assert together.loaded == [] and len(set(together.ids)) == len(together.ids) == len(folders)
    assert "url(" not in text and "@import" not in text


def test_a_measured_file_stands_beside_the_runs(folders, tmp_path):
    file = tmp_path / "cut-q8_0.gguf"
    file.write_bytes(bytes(2_000_000))
    with pytest.raises(RequestError, match="no figures beside it; run llmprune eval"):
        read_files([file])
    close = {"dataset": "builtin", "kl": 0.0123, "top1": 0.95, "predictions": 640}
    runs.beside(file).write_text(json.dumps(judged(12.5, 1.25, agreement=[close])))
    read = Reader(page.page(read_all([folders["cut"]]), read_files([file, file], 2)))
    assert read.words.count("2  cut-q8_0.gguf") == 1 and "A file of 2 MB" in read.words
    assert all(said in read.words for said in ("12.500", "1.250", "0.0123", "640 predictions, 95.0 %"))
    runs.beside(file).write_text('{"model": []}')
    with pytest.raises(RequestError, match=r"cut-q8_0\.gguf\.json holds no figures of llmprune"):
        read_files([file])


def test_results_are_shown_beside_the_dense_model(folders, tmp_path):
    tasks = {"piqa": {"acc": 0.55, "acc_stderr": 0.01, "metric": "acc"}, "rte": {"acc": 0.5, "stderr": 0.02}}
    folder = copied(folders["cut"], tmp_path / "a", evaluation=judged(12.5, 1.5, tasks=tasks))
    words = Reader(page.page(read_all([folder]))).words
    for shown in (
        "12.500",
        "1.250",
        "8 windows of 64",
        "0.5500 ± 0.0100",
        "0.5000 ± 0.0200",
        "1.50",
        "batch 1, prompt 8",
    ):
        assert shown in words


def test_figures_stand_beside_the_dense_model_s_where_they_can_be_compared(folders, tmp_path):
    """Perplexities of the same tokens, bits per byte of the same characters; a ratio with its interval."""
    evaluation = judged(12.5, 1.5)
    for role, tokenizer, bits in (("baseline", "a", 1.25), ("model", "b", 1.5)):
        stamp = {"tokenizer": tokenizer, "tokenizers": ["a", "b"], "bits_per_byte": bits}
        evaluation[role]["perplexity"][0].update(stamp)
    evaluation["bench"]["ratios"] = {"decode_tokens_per_s": {"ratio": 1.45, "interval": [1.4, 1.5]}}
    evaluation["bench"]["models"][1] |= {"kv_bytes_per_token": 9216.0, "first_token_s": 0.25}
    (run,) = read_all([copied(folders["cut"], tmp_path / "a", evaluation=evaluation)])
    assert [row[1:5] for row in tables.texts(run)] == [
        ["perplexity", "-", "12.500", "-"],
        ["bits per byte", "1.2500", "1.5000", "1.200"],
    ]
    shown = {row[0]: row[1:] for row in tables.speeds(run)}
    assert shown["decode, tokens per second"] == ["10.0", "15.0", "1.450 [1.400, 1.500]"]
    assert shown["KV cache, bytes per token"] == ["-", "9,216", "-"]
    assert figures.speed(run, "decode") == 1.45 and figures.speed(run, "prefill") == 1.5
    card = card_results.evaluated(tmp_path / "a", run.record)
    assert "| perplexity, wikitext2 | another tokenizer | 12.500 |" in card
    assert "| bits per byte, wikitext2 | 1.2500 | 1.5000 |" in card
    assert "| decode, tokens per second | 10.0 | 15.0 | 1.450 [1.400, 1.500] |" in card
    evaluation["model"]["perplexity"][0]["tokenizers"] = None
    (alone,) = read_all([copied(folders["cut"], tmp_path / "b", evaluation=evaluation)])
    assert tables.texts(alone)[1][2] == "-"


@pytest.mark.parametrize(
    "evaluation", [{}, {"model": {}}, {"model": {"tasks": {"piqa": {"alias": "piqa"}}}}, {"bench": {}}]
)
def test_missing_parts_of_an_evaluation_are_left_out(evaluation, folders, tmp_path):
    folder = copied(folders["cut"], tmp_path / "a", evaluation=evaluation)
    runs = read_all([folder, folders["masked"]])
    words = Reader(page.page(runs)).words
    assert words.count("Not measured yet") == 2
    assert not [head for head in ("protocol", "tokens/s", "None") if head in words]
    assert "No perplexity is in these reports" in words
    assert [row["quality"] for row in beside.compared(runs)] == [run.error for run in runs]
    assert [(row["decode"], row["prefill"]) for row in beside.compared(runs)] == [(None, None)] * 2


def test_what_comes_from_a_file_is_escaped(folders, tmp_path):
    known = json.loads((folders["masked"] / REPORT).read_text())

    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoilt(inner) for key, inner in value.items()} | {"extra": EVIL}
        if isinstance(value, list):
            return [spoilt(inner) for inner in value]
        return EVIL + value if isinstance(value, str) else value

    changes = {key: spoilt(known[key]) for key in ("model", "recipe", "sites", "reload", "calibration")}
    changes["sites"] = [site | {"notes": {EVIL: 0.5}} for site in changes["sites"]]
    changes["versions"] = {EVIL: EVIL}
    changes["evaluation"] = spoilt(judged(12.0, 1.5))
    changes["evaluation"]["model"]["tasks"] = {EVIL: {EVIL: 0.5}}
    changes["recovery"] = spoilt(recovered(EVIL, [2.0, 1.0]))
    changes["learned"] = {"losses": {EVIL: [2.0, 1.0]}}
    folder = copied(folders["masked"], tmp_path / "<script>&", **changes)
    text = page.page(read_all([folder, folders["cut"]]))
    assert "<script" not in text and "<!--" not in text
    assert text.count("&lt;script&gt;") > 20
    Reader(text)


def test_markup_is_escaped_once():
    assert element("p", "<&", element("b", Markup("<i></i>")), class_='"') == (
        '<p class="&quot;">&lt;&amp;<b><i></i></b></p>'
    )


def test_what_is_no_finished_folder_is_refused(folders, tmp_path):
    def refusal(folder: Path) -> str:
        with pytest.raises(RequestError) as caught:
            read(folder)
        assert caught.value.field == "model"
        return str(caught.value)

    assert "not there" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(folders["cut"] / REPORT)
    assert "holds no llmprune_report.json" in refusal(tmp_path)
    (tmp_path / ".unfinished").mkdir()
    assert "is unfinished" in refusal(tmp_path)
    (tmp_path / ".unfinished").rmdir()
    (tmp_path / REPORT).write_text("{")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / REPORT).write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / REPORT).write_text('{"schema": 99}')
    assert "schema 99" in refusal(tmp_path)
    broken = copied(folders["cut"], tmp_path / "broken", totals={"sparsity": "much"})
    assert "totals.sparsity" in refusal(broken)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return run("report", *words)


def test_the_command_writes_a_page_and_one_json_object(folders, tmp_path):
    out = tmp_path / "page.html"
    done = command(folders["cut"], folders["masked"], folders["cut"], "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["name"] for run in found["runs"]] == ["cut", "masked"]
    assert found["page"] == str(out) and found["png"] == []
    Reader(out.read_text())
    plain = command(folders["cut"], "--out", out).stdout.splitlines()
    assert plain[0].split()[:3] == ["#", "run", "method"] and plain[1].split()[1] == "cut"


def test_the_command_refuses_before_it_writes(folders, tmp_path):
    for words in (
        [tmp_path],
        [folders["cut"], "--out", tmp_path],
        [folders["cut"], "--out", tmp_path / "a/b"],
    ):
        done = command("--out", tmp_path / "page.html", *words)
        assert done.returncode == 2 and done.stderr.startswith("llmprune: ")
    assert list(tmp_path.iterdir()) == []


def test_the_command_needs_no_torch(folders, tmp_path):
    words = ["report", str(folders["cut"]), "--out", str(tmp_path / "page.html")]
    code = (
        f"import sys; from llmprune.cli import app; app({words!r}, standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@needs_matplotlib
def test_every_plot_is_a_png_too(folders, tmp_path):
    done = command(*folders.values(), "--out", tmp_path / "a.html", "--png", tmp_path / "png", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["png"]
    assert len(files) == len(page.plots(read_all(list(folders.values()))))
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in files)


def test_without_matplotlib_the_way_to_it_is_named(folders, tmp_path, monkeypatch):
    from llmprune_eval import png

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"pip install llmprune\[plot\]"):
        png.require(tmp_path / "png")
