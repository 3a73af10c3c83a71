"""Conversation and Writer: what is asked, and whoever answers it, a model in this process or a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headrank_pipeline.rerank.baselines.replies import NoReply, Reply

__all__ = ["Conversation", "Message", "Writer"]

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
