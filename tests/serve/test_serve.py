"""headrank serve: a real server with the embedded model, asked by real clients; and small rerankers that go wrong."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import dedent

import pytest
from click.testing import CliRunner
from memory import gives_back, held, without_holes

from headrank_pipeline.cli import main
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.calibrated import Calibration, calibrated, reading_of
from headrank_pipeline.rerank.systems import headrank, open_system

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from headrank_pipeline.serve.app import create_app  # noqa: E402
from headrank_pipeline.serve.batcher import Batcher, Limits  # noqa: E402
from headrank_pipeline.serve.server import KEY_VARIABLE, bound_socket  # noqa: E402
from headrank_pipeline.serve.shapes import Document, as_ranking  # noqa: E402

KEY = "s3cret"
QUERY = "how long does a flea live"
TEXTS = ["Birds fly.", "A flea can live up to a year.", "Dogs sleep.", "Birds fly."]


# ---------------------------------------------------------------------------------------------- the embedded model


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server; give its process and its URL, which it logs."""
    started = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.PIPE, text=True
    )
    assert started.stderr is not None
    try:
        for line in started.stderr:
            if found := re.search(r"http://[\d.:]+", line):
                yield started, found[0]
                return
        pytest.fail(f"the server ended with {started.wait()}")
    finally:
        started.kill()
        started.communicate()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "headrank_pipeline", "serve", "--model", "embedded", "--port", "0"]
    with process(command, HEADRANK_API_KEY=KEY) as (_, where):
        yield where


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return open_system("headrank", "embedded")


def expected(reranker: Reranker, texts: list[str]) -> list[tuple[int, float]]:
    candidates = tuple(Candidate(str(index), 0.0, text) for index, text in enumerate(texts))
    ranking = reranker.rerank(Ranking(Query("q", QUERY), candidates))
    return [(int(candidate.docid), pytest.approx(candidate.score, rel=1e-5)) for candidate in ranking.candidates]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_cohere_and_jina_get_what_the_python_reranker_gives(client, reranker, path):
    documents = [*TEXTS[:2], {"text": TEXTS[2], "url": "x"}, TEXTS[3]]
    reply = client.post(path, json={"query": QUERY, "documents": documents, "return_documents": True}).json()
    assert [(r["index"], r["relevance_score"]) for r in reply["results"]] == expected(reranker, TEXTS)
    assert [r["document"] for r in reply["results"]] == [{"text": TEXTS[r["index"]]} for r in reply["results"]]
    assert reply["model"] == "embedded"
    assert reply["usage"]["total_tokens"] == reply["meta"]["tokens"]["input_tokens"] > 20
    assert reply["meta"]["api_version"] == {"version": path[2]}


def test_top_n_is_cut_from_the_whole_order(client, reranker):
    request = {"query": QUERY, "documents": TEXTS, "top_n": 2, "model": "embedded", "return_documents": None}
    results = client.post("/v1/rerank", json=request).json()["results"]
    assert [(r["index"], r["relevance_score"]) for r in results] == expected(reranker, TEXTS)[:2]
    assert "document" not in results[0]


def test_documents_that_were_cut_are_told(client):
    def cut() -> int:
        [line] = [
            line for line in client.get("/metrics").text.splitlines() if line.startswith("headrank_documents_cut")
        ]
        return int(line.split()[1])

    before = cut()
    documents = ["flea " * 50_000, "cat"]
    meta = client.post("/v2/rerank", json={"query": QUERY, "documents": documents}).json()["meta"]
    assert meta["warnings"] == ["1 of 2 documents were cut to fit the model"]
    assert "warnings" not in client.post("/v2/rerank", json={"query": QUERY, "documents": TEXTS}).json()["meta"]
    client.post("/rerank", json={"query": QUERY, "texts": documents})
    assert cut() == before + 2


def test_tei_gets_the_same(client, reranker):
    ranks = client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "return_text": True}).json()
    assert [(rank["index"], rank["score"]) for rank in ranks] == expected(reranker, TEXTS)
    assert [rank["text"] for rank in ranks] == [TEXTS[rank["index"]] for rank in ranks]


