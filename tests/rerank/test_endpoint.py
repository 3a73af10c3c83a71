"""RankGPT through servers: `transformers serve`, and a small real one that answers as it is told. And exit codes."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from traceback import format_exception

import pytest
from chat_models import chat_model, numbered
from click.testing import CliRunner

from headrank_pipeline.cli import main
from headrank_pipeline.pipeline import Failure, MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from headrank_pipeline.trec import read_run, write_candidates

# ------------------------------------------------------------------------------------------------- transformers serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module", autouse=True)
def starting(folder):
    """`transformers serve`, started before the first test of this file; it is ready some seconds later."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield process, f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


@pytest.fixture
def served(starting):
    """The URL of `transformers serve`, once it answers."""
    process, url = starting
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return f"{url}/v1"
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"transformers serve did not start (status {process.poll()})")


# --------------------------------------------------------------------------------------------- a server made of replies


def by_number(asked):
    """The reply of somebody who knows: passages by the number in their text, highest first."""
    numbers = {}
    for turn in asked["messages"]:
        if found := re.match(r"\[(\d+)\] number (\d+)", turn["content"]):
            numbers[int(found[1])] = int(found[2])
    return " > ".join(f"[{rank}]" for rank in sorted(numbers, key=lambda rank: -numbers[rank]))


def completion(text, finish="stop"):
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


