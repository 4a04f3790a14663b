"""`llmprune demo`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Json
from llmprune.progress import say

WORDS = 24  # tokens of an answer
NEXT = """
Next:
  llama-server -m {file}
  llmprune recover {out} --method distill --set tokens=400k     # the dense model teaches it
  llmprune prune YOUR-MODEL --method cfsp --sparsity 0.3 --repair affine --out smaller"""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write; run it again to resume.")] = Path(
        "demo-small"
    ),
    as_json: Json = False,
) -> None:
    """Make a real model (SmolLM2-135M-Instruct) smaller, measure what that costs and gains, and serve it.

    Takes a few minutes. 30 % of the feed-forward channels go, and the others are refitted.
    """
    from llmprune.checkpoint.lock import held
    from llmprune.cli import demo_model
    from llmprune.export import gguf

    display.quiet()
    start = time.monotonic()
    file, page = gguf.beside(out, "q8_0"), out.with_name(f"{out.name}.html")
    with held(out):
        answers = _made(out, file, page)
    found = _figures(out)
    if as_json:
        return display.print_json({"out": str(out), "gguf": str(file), "answers": answers, **found})
    display.table(_rows(found), sys.stdout)
    typer.echo(f"\n{demo_model.QUESTION}")
    display.table([(f"  {role}", said) for role, said in answers.items()], sys.stdout)
    typer.echo(f"\nDone in {time.monotonic() - start:.0f} s: {out}, {file}, {page}")
    typer.echo(NEXT.format(out=out, file=file))


def _made(out: Path, file: Path, page: Path) -> dict[str, str]:
    """Write all that is not there yet; return the answers of both models."""
    from llmprune.cli import demo_model
    from llmprune.export import gguf
    from llmprune.pruning import prune

    say("1 of 5: finding the model")
    name = demo_model.model(out)
    say("2 of 5: pruning it, block by block")
    prune(name, out=out, resume=True, **demo_model.ASK)
    say("3 of 5: comparing predictions and speed with the dense model's")
    _measure(name, out)
    say("4 of 5: asking both")
    answers = {role: _answer(model) for role, model in (("dense", name), ("pruned", str(out)))}
    say("5 of 5: writing a GGUF file and a page")
    if not file.is_file():
        gguf.export(out, file, "q8_0")
    _draw(out, page)
    return answers


def _measure(dense: str, out: Path) -> None:
    """Compare both models, unless that is done, and keep the figures in report and card."""
    from llmprune_eval import bench, evaluation, keeping
    from llmprune_eval.runner import Load
    from llmprune_eval.windows import Protocol

    from llmprune import report
    from llmprune.cli import demo_model

    kept = report.read(out)
    known = (kept.evaluation if kept else None) or {}
    if "model" not in known:
        names = {"baseline": dense, "model": str(out)}
        keeping.keep(evaluation.evaluate(names, [demo_model.TEXT], Protocol(**demo_model.PROTOCOL)))
    if "bench" not in known:
        say(f"measuring speed for up to {demo_model.LOAD['seconds']:.0f} s")
        both, load = [dense, str(out)], Load(**demo_model.LOAD)
        keeping.keep_speed(out, bench.compare(both, load, {}))


def _answer(name: str) -> str:
    """The likeliest answer of a model to one question, on one line."""
    from llmprune.cli import demo_model
    from llmprune.loading import load

    model, tokenizer = load(name, kernels="none")
    asked = [{"role": "user", "content": demo_model.QUESTION}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    ids = ids["input_ids"].to(model.device)
    written = model.generate(
        ids, attention_mask=ids.new_ones(ids.shape), do_sample=False, max_new_tokens=WORDS
    )
    return " ".join(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).split())


def _draw(out: Path, page: Path) -> None:
    """Write the report page."""
    from llmprune_eval import page as pages
    from llmprune_eval.runs import read_all

    display.write(page, pages.page(read_all([out])))


def _figures(out: Path) -> dict[str, Any]:
    """What was measured, as plain data."""
    from llmprune import report

    kept = report.read(out)
    assert kept is not None and kept.evaluation is not None
    judged: dict[str, Any] = dict(kept.evaluation)
    return {
        "totals": kept.totals,
        "dense": judged["baseline"]["perplexity"][0],
        "pruned": judged["model"]["perplexity"][0],
        "comparison": judged["model"]["comparison"]["perplexity"][0],
        "agreement": judged["model"]["agreement"][0],
        "bench": judged["bench"],
    }


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The demo's table: dense, pruned, and their ratio."""
    from llmprune import measured

    dense, pruned, totals, both = (found[one] for one in ("dense", "pruned", "totals", "comparison"))
    bits = [one["bits_per_byte"] for one in (dense, pruned)]
    size = [totals["bytes_before"], totals["bytes_after"]]
    table = [
        ("", "dense", "pruned", "ratio [95 %]"),
        ("weight files, MB", *(f"{one / 1e6:.1f}" for one in size), f"{size[1] / size[0]:.3f}"),
        (
            "bits per byte of held-out text",
            *(f"{one:.4f}" for one in bits),
            measured.said({"ratio": both["bits_per_byte"], "interval": both["interval"]}),
        ),
    ]
    wanted = ("parameters", "prefill, tokens per second", "decode, tokens per second")
    table[1:1] = [tuple(row) for row in measured.speeds(found["bench"]) if row.what in wanted]
    alike = found["agreement"]
    rows = [(what, f"{a:>12}  {b:>12}  {c}".rstrip()) for what, a, b, c in table]
    kl = measured.said({"ratio": alike["kl"], "interval": alike["interval"]})
    said = f"KL {kl} nats, same first choice {alike['top1']:.1%}"
    return [*rows, ("predictions", said), ("protocol", pruned["protocol"])]
