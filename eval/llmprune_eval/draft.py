"""What a pruned model is worth as the draft of the dense one, which checks several guessed tokens at a time
(speculative decoding, Leviathan et al., 2023, arXiv:2211.17192).

Letters used in shapes: L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.progress import track
from llmprune_eval import logits, models
from llmprune_eval.bench import compare
from llmprune_eval.bootstrap import spread
from llmprune_eval.perplexity import same_tokens, stamp
from llmprune_eval.runner import Load
from llmprune_eval.talk import prompts

TEXTS, TOKENS = 64, 64  # that the dense model writes, greedily and drawn
MOST = 16  # guesses at a time that are looked at
LOAD = Load(batch=1, prompt=64, new_tokens=32, repeats=6, seconds=60.0)
HOW = ("greedy", "drawn")
PLAIN = {
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
}  # not the file's own


def measure(draft: str, dense: str, where: dict[str, Any]) -> dict[str, Any]:
    """The share of guesses that the dense model takes, and what that makes of speed.

    Args:
        draft: a folder or Hub id.
        dense: the model that it drafts for.
        where: arguments of `llmprune.load`.

    Returns:
        For greedy and for drawn text: `acceptance`, the mean over predictions, its `interval` by text, the
        `guesses` at a time that serve best, and the `speed` they give over the dense model. Also `cost`,
        the time of a draft's token over that of a dense one, which is the acceptance to reach. Both have
        intervals as well.

    Raises:
        RequestError: the models have other tokens, or one is not run by transformers.
    """
    trust = bool(where.get("trust_remote_code"))
    named = [models.find(name, trust=trust, scored=True) for name in (dense, draft)]
    theirs, ours = (one.tokenizer for one in named)
    if not same_tokens(stamp(theirs), stamp(ours)):
        raise RequestError("draft_for", f"{draft} has other tokens than {dense}; name its own dense model")
    big, small = (one.opened(0, where) for one in named)
    shares = {how: _shares(big, small, theirs, drawn=how == "drawn") for how in HOW}
    del big, small
    speeds = compare([dense, draft], LOAD, where)
    ratio = speeds["ratios"]["decode_tokens_per_s"]
    cost, costs = 1 / ratio["ratio"], ratio["interval"] and [1 / end for end in reversed(ratio["interval"])]
    told: dict[str, Any] = {"for": dense, "cost": cost, "cost_interval": costs}
    told["protocol"] = f"{TEXTS} texts of {TOKENS} tokens"
    for how, each in shares.items():
        acceptance = sum(each) / len(each)
        guesses = max(range(1, MOST + 1), key=lambda count: speed(acceptance, count, cost))
        told[how] = {
            "acceptance": acceptance,
            "interval": spread(each),
            "guesses": guesses,
            "speed": speed(acceptance, guesses, cost),
            "speed_interval": _between(spread(each), guesses, costs),
        }
    return told


def speed(acceptance: float, guesses: int, cost: float) -> float:
    """How many times as fast as alone the dense model writes (theorem 3.8 of the paper).

    Args:
        acceptance: probability that a guess is taken.
        guesses: at a time.
        cost: the time of one, over that of a pass of the dense model.
    """
    taken = guesses + 1 if acceptance == 1 else (1 - acceptance ** (guesses + 1)) / (1 - acceptance)
    return taken / (guesses * cost + 1)


def _between(shares: list[float] | None, guesses: int, costs: list[float] | None) -> list[float] | None:
    """The speeds at the ends of both intervals: wider than 95 %, since both seldom err to one side."""
    if shares is None or costs is None:
        return None
    return [speed(share, guesses, cost) for share, cost in zip(shares, reversed(costs), strict=True)]


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """As a table."""
    table = []
    for how in HOW:
        one = found[how]
        ends = one["interval"]
        said = f"{one['acceptance']:.1%} of the guesses taken" + (
            f" [{ends[0]:.1%}, {ends[1]:.1%}]" if ends else ""
        )
        if one["speed"] > 1:
            said += f"; {one['speed']:.2f}x as fast with {one['guesses']} at a time"
        else:
            said += f"; does not pay, it takes more than {found['cost']:.1%} at the speed of this draft"
        table.append((f"  draft, {how} text", said))
    return table


@torch.no_grad()
def _shares(dense: Any, draft: Any, tokenizer: Any, *, drawn: bool) -> list[float]:
    """By text, the mean acceptance of what the dense model writes after a prompt."""
    torch.manual_seed(0)
    shares = []
    for one in track(prompts(TEXTS), "drawing text" if drawn else "writing text"):
        asked = tokenizer(one["prompt"], return_tensors="pt")["input_ids"].to(dense.device)
        written = dense.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=TOKENS,
            **(PLAIN if drawn else {"do_sample": False}),
        )[0]
        first = asked.shape[1] - 1  # the prediction of the first written token
        shares.append(acceptance(dense, draft, written, first, drawn=drawn))
    return shares


@torch.no_grad()
def acceptance(dense: Any, draft: Any, ids: Tensor, first: int, *, drawn: bool) -> float:
    """The mean probability that a guess is taken, over the predictions of a text [L] from `first` on.

    Greedily a guess is taken if it is the dense model's own choice; drawn, with the sum over all tokens of
    the smaller of both probabilities.
    """
    taken = []
    for (rows, p), (_, q) in zip(logits.pieces(dense, ids), logits.pieces(draft, ids), strict=True):
        counts = slice(max(first - rows.start, 0), len(ids) - 1 - rows.start)
        width = min(p.shape[-1], q.shape[-1])  # of one, rows may be left over that no token has
        p, q = p[counts, :width], q[counts, :width].to(p.device)
        alike = torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1) if drawn else p.argmax(-1) == q.argmax(-1)
        taken.append(alike.float())
    return float(torch.cat(taken).mean())