class Server(ThreadingHTTPServer):
    """Answers with what `reply(request, attempt)` returns: (status, JSON or text)."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked, self.keys, self.attempts = reply, [], [], Counter()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(asked)
            self.server.keys.append(self.headers["Authorization"])
            key = json.dumps(asked["messages"])
            self.server.attempts[key] += 1
            attempt = self.server.attempts[key]
        status, body = self.server.reply(asked, attempt)
        content = body if isinstance(body, str) else json.dumps(body)
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("retry-after-ms", "10")
            self.end_headers()
            self.wfile.write(content.encode())
        except OSError:
            pass  # whoever asked has given up

    def log_message(self, *_):
        pass


@contextmanager
def serving(reply):
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:  # a thread that serves on would keep a failed test's process from ending
        server.shutdown()
        thread.join()
        server.server_close()


def with_server(server, **options):
    return rankgpt("m", endpoint=server.url, **options)


@pytest.mark.parametrize("length", [1, 2, 9, 20, 21, 37, 97, 120])
def test_good_replies_carry_the_best_to_the_top(length):
    with serving(lambda asked, _: (200, completion(by_number(asked)))) as server:
        reranked = with_server(server).rerank(numbered(length))
    assert sorted(reranked.docids) == sorted(numbered(length).docids)
    assert list(reranked.docids[:10]) == list(numbered(length).docids[::-1][:10])
    assert reranked.notes.get("replies_repaired", 0) == 0
    assert reranked.notes.get("generated_tokens", 0) == 10 * reranked.notes.get("replies", 0)


def test_queries_of_a_batch_keep_their_own_replies():
    with serving(lambda asked, _: (200, completion(by_number(asked)))) as server:
        batch = [numbered(3 + 7 * i, f"q{i}") for i in range(6)]
        together = with_server(server, concurrency=4).rerank_batch(batch)
        assert together == [with_server(server).rerank(ranking) for ranking in batch]


def test_requests_say_what_was_chosen():
    with serving(lambda asked, _: (200, completion(by_number(asked)))) as server:
        with_server(server).rerank(numbered(2))
        plain = server.asked[0]
        options = {"thinking": False, "temperature": 0.5, "seed": 7, "request": {"max_tokens": None, "n": 1}}
        with_server(server, **options).rerank(numbered(2))
        chosen = server.asked[1]
    assert (plain["model"], plain["max_tokens"], plain["temperature"]) == ("m", 136, 0.0)
    assert "chat_template_kwargs" not in plain and "seed" not in plain
    assert chosen["chat_template_kwargs"] == {"enable_thinking": False}
    assert (chosen["temperature"], chosen["seed"], chosen["n"]) == (0.5, 7, 1)
    assert "max_tokens" not in chosen


@pytest.mark.parametrize("text", ["I would rather not.", "", None, "<think>[1] is good, [2] too"])
def test_replies_that_name_nothing_fail_the_query(text):
    with (
        serving(lambda *_: (200, completion(text, "length"))) as server,
        pytest.raises(
            ValueError, match=r"qid q1: none of the 4 replies named a passage \(4 of them ended at the limit"
        ),
    ):
        with_server(server).rerank(numbered(45))


def test_one_window_without_an_identifier_is_counted_and_the_rest_stands():
    def reply(asked, _):
        return 200, completion("sorry" if "number 40 " in json.dumps(asked) else by_number(asked))

    with serving(reply) as server:
        reranked = with_server(server).rerank(numbered(40))
    assert reranked.notes["replies_without_identifier"] == reranked.notes["replies_repaired"] == 1
    assert reranked.notes["replies"] == 3
    assert reranked.docids[0] == "d30"  # from the next window, as far as the silent one left it there


def test_an_error_of_the_server_is_tried_again():
    def reply(asked, attempt):
        return (500, {"error": {"message": "busy"}}) if attempt == 1 else (200, completion(by_number(asked)))

    with serving(reply) as server:
        reranked = with_server(server).rerank(numbered(5))
        assert (reranked.docids[0], reranked.notes["requests_repeated"]) == ("d5", 1)
        assert len(server.asked) == 2


def test_a_query_that_fails_half_way_is_asked_about_no_more_and_its_counts_are_kept():
    """Lists of three windows; the second window of the one query gets no answer."""
    asked_for = Counter()

    def reply(asked, attempt):
        query = asked["messages"][1]["content"].partition("query: ")[2]
        asked_for[query] += attempt == 1
        if query == "doomed." and asked_for[query] == 2:
            return 500, {"error": {"message": "busy"}}
        return 200, completion(by_number(asked))

    lists = [numbered(10, "q1"), numbered(10, "q2", "doomed"), numbered(10, "q3", "other")]
    with serving(reply) as server:
        reranker = with_server(server, window_size=4, stride=3, retries=1)
        first, failure, last = reranker.attempt_batch(lists)
        assert asked_for == {"how do birds fly.": 3, "doomed.": 2, "other.": 3}
        assert (first.docids[0], last.docids[0]) == ("d10", "d10")
        assert isinstance(failure, Failure) and failure.query.qid == "q2"
        assert str(failure.error).startswith(f"qid q2: endpoint {server.url} answered 500")
        assert {name: failure.notes[name] for name in ("replies", "prompt_tokens", "requests_repeated")} == {
            "replies": 1, "prompt_tokens": 100, "requests_repeated": 1,
        }  # fmt: skip
        with pytest.raises(RuntimeError, match="qid q2"):
            reranker.rerank_batch(lists[1:])


def test_a_candidate_without_text_fails_its_query_alone():
    blank = Ranking(Query("q2", "fleas"), (Candidate("d1", 2.0), Candidate("d2", 1.0, "a flea")))
    with serving(lambda asked, _: (200, completion(by_number(asked)))) as server:
        first, failure = with_server(server).attempt_batch([numbered(3, "q1"), blank])
        assert (first.docids[0], len(server.asked)) == ("d3", 1)
    assert "qid q2 docid d1: the passage has no text" in str(failure.error)


def test_errors_that_stay_name_the_query_after_the_last_attempt():
    with serving(lambda *_: (500, {"error": {"message": "out of memory"}})) as server:
        with pytest.raises(RuntimeError, match=r"qid q1: endpoint .* answered 500: .*out of memory"):
            with_server(server, retries=1).rerank(numbered(5))
        assert len(server.asked) == 2


def test_a_timeout_names_the_query():
    def slow(asked, _):
        time.sleep(0.6)
        return 200, completion(by_number(asked))

    with (
        serving(slow) as server,
        pytest.raises(RuntimeError, match=r"qid q1: endpoint .* gave no answer within 0.1 s in 1 attempt; raise tim"),
    ):
        with_server(server, timeout=0.1, retries=0).rerank(numbered(5))


def test_nobody_listening_names_the_query():
    with pytest.raises(RuntimeError, match=r"qid q1: endpoint .* cannot be used after 1 attempt:"):
        rankgpt("m", endpoint="http://127.0.0.1:9/v1", retries=0).rerank(numbered(5))


@pytest.mark.parametrize(
    "body",
    [
        "<html>welcome</html>", {"error": "no such path"}, {"choices": []}, {"choices": [1]}, {"choices": "[1]"}, [],
        {"choices": {"0": {}}}, {"choices": [{"message": None}]}, {"choices": [{"message": "[1] > [2]"}]}, "", "3",
        "[" * 10000,
        {"choices": [{"message": {"content": ["[1]"]}}]}, {"choices": [{"message": {"content": 12}}]}, "\x00", "null",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_completion_fails_its_query_alone(body):
    def reply(asked, _):
        return 200, body if "doomed" in json.dumps(asked) else completion(by_number(asked))

    with serving(reply) as server:
        first, failure = with_server(server, retries=0).attempt_batch([numbered(5, "q1"), numbered(5, "q2", "doomed")])
    assert first.docids[0] == "d5"
    assert re.search(r"qid q2: .*without choices that can be read", str(failure.error))


@pytest.mark.parametrize(
    "usage", [None, "many", {"prompt_tokens": "7", "completion_tokens": None}, {"prompt_tokens": 1e9}, []]
)
def test_counts_that_are_no_counts_are_left_out(usage):
    with serving(lambda asked, _: (200, {**completion(by_number(asked)), "usage": usage})) as server:
        reranked = with_server(server).rerank(numbered(5))
    assert reranked.docids[0] == "d5"
    assert "prompt_tokens" not in reranked.notes


KEY = "sk-a-very-secret-key"


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_a_server_echoes_is_written_nowhere(monkeypatch, candidates, status):
    monkeypatch.setenv("MY_KEY", KEY)
    body = completion(f"as you said, {KEY}") if status == 200 else {"error": {"message": f"wrong: {KEY}", "key": KEY}}
    with serving(lambda *_: (status, body)) as server:
        flags = ["--system", "rankgpt", "--model", "m", *options(endpoint=server.url, api_key_env="MY_KEY")]
        done = rerank(candidates, *flags, "--option", "retries=0")
        assert server.keys[0] == f"Bearer {KEY}"
        debugged = CliRunner().invoke(main, ["--debug", *map(str, ["rerank", "--candidates", candidates, "--output",
            candidates.with_name("run"), *flags])])  # fmt: skip
    assert done.exit_code != 0
    traceback = "".join(format_exception(debugged.exception))
    written = [path.read_text() for path in candidates.with_name("run").iterdir() if path.is_file()]
    assert not any(KEY in text for text in [done.output, debugged.output, traceback, *written])
    assert status == 401 or any("[key]" in text for text in [done.output, *written])


@pytest.mark.parametrize(
    "request_fields",
    [{"api_key": "x"}, {"API-Key": "x"}, {"extra": {"headers": [{"Authorization": "x"}]}}, {"openai_api_key": "x"},
     {"access_token": "x"}, {"x-api-key": "x"}, {"password": "x"}, {"client_secret": "x"}],
)  # fmt: skip
def test_a_field_that_looks_like_a_key_is_refused_with_the_way(request_fields):
    with pytest.raises(ValueError, match=r"looks like a key, .* environment variable and name it as api_key_env"):
        rankgpt("m", endpoint="http://127.0.0.1:9/v1", request=request_fields)


def test_fields_that_only_sound_like_keys_are_taken():
    fields = {"max_tokens": 5, "max_completion_tokens": 5, "stop_token_ids": [1], "prompt_cache_key": "a", "top_k": 3}
    assert (
        rankgpt("m", endpoint="http://127.0.0.1:9/v1", request=fields).describe()["request"].items() >= fields.items()
    )


@pytest.mark.parametrize("where", ["url", "model", "request"])
def test_the_key_itself_in_a_place_that_is_written_is_refused(monkeypatch, where):
    monkeypatch.setenv("MY_KEY", KEY)
    given = {"url": "http://localhost/v1", "model": "m"} | (
        {where: f"http://localhost/{KEY}/v1"} if where != "request" else {}
    )
    fields = {"user": f"me {KEY}"} if where == "request" else {}
    with pytest.raises(ValueError, match=r"holds the key of MY_KEY") as caught:
        rankgpt(given["model"], endpoint=given["url"], api_key_env="MY_KEY", request=fields)
    assert KEY not in str(caught.value)


def test_a_key_given_for_the_name_of_its_variable_is_not_shown():
    with pytest.raises(ValueError, match="expected the name of an environment variable") as caught:
        rankgpt("m", endpoint="http://localhost/v1", api_key_env=KEY)
    assert KEY not in str(caught.value)


def test_a_refused_key_is_a_missing_prerequisite():
    with (
        serving(lambda *_: (401, {"error": {"message": "who are you"}})) as server,
        pytest.raises(MissingPrerequisite, match=r"refuses the key \(401\); name its environment variable"),
    ):
        with_server(server).rerank(numbered(5))


def test_the_key_comes_from_the_named_variable_and_from_nowhere_else(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-another-service")
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(lambda asked, _: (200, completion(by_number(asked)))) as server:
        with_server(server).rerank(numbered(2))
        keyed = with_server(server, api_key_env="MY_KEY")
        keyed.rerank(numbered(2))
        assert server.keys == ["Bearer none", "Bearer secret"]
        assert "secret" not in json.dumps(keyed.describe())
    with pytest.raises(MissingPrerequisite, match="environment variable NO_SUCH_KEY is not set"):
        rankgpt("m", endpoint="http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        ("localhost:8000", {}, "expected an http or https URL"),
        ("http://me:key@localhost/v1", {}, "must carry no user, key or query"),
        ("http://localhost/v1?key=1", {}, "must carry no user, key or query"),
        ("http://localhost/v1", {"timeout": 0}, "timeout 0.0: expected more than 0 seconds"),
        ("http://localhost/v1", {"batch_tokens": 5}, "rankgpt with an endpoint has no option 'batch_tokens'"),
    ],
)
def test_wrong_endpoints_are_refused(endpoint, options, message):
    with pytest.raises(ValueError, match=message):
        rankgpt("m", endpoint=endpoint, **options)


def test_what_looks_like_markup_is_broken_up():
    given = Ranking(Query("q1", "fleas </s>"), (Candidate("d1", 2.0, "a <|im_end|> b"), Candidate("d2", 1.0, "[INST]")))
    with serving(lambda asked, _: (200, completion("[1] > [2]"))) as server:
        assert with_server(server).rerank(given).notes["control_tokens_neutralised"] == 3
        assert server.asked[0]["messages"][3]["content"] == "[1] a < |im_end|> b"


def test_asking_a_server_needs_no_torch(fresh_python):
    done = fresh_python("""
        import sys
        import headrank_pipeline.rerank.baselines.rankgpt
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(autouse=True)
def process_logging():
    """The command line sets up logging for the process; other tests must not feel it."""
    package = logging.getLogger("headrank_pipeline")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers, package.level, package.propagate = handlers, level, True


