"""Several models under one protocol: perplexity, scores of tasks, and what the pruned ones retain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from llmprune.errors import RequestError
from llmprune.measured import divergence_in_words
from llmprune.vocabulary.shared import Shared, shared
from llmprune_eval import agreement, comparison, draft, models, perplexity, served, talk, tasks
from llmprune_eval.engine import Engine
from llmprune_eval.models import Named
from llmprune_eval.served import Endpoint, Served
from llmprune_eval.tasks import Ask
from llmprune_eval.windows import Protocol, settled, windows_of

LEAST = 1e-3  # nats, below which a divergence is rounding
FADES = 1.5  # times the divergence of a window's first quarter, in its last, that are told


def evaluate(
    names: Mapping[str, str | Served],
    texts: list[str],
    protocol: Protocol,
    asked: Ask | None = None,
    where: dict[str, Any] | None = None,
    prompts: int | None = None,
) -> dict[str, Any]:
    """Measure models one after another; the baseline stays in memory beside each of the others.

    Args:
        names: of the models, by the role they play; one that is called `baseline` is what the others are
            compared with.
        texts: to measure perplexity on.
        protocol: how, the same for all of them.
        asked: which tasks are scored.
        where: arguments of `llmprune.load`.
        prompts: of suite `talk`, where it is asked.

    Returns:
        By role: `name`, `perplexity`, `tasks`, `talk`; beside a baseline also `agreement`,
        `drift` and `comparison`.

    Raises:
        RequestError: a model or a text is not there, or they do not go together; nothing was measured.
    """
    named = _found(names, texts, asked, where or {})
    protocol = _checked(list(named.values()), texts, protocol)
    for one in named.values() if prompts else ():
        tasks.require_template(one.tokenizer, one.name, "suite")
    length = max(protocol.length or 0, talk.CONTEXT if prompts else 0)
    results: dict[str, Any] = {}
    dense = None
    for role in sorted(names, key=lambda role: role != "baseline"):
        tokenizer = named[role].tokenizer
        model = named[role].opened(length, where or {})
        figures = [perplexity.measure(model, tokenizer, text, protocol).to_dict() for text in texts]
        found: dict[str, Any] = {"name": str(names[role]), "perplexity": figures}
        if asked is not None:
            scorer = served.scorer() if isinstance(model, Endpoint) else None
            found |= tasks.score(model, tokenizer, asked, scorer)
        if isinstance(model, Endpoint):
            found["served"] = model.where
        if prompts:
            found["talk"] = talk.measure(model, tokenizer, prompts)
        if role == "baseline":
            dense = model
        elif dense is not None:
            tokenizers = named["baseline"].tokenizer, tokenizer
            found |= _beside(results["baseline"], found, (dense, model), tokenizers, texts, protocol)
        results[role] = found
        del model
    return {role: results[role] for role in names}


def _found(
    names: Mapping[str, str | Served], texts: list[str], asked: Ask | None, where: dict[str, Any]
) -> dict[str, Named]:
    """The models, each where it can do what is asked of it."""
    if texts and any(isinstance(name, Served) for name in names.values()):
        raise RequestError(
            "perplexity", "it reads logits, which no server tells; leave out --perplexity, or --served"
        )
    if asked is None:  # else transformers runs them all
        models.require_device(names.values(), where)
    trust, scored = bool(where.get("trust_remote_code")), asked is not None
    named = {role: models.find(name, trust=trust, scored=scored) for role, name in names.items()}
    for one in named.values() if asked is not None and asked.chat else ():
        tasks.require_template(one.tokenizer, one.name, "chat")
    return named


def _beside(
    before: dict[str, Any],
    found: dict[str, Any],
    both: tuple[Any, Any],
    tokenizers: tuple[Any, Any],
    texts: list[str],
    protocol: Protocol,
) -> dict[str, Any]:
    """A model beside the dense one: their predictions where they read the same tokens, and their figures.

    Args:
        before: what was measured of the dense model.
        found: of the other.
        both: the dense model, and the other.
        tokenizers: the same.
        texts: what they read.
        protocol: how.
    """
    compared: dict[str, Any] = {"comparison": comparison.of(before, found)}
    if "talk" in found:
        compared["comparison"]["talk"] = talk.compare(before["talk"], found["talk"])
    common = _common(before, found, tokenizers) if texts else None
    if common is None:
        return compared
    protocol = replace(protocol, tokenizers=())
    read = [agreement.measure(both, tokenizers[0], text, protocol, common) for text in texts]
    compared["agreement"] = [asdict(one) for one in read if one is not None]
    if not (common.cut or any(isinstance(model, Engine) for model in both)):
        moved = agreement.drift(*both, tokenizers[0], texts[0], protocol)
        compared |= {"drift": moved} if moved else {}
    return compared


def _checked(each: list[Named], texts: list[str], protocol: Protocol) -> Protocol:
    """One protocol for all of the models, after a look at the first window of every text."""
    tokenizers = {perplexity.stamp(one.tokenizer).partition(", ")[2]: one.tokenizer for one in each}
    if not texts:
        return protocol
    configs = [one.config for one in each]
    if len(tokenizers) > 1:  # one stride for all, so that their windows cover the same characters
        protocol = replace(protocol, tokenizers=tuple(tokenizers.values()))
    protocol = replace(protocol, length=settled(protocol, each[0].tokenizer, *configs).length)
    for text, tokenizer in product(texts, tokenizers.values()):
        next(windows_of(tokenizer, text, settled(protocol, tokenizer, *configs)), None)
    return protocol


def _common(dense: dict[str, Any], pruned: dict[str, Any], tokenizers: tuple[Any, Any]) -> Shared | None:
    """The tokens of both models, where they are the same or the vocabulary was cut; None of other models."""
    pairs = list(zip(dense["perplexity"], pruned["perplexity"], strict=True))
    if any(before["bos"] != after["bos"] for before, after in pairs):
        return None
    if all(perplexity.same_tokens(before["tokenizer"], after["tokenizer"]) for before, after in pairs):
        return Shared()
    theirs, ours = (one.get_vocab() for one in tokenizers)
    return shared(ours, theirs) if ours.keys() < theirs.keys() else None


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """One model's figures as a table."""
    table = []
    for text in found["perplexity"]:
        figure = f"{text['perplexity']:.3f}, {text['bits_per_byte']:.4f} bits per byte"
        table.append((f"  perplexity on {text['dataset']}", f"{figure}   ({text['protocol']})"))
    for name, values in found.get("tasks", {}).items():
        if values["metric"]:
            error = values.get(f"{values['metric']}_stderr")
            spread = "" if error is None else f" +- {error:.4f}"
            chat = " as a chat" if "chat" in values else ""
            chat += f", {found['served']}" if "served" in found else ""
            table.append((f"  {name}", f"{values['metric']} {values[values['metric']]:.4f}{spread}{chat}"))
    for both in found.get("agreement", []):
        figure, how = divergence_in_words(both)
        said = f"KL {figure} nats, {how}"
        first, *_, last = both["by_quarter"] or (0.0, 0.0)
        if last > max(FADES * first, LEAST):
            said += f"; in a window it grows from {first:.4f} (first quarter) to {last:.4f} (last)"
        table.append((f"  agreement on {both['dataset']}", said))
    if "draft" in found:
        table += draft.rows(found["draft"])
    if "talk" in found:
        table += talk.rows(found["talk"], found.get("comparison", {}).get("talk"))
    if "comparison" in found:
        table += [(f"  {key} vs dense", value) for key, value in comparison.rows(found["comparison"])]
    return table
