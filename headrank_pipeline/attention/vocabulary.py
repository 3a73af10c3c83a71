"""Whether a model has an embedding for every token that its tokenizer may write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrank_pipeline.attention.markup import CHATS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["check_vocabulary"]


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer of another model, before one of its tokens is looked up beyond the embeddings.

    Control tokens beyond them that no prompt contains are common (a padding token that somebody added) and harmless.

    Args:
        name: of the model, for the message.
        model: loaded.
        tokenizer: that lies beside it.

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