def test_requests_at_once_get_their_own_answers(client, reranker):
    lists = [TEXTS[:2] * (1 + i % 7) for i in range(24)]
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda t: client.post("/rerank", json={"query": QUERY, "texts": t}).json(), lists))
    for texts, ranks in zip(lists, replies, strict=True):
        assert [(rank["index"], rank["score"]) for rank in ranks] == expected(reranker, texts)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/rerank", {"query": "  ", "documents": ["a"]}, 422, "query: got '  ', expected text"),
        ("/v1/rerank", {"documents": ["a"]}, 422, "query: field required"),
        ("/v1/rerank", {"query": "q", "documents": []}, 422, "documents: list should have at least 1 item"),
        ("/v2/rerank", {"query": "q", "documents": ["a", {"title": "t"}]}, 422, r"documents[1].text: field required"),
        ("/v2/rerank", {"query": "q", "documents": ["a", ""]}, 422, "documents[1].text: got '', expected text"),
        ("/v2/rerank", {"query": "q", "documents": [7]}, 422, "documents[0]: expected a string or an object"),
        ("/v2/rerank", {"query": "q", "documents": ["a"] * 1001}, 422, "documents: list should have at most 1000"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, 422, "top_n: input should be greater"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": "3"}, 422, "top_n: input should be a valid integer"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "rank_fields": ["b"]}, 422, "rank_fields: this field is not"),
        (
            "/v2/rerank",
            {"query": "q", "documents": ["a"], "model": "b"},
            404,
            "'b' is not served here",
        ),
        ("/rerank", {"query": "q", "texts": ["a", None]}, 422, "texts[1]: input should be a valid string"),
        ("/rerank", {"query": "q", "texts": "a"}, 422, "texts: input should be a valid list"),
        ("/rerank", b'{"query": "\\ud800", "texts": ["a"]}', 422, "query: half a surrogate pair at character 0"),
        ("/rerank", b'{"query": ', 400, "no JSON: Expecting value"),
        ("/rerank", b"[" * 100_000, 400, "error parsing the body"),
        ("/rerank", b"x" * (2 * 2**20 + 1), 413, "the body has 2097153 bytes; at most 2097152"),
        ("/rank", {}, 404, "there are /v1/rerank, /v2/rerank, /rerank, /metrics"),
        ("/v2/rerank/", {"query": "q", "documents": ["a"]}, 404, "there are /v1/rerank, /v2/rerank"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong_in_their_own_shape(client, path, body, status, words):
    content = {"content": body, "headers": {"Content-Type": "application/json"}} if isinstance(body, bytes) else None
    reply = client.post(path, **(content or {"json": body}))
    assert reply.status_code == status
    assert words in (reply.json()["error"] if path == "/rerank" else reply.json()["message"])
    if path == "/rerank":
        assert reply.json()["error_type"] == "validation"
    else:
        assert reply.json()["detail"] == reply.json()["message"]


def test_the_key_is_needed_but_for_health_and_the_page(url):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        reply = httpx.post(f"{url}/rerank", json={"query": "q", "texts": ["a"]}, headers=headers)
        assert (reply.status_code, reply.json()["error"][:15]) == (401, "this server ask")
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 401
    assert httpx.get(f"{url}/health").json() == {
        "status": "ok", "model": "embedded", "system": "headrank", "waiting": 0,
    }  # fmt: skip
    assert (httpx.head(f"{url}/health").status_code, httpx.head(f"{url}/docs").status_code) == (200, 200)
    assert "swagger" in httpx.get(f"{url}/docs").text
    schema = httpx.get(f"{url}/openapi.json").json()
    assert schema["paths"]["/rerank"]["post"]["responses"]["429"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/TeiError"
    }


def test_metrics_count_requests_errors_and_tokens(client):
    def counted() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = counted()
    tokens = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS}).json()["usage"]["total_tokens"]
    client.post("/v1/rerank", json={"query": ""})
    after = counted()
    added = {name: value - before.get(name, 0) for name, value in after.items()}
    assert added["headrank_tokens_total"] == tokens
    assert added["headrank_documents_total"] == 4
    assert added['headrank_requests_total{path="/v1/rerank",status="200"}'] == 1
    assert added['headrank_errors_total{path="/v1/rerank",status="422"}'] == 1
    assert added['headrank_request_seconds_bucket{path="/v1/rerank",le="+Inf"}'] == 2
    assert added["headrank_calls_total"] == 1
    assert after["headrank_queue_length"] == 0


