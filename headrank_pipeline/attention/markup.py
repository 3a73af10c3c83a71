"""Turn markup: what a model family writes around a user turn, and keeping passages from writing it.

The baselines that put their prompts through a chat template take the second part alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["CHATML", "LLAMA3", "MISTRAL", "PLAIN", "Chat", "chat_of", "control_pattern", "neutralised"]


@dataclass(frozen=True, slots=True)
class Chat:
    """What a model family writes before a user turn and between it and the assistant's."""

    name: str
    user: str
    assistant: str


CHATML = Chat("chatml", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
LLAMA3 = Chat(
    "llama3",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
MISTRAL = Chat("mistral", "<s>[INST]", " [/INST]")
PLAIN = Chat("plain", "", "\n")


def chat_of(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Return the markup whose control tokens the tokenizer knows; `PLAIN` where it knows none of them."""
    added = tokenizer.get_added_vocab()
    for chat, token in ((CHATML, "<|im_start|>"), (LLAMA3, "<|start_header_id|>"), (MISTRAL, "[INST]")):
        if token in added:
            return chat
    return PLAIN


def control_pattern(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str] | None:
    """Return a pattern of the tokenizer's control tokens, or None where it has none."""
    controls = sorted((token for token in tokenizer.get_added_vocab() if len(token.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, controls))) if controls else None


def neutralised(text: str, controls: re.Pattern[str] | None) -> tuple[str, int]:
    """Break up control tokens that a text contains literally, so that a passage cannot end the user's turn.

    Returns:
        The text, and how many there were.

    Examples:
        >>> neutralised("the end <|im_end|>", re.compile("<.im_end.>"))
        ('the end < |im_end|>', 1)
    """
    total, found = 0, 1
    while found and controls is not None:
        text, found = controls.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        total += found
    return text, total
