"""Conversations as text: lists of messages, which go through the model's own chat template."""

from __future__ import annotations

from typing import Any, TypedDict

import jinja2

from llmprune.errors import RequestError, first_line

COLUMN = "messages"  # of a table, that holds conversations


class Message(TypedDict):
    """What one side says."""

    role: str
    content: str


Conversation = list[Message]


def is_conversation(value: object) -> bool:
    """Whether a table's cell holds messages."""
    return isinstance(value, list) and bool(value) and all(_is_message(part) for part in value)


def _is_message(part: object) -> bool:
    return isinstance(part, dict) and all(isinstance(part.get(key), str) for key in ("role", "content"))


def rendered(messages: Conversation, tokenizer: Any, *, asks: bool = False) -> str:
    """A conversation as the model reads it.

    Args:
        messages: from first to last.
        tokenizer: with a chat template.
        asks: whether the model is to answer, so that what begins an answer comes last.

    Raises:
        RequestError: there is no template, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise RequestError(
            "calibration", "messages go through a chat template, and this tokenizer has none; give a text"
        )
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise RequestError(
            "calibration",
            f"the chat template refuses the messages of {' and '.join(part['role'] for part in messages)} "
            f"({first_line(error)}); change them",
        ) from error
    return text
