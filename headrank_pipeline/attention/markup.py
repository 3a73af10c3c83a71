"""Turn markup: what a model family writes around a user turn, and keeping passages from writing it.

The baselines that put their prompts through a chat template take the second part alone. Markup that a model has no
embedding for is refused here, too (`check_vocabulary`).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "CHATML",
    "CHATS",
    "GRANITE",
    "LLAMA3",
    "MISTRAL",
    "PHI",
    "PLAIN",
    "Chat",
    "begun",
    "chat_of",
    "check_vocabulary",
    "control_pattern",
    "control_tokens",
    "neutralised",
]

logger = logging.getLogger(__name__)


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
PHI = Chat("phi", "<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>")
GRANITE = Chat(
    "granite",
    "<|start_of_role|>user<|end_of_role|>",
    "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
)
PLAIN = Chat("plain", "", "\n")

CHATS = {chat.name: chat for chat in (CHATML, GRANITE, LLAMA3, MISTRAL, PHI, PLAIN)}

# The control token that tells a family; Phi-4 knows ChatML's as well, so its own comes first.
_TELLING = {
    "<|im_sep|>": PHI,
    "<|im_start|>": CHATML,
    "<|start_header_id|>": LLAMA3,
    "<|start_of_role|>": GRANITE,
    "[INST]": MISTRAL,
}
# Some families do not mark theirs as special: Qwen3 <think>, others <unused0> or [TOOL].
_LIKE_MARKUP = re.compile(r"<\S+>|\[\S+\]")
_ORDINARY = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def chat_of(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Return the markup of the tokenizer's family; `PLAIN`, with a warning, where it has one that is not known here.

    A tokenizer without a chat template and without control tokens beside begin, end and padding has no turn markup:
    `PLAIN` is right, and nothing is said.
    """
    added = tokenizer.get_added_vocab()
    for token, chat in _TELLING.items():
        if token in added:
            return chat
    template = str(tokenizer.chat_template or "")
    if "<s>" in added and "[INST]" in template:  # Mistral-7B-Instruct up to v0.2 spells [INST] in ordinary tokens
        return MISTRAL
    ordinary = {getattr(tokenizer, name) for name in _ORDINARY}
    controls = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    strange = [token for token in controls if token not in ordinary]
    if strange or template:
        logger.warning(
            "prompts are written without turn markup (chat 'plain'): the tokenizer's (%s) is of no known family, so "
            "scores may be worse than the model's best; set the option chat: %s (which says that this is right)",
            ", ".join(strange[:4]) or "its chat template",
            ", ".join(CHATS).replace(", plain", ", or plain"),
        )
    return PLAIN


def begun(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Return plain markup with the token that begins a text, where the tokenizer puts one there itself.

    Base models of Llama 2, Mistral and Gemma have never seen a text without it. Turn markup names its own.
    """
    begin = tokenizer.bos_token_id
    if chat.name != PLAIN.name or begin is None or tokenizer("a")["input_ids"][0] != begin:
        return chat
    return replace(chat, user=f"{tokenizer.bos_token}{chat.user}")


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """Return the tokens that steer a model: special ones, and added ones that look like markup.

    Other added tokens (``COVID-19``) are words. Tokens of a single character are none: they occur in any text.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    added = tokenizer.get_added_vocab()
    return {
        token
        for token in added
        if len(token.strip()) > 1 and (token in special or _LIKE_MARKUP.fullmatch(token.strip()))
    }


def control_pattern(tokenizer: PreTrainedTokenizerFast, *spelled: str) -> re.Pattern[str] | None:
    """Return a pattern of the tokenizer's control tokens, or None where it has none.

    Args:
        tokenizer: any.
        spelled: control words that it spells in ordinary tokens.
    """
    found = control_tokens(tokenizer) | set(spelled)
    controls = sorted(found, key=len, reverse=True)
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
        text, found = controls.subn(_broken_up, text)
        total += found
    return text, total


def _broken_up(match: re.Match[str]) -> str:
    """Return a control token with a space inside it: before one at its beginning, it would still be that token."""
    inside = len(match[0]) - len(match[0].lstrip()) + 1
    return f"{match[0][:inside]} {match[0][inside:]}"


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer of another model, before one of its tokens is looked up beyond the embeddings.

    Control tokens beyond them that no prompt contains are common (a padding token that somebody added) and harmless.

    Args:
        name: name of the model, for the message.
        model: loaded.
        tokenizer: the tokenizer that lies beside it.

    Raises:
        ValueError: tokens that prompts may contain have no embedding.
    """
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]  # of every decoder's
    beyond = {token: place for token, place in tokenizer.get_vocab().items() if place >= rows}
    markup = "".join(chat.user + chat.assistant for chat in CHATS.values()) + str(tokenizer.bos_token)
    silent = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if written := sorted(token for token in beyond if token not in silent or token in markup):
        raise ValueError(
            f"model {name}: its tokenizer has tokens up to number {max(beyond.values())}, but the model has embeddings "
            f"for {rows}, none for {', '.join(map(repr, written[:3]))}; copy the tokenizer that belongs to these "
            f"weights (tokenizer.json, tokenizer_config.json)"
        )
