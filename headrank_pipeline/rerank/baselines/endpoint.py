"""Replies from any server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, a hosted API."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.rerank.baselines.conversation import Conversation, Message
from headrank_pipeline.rerank.baselines.replies import NoReply, Reply

__all__ = ["Connection", "EndpointWriter"]

logger = logging.getLogger(__name__)

_NO_KEY = "none"  # the client insists on a key, servers without keys ignore it

# The server's tokenizer is not known here, so whatever looks like a control token of a common family is broken up.
_CONTROLS = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<[be]os>|\[/?INST\]|</?think>|<(?:start|end)_of_turn>|</?tool_(?:call|response)>"
)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a server is asked.

    Args:
        api_key_env: environment variable that holds the key; None sends none.
        timeout: seconds until an attempt is given up.
        retries: further attempts after a timeout, a lost connection, 408, 409, 429 or 5xx, with growing pauses.
        concurrency: requests under way at once.
        request: further fields of each request; null takes a field out (some hosted models refuse ``max_tokens`` and
            want ``{"max_tokens": null, "max_completion_tokens": 4096, "temperature": null}``).
    """

    api_key_env: str | None = None
    timeout: float = 120.0
    retries: int = 3
    concurrency: int = 8
    request: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"timeout {self.timeout}: expected more than 0 seconds")
        if self.retries < 0:
            raise ValueError(f"retries {self.retries}: expected 0 or more")
        if self.concurrency < 1:
            raise ValueError(f"concurrency {self.concurrency}: expected at least 1")

    def key(self) -> str:
        """Return the key, or a stand-in where none is wanted.

        Raises:
            MissingPrerequisite: the environment variable is not set.
        """
        if self.api_key_env is None:
            return _NO_KEY
        if not (key := os.environ.get(self.api_key_env)):
            raise MissingPrerequisite(
                f"environment variable {self.api_key_env} is not set: export it with the endpoint's key, or leave out "
                f"--api-key-env for a server that wants none"
            )
        return key


class EndpointWriter:
    """Writes replies through a server; its tokenizer, budget and weights are the server's own.

    Args:
        url: up to and including ``/v1``.
        model: as the server calls it.
        connection: how it is asked.
        fields: of each request: limits, sampling, thinking.

    Raises:
        MissingPrerequisite: the key's environment variable is not set.
        ValueError: not an http(s) URL, or one with a key in it.
    """

    controls: re.Pattern[str] | None = _CONTROLS

    def __init__(self, url: str, model: str, connection: Connection, fields: Mapping[str, Any]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"endpoint {url!r}: expected an http or https URL such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "endpoint: the URL must carry no user, key or query, which the manifest would show; put the key in an "
                "environment variable and name it with --api-key-env"
            )
        self.url, self.model, self._connection = url, model, connection
        self._fields = {name: value for name, value in {**fields, **connection.request}.items() if value is not None}
        self._client = openai.OpenAI(
            base_url=url, api_key=connection.key(), timeout=connection.timeout, max_retries=connection.retries
        )

    def conversation(self, qid: str, messages: Sequence[Message]) -> Conversation:
        """Return the messages as they are sent."""
        return Conversation(qid, tuple(messages))

    def fits(self, conversation: Conversation) -> bool:
        """Nothing is known of the server's budget; it refuses what is too long, which names the query."""
        return True

    def write(self, conversations: Sequence[Conversation]) -> list[Reply | NoReply]:
        """Return the replies, in order, or why there is none after all attempts; several requests run at once.

        Raises:
            MissingPrerequisite: the server refuses the key.
        """
        with ThreadPoolExecutor(self._connection.concurrency) as pool:
            return list(pool.map(self._ask, conversations))

    def describe(self) -> dict[str, Any]:
        """Return URL, model and every field of a request as JSON-ready values; no key."""
        return {"endpoint": self.url, "model": self.model, "request": dict(self._fields)}

    def origins(self) -> dict[str, str]:
        """Return nothing: where the server has its model from is not known here."""
        return {}

    def _ask(self, conversation: Conversation) -> Reply | NoReply:
        where = f"qid {conversation.qid}: endpoint {self.url}"
        try:
            answer = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[dict(message) for message in conversation.messages],  # type: ignore[misc]
                extra_body=self._fields,
            )
            return _reply(answer.parse(), answer.retries_taken, where)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise MissingPrerequisite(
                f"{where} refuses the key ({error.status_code}); name its environment variable with --api-key-env"
            ) from error
        except (openai.OpenAIError, ValueError) as error:  # a reply that is not JSON is a ValueError
            repeated = _repeated(error)
            failure = RuntimeError(f"{where} {self._told(error, repeated)}")
            failure.__cause__ = error
            return NoReply(failure, repeated)

    def _told(self, error: Exception, repeated: int) -> str:
        attempts = f"{repeated + 1} attempt{'s' if repeated else ''}"
        if isinstance(error, openai.APITimeoutError):
            return (
                f"gave no answer within {self._connection.timeout:g} s in {attempts}; raise --timeout, or ask for less "
                f"with --max-new-tokens or --window-size"
            )
        if isinstance(error, openai.APIStatusError):
            return (
                f"answered {error.status_code}: {_first_line(error.message)}; a prompt that is too long needs "
                f"--passage-words or --window-size lowered, a field it does not know --option request={{…}}"
            )
        return (
            f"cannot be used after {attempts}: {_first_line(str(error))}; is the server up, and is this its chat "
            f"completions URL, up to /v1?"
        )


def _repeated(error: Exception) -> int:
    """The client notes in each request how often it was sent before."""
    request = error.request if isinstance(error, openai.APIError) else None
    return 0 if request is None else int(request.headers.get("x-stainless-retry-count", 0))


def _reply(completion: object, repeated: int, where: str) -> Reply | NoReply:
    """The client takes whatever a server sends: a page of HTML is a string, an error object has no choices."""
    choices = completion.choices if isinstance(completion, ChatCompletion) else None
    if not choices or choices[0].message is None:
        told = f"{where} answered without choices ({_first_line(str(completion))}); is this its chat completions URL?"
        return NoReply(RuntimeError(told), repeated)
    assert isinstance(completion, ChatCompletion)
    usage = completion.usage
    return Reply(
        choices[0].message.content or "",
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        generated_tokens=None if usage is None else usage.completion_tokens,
        cut=choices[0].finish_reason == "length",
        requests_repeated=repeated,
    )


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:200]