# -------------------------------------------------------------------------------------------------- others' clients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Client", "ClientV2"])
def test_the_official_cohere_client(url, reranker, name):
    cohere = pytest.importorskip("cohere", reason="pip install cohere")
    with httpx.Client() as http:  # closed here: a socket that is left open fails whatever test comes later
        opened = getattr(cohere, name)(api_key=KEY, base_url=url, httpx_client=http)
        reply = opened.rerank(model="embedded", query=QUERY, documents=TEXTS, top_n=3)
        assert [(r.index, r.relevance_score) for r in reply.results] == expected(reranker, TEXTS)[:3]
        with pytest.raises(cohere.UnprocessableEntityError, match="query: got ''"):
            opened.rerank(model="embedded", query="", documents=TEXTS)


@pytest.mark.filterwarnings("ignore")
def test_langchains_cohere_class(url, reranker):
    langchain = pytest.importorskip("langchain_cohere", reason="pip install langchain-cohere")
    from cohere import ClientV2
    from langchain_core.documents import Document

    with httpx.Client() as http:
        opened = ClientV2(api_key=KEY, base_url=url, httpx_client=http)
        compressor = langchain.CohereRerank(client=opened, model="embedded", top_n=2)
        kept = compressor.compress_documents([Document(page_content=text) for text in TEXTS], QUERY)
    wanted = [(TEXTS[index], score) for index, score in expected(reranker, TEXTS)[:2]]
    assert [(d.page_content, d.metadata["relevance_score"]) for d in kept] == wanted


@pytest.mark.filterwarnings("ignore")
def test_llamaindexs_tei_class(url, reranker):
    tei = pytest.importorskip(
        "llama_index.postprocessor.tei_rerank", reason="pip install llama-index-postprocessor-tei-rerank"
    )
    from llama_index.core.schema import NodeWithScore, TextNode

    ranker = tei.TextEmbeddingInference(base_url=url, auth_token=f"Bearer {KEY}", top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    kept = ranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [(n.text, n.score) for n in kept] == [(TEXTS[i], score) for i, score in expected(reranker, TEXTS)[:2]]


# ----------------------------------------------------------------------------------------- when there is too much


@dataclass
class Waits(Reranker):
    """Scores by length, once it may; notes the sizes of its calls. Some queries make it fail."""

    may: threading.Event = field(default_factory=threading.Event)
    called: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)

    def rerank_batch(self, rankings):
        self.sizes.append(len(rankings))
        self.called.set()
        assert self.may.wait(10)
        return [self.rescored(ranking) for ranking in rankings if ranking.query.text != "lose"]

    def rescored(self, ranking):
        if ranking.query.text == "break":
            raise RuntimeError("out of order")
        if ranking.query.text == "refuse":
            raise ValueError("this list does not fit")
        if ranking.query.text == "shorten":
            return ranking.cut(1)
        if ranking.query.text == "nothing":
            return None
        if ranking.query.text == "nan":
            return ranking.rescored([math.nan for _ in ranking.candidates])
        return ranking.rescored([len(candidate.text) for candidate in ranking.candidates])

    def describe(self):
        return {"system": "waits"}


@contextmanager
def running(reranker: Reranker, **limits: float) -> Iterator[httpx.Client]:
    app = create_app(Batcher(lambda: reranker, Limits(**limits)), model="m", system="waits")
    with bound_socket("127.0.0.1", 0, key=None) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=20) as client:
            deadline = time.monotonic() + 10
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            try:
                yield client
            finally:
                server.should_exit = True
                thread.join(10)
    assert not thread.is_alive()


def ask(client: httpx.Client, query: str = "q", texts: tuple[str, ...] = ("a", "abc"), **more) -> httpx.Response:
    return client.post("/rerank", json={"query": query, "texts": texts}, **more)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_waiting(client: httpx.Client, number: int) -> None:
    until(lambda: client.get("/health").json()["waiting"] == number)


def test_a_full_queue_refuses_with_429_and_loses_nothing_it_took():
    reranker = Waits()
    with running(reranker, waiting=2) as client, ThreadPoolExecutor(3) as threads:
        taken = [threads.submit(ask, client)]
        assert reranker.called.wait(10)
        taken += [threads.submit(ask, client) for _ in range(2)]
        until_waiting(client, 2)
        refused = ask(client)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json() == {
            "error": "busy: 2 requests are waiting; try again in 1 s", "error_type": "overloaded",
        }  # fmt: skip
        reranker.may.set()
        assert [[rank["index"] for rank in future.result().json()] for future in taken] == [[1, 0]] * 3
    assert reranker.sizes == [1, 2]  # those that waited went together