@pytest.fixture
def candidates(tmp_path):
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, [numbered(12, "q1"), numbered(12, "q2", "the impossible"), numbered(12, "q3")])
    return path


def options(**values):
    return [part for name, value in values.items() for part in ("--option", f"{name}={value}")]


def rerank(candidates, *arguments):
    fixed = ["rerank", "--candidates", candidates, "--output", candidates.with_name("run"), "--json"]
    return CliRunner().invoke(main, [str(argument) for argument in [*fixed, *arguments]])


def test_a_query_that_no_reply_helps_ends_with_status_7_and_stays_out_of_the_run(candidates):
    def reply(asked, _):
        return 200, completion("no idea" if "impossible" in json.dumps(asked) else by_number(asked))

    with serving(reply) as server:
        done = rerank(candidates, "--system", "rankgpt", "--model", "m", *options(endpoint=server.url))
    assert done.exit_code == 7, done.output
    found = read_run(candidates.with_name("run") / "run.trec")
    assert sorted(found) == ["q1", "q3"]
    assert [candidate.docid for candidate in found["q1"]][:3] == ["d12", "d11", "d10"]
    totals = json.loads((candidates.with_name("run") / "manifest.json").read_text())["totals"]
    assert "none of the 1 replies named a passage" in totals["failed"]["q2"]
    assert (totals["notes"]["replies"], totals["notes"]["replies_repaired"]) == (3, 1)
    assert totals["notes"]["prompt_tokens"] == 300
    assert len(server.asked) == 3  # nothing that was paid for is asked again


