"""Replies from any server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, a hosted API."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, Field, StrictStr, ValidationError

from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.rerank.baselines.conversation import Conversation, Message
from headrank_pipeline.rerank.baselines.replies import NoReply, Reply

__all__ = ["Connection", "EndpointWriter"]

logger = logging.getLogger(__name__)

_NO_KEY = "none"  # the client insists on a key, servers without keys ignore it

# Names of request fields that hold a secret, whatever their case, dashes and prefix.
_KEY_LIKE = re.compile(
    r"(?:.*_)?(?:api_?key|secret(?:_?key)?|access_?key|private_?key|(?:access|auth|api|bearer|refresh|session)_?token|"
    r"token|authorization|password|passwd|credentials?|bearer)"
)
_REDACTED = "[key]"

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
            want ``{"max_tokens": null, "max_completion_tokens": 4096, "temperature": null}``). Manifests show them, so
            a field whose name says that it holds a key is refused.
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
        if (name := self.api_key_env) is not None and not name.isidentifier():
            raise ValueError(
                "api_key_env: expected the name of an environment variable, got something that is none (not shown, it "
                "may be the key itself): export the key as a variable and give that variable's name"
            )
        for name in _names(self.request):
            if _KEY_LIKE.fullmatch(name.lower().replace("-", "_")):
                raise ValueError(
                    f"request: the field {name!r} looks like a key, which the manifest would show; put the key in an "
                    f"environment variable and name it as api_key_env"
                )

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
                f"api_key_env for a server that wants none"
            )
        return key


def _names(value: Any) -> Iterator[str]:
    """Names of all fields, however deep."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for item in inner:
        yield from _names(item)


class EndpointWriter:
    """Writes replies through a server; its tokenizer, budget and weights are the server's own.

    Args:
        url: up to and including ``/v1``.
        model: the server's name for it.
        connection: how it is asked.
        fields: limits, sampling and thinking, sent with each request.

    Raises:
        MissingPrerequisite: the key's environment variable is not set.
        ValueError: not an http(s) URL, or the key in it, in the model's name or in a field.
    """

    controls: re.Pattern[str] | None = _CONTROLS

    def __init__(self, url: str, model: str, connection: Connection, fields: Mapping[str, Any]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"endpoint {url!r}: expected an http or https URL such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "endpoint: the URL must carry no user, key or query, which the manifest would show; put the key in an "
                "environment variable and name it as api_key_env"
            )
        self.url, self.model, self._connection = url, model, connection
        key = connection.key()
        # What a server echoes must not bring the key into files and logs. A short one is no secret, and anywhere.
        self._secret = key if len(key) >= 8 else None
        for what, shown in {
            "the URL": url,
            "the model's name": model,
            "request": json.dumps(connection.request),
        }.items():
            if self._secret and self._secret in shown:
                raise ValueError(
                    f"endpoint: {what} holds the key of {connection.api_key_env}, which the manifest would show; take "
                    f"it out, it is sent as a header"
                )
        self._fields = {name: value for name, value in {**fields, **connection.request}.items() if value is not None}
        self._client = openai.OpenAI(
            base_url=url, api_key=key, timeout=connection.timeout, max_retries=connection.retries
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
            return _reply(self._clean(answer.text), answer.retries_taken)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise MissingPrerequisite(
                f"{where} refuses the key ({error.status_code}); name its environment variable as api_key_env"
            ) from self._shown(error)
        except (openai.OpenAIError, ValueError) as error:  # a reply that is not what was asked for is a ValueError
            repeated = _repeated(error)
            failure = RuntimeError(self._clean(f"{where} {self._reason(error, repeated)}"))
            failure.__cause__ = self._shown(error)
            return NoReply(failure, repeated)

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, _REDACTED) if self._secret else text

    def _shown(self, error: Exception) -> Exception | None:
        """What tracebacks may show: not an error that repeats the key."""
        return None if self._secret and self._secret in str(error) else error

    def _reason(self, error: Exception, repeated: int) -> str:
        attempts = f"{repeated + 1} attempt{'s' if repeated else ''}"
        if isinstance(error, openai.APITimeoutError):
            return (
                f"gave no answer within {self._connection.timeout:g} s in {attempts}; raise timeout, or ask for less "
                f"with max_new_tokens or window_size"
            )
        if isinstance(error, openai.APIStatusError):
            return (
                f"answered {error.status_code}: {_first_line(error.message)}; a prompt that is too long needs "
                f"passage_words or window_size lowered, a field it does not know request={{…}}"
            )
        if isinstance(error, _OddReply):
            return f"answered {error}; is this its chat completions URL?"
        return (
            f"cannot be used after {attempts}: {_first_line(str(error))}; is the server up, and is this its chat "
            f"completions URL, up to /v1?"
        )


def _repeated(error: Exception) -> int:
    """The client notes in each request how often it was sent before."""
    if isinstance(error, _OddReply):
        return error.repeated
    request = error.request if isinstance(error, openai.APIError) else None
    return 0 if request is None else int(request.headers.get("x-stainless-retry-count", 0))


class _OddReply(ValueError):
    """A reply with status 200 that is no completion."""

    def __init__(self, message: str, repeated: int) -> None:
        super().__init__(message)
        self.repeated = repeated


class _Message(BaseModel):
    content: StrictStr | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None


class _Completion(BaseModel):
    """What is read of a completion. The client itself takes whatever a server sends."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None

    def counted(self, name: str) -> int | None:
        """A count of tokens, where the server gives one."""
        count = self.usage.get(name) if isinstance(self.usage, dict) else None
        return count if type(count) is int and 0 <= count < 2**53 else None


def _reply(text: str, repeated: int) -> Reply:
    """Raises _OddReply for a page of HTML, an error object, or anything else that is no completion."""
    try:
        completion = _Completion.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        message = (
            f"without choices that can be read ({place + ': ' if place else ''}{fault['msg']}): {_first_line(text)}"
        )
        raise _OddReply(message, repeated) from error
    choice = completion.choices[0]
    return Reply(
        choice.message.content or "",
        prompt_tokens=completion.counted("prompt_tokens"),
        generated_tokens=completion.counted("completion_tokens"),
        cut=choice.finish_reason == "length",
        requests_repeated=repeated,
    )


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:200]
