"""What the columns of the tables say of a row of results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmprune.measured import said

Row = dict[str, Any]


def perplexity(row: Row) -> str:
    """To a hundredth, where that says anything."""
    return _figure(row["perplexity"])


def authors(row: Row) -> str:
    """The same of the authors' code."""
    return _figure(row.get("authors_perplexity"))


def loss_over_dense(row: Row) -> str:
    """Nats a token over the dense model's and their standard error; of several draws, that of perplexity."""
    if error := row.get("standard_error"):
        return f"+- {error:.3f} in perplexity, five draws"
    return f"{row['difference'][0]:.3f} +- {row['difference'][1]:.3f}" if "difference" in row else ""


def difference(row: Row) -> str:
    """The largest difference of logits or log-probabilities to those of transformers."""
    return f"{row['largest_difference']:.1e}"


def difference_cached(row: Row) -> str:
    """The same of tokens that were read one by one."""
    return f"{row['largest_difference_cached']:.1e}"


def engine(row: Row) -> str:
    """What the engine runs it as."""
    return f"`{row.get('class') or row['architecture']}`"


def greedy(row: Row) -> str:
    """Tokens of greedy continuations that are equal, before the first that is not."""
    return f"{row['equal']} of {row['tokens']}"


def file_size(row: Row) -> str:
    """In MB."""
    return f"{row['bytes'] / 1e6:.1f} MB"


def divergence(row: Row) -> str:
    """KL to the folder that the file was written from, and how often both say the same token."""
    return f"{row['kl']:.4f} nats, {row['top1']:.1%}".replace("%", " %")


def divergence_known(row: Row) -> str:
    """KL to the dense model with its interval, and on which share of the pieces, if not on all."""
    if row["kl_interval"] is None:
        return "only one piece kept its tokens"
    low, high = row["kl_interval"]
    of = f" on {100 * row['shared']:.0f} %" if row["shared"] < 1 else ""
    return f"{row['kl']:.3f} [{low:.3f}, {high:.3f}]{of}"


def bits_over_dense(row: Row) -> str:
    """Bits per byte of all pieces, and over the dense model's with the interval."""
    low, high = row["bits_ratio_interval"]
    return f"{row['bits_per_byte']:.3f}, {row['bits_ratio']:.3f}x [{low:.3f}, {high:.3f}]"


def same_token(row: Row) -> str:
    """How often the file says the dense model's likeliest token, in percent; empty of a single piece."""
    if row["top1_interval"] is None:
        return ""
    low, high = (100 * end for end in row["top1_interval"])
    return f"{100 * row['top1']:.0f} % [{low:.0f}, {high:.0f}]"


def figure(which: str) -> Callable[[Row], str]:
    """A figure of the demo, to four digits."""
    return lambda row: f"{row[which]:,.0f}" if row[which] >= 1000 else f"{row[which]:#.4g}"


def ratio(row: Row) -> str:
    """Of the demo's figures, with its interval."""
    return said(row["ratio"])


def same(counts: str) -> Callable[[Row], str]:
    """Whether so many processes with so many threads wrote the bytes of one."""
    return lambda row: "yes" if row["sha256"][counts] == row["sha256"]["1 x 1"] else "no"


def by_processes(row: Row) -> str:
    """Perplexity of what one, two and four of them wrote."""
    return "; ".join(_figure(row["perplexity"][one]) for one in ("1 x 1", "2 x 1", "4 x 1"))


def halved(row: Row) -> str:
    """Seconds of two processes of one thread over those of one with two threads, where timed."""
    if "1 x 2" not in row["seconds"]:
        return ""
    return f"{row['seconds']['2 x 1'] / row['seconds']['1 x 2']:.2f}x"


def talked(figure: str) -> Callable[[Row], str]:
    """A share of answers, and its difference to the dense model's; a star where that is no chance."""

    def cell(row: Row) -> str:
        found = row["talk"][figure]
        low, high = (100 * end for end in found["interval"])
        said = f"{100 * row[figure]:.1f} % ({100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}])"
        return said + ("*" if found["flagged"] else "")

    return cell


