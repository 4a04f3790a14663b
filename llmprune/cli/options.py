"""What the commands can be asked, each option said once."""

from __future__ import annotations

from typing import Annotated

import typer

WHAT, MUCH, TEXT, WHERE, AFTER = "What goes", "How much", "Text", "Where it runs", "Afterwards"
ADVANCED = "Advanced"
A_MODEL = "A folder, a .gguf file or a Hub id, org/name[@revision]"
Model = Annotated[str, typer.Argument(help=f"{A_MODEL}, or a recipe with one.")]
Measured = Annotated[str, typer.Argument(help=f"{A_MODEL}.")]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="A shipped recipe's name, or a YAML file.", rich_help_panel=WHAT),
]
Method = Annotated[str | None, typer.Option(help="See `llmprune methods`.", rich_help_panel=WHAT)]
Pattern = Annotated[
    str | None,
    typer.Option(
        help="unstructured, N:M such as 2:4, units, blocks or vocabulary.",
        rich_help_panel=WHAT,
    ),
]
Sparsity = Annotated[
    float | None, typer.Option(help="Share of the weights that go, 0 to 1.", rich_help_panel=MUCH)
]
Allocation = Annotated[
    str | None, typer.Option(help="How much goes where; see `llmprune methods`.", rich_help_panel=MUCH)
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="A policy.safetensors that an earlier run learned.",
        rich_help_panel=ADVANCED,
    ),
]
Repair = Annotated[
    str | None,
    typer.Option(help="How the other units compensate; see `llmprune methods`.", rich_help_panel=WHAT),
]
Layout = Annotated[
    str | None,
    typer.Option(help="How uneven blocks are written: uniform, per_layer or padded.", rich_help_panel=WHAT),
]
Multiple = Annotated[
    int | None,
    typer.Option(help="Channels that stay in a block are a multiple of this (64).", rich_help_panel=MUCH),
]
Propagation = Annotated[
    str | None, typer.Option(help="Calibrate on dense, block or layer outputs.", rich_help_panel=ADVANCED)
]
Target = Annotated[
    str | None,
    typer.Option(help="Fit layers to their outputs in the pruned or dense model.", rich_help_panel=ADVANCED),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="builtin, wikitext2, c4, self, synthetic, FILE, PROMPTS:answers or a Hub id.",
        rich_help_panel=TEXT,
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="Calibration windows (128, or the method's own).", rich_help_panel=TEXT)
]
Length = Annotated[
    int | None,
    typer.Option(
        help="Tokens per window (2048, or the model's context).",
        rich_help_panel=TEXT,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Draws the calibration windows (0).", rich_help_panel=TEXT)]
Bos = Annotated[
    str | None,
    typer.Option(
        help="Begin windows with BOS: auto (as the tokenizer), true or false.",
        rich_help_panel=TEXT,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(help="A table's column that holds the text (text).", rich_help_panel=TEXT),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=WHERE)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=WHERE)]
MaxMemory = Annotated[
    str | None, typer.Option(help="Plan with at most this much, such as 8GiB.", rich_help_panel=WHERE)
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Let code that comes with the model run.", rich_help_panel=WHERE
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Save = Annotated[bool, typer.Option("--save", help="Add it to the model's report and card.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any recipe option, as key=value; repeatable.", rich_help_panel=ADVANCED),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
