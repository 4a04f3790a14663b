"""What the commands can be asked, each option said once."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

# By the group that the help shows them in.
in_what = partial(typer.Option, rich_help_panel="What goes")
in_much = partial(typer.Option, rich_help_panel="How much")
in_text = partial(typer.Option, rich_help_panel="Text")
in_where = partial(typer.Option, rich_help_panel="Where it runs")
in_after = partial(typer.Option, rich_help_panel="Afterwards")
in_advanced = partial(typer.Option, rich_help_panel="Advanced")
A_MODEL = "A folder, a .gguf file or a Hub id, org/name[@revision]"
Model = Annotated[str, typer.Argument(help="A folder, a .gguf file, a Hub id, or a recipe with one.")]
Measured = Annotated[str, typer.Argument(help=f"{A_MODEL}.")]
RecipeName = Annotated[
    str | None,
    in_what("--recipe", help="A shipped recipe's name, or a YAML file."),
]
Method = Annotated[str | None, in_what(help="See `llmprune methods`.")]
Pattern = Annotated[
    str | None,
    in_what(help="2:4, units, experts, blocks, vocabulary ...; see `llmprune methods`."),
]
Sparsity = Annotated[float | None, in_much(help="Share of the weights that go, 0 to 1.")]
Allocation = Annotated[str | None, in_much(help="How much goes where; see `llmprune methods`.")]
Policy = Annotated[
    str | None,
    in_advanced(help="A policy.safetensors that an earlier run learned."),
]
Repair = Annotated[
    str | None,
    in_what(help="How the other units compensate; see `llmprune methods`."),
]
Layout = Annotated[
    str | None,
    in_what(help="How uneven blocks are written: uniform, per_layer or padded."),
]
Multiple = Annotated[
    int | None,
    in_much(help="Channels that stay in a block are a multiple of this (64)."),
]
Propagation = Annotated[str | None, in_advanced(help="Calibrate on dense, block or layer outputs.")]
Target = Annotated[
    str | None,
    in_much(help="Choose what goes by 6GiB, 0.8x of the bytes or 1.3x-decode."),
]
Engine = Annotated[str | None, in_much(help="Where a speed is measured: transformers or llama.cpp.")]
Text = Annotated[
    str | None,
    in_text(help="builtin, wikitext2, c4, self, FILE, PROMPTS:answers or a Hub id."),
]
Samples = Annotated[int | None, in_text(help="Calibration windows (128, or the method's own).")]
Length = Annotated[
    int | None,
    in_text(help="Tokens per window (2048, or the model's context)."),
]
Seed = Annotated[int | None, in_text(help="Draws the calibration windows (0).")]
Bos = Annotated[
    str | None,
    in_text(help="Begin windows with BOS: auto (as the tokenizer), true or false."),
]
Column = Annotated[
    str | None,
    in_text(help="A table's column that holds the text (text)."),
]
Device = Annotated[str, in_where(help="auto, cpu, cuda, cuda:N, xpu, mps.")]
DeviceMap = Annotated[
    str | None,
    in_where(help="Where modules wait: auto, or a file of module: device."),
]
Dtype = Annotated[str, in_where(help="auto, float32, bfloat16 or float16.")]
MaxMemory = Annotated[str | None, in_where(help="Plan with at most this much, such as 8GiB.")]
Trust = Annotated[
    bool,
    in_where("--trust-remote-code", help="Let code that comes with the model run."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Save = Annotated[bool, typer.Option("--save", help="Add it to the model's report and card.")]
Set = Annotated[
    list[str] | None,
    in_advanced("--set", help="Any recipe option, as key=value; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
