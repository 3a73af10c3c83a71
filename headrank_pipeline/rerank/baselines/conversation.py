"""Conversation and Writer: what is asked, and whoever answers it, a model in this process or a server.

A chat model reads it through its own template, or in a plain form where it has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import TemplateError

from headrank_pipeline.rerank.baselines.replies import NoReply, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "ChatFormat",
    "Conversation",
    "Message",
    "Writer",
]

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One prompt.

    Args:
        qid: the query it belongs to, for messages.
        messages: turns with role and content.
        token_ids: the prompt's tokens; empty where a server tokenises.
        opening: what the chat template has begun of the reply (``<think>``).
    """

    qid: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...] = ()
    opening: str = ""


class Writer(Protocol):
    """Whoever writes replies."""

    controls: re.Pattern[str] | None

    def conversation(self, qid: str, messages: Sequence[Message]) -> Conversation:
        """Return messages made ready."""

    def fits(self, conversation: Conversation) -> bool:
        """Whether the prompt and its reply fit the model."""

    def write(self, conversations: Sequence[Conversation]) -> Sequence[Reply | NoReply]:
        """Return the replies, in order, or why one could not be had while others could."""

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a reply, as JSON-ready values."""

    def origins(self) -> dict[str, str]:
        """Return where what it works with lies, see `pipeline.Reranker.origins`."""


# ------------------------------------------------------------------------ a conversation as the text that a model reads


_PROBE = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})


class ChatFormat:
    """Writes conversations for one model.

    Without a chat template the plain form is used: one paragraph ``role: content`` per turn, and ``assistant:`` last.
    Where the template refuses a system turn (Gemma's does), its words open the first user turn.

    Args:
        tokenizer: whose chat template is used.
        name: the model's, for messages.
        thinking: let the model think before it answers. Off means ``enable_thinking=False`` where the template knows
            the word, and nothing elsewhere.

    Raises:
        ValueError: thinking is asked of a template that cannot switch it on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, name: str, *, thinking: bool) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        self._template: str | None = template if isinstance(template, str) else None
        self.switchable = self._template is not None and "enable_thinking" in self._template
        if thinking and not self.switchable:
            raise ValueError(
                f"thinking: the chat template of {name} knows no enable_thinking, so it cannot be switched on; "
                f"leave the option thinking out, or choose a model that can do both, such as Qwen/Qwen3-4B"
            )
        self.thinking = thinking
        self._takes_system = self._template is None or self._renders(_PROBE)

    def text(self, messages: Sequence[Message]) -> str:
        """Return the prompt, up to where the assistant's answer begins."""
        if self._template is None:
            turns = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
            return f"{turns}\n\nassistant:"
        return self._render(messages if self._takes_system else _without_system(messages))

    def opens_thinking(self, prompt: str) -> bool:
        """Whether the template itself begins the thinking, so that a reply has its end only."""
        return prompt.rstrip().endswith("<think>")

    def ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt; a chat template has written the opening token itself."""
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=self._template is None)
        return ids

    def describe(self) -> dict[str, Any]:
        """Return form, digest of the template and the place of the system's words as JSON-ready values."""
        digest = None if self._template is None else sha256(self._template.encode()).hexdigest()
        return {
            "form": "plain" if self._template is None else "chat template",
            "template_sha256": digest,
            "system_turn": "own" if self._takes_system else "in the first user turn",
            "enable_thinking": self.thinking if self.switchable else None,
        }

    def _renders(self, messages: Sequence[Message]) -> bool:
        try:
            self._render(messages)
        except TemplateError:
            return False
        return True

    def _render(self, messages: Sequence[Message]) -> str:
        switch: dict[str, Any] = {"enable_thinking": self.thinking} if self.switchable else {}
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **switch
        )
        assert isinstance(text, str)
        return text


def _without_system(messages: Sequence[Message]) -> list[Message]:
    if messages[0]["role"] != "system":
        return list(messages)
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]
