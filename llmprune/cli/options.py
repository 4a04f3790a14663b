"""What the commands can be asked, each option said once."""

from __future__ import annotations

from typing import Annotated

import typer

WHERE = "A folder, a .gguf file, or a Hub id: org/name or org/name@revision"
Model = Annotated[str, typer.Argument(help=f"{WHERE}; or a recipe that names one.")]
Measured = Annotated[str, typer.Argument(help=f"{WHERE}.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="A shipped recipe's name, or a YAML file.")]
Method = Annotated[str | None, typer.Option(help="See `llmprune methods`.")]
Pattern = Annotated[
    str | None,
    typer.Option(help="unstructured, N:M such as 2:4, units (channels, heads), blocks, or vocabulary."),
]
Sparsity = Annotated[float | None, typer.Option(help="Share of the weights that go, 0 to 1.")]
Allocation = Annotated[str | None, typer.Option(help="How much goes where; see `llmprune methods`.")]
Policy = Annotated[
    str | None,
    typer.Option(help="What a method learned in an earlier run, its policy.safetensors, used as it is."),
]
Repair = Annotated[str | None, typer.Option(help="How the other units compensate; see `llmprune methods`.")]
Layout = Annotated[
    str | None, typer.Option(help="How blocks of different sizes are written: uniform, per_layer or padded.")
]
Multiple = Annotated[
    int | None, typer.Option(help="Channels that stay in a block are a multiple of this (64).")
]
Propagation = Annotated[str | None, typer.Option(help="Calibrate on dense, block or layer outputs.")]
Target = Annotated[str | None, typer.Option(help="Fit layers to their outputs in the pruned or dense model.")]
Text = Annotated[
    str | None,
    typer.Option(
        help="builtin, wikitext2, c4, self, synthetic, a text file or table, PROMPTS:answers, or a Hub id."
    ),
]
Samples = Annotated[int | None, typer.Option(help="Calibration windows (128, or the method's own).")]
Length = Annotated[
    int | None,
    typer.Option(help="Tokens per window (2048 or the model's context; some methods have their own)."),
]
Seed = Annotated[int | None, typer.Option(help="Draws the calibration windows (0).")]
Bos = Annotated[
    str | None,
    typer.Option(help="Begin every window with BOS: auto (as the tokenizer begins a text), true or false."),
]
Column = Annotated[
    str | None, typer.Option(help="The column that holds the text, of a table or a Hub data set (text).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="Of the computation: auto, float32, bfloat16 or float16.")]
MaxMemory = Annotated[str | None, typer.Option(help="Plan with at most this much, such as 8GiB.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Save = Annotated[bool, typer.Option("--save", help="Add it to the model's report and card.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any recipe option, as key=value; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
