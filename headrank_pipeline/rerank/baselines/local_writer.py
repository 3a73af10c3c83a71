"""Replies written by a chat model in this process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from headrank_pipeline.attention.recipe import control_pattern
from headrank_pipeline.rerank.baselines.conversation import ChatFormat, Conversation, Message
from headrank_pipeline.rerank.baselines.decoding import Decoding
from headrank_pipeline.rerank.baselines.generation import CausalModel, Generated
from headrank_pipeline.rerank.baselines.replies import Reply

__all__ = ["LocalWriter"]

_THINK, _END_OF_THINK = "<think>", "</think>"


class LocalWriter:
    """Writes replies with a causal language model.

    Args:
        model: loaded.
        thinking: let it think first.
        decoding: greedy or sampled.
        max_new_tokens: limit of a reply, thinking included.

    Raises:
        ValueError: thinking that the chat template cannot switch on, or a limit that leaves no room for a prompt.
    """

    def __init__(self, model: CausalModel, *, thinking: bool, decoding: Decoding, max_new_tokens: int) -> None:
        self._model, self._decoding, self._max_new_tokens = model, decoding, max_new_tokens
        self._chat = ChatFormat(model.tokenizer, model.source.name, thinking=thinking)
        self._budget = model.prompt_budget(max_new_tokens)
        self.controls: re.Pattern[str] | None = control_pattern(model.tokenizer)

    def conversation(self, qid: str, messages: Sequence[Message]) -> Conversation:
        """Return the prompt as token ids."""
        prompt = self._chat.text(messages)
        opening = _THINK if self._chat.opens_thinking(prompt) else ""
        return Conversation(qid, tuple(messages), tuple(self._chat.ids(prompt)), opening)

    def fits(self, conversation: Conversation) -> bool:
        """Whether the prompt is within the budget, with room for the reply."""
        return len(conversation.token_ids) <= self._budget

    def write(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Return the replies, in order."""
        prompts = [conversation.token_ids for conversation in conversations]
        written = self._model.generate(prompts, self._max_new_tokens, self._decoding)
        return [self._reply(*pair) for pair in zip(conversations, written, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return model, chat form and decoding as JSON-ready values."""
        return {
            **self._model.describe(),
            "chat": self._chat.describe(),
            "generation": {"max_new_tokens": self._max_new_tokens, **self._decoding.describe()},
        }

    def origins(self) -> dict[str, str]:
        """Return where the model lies."""
        return self._model.origins()

    def _reply(self, conversation: Conversation, written: Generated) -> Reply:
        return Reply(
            conversation.opening + self._text(written.token_ids),
            prompt_tokens=len(conversation.token_ids),
            generated_tokens=written.count,
            forward_passes=written.count,  # the prefill gives the first token
            cut=written.cut,
        )

    def _text(self, token_ids: Sequence[int]) -> str:
        """Decode without control tokens, except those of thinking, which some tokenizers count among them."""
        special = set(self._model.tokenizer.all_special_ids)
        kept = {self._model.tokenizer.convert_tokens_to_ids(token) for token in (_THINK, _END_OF_THINK)}
        ids = [token for token in token_ids if token not in special or token in kept]
        text: str = self._model.tokenizer.decode(ids, skip_special_tokens=False)
        return text
