"""Whatever bytes a reader is given, it returns a value or names the file in an error, in little memory.

A part of the examples is random bytes; most are files of the right form, damaged in one place, which get further.
"""

import gzip
import json
import re
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrank_pipeline import files
from headrank_pipeline.experiment.benchmark import load_benchmark
from headrank_pipeline.learn.lists import read_lists
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.trec import read_candidates, read_qrels, read_run, read_topics

DOC = {"docid": "d1", "score": 1.5, "doc": {"title": "T", "text": "A flea."}, "grade": 1, "teacher": 0.5}
REQUEST = json.dumps({"query": {"qid": "q1", "text": "flea"}, "candidates": [DOC, {**DOC, "docid": "d2", "score": 1}]})
SERVED = json.dumps(
    {"query": {"qid": 7, "query_txt": "x"}, "candidates": [{"docid": 3, "score": 1, "doc": '{"a": 1}'}]}
)
DEFINITION = (Path(__file__).resolve().parents[2] / "pipelines" / "beir-scifact.yaml").read_text(encoding="utf-8")

READERS = {
    "topics": (read_topics, ["q1\tflea\n", '{"_id": "q1", "text": "flea"}\n',
                             "<top>\n<num> Number: 1\n<title> if a<b\n</top>\n",
                             '<?xml version="1.0"?><topics><topic number="1"><query>flea</query></topic></topics>']),
    "qrels": (read_qrels, ["q1 0 d1 1\nq1 0 d2 0\n", "query-id\tcorpus-id\tscore\nq1\td1\t1\n"]),
    "run": (read_run, ["q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 1e0 t\n"]),
    "candidates": (lambda path: list(read_candidates(path)), [f"{REQUEST}\n{SERVED}\n", f"[{REQUEST},\n {SERVED}]"]),
    "graded lists": (read_lists, [f"{REQUEST}\n"]),
    "corpus": (lambda path: list(read_corpus(path)), ["d1\tflea\n", '{"_id": "d1", "title": "T", "text": "A"}\n']),
    "benchmark": (load_benchmark, [DEFINITION]),
}  # fmt: skip

# What breaks readers: ends of strings and lines, numbers of every kind, markup, escapes, a cut in the middle.
SHARDS = [
    *(b"\0", b"\\ud800", b"\\u0000", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc3\xa9", b"\r", b"\n", b"\t", b" "),
    *(b'"', b"'", b"{", b"[", b"]", b"}", b"{}", b"[]", b"[" * 5000, b'{"a":' * 5000, b"null", b"true"),
    *(b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"NaN", b"0x1", b"1_0", b"1:99:99", b"0b", b"2026-13-45"),
    *(b"<", b"&a;", b"<!ENTITY a 'b'>", b"<top>", b"<a>" * 3000, b"\x1f\x8b"),
    *(b"*x", b"&x ", b"? ", b": ", b"- ", b"!!int x", b"= ", b"<<: 1\n"),
]


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    content = text.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20, 10_000])))
        shard = draw(st.one_of(st.sampled_from(SHARDS), st.binary(max_size=3), st.just(b"")))
        content = content[:start] + shard + content[end:]
    if draw(st.booleans()) and draw(st.booleans()):
        content = gzip.compress(content)
        content = content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content
    return content


@pytest.mark.parametrize("kind", READERS)
def test_any_bytes_give_a_value_or_an_error_that_names_the_file(kind):
    read, samples = READERS[kind]

    @settings(max_examples=150, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.one_of(st.binary(max_size=60), *map(damaged, samples), *map(damaged, samples)))
    def holds(content: bytes) -> None:
        path = folder / "input"
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            assert str(error).startswith(str(path)), error
            str(error).encode()  # half a surrogate pair in it could not be printed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        holds()


def test_an_error_in_a_line_names_that_line(tmp_path):
    good = {"qrels": "q%d 0 d1 1", "run": "q%d Q0 d1 1 2.5 t", "topics": "q%d\tflea", "corpus": "d%d\tflea"}
    for kind, line in good.items():
        for bad in ("\0 0 \0 x", "\ud800"):
            path = tmp_path / kind
            lines = [line % number for number in range(20)]
            path.write_bytes("\n".join([*lines[:12], bad, *lines[12:]]).encode(errors="surrogatepass"))
            with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:13: "):
                READERS[kind][0](path)


# ------------------------------------------------------------------------------------------------------------ memory


def many(kind: str, size: int) -> bytes:
    """Return a file of a kind of about a megabyte, with passages as long as they are."""
    passage = "The flea lives for a year in a house with dogs. " * 12
    doc = {"docid": "d%d", "score": 1.0, "doc": {"title": "Flea", "text": passage}}
    line = {
        "jsonl topics": '{"_id": "q%d", "text": "how long is the life cycle of a flea"}\n',
        "trec topics": "<top>\n<num> Number: %d\n<title> how long is the life cycle of a flea\n<desc> "
        + passage + "\n</top>\n",
        "jsonl corpus": json.dumps({"_id": "d%d", "text": passage}) + "\n",
        "jsonl candidates": json.dumps({"query": {"qid": "q%d", "text": "flea"}, "candidates": [doc]}) + "\n",
        "array of candidates": json.dumps({"query": {"qid": "q%d", "text": "flea"}, "candidates": [doc]}) + ",\n",
        "run": "q%d Q0 msmarco_passage_00_1234567 1 12.345678 pyserini-bm25\n",
        "qrels": "q%d 0 msmarco_passage_00_1234567 1\n",
    }[kind]  # fmt: skip
    lines = [line.replace("%d", str(number)) for number in range(size // len(line))]
    text = "".join(lines)
    return (f"[{text.rstrip().rstrip(',')}]" if kind.startswith("array") else text).encode()


@pytest.mark.parametrize(
    ("kind", "read", "packed"),
    [
        ("jsonl topics", read_topics, False),
        ("trec topics", read_topics, True),
        ("jsonl corpus", lambda path: sum(1 for _ in read_corpus(path)), False),
        ("jsonl candidates", lambda path: sum(1 for _ in read_candidates(path)), True),
        ("array of candidates", lambda path: sum(1 for _ in read_candidates(path)), False),
        ("run", read_run, False),
        ("qrels", read_qrels, True),
    ],
)
def test_reading_takes_no_more_than_four_times_the_text_beside_what_it_returns(tmp_path, kind, read, packed):
    text = many(kind, 2**20)
    path = tmp_path / "input"
    path.write_bytes(gzip.compress(text, 1) if packed else text)
    tracemalloc.start()
    try:
        value = read(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value
    assert peak - held < 4 * len(text) + 2**22  # buffers of a megabyte each


def test_a_small_gzip_that_unpacks_to_one_endless_line_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_LINE", 2**22)
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.gz:1: a line of more than 4 MiB; is this a topics file"):
            read_topics(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