def points_kept(row: Row) -> str:
    """Of the dense model's above chance, in percent, with the interval; empty where not scored."""
    if not row.get("sharp"):
        return ""
    low, high = (100 * end for end in row["sharp"]["interval"])
    return f"{100 * row['sharp']['value']:.0f} % [{low:.0f}, {high:.0f}]"


def same_bytes(kind: str) -> Callable[[Row], str]:
    """Quantised tensors with the bytes of llama.cpp's own."""
    return lambda row: row["same_bytes"][kind]


def tensors(row: Row) -> str:
    """Bytes of the tensors after and before."""
    before, after = (one["weight_bytes"] / 1e6 for one in row["models"])
    return f"{after:.1f} of {before:.1f} MB"


def speed(part: str) -> Callable[[Row], str]:
    """Times the dense file's tokens per second, with its interval."""

    def cell(row: Row) -> str:
        found = row["ratios"][f"{part}_tokens_per_s"]
        low, high = found["interval"]
        return f"{found['ratio']:.3f}x [{low:.3f}, {high:.3f}]"

    return cell


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def time(row: Row) -> str:
    """The pruning over a plain forward, from the same run."""
    return _times(row, "ratio")


def both_times(row: Row) -> str:
    """The same, and over a forward that was measured on its own."""
    if row["name"] != "dense" and row["ratio"] is None:
        return "no forward"
    return " / ".join(filter(None, (time(row), _times(row, "ratio_to_plain_forward"))))


def authors_time(row: Row) -> str:
    """What the authors' code took."""
    return _times(row, "authors_ratio")


def _times(row: Row, key: str) -> str:
    value = row.get(key)
    return "" if value is None else f"{value:.2f}x"


def removed(row: Row) -> str:
    """Share of the decoder's linear layers."""
    share = row.get("removed_of_block_weights", row.get("sparsity"))
    return "" if not share else f"{share:.1%}".replace("%", " %")


def parameters(row: Row) -> str:
    """In millions."""
    return f"{row['parameters'] / 1e6:.1f} M"


def beside_divergence(row: Row) -> str:
    """Perplexity, where it was measured, and the mean KL divergence to the dense model on both texts."""
    both = f"({_mean(row['kl_c4']):.2f}, {_mean(row['kl_wikipedia']):.2f})"
    return f"{perplexity(row)} {both}" if "perplexity" in row else both.strip("()")


def before(row: Row) -> str:
    """The same of what a recovery began with."""
    return beside_divergence(row["before"])


def taught(row: Row) -> str:
    """Thousands of tokens that trained."""
    return f"{row['trained_tokens'] / 1000:.0f} k"


def minutes(row: Row) -> str:
    """Of the recovery."""
    return f"{row['time']['total_s'] / 60:.0f}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def bits(text: str) -> Callable[[Row], str]:
    """Bits per byte of a text, and over the dense model's."""

    def cell(row: Row) -> str:
        found = row["texts"][text]
        times = f" ({found['times_dense']:.3f}x)" if "times_dense" in found else ""
        return f"{found['bits_per_byte']:.3f}{times}"

    return cell


def score(task: str) -> Callable[[Row], str]:
    """Percent of the questions, with a star where the difference to the dense model is no chance."""

    def cell(row: Row) -> str:
        found = row["tasks"][task]
        low, high = found.get("interval", (0, 0))
        return f"{100 * found['score']:.1f}" + ("*" if low > 0 or high < 0 else "")

    return cell


def lost(row: Row) -> str:
    """The difference of the mean to the dense model's, with its interval."""
    mean = row["tasks"]["mean"]
    if "interval" not in mean:
        return ""
    low, high = mean["interval"]
    return f"{100 * mean['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