def test_a_timeout_of_one_query_ends_with_status_7(candidates):
    def reply(asked, _):
        time.sleep(2.5 if "impossible" in json.dumps(asked) else 0)
        return 200, completion(by_number(asked))

    with serving(reply) as server:
        flags = [*options(timeout=1.5, retries=0), "--batch-size", "1"]
        done = rerank(candidates, "--system", "rankgpt", "--model", "m", *options(endpoint=server.url), *flags)
    assert done.exit_code == 7, done.output
    assert sorted(read_run(candidates.with_name("run") / "run.trec")) == ["q1", "q3"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--system", "rankgpt", "--heads", "all"], 5, "rankgpt reads no attention heads; leave heads out"),
        (["--system", "headrank", "--heads", "all", *options(window_size=5)], 5, "has no option 'window_size'"),
        (["--system", "rankgpt", *options(stride=20)], 5, "stride 20: expected less than the window_size 20"),
        (["--system", "qwen3-reranker", *options(thinking="false")], 5, "qwen3-reranker has no option 'thinking'"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(candidates, arguments, code, message):
    done = rerank(candidates, "--model", "m", *arguments)
    assert (done.exit_code, message in done.output) == (code, True), done.output


@pytest.mark.parametrize(
    ("system", "flags"),
    [
        ("rankgpt", options(window_size=8, stride=4, max_new_tokens=8, thinking="false")),
        ("first-token", options(window_size=8, stride=4, passage_words=2)),
        ("qwen3-reranker", options(max_prompt_tokens=400)),
    ],
)
def test_every_baseline_runs_without_heads(candidates, folder, system, flags):
    done = rerank(candidates, "--system", system, "--model", folder, "--device", "cpu", *flags)
    assert done.exit_code == 0, done.output
    assert sorted(read_run(candidates.with_name("run") / "run.trec")) == ["q1", "q2", "q3"]


# Last: the server has had the other tests' time to start.


def test_transformers_serve_gives_the_order_of_the_same_model_in_this_process(folder, served):
    options = {"window_size": 8, "stride": 4, "max_new_tokens": 8, "thinking": False}
    batch = [numbered(13, "q1"), numbered(5, "q2")]
    here = rankgpt(folder, device="cpu", **options).rerank_batch(batch)
    there = rankgpt(str(folder), endpoint=served, concurrency=1, timeout=60, retries=0, **options).rerank_batch(batch)
    assert [ranking.docids for ranking in there] == [ranking.docids for ranking in here]
    assert there[0].docids != batch[0].docids
    for name in ("prompt_tokens", "generated_tokens", "replies_repaired", "identifiers_missing"):
        assert [ranking.notes[name] for ranking in there] == [ranking.notes[name] for ranking in here]
