"""Faults of an endpoint: odd replies, broken connections, and keys that it echoes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from faults.judging import DOCUMENTED, REFUSED, Fault, NotHeld, set_somewhere
from faults.running import lists, plan
from headrank_pipeline.experiment.runner import execute
from headrank_pipeline.pipeline import Failure
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from headrank_pipeline.trec import read_run, write_candidates

__all__ = ["FAULTS"]

_DOOMED = lists()[2].query
_KEY = "sk-very-secret-0123456789"
_ORDER = "[3] > [1] > [2]"


def _completion(content: Any, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | more
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    reply: Callable[[str], tuple[int, bytes, int]] = staticmethod(lambda asked: (200, b"", 0))

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, body, lost = self.server.reply(asked)  # type: ignore[attr-defined]
        try:
            if lost < 0:
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("x-echo", self.headers.get("Authorization", ""))
            self.end_headers()
            self.wfile.write(body[: len(body) - lost])
        except OSError:
            pass  # whoever asked has given up

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def _serving(reply: Callable[[str], tuple[int, bytes, int]]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.reply = reply  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_ODD: tuple[Any, ...] = (
    None, True, 0, -1.5, 1e308, "", "x", [], ["[1]"], {}, {"x": 1}, [[[]]], "\ud800", "\x00",
    [{"type": "text", "text": "[1]"}],
)  # fmt: skip


def _odd_reply(chance: Random) -> tuple[int, bytes, int]:
    draw = chance.randrange(7)
    good = _completion(_ORDER)
    if draw == 0:
        set_somewhere(chance, good, _ODD, deeper=0.8)
    elif draw == 1:
        return chance.choice((400, 404, 418, 422, 500, 503)), json.dumps({"error": chance.choice(_ODD)}).encode(), 0
    elif draw == 2:
        return (
            200,
            chance.choice((b"", b"<html>", b"null", b"[]", b"\xff\xfe\x00", b"[" * 9999, b"{", b'"x"', b"NaN")),
            0,
        )
    elif draw == 3:
        body = json.dumps(good).encode()
        return 200, body, chance.choice((-1, 1, len(body) // 2, len(body)))
    elif draw == 4:
        good["usage"] = chance.choice(_ODD)
    elif draw == 5:
        good["choices"][0]["finish_reason"] = chance.choice(_ODD)
    else:
        words = (
            "[1]",
            "[99]",
            ">",
            "[-1]",
            "[0]",
            "1 2 3",
            "[" * 50,
            "<think>",
            "</think>",
            "[1] > " * 300,
            "\u202e",
            "９",
        )
        good = _completion(" ".join(chance.choice(words) for _ in range(chance.randrange(1, 6))))
    return 200, json.dumps(good).encode(), 0


@cache
def _undisturbed() -> dict[str, tuple[str, ...]]:
    with _serving(lambda asked: (200, json.dumps(_completion(_ORDER)).encode(), 0)) as url:
        reranked = rankgpt("m", endpoint=url, retries=0).rerank_batch(lists()[:4])
    return {ranking.query.qid: ranking.docids for ranking in reranked}


def endpoint(chance: Random, room: Path) -> str:
    """One query's replies are odd: it fails by name or has an order, and the others have theirs."""
    odd = _odd_reply(chance)

    def reply(asked: str) -> tuple[int, bytes, int]:
        return odd if f"{_DOOMED.text}." in asked else (200, json.dumps(_completion(_ORDER)).encode(), 0)

    with _serving(reply) as url:
        attempts = rankgpt("m", endpoint=url, retries=0, timeout=5).attempt_batch(lists()[:4])
    outcome = DOCUMENTED
    for given, attempt in zip(lists()[:4], attempts, strict=True):
        if isinstance(attempt, Failure):
            if attempt.query != _DOOMED or f"qid {_DOOMED.qid}" not in str(attempt.error):
                raise NotHeld(f"another query failed, or not by name: {attempt.error}")
            outcome = REFUSED
        elif given.query == _DOOMED:
            if sorted(attempt.docids) != sorted(given.docids):
                raise NotHeld("a candidate was lost")
        elif attempt.docids != _undisturbed()[given.query.qid]:
            raise NotHeld(f"qid {given.query.qid} was disturbed")
    return outcome


def secrets(chance: Random, room: Path) -> str:
    """A key that the endpoint echoes, in any place and status, or that is given where it would be written."""
    os.environ["FAULTS_KEY"] = _KEY
    if chance.random() < 0.3:
        return _key_given(chance)
    status = chance.choice((200, 200, 400, 401, 403, 404, 500))
    told = chance.choice(("", "Incorrect API key: ", "[1] > [2] ")) + _KEY + chance.choice(("", " ", '"'))
    body: Any = _completion(told) if status == 200 else {"error": {"message": told, "code": _KEY, _KEY: 1}}
    if status == 200 and chance.random() < 0.4:
        body = chance.choice((told, [told], {"choices": told}, {"choices": [{"message": {"content": [told]}}]}))
    write_candidates(room / "candidates.jsonl", lists()[:3])
    with _serving(lambda asked: (status, json.dumps(body).encode(), 0)) as url:
        reranker = rankgpt("m", endpoint=url, retries=0, api_key_env="FAULTS_KEY")
        told_to_user = ""
        try:
            execute(plan(room, room / "run", reranker))
            read_run(room / "run" / "run.trec")
        except (RuntimeError, ValueError) as error:
            told_to_user = str(error)
    written = [path.read_text() for path in (room / "run").rglob("*") if path.is_file()]
    if any(_KEY in text for text in [*written, told_to_user]):
        raise NotHeld("the key was written")
    return DOCUMENTED


def _key_given(chance: Random) -> str:
    options: dict[str, Any] = {"model": "m", "endpoint": "http://127.0.0.1:9/v1", "api_key_env": "FAULTS_KEY"}
    name = chance.choice(
        ("api_key", "API-KEY", "authorization", "Access_Token", "x-api-key", "client_secret", "password")
    )
    place = chance.randrange(5)
    if place == 0:
        options["request"] = {name: "x"}
    elif place == 1:
        options["request"] = {"extra": [{"headers": {name: _KEY}}]}
    elif place == 2:
        options["endpoint"] = chance.choice((f"http://u:{_KEY}@x/v1", f"http://x/v1?k={_KEY}", f"http://x/{_KEY}/v1"))
    elif place == 3:
        options["request"] = {"user": f"me {_KEY}"}
    else:
        options["api_key_env"] = _KEY
    try:
        rankgpt(options.pop("model"), **options)
    except (ValueError, RuntimeError) as error:
        if _KEY in str(error) or not any(word in str(error) for word in ("api-key-env", "FAULTS_KEY", "api_key_env")):
            raise NotHeld(f"not by name, or with the key: {error}") from error
        return REFUSED
    raise NotHeld(f"a key was taken in place {place}")


FAULTS: dict[str, Fault] = {"endpoint": endpoint, "secrets": secrets}