def test_a_call_takes_what_fits_its_tokens():
    reranker = Waits()
    with running(reranker, call_tokens=100) as client, ThreadPoolExecutor(5) as threads:
        taken = [threads.submit(ask, client)]
        assert reranker.called.wait(10)
        for number in range(1, 5):
            taken.append(threads.submit(ask, client, texts=("a" * 120, "b" * 3)))  # about 44 tokens
            until_waiting(client, number)
        reranker.may.set()
        assert all(future.result().status_code == 200 for future in taken)
    assert reranker.sizes == [1, 2, 2]


def test_who_waits_too_long_gets_504_and_is_not_read():
    reranker = Waits()
    with running(reranker, timeout=0.5) as client, ThreadPoolExecutor(2) as threads:
        late = [threads.submit(ask, client)]
        assert reranker.called.wait(10)
        late.append(threads.submit(ask, client))
        assert [future.result().status_code for future in late] == [504, 504]
        assert late[0].result().json()["error"].startswith("no answer within 0.5 s")
        reranker.may.set()
        assert ask(client).status_code == 200
    assert reranker.sizes == [1, 1]


def test_one_request_always_gets_one_answer_where_prompts_are_shuffled():
    texts = [*TEXTS, "Fleas jump far.", "Cats hunt mice.", "Rivers flow to the sea."]
    with running(headrank("embedded", passages="causal", shuffle_seed=1)) as client:
        first, *others = (client.post("/v2/rerank", json={"query": QUERY, "documents": texts}).json() for _ in range(4))
    assert [other["results"] for other in others] == [first["results"]] * 3


def test_who_hangs_up_is_not_read():
    reranker = Waits()
    with running(reranker) as client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, client)
        assert reranker.called.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            ask(client, timeout=0.2)
        until_waiting(client, 0)
        reranker.may.set()
        assert first.result().status_code == 200
    assert reranker.sizes == [1]


def test_failures_are_named_and_fail_alone():
    reranker = Waits()
    reranker.may.set()
    with running(reranker) as client:
        replies = {
            query: ask(client, query) for query in ("break", "lose", "shorten", "nothing", "refuse", "nan", "fine")
        }
    assert {query: reply.status_code for query, reply in replies.items()} == {
        "break": 500, "lose": 500, "shorten": 500, "nothing": 500, "refuse": 422, "nan": 500, "fine": 200,
    }  # fmt: skip
    assert replies["break"].json() == {"error": "out of order", "error_type": "backend"}
    assert replies["lose"].json()["error"] == "the reranker returned 0 rankings for 1"
    assert replies["shorten"].json()["error"] == "the reranker returned other documents than the 2 given"
    assert replies["nothing"].json() == replies["shorten"].json()
    assert replies["refuse"].json() == {"error": "this list does not fit", "error_type": "validation"}
    assert "score nan is not finite" in replies["nan"].json()["error"]


@pytest.fixture(scope="module")
def probabilities(reranker) -> Calibration:
    return Calibration((0.0, 1.0, 0.0), (0.5, -1.0, 0.0), 1, reading_of(reranker), {})


def test_probabilities_are_served_with_a_threshold_of_the_request(reranker, probabilities):
    known = calibrated(reranker, probabilities).rerank(as_ranking(QUERY, [Document(text=text) for text in TEXTS]))
    second = known.scores[1]
    with running(calibrated(reranker, probabilities)) as client:
        body = {"query": QUERY, "documents": TEXTS, "threshold": second}
        reply = client.post("/v2/rerank", json=body).json()
        ranks = client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "threshold": second}).json()
        none = client.post("/v2/rerank", json={**body, "threshold": 1}).json()
        refused = client.post("/v2/rerank", json={**body, "threshold": 1.5})
        documents = [line for line in client.get("/metrics").text.splitlines() if "documents_total 12" in line]
    assert [str(result["index"]) for result in reply["results"]] == [*known.docids[:2]]
    assert reply["meta"]["nothing_relevant"] == pytest.approx(known.notes["nothing_relevant"])
    assert [rank["score"] for rank in ranks] == pytest.approx(known.scores[:2])
    assert none["results"] == []
    assert (refused.status_code, refused.json()["message"][:10]) == (422, "threshold:")
    assert documents


def test_a_server_may_have_a_threshold_of_its_own(reranker, probabilities):
    whole = calibrated(reranker, probabilities).rerank(as_ranking(QUERY, [Document(text=text) for text in TEXTS]))
    with running(calibrated(reranker, probabilities, threshold=whole.scores[1])) as client:
        results = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS}).json()["results"]
    assert [str(result["index"]) for result in results] == [*whole.docids[:2]]


