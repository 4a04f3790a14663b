"""Write the support table, `llmprune/FAMILIES.md`, from `results.jsonl`: `python -m tests.families.table`."""

from __future__ import annotations

import re

from tests.families.sweep import OK, RESULTS, WAYS, Row, read
from tests.test_architecture import ROOT

FILE, README = ROOT / "llmprune" / "FAMILIES.md", ROOT / "README.md"
MARKS = "<!-- families -->\n", "<!-- end of families -->\n"
COLUMNS = {
    "2:4": "weights",
    "channels": "channels",
    "heads": "heads",
    "channels by block": "by block",
    "blocks": "blocks",
    "vocabulary": "tokens",
}
HEAD = """# Does it work on mine?

Every causal language model that transformers {transformers} names: {total} classes, {built} of which could be
built tiny. Of these, {weights} lose single weights, {channels} channels of a feed-forward network, {heads}
heads, {blocks} blocks and {tokens} tokens. Each was pruned from disk, then loaded by plain transformers in a
fresh process, where its logits were compared.

- *weights*: Wanda 2:4 on every linear layer of the blocks.
- *channels*, *heads*: as many in every block, named in config.json.
- *by block*: channels, fewer in later blocks.
- *blocks*: the second one goes; *tokens*: 64 of 448 go.

What shrinks together is in [a row](model/families.py), or [derived](model/derived.py) from the class and
proved before anything is cut. What a `no` says in full: [`results.jsonl`](../tests/families/results.jsonl).

"""
SAID = """Does it work on yours? [`FAMILIES.md`](llmprune/FAMILIES.md) lists the {total} causal language
models of transformers: {weights} lose single weights, {channels} channels, {heads} heads, {blocks} blocks,
{tokens} tokens. Units are derived from a model's class, and proved, where no row names them.
"""
FOOT = "\nWritten by `python -m tests.families.table` from what `python -m tests.families.sweep` found.\n"
FEW = re.compile(r"only (\d+)% of the block weights .* it cannot prune (.*)")
REASON = re.compile(r"^(?:the |per_layer was|heads cannot).*?\((.*)\)(?:[;,]|$)")


def counts(rows: dict[str, Row]) -> dict[str, int]:
    """How many classes there are, how many could be built, and by column how many pass."""
    built = [row for row in rows.values() if row["built"] == OK]
    passed = {name: sum(row[way] == OK for row in built) for way, name in COLUMNS.items()}
    return {"total": len(rows), "built": len(built), **passed}


def table(rows: dict[str, Row]) -> str:
    """The page."""
    known = " and ".join(sorted({row["transformers"] for row in rows.values()}))
    lines = [cells("model_type", *COLUMNS.values(), "why not"), cells(*["---"] * (len(COLUMNS) + 2))]
    lines += [line(row) for _, row in sorted(rows.items())]
    return HEAD.format(transformers=known, **counts(rows)) + "\n".join(lines) + "\n" + FOOT


def paragraph(rows: dict[str, Row]) -> str:
    """What README.md says of it."""
    return MARKS[0] + SAID.format(**counts(rows)) + MARKS[1]


def line(row: Row) -> str:
    """One family."""
    if row["built"] != OK:
        return cells(f"`{row['family']}`", *["-"] * len(COLUMNS), f"not built: {short(row['built'])}")
    said = ["yes" if row[way] == OK else "no" for way in COLUMNS]
    why: dict[str, list[str]] = {}
    for way, name in COLUMNS.items():
        if row[way] != OK:
            why.setdefault(short(row[way]), []).append(name)
    return cells(f"`{row['family']}`", *said, "; ".join(f"{', '.join(n)}: {one}" for one, n in why.items()))


def short(sentence: str) -> str:
    """The reason in a refusal, without what was asked and what to do."""
    said = re.sub(r"^[a-z_.]+: ", "", sentence)
    found = REASON.match(said)
    said = (found[1] if found else said).partition(". ")[0]
    said = FEW.sub(r"only \1 % lie in linear layers, not \2", said)
    said = said if len(said) <= 140 else said[:137].rpartition(" ")[0] + " ..."
    return said.replace("|", "/").replace("<", "").replace(">", "")


def cells(*words: str) -> str:
    """A line of the table."""
    return f"| {' | '.join(words)} |"


def main() -> None:
    """Write the page, and the paragraph of README.md."""
    assert set(COLUMNS) == set(WAYS)
    rows, text = read(RESULTS), README.read_text()
    FILE.write_text(table(rows))
    before, _, rest = text.partition(MARKS[0])
    README.write_text(before + paragraph(rows) + rest.partition(MARKS[1])[2])


if __name__ == "__main__":
    main()
