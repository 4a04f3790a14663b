"""Write the tables of the README files and eval/RESULTS.md from the figures in eval/results, after measuring.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is around it is prose and stays.
"""

from __future__ import annotations

import re

import cells
import yaml
from cells import Row
from files import FIRST, of_files
from table import ROOT, Engines, Table, rows, served
from targets import Targets

PAGES = tuple(
    ROOT / page for page in ("README.md", "eval/RESULTS.md", "llmprune/README.md", "recipes/README.md")
)
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TASKS = yaml.safe_load((ROOT / "eval" / "suites" / "paper.yaml").read_text())["tasks"]


def transcribed(row: Row) -> str:
    """The perplexity of the authors' algorithm, written out plainly, on this machine."""
    found = rows("transcribed").get(row["name"])
    return cells.perplexity(found) if found else ""


TABLES = {
    "demo": Table(
        ("demo",),
        "SmolLM2-135M-Instruct | dense | pruned | ratio [95 %]",
        (cells.figure("dense"), cells.figure("pruned"), cells.ratio),
        {name: [name] for name in rows("demo")},
    ),
    "first": FIRST,
    "equal-bytes": of_files("smollm2-135m"),
    "equal-bytes-qwen": of_files("qwen2.5-coder-0.5b"),
    "cost": Table(
        ("against_authors",),
        "recipe | perplexity | authors' code | written out | time | authors' time",
        (cells.perplexity, cells.authors, transcribed, cells.both_times, cells.authors_time),
        {
            "dense": "dense",
            "`wanda-50`": "wanda_50",
            "`wanda-2of4`": "wanda_2_4",
            "`sparsegpt-50`": "sparsegpt_50",
            "`sparsegpt-2of4`": "sparsegpt_2_4",
            "`magnitude-50`": "magnitude_50",
            "Wanda, `owl`, 70 %": "owl_70",
        },
    ),
    "smaller": Table(
        ("against_authors", "depth"),
        "recipe | parameters | perplexity | authors' code | time",
        (cells.parameters, cells.perplexity, cells.authors, cells.time),
        {
            "dense": "dense",
            "`cfsp-20`": "cfsp_20",
            "`flap-20`": "flap_20",
            "`depth-10-width-10`": "depth-10-width-10",
            "`depth-20`": "shortgpt-20-span",
            "`flap-30-affine`": "flap_30_affine",
            "`cfsp-30-recover`": "cfsp_30_recover",
            "`flap-50`": "flap_50",
            "`cfsp-50`": "cfsp_50",
        },
    ),
    "units": Table(
        ("against_authors",),
        "recipe | removed | parameters | perplexity | authors' code | written out | time",
        (cells.removed, cells.parameters, cells.perplexity, cells.authors, transcribed, cells.time),
        {
            "dense": "dense",
            "`flap-20`": "flap_20",
            "`flap-20 --multiple 1`": "flap_20,multiple=1",
            "`flap` at 30 %": "flap_30",
            "`flap-30-affine`, two forwards": "flap_30_affine",
            "`flap` at 30 %, then `recover --method reconstruct`": "flap_30_reconstructed",
            "`flap-50`": "flap_50",
            "`cfsp-20`": "cfsp_20",
            "`cfsp-20 --multiple 1`": "cfsp_20,multiple=1",
            "`cfsp-20 --multiple 1`, their temperature": "cfsp_20,multiple=1,temperature=3.28",
            "`cfsp` at 30 %": "cfsp_30",
            "`cfsp --multiple 1` at 30 %": "cfsp_30,multiple=1",
            "`cfsp --multiple 1` at 30 %, their temperature": "cfsp_30,multiple=1,temperature=3.28",
            "`cfsp-30-recover`": "cfsp_30_recover",
            "`cfsp-50`": "cfsp_50",
            "`cfsp-20 --repair mean_bias`": "cfsp_20,repair=mean_bias",
            "`cfsp --repair mean_bias` at 30 %": "cfsp_30,repair=mean_bias",
            "`cfsp-50 --repair mean_bias`": "cfsp_50,repair=mean_bias",
        },
    ),
    "depth": Table(
        ("depth",),
        "what goes | repair | 10 % | 20 % | 30 %",
        (cells.beside_divergence,),
        {
            f"{what} | `{repair}`": " ".join(f"{name}-{share}-{repair}" for share in (10, 20, 30))
            for what, name, repairs in (
                ("blocks, `sleb`", "sleb", ("none", "span")),
                ("blocks, `laptop`", "laptop", ("none", "span")),
                ("blocks, `shortgpt`", "shortgpt", ("none", "span")),
                ("a span of blocks, `angular`", "angular", ("none", "span")),
                ("channels, `cfsp`", "cfsp", ("affine",)),
                ("heads and channels, `flap`", "flap", ("affine",)),
            )
            for repair in repairs
        },
    ),
    "one-shot": Table(
        ("one_shot", "against_authors"),
        "method | 50 % | 60 % | 70 % | 2:4",
        (cells.beside_divergence,),
        {
            f"`{method}`": " ".join(f"{method}-{share}" for share in ("50", "60", "70", "2of4"))
            for method in ("sparsegpt", "admm")
        }
        | {
            "`wanda`": "wanda-50 - - wanda-2of4",
            "`wanda`, then `refine`: `wanda-50-icbs`": "wanda-50-icbs - - -",
            "`wanda`, `--repair refit`": "- - - wanda-2of4-refit",
            "`sparsegpt`, `--set target=dense`": "- - - sparsegpt-2of4-dense",
            "`sparsegpt`, `order: rose`": "- - - sparsegpt-2of4-rose",
            "`admm`, `--set target=dense`": "- - - admm-2of4-dense",
            "`admm`, `--allocation best`: `best-70`": "- - best-70 -",
        },
    ),
    "one-shot-qwen": Table(
        ("one_shot",),
        "what | KL on C4, Wikipedia | time",
        (cells.beside_divergence, cells.time),
        {
            "2:4, `sparsegpt`": "sparsegpt-2of4-short",
            "2:4, `admm`": "admm-2of4-short",
            "20 % of the channels, `flap`, ridge 0.01": "ridge-0.01-short",
            "20 % of the channels, `flap`, ridge `held_out`": "ridge-held_out-short",
            "20 % of the channels, `obs`, ridge `held_out`: `obs-20`": "obs-20-short",
        },
        "qwen2.5-coder-0.5b",
    ),
    "mixture": Table(
        ("experts",),
        "what goes | parameters | perplexity | nats over the mixture's",
        (cells.parameters, cells.perplexity, cells.loss_over_dense),
        {
            "nothing": "mixture",
            **{
                f"{share} % of the experts, `{method}`": f"{method}-{share}"
                for share in (25, 50)
                for method in ("reap", "ean", "expert_frequency", "random")
            },
            **{
                f"50 % of the experts, `{method}`, `block` propagation": f"{method}-50-block"
                for method in ("reap", "ean", "expert_frequency")
            },
            **{f"half of the weights, `{m}`": f"{m}-50" for m in ("admm", "sparsegpt", "wanda", "magnitude")},
            **{
                f"{what}, then `reconstruct`": f"{start}-reconstruct"
                for what, start in {
                    "50 % of the experts, `reap`": "reap-50",
                    "half of the weights, `wanda`": "wanda-50",
                    "half of the weights, `sparsegpt`": "sparsegpt-50",
                }.items()
            },
        },
        "stories15m-upcycled",
    ),
    "orders": Table(
        ("one_shot", "depth"),
        "order and budgets | 20 % | 30 %",
        (cells.beside_divergence,),
        {
            "heads and channels, `flap`": "flap-20-affine flap-30-affine",
            "channels, `cfsp`": "cfsp-20-affine cfsp-30-affine",
            "channels, `flap`": "flap-channels-20 -",
            "channels, `cfsp`, ridge `held_out`": "cfsp-held_out-20 -",
            "channels, `flap`, ridge `held_out`": "ridge-held_out flap-channels-held_out-30",
            "channels, `obs`, ridge `held_out`: `obs-20`, `obs-30`": "obs-20 obs-30",
            "the same, `method.ridge=1`": "obs-ridge-1-20 obs-ridge-1-30",
            "the same, `allocation: block_influence`": "- obs-block_influence-30",
        },
    ),
    "searched": Table(
        ("one_shot",),
        "budgets | parameters | perplexity and divergence | time",
        (cells.parameters, cells.beside_divergence, cells.time),
        {
            "`uniform`": "flap-30-uniform",
            "`global_threshold`": "flap-30-global_threshold",
            "`block_influence`": "flap-30-block_influence",
            "`search`, from uniform budgets": "flap-30-search",
            "`global_threshold`, ridge `held_out`": "flap-30-held_out",
            "`block_influence`, ridge `held_out`": "flap-30-block_influence-held_out",
            "`search`, ridge `held_out`: `tyr-30`": "flap-30-search-held_out",
            "`block_influence`, ridge `held_out`, 50 %": "flap-50-block_influence-held_out",
            "`search`, ridge `held_out`, 50 %: `tyr-50`": "flap-50-search-held_out",
        },
    ),
    "ridge": Table(
        ("one_shot",),
        "ridge | `affine`, 16 x 512 tokens | 32 x 1024 | `reconstruct`, 16 x 512 | `admm` at 2:4, 16 x 512",
        (cells.beside_divergence,),
        {
            f"`{ridge}`": f"ridge-{ridge}-short {whole} {reconstructed} {damped}"
            for ridge, whole, reconstructed, damped in (
                (0.01, "flap-channels-20", "reconstruct-0.01-short", "admm-2of4-0.01-short"),
                (0.1, "-", "reconstruct-0.1-short", "admm-2of4-0.1-short"),
                (1.0, "ridge-1.0", "reconstruct-1.0-short", "-"),
                (10.0, "-", "-", "-"),
                ("held_out", "ridge-held_out", "reconstruct-held_out-short", "admm-2of4-held_out-short"),
            )
        },
    ),
    "healed": Table(
        ("healed",),
        "start | before | after | tokens | minutes",
        (cells.before, cells.beside_divergence, cells.taught, cells.minutes),
        {
            "SparseGPT, 2:4": "sparsegpt-2of4-100k",
            "ADMM, 2:4: `admm-2of4-healed`": "admm-2of4-64k",
            "Wanda, 2:4": "wanda-2of4-50k",
            "Wanda, 50 %: `wanda-50-healed`": "wanda-50-50k",
            **{f"{name}, 50 %": f"{name.lower()}-50-50k" for name in ("SparseGPT", "ADMM")},
            **{f"ADMM, 50 %, rate 0.00{r}": f"admm-50-100k-relative_rate-{r}e-3" for r in (1, 2)},
            "ADMM, 50 %, rate 0.001, no C4": "admm-50-100k-relative_rate-1e-3-from-wikipedia",
            "FLAP, 30 %, `affine`: `flap-30-healed`": "flap-30-128k",
            "CFSP, 30 % of the channels, `affine`, rate 0.002": "cfsp-30-128k-relative_rate-2e-3",
            "6 of 30 blocks": "depth-20-128k",
            "6 of 30 blocks, rate 0.002: `depth-20-healed`": "depth-20-256k-relative_rate-2e-3",
            "6 of 30 blocks, `span`, one rate of 3e-4": "depth-20-span-100k-learning_rate-3e-4",
        },
    ),
    "healed-qwen": Table(
        ("healed",),
        "start | KL before, on C4, Wikipedia | after | tokens | minutes",
        (cells.before, cells.beside_divergence, cells.taught, cells.minutes),
        {
            "CFSP, 30 % of the channels, `affine`": "cfsp-30-16k",
            "5 of 24 blocks": "depth-20-16k",
        },
        "qwen2.5-coder-0.5b",
    ),
    "talk": Table(
        ("talk",),
        "recipe | stops by itself | repeated 4-grams | instructions kept | `sharp` kept",
        (*map(cells.talked, ("stopped", "repeated", "kept")), cells.points_kept),
        {
            "`wanda-2of4`": "wanda-2of4",
            "`flap-50`": "flap-50",
            "`cfsp` at 5 %, `affine`": "cfsp-5",
            "the same on C4, `ridge: held_out`": "cfsp-5-c4",
        },
    ),
    "engines": Engines(),
    "targets": Targets(),
    "processes": Table(
        ("processes",),
        "recipe | same bytes: two | four | perplexity by one; two; four | time of two",
        (cells.same("2 x 1"), cells.same("4 x 1"), cells.by_processes, cells.halved),
        {
            **{f"`{name}`": name for name in ("wanda-2of4", "flap-20", "cfsp-20")},
            **{"Wanda, 50 %, `owl`": "owl", "Wanda, 50 %, `global`": "global"},
            **{f"`{name}`": name for name in ("sparsegpt-2of4", "admm-2of4")},
        },
    ),
    "llama-cpp": served(
        "in_llama_cpp",
        "folder | architecture | largest difference | greedy tokens equal | same bytes: q8_0 | q4_0",
        *(cells.engine, cells.difference, cells.greedy, cells.same_bytes("q8_0"), cells.same_bytes("q4_0")),
    ),
    "llama-cpp-speed": served(
        "speed",
        "model | tensors | decode | prefill",
        cells.tensors,
        cells.speed("decode"),
        cells.speed("prefill"),
    ),
    "quantised": served(
        "quantised", "file | size | KL to its folder, same likeliest token", cells.file_size, cells.divergence
    ),
    "vllm": served(
        "in_vllm",
        "folder | class that vLLM chose | largest difference of logits | greedy tokens equal",
        *(cells.engine, cells.difference, cells.greedy),
    ),
    "mlx": served(
        "in_mlx",
        "model, the small random ones of `tests/export/` | largest difference, at once | token by token",
        *(cells.difference, cells.difference_cached),
    ),
    "vocabulary": Table(
        ("vocabulary",),
        "rows | WikiText-2 test, bits per byte | C4, held out",
        (cells.bits("wikitext2-test"), cells.bits("c4-held-out")),
        {"151,936, dense": "dense", "65,536, `vocabulary-64k`": "65536", "49,152": "49152"},
        "qwen2.5-coder-0.5b",
    ),
    "textless": Table(
        ("textless",),
        "what decides | text | repair | 20 % of the channels | 30 %",
        (cells.perplexity,),
        {
            "`prunenet-20`, `prunenet-30` | the model's own | none": "prunenet-20 prunenet-30",
            "the same policy | the model's own | `affine`": "prunenet-20-affine prunenet-30-affine",
            "`prunenet`, learned from synthetic tokens | synthetic | none": (
                "prunenet-20-synthetic prunenet-30-synthetic"
            ),
            "the same policy | synthetic | `affine`": (
                "prunenet-20-affine-synthetic prunenet-30-affine-synthetic"
            ),
            "the first policy, where a text can be had | WikiText-2 validation, 32 x 1024 | `affine`": (
                "prunenet-20-affine-text prunenet-30-affine-text"
            ),
            "`prunenet`, learned again on another machine | the model's own | none": (
                "prunenet-20-again prunenet-30-again"
            ),
            "the policy learned again | the model's own | `affine`": (
                "prunenet-20-affine-again prunenet-30-affine-again"
            ),
            "the policy learned again | C4, 32 x 1024 | none": "prunenet-20-c4 prunenet-30-c4",
            "the policy learned again | C4, 32 x 1024 | `affine`": (
                "prunenet-20-affine-c4 prunenet-30-affine-c4"
            ),
            "`wanda` on channels | the model's own | none": "wanda-20-self wanda-30-self",
            "`wanda` on channels | the model's own | `affine`": ("wanda-20-affine-self wanda-30-affine-self"),
            "`wanda` on channels | synthetic | none": "wanda-20 wanda-30",
            "`random` | none | none": "random-20 random-30",
            "`row_norm`, the gate's, as in PruneNet's paper | none | none": "row_norm-20 row_norm-30",
            "`spectral` | none | none": "spectral-20 spectral-30",
        },
    ),
    "textless-flap": Table(
        ("against_authors", "textless"),
        "FLAP, 20 % of the blocks, heads too | perplexity",
        (cells.perplexity,),
        {
            "real text: `flap-20`, 32 x 1024 tokens of WikiText-2 validation": "flap_20",
            "`flap-20-synthetic`, 32 x 512 tokens drawn by rank": "flap-20-synthetic",
            "the same, 128 x 128 tokens, then drawn twice by the model": "flap-20-synthetic-redrawn",
            "`flap-20-self`, 256 x 64 tokens of the model's own": "flap-20-self",
        },
    ),
    "zero-shot": Table(
        ("zero_shot",),
        " | ".join(["recipe", *TASKS, "mean", "mean, to dense"]),
        (*map(cells.score, [*TASKS, "mean"]), cells.lost),
        {name if name == "dense" else f"`{name}`": name for name in rows("zero_shot")},
    ),
}


def written(text: str) -> str:
    """A text with its tables as the results have them."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]].text()}\n{found[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text()))
