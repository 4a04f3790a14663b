"""The page tells what the reports hold, loads nothing, and lets no file speak for it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmprune_eval import beside, figures, page, plots, runs, tables
from llmprune_eval.markup import EMPTY, Markup, element
from llmprune_eval.plots import Axis
from llmprune_eval.runs import read, read_all, read_files

from llmprune import prune, recover
from llmprune.checkpoint import reload
from llmprune.errors import RequestError
from llmprune.report import FILE as REPORT
from llmprune.run import card_results
from tests import tiny
from tests.reloading import check_here

PROGRAM = Path(sys.executable).with_name("llmprune")
UNITS = {"pattern": {"name": "units", "multiple": 8}, "sparsity": 0.4}
CALIBRATION = {"samples": 4, "length": 32}
RECIPES: dict[str, dict[str, Any]] = {
    "masked": {"method": "wanda", "pattern": "2:4"},
    "cut": {"method": "flap", **UNITS},
    "untexted": {"method": "magnitude", "sparsity": 0.5},
    "learned": {"method": {"name": "prunenet", "passes": 1}, "pattern": UNITS["pattern"], "sparsity": 0.1},
}
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="drawing PNGs needs pip install llmprune[plot]"
)


class Reader(HTMLParser):
    """Notes what a browser would load or run, and whether every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        outside = [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action") and v
        ]
        self.loaded += [target for target in outside if not target.startswith("#")]
        assert not [key for key in found if key.startswith("on")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished folders of real runs, and one of them recovered; not to be written to."""
    root = tmp_path_factory.mktemp("runs")
    source = tiny.save("llama", root / "dense")
    found = {name: root / name for name in RECIPES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "check", check_here)
        for name, asked in RECIPES.items():
            prune(source, asked | {"calibration": CALIBRATION}, out=found[name])
        recover(found["cut"], "reconstruct", out=root / "recovered")
    return found | {"recovered": root / "recovered"}


def judged(perplexity: float, speed: float | None = None, **others: Any) -> dict[str, Any]:
    """An evaluation such as `llmprune eval` and `llmprune bench` make."""
    text = {"dataset": "wikitext2", "length": 64, "windows": 8, "protocol": "8 windows of 64"}
    dense, pruned = ({"name": "m", "perplexity": [text | {"perplexity": p}]} for p in (10.0, perplexity))
    rates = [
        {"prefill_tokens_per_s": 100.0 * r, "decode_tokens_per_s": 10.0 * r} for r in (1.0, speed or 1.0)
    ]
    bench = {"bench": {"protocol": "batch 1, prompt 8", "models": rates}} if speed else {}
    return {"baseline": dense, "model": pruned | others} | bench


def recovered(name: str, losses: list[float]) -> dict[str, Any]:
    """What a recovery that trains tells."""
    text = {"dataset": "t", "samples": 4, "length": 32, "tokens": 128, "seed": 0, "sha256": "0"}
    return {"name": name, "calibration": text, "time": {"total_s": 1.0}, "losses": losses}


def copied(folder: Path, out: Path, **changes: Any) -> Path:
    """A folder with the same report but for some of its fields."""
    out.mkdir()
    known = json.loads((folder / REPORT).read_text())
    (out / REPORT).write_text(json.dumps(known | changes))
    return out


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


def test_folders_and_files_are_told_by_their_bytes(folders, tmp_path):
    close = [{"dataset": "builtin", "kl": kl, "top1": 0.9, "predictions": 640} for kl in (0.5, 0.02)]
    folder = copied(folders["cut"], tmp_path / "cut", evaluation=judged(12.0, agreement=close[:1]))
    file = tmp_path / "cut-q8_0.gguf"
    file.write_bytes(bytes(2_000_000))
    runs.beside(file).write_text(json.dumps(judged(12.5, 1.25, agreement=close[1:])))
    both = [*read_all([folder]), *read_files([file], 2)]
    chart = figures.by_bytes(both)
    told = json.loads((folder / REPORT).read_text())["totals"]["bytes_after"]
    points = [(one.label, one.points, one.marks) for one in chart.series]
    assert points == [
        ("folders", ((told / 1e6, 0.5),), ("1",)),
        (".gguf files", ((2.0, 0.02),), ("2",)),
    ]
    assert chart.y.log  # one is twenty-five times the other
    words = Reader(page.page(both[:1], both[1:])).words
    assert "What so many bytes are worth" in words and "Divergence on builtin" in words
    assert {"bytes"} <= page.plots(both[:1], both[1:]).keys()
    assert "What so many bytes" not in Reader(page.page(both[:1])).words  # of folders alone, as before
    assert figures.by_bytes(both[:1]) is None
    other = [{**close[1], "predictions": 320}]
    runs.beside(file).write_text(json.dumps(judged(12.5, 1.25, agreement=other)))
    assert figures.by_bytes([both[0], *read_files([file], 2)]) is None  # of other windows


def test_every_run_has_the_plots_of_what_was_done_to_it(folders):
    drawn = {
        name: [plot.name for plot in figures.of(*read_all([folder]))] for name, folder in folders.items()
    }
    assert drawn == {
        "masked": ["sparsity", "error"],
        "cut": ["sparsity", "error"],
        "untexted": ["sparsity"],
        "learned": ["sparsity", "error", "learning"],
        "recovered": ["sparsity", "error", "recovery_errors"],
    }


def test_a_plot_holds_the_report_s_own_numbers(folders):
    (run,) = read_all([folders["cut"]])
    grid, errors = figures.of(run)
    assert isinstance(grid, plots.Grid) and isinstance(errors, plots.Chart)
    rows, curves = dict(grid.rows), {series.label: dict(series.points) for series in errors.series}
    for site in run.record.sites:
        assert rows[site.kind][grid.columns.index(site.block)] == pytest.approx(site.reached)
        assert curves[site.kind][site.block] == pytest.approx(site.error)


def test_many_kinds_are_put_together(folders):
    (run,) = read_all([folders["masked"]])
    (site, *_) = run.record.sites
    experts = [site.model_copy(update={"kind": f"mlp.experts.{n}.up_proj"}) for n in range(20)]
    assert list(figures.kinds_of(experts)) == ["mlp.experts.*.up_proj"]
    others = [site.model_copy(update={"kind": f"part.{letter}"}) for letter in "abcdefghijkl"]
    assert list(figures.kinds_of(others)) == ["part"]


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


def test_a_loss_curve_is_drawn_and_a_long_one_is_averaged(folders, tmp_path):
    losses = [float(n) for n in range(1000)]
    folder = copied(folders["cut"], tmp_path / "a", recovery=recovered("lora", losses))
    (run,) = read_all([folder])
    (chart,) = (plot for plot in figures.of(run) if plot.name == "recovery")
    assert isinstance(chart, plots.Chart)
    points = chart.series[0].points
    assert len(points) <= plots.MOST_POINTS and points[0] == (2.5, 1.5)
    Reader(page.page([run]))


def test_runs_are_compared_by_perplexity_where_it_was_measured_alike(folders, tmp_path):
    a = copied(folders["cut"], tmp_path / "a", evaluation=judged(20.0, 1.4))
    b = copied(folders["masked"], tmp_path / "b", evaluation=judged(15.0, 1.2))
    c = copied(folders["masked"], tmp_path / "c", evaluation=judged(16.0, 1.1))
    runs = read_all([a, b, c, folders["untexted"]])
    found = figures.quality(runs)
    assert found.values == {1: 20.0, 2: 15.0, 3: 16.0} and found.dense == 10.0
    assert "left out: untexted" in found.note and "8 windows of 64" in found.note
    assert [row["front"] for row in beside.compared(runs)] == [
        ["size", "decode", "prefill"],
        ["size", "decode", "prefill"],
        [],
        [],
    ]
    assert [plot.name for plot in figures.beside(runs)] == ["pareto_size", "pareto_decode", "pareto_prefill"]


def test_without_perplexity_the_output_error_stands_in_and_the_page_says_so(folders):
    runs = read_all([folders["cut"], folders["masked"], folders["untexted"]])
    found = figures.quality(runs)
    assert found.values.keys() == {1, 2}
    assert "No perplexity is in these reports" in Reader(page.page(runs)).words


EVIL = "<script>alert(1)</script>\"'&<!--"


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


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats(costs):
    on = plots.front(costs)
    assert any(on)
    for one, kept in zip(costs, on, strict=True):
        better = [o for o in costs if o[0] <= one[0] and o[1] <= one[1] and o != one]
        assert kept == (not better)
        assert kept or any(plots.front([o])[0] and on[costs.index(o)] for o in better), "the front beats it"


@given(
    st.floats(1e-6, 1e9),
    st.floats(1e-3, 1e3),
    st.booleans(),
    st.booleans(),
    st.integers(2, 8),
)
def test_ticks_are_few_and_inside(low, factor, log, whole, most):
    axis = Axis("x", whole=whole and not log, log=log)
    ends = plots.span([low, low * (1 + factor)], axis)
    found = plots.ticks(*ends, axis, most)
    assert len(found) <= most + 1
    assert all(ends[0] * (1 - 1e-9) - 1e-9 <= tick <= ends[1] * (1 + 1e-9) + 1e-9 for tick in found)
    assert all(tick == int(tick) for tick in found) or not axis.whole


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
    return subprocess.run([PROGRAM, "report", *map(str, words)], capture_output=True, text=True)


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


def test_a_search_shows_its_budgets_and_how_it_went(folders: dict[str, Path], tmp_path: Path) -> None:
    tried = [{"allocation": {"name": "uniform"}, "kl": 0.5}, {"allocation": {"name": "search"}, "kl": 0.4}]
    steps = [{"round": r, "generation": g, "kl": 0.9 / (r + g)} for r, g in ((1, 0), (1, 1), (2, 1))]
    said = "block 3 loses 90 % where 30 % was asked"
    folder = copied(folders["cut"], tmp_path / "a", budgets=tried, searched=steps, warnings=[said])
    [run] = read_all([folder])
    rows = [value for key, value in tables.done(run) if key in ("budget tried", "warning")]
    assert rows == ["uniform: 0.5000 nats of KL divergence", "search: 0.4000 nats of KL divergence", said]
    chart = next(plot for plot in figures.of(run) if plot.name == "search")
    assert [len(series.points) for series in chart.series] == [2, 1]
    assert "generation" in page.page([run])