def test_scores_that_are_no_probabilities_have_no_threshold():
    with running(Waits()) as client:
        reply = client.post("/rerank", json={"query": "q", "texts": ["a"], "threshold": 0.5})
    assert reply.status_code == 422
    assert reply.json()["error"].startswith("threshold: this server's scores are no probabilities")


@gives_back
def test_memory_that_a_call_leaves_free_goes_back_to_the_system(reranker):
    class Leaves(Waits):
        def rerank_batch(self, rankings):
            blocks = [b"x" * 100_000 for _ in range(1000)]
            self.last = blocks[-1]  # above the holes, so that the heap cannot shrink
            return super().rerank_batch(rankings)

    leaves = Leaves()
    leaves.may.set()
    with running(leaves) as client:
        before = without_holes()
        assert ask(client).status_code == 200
        assert held() - before < 20e6


# ------------------------------------------------------------------------------------------------- start and end

WAITS_FOR_A_FILE = """
    import sys
    import time
    from pathlib import Path
    from headrank_pipeline.cli.commands import start_logging
    from headrank_pipeline.pipeline import Reranker
    from headrank_pipeline.serve.batcher import Limits
    from headrank_pipeline.serve.server import bound_socket, serve

    called, go = map(Path, sys.argv[1:])

    class WaitsForAFile(Reranker):
        def rerank_batch(self, rankings):
            called.touch()
            deadline = time.monotonic() + 60
            while not go.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            return [ranking.rescored([len(c.text) for c in ranking.candidates]) for ranking in rankings]
        def describe(self):
            return {}

    start_logging(debug=False)
    bound = bound_socket("127.0.0.1", 0, key=None)
    serve(WaitsForAFile, bound, model="m", system="waits", key=None, limits=Limits(call_tokens=1))
"""


def test_sigterm_finishes_what_was_taken_and_refuses_new_requests(tmp_path):
    called, go = tmp_path / "called", tmp_path / "go"
    command = [sys.executable, "-c", dedent(WAITS_FOR_A_FILE), str(called), str(go)]

    def refused() -> bool:
        try:
            httpx.get(f"{where}/health")
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # closed under this very question
            return False
        return False

    with process(command) as (server, where), httpx.Client(base_url=where) as client:
        with ThreadPoolExecutor(3) as threads:
            taken = [threads.submit(ask, client)]
            until(called.exists)
            taken += [threads.submit(ask, client) for _ in range(2)]
            until_waiting(client, 2)
            server.send_signal(signal.SIGTERM)
            until(refused)
            go.touch()
            assert [[rank["index"] for rank in future.result().json()] for future in taken] == [[1, 0]] * 3
        assert server.wait(10) == 0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_call_that_does_not_end_is_not_waited_for_at_the_end(tmp_path, ending):
    called = tmp_path / "called"
    command = [sys.executable, "-c", dedent(WAITS_FOR_A_FILE), str(called), str(tmp_path / "never")]
    with process(command) as (server, where), httpx.Client(base_url=where) as client:
        with pytest.raises(httpx.ReadTimeout):
            ask(client, timeout=1)
        until(called.exists)
        server.send_signal(ending)
        assert server.wait(40) == 0  # the call would take 60 seconds


def test_others_are_let_in_only_with_a_key_or_on_request(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    result = CliRunner().invoke(main, ["serve", "--model", "embedded", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 5
    assert "host '0.0.0.0': other machines could use the model without a key" in result.stderr
    for allowed in ({"key": "k"}, {"key": None, "insecure": True}):
        bound_socket("0.0.0.0", 0, **allowed).close()
    bound_socket("localhost", 0, key=None).close()


def test_a_port_in_use_and_a_key_that_no_header_carries_are_told(monkeypatch):
    with bound_socket("127.0.0.1", 0, key=None) as bound:
        bound.listen()
        port = str(bound.getsockname()[1])
        result = CliRunner().invoke(main, ["serve", "--model", "embedded", "--port", port])
        assert result.exit_code == 6
        assert f"127.0.0.1:{port}: Address already in use; choose another --port" in result.stderr
    monkeypatch.setenv(KEY_VARIABLE, "")
    result = CliRunner().invoke(main, ["serve", "--model", "embedded", "--port", "0"])
    assert result.exit_code == 5
    assert f"{KEY_VARIABLE}: expected ASCII" in result.stderr
