"""The first stages on real indexes: Java, Anserini and Pyserini run in this process."""

import gzip
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import pytrec_eval

from headrank_pipeline.files import file_sha256
from headrank_pipeline.first_stage import bm25, build_index
from headrank_pipeline.first_stage.index import IDENTITY_FILE, check_language
from headrank_pipeline.first_stage.jvm import anserini_jar, find_java, start_jvm, versions
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_qrels, read_run, read_topics, write_run

FLEA = Query("q1", "flea")


@pytest.mark.parametrize("share", [0, 0.5])
def test_an_index_whose_files_were_cut_off_is_refused_by_name_or_finds_the_same(tiny_index, tmp_path, share):
    expected, refused = list(bm25(tiny_index).retrieve([FLEA])), []
    for file in sorted(path.name for path in tiny_index.iterdir()):
        damaged = tmp_path / file / "index"
        shutil.copytree(tiny_index, damaged)
        whole = (damaged / file).read_bytes()
        (damaged / file).write_bytes(whole[: int(share * len(whole))])
        try:
            assert list(bm25(damaged).retrieve([FLEA])) == expected
        except ValueError as error:
            assert str(damaged) in str(error), error
            refused.append(file)
    assert {"_0.fdt", "_0.si", "headrank-index.json", "segments_1"} <= set(refused)


def docids(source, *queries: Query) -> list[list[str]]:
    return [list(ranking.docids) for ranking in source.retrieve(queries or [FLEA])]


# ---------------------------------------------------------------------------------------------------------------- index


def test_an_index_says_what_it_was_made_of(tiny_corpus, tmp_path):
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(tiny_corpus.read_bytes()))
    summary = build_index(packed, tmp_path / "deep" / "index", threads=2)
    assert (summary.docs, summary.empty_docs, summary.path) == (5, 0, tmp_path / "deep" / "index")
    identity = json.loads((summary.path / "headrank-index.json").read_text())
    assert identity["corpus_sha256"] == summary.corpus_sha256 == file_sha256(packed)
    assert (identity["corpus"], identity["docs"], identity["anserini"]) == (
        "corpus.jsonl.gz",
        5,
        versions()["anserini"],
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["index"]
    assert sorted(docids(bm25(summary.path))[0]) == ["007", "7", "d1", "d5"]


def test_an_index_that_is_there_is_replaced_only_when_asked(tiny_corpus, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text("x1\tonly flea\n")
    build_index(tiny_corpus, tmp_path / "index")
    with pytest.raises(FileExistsError, match=r"index: holds an index already; pass overwrite=True"):
        build_index(other, tmp_path / "index")
    build_index(other, tmp_path / "index", overwrite=True)
    assert docids(bm25(tmp_path / "index")) == [["x1"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other.tsv"]


def test_a_folder_that_is_no_index_is_never_replaced(tiny_corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a Lucene index, so it is never replaced"):
        build_index(tiny_corpus, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    beside = build_index(tiny_corpus, tmp_path / "index", multifield=True).path
    build_index(tiny_corpus, beside, overwrite=True)
    (beside / "run.trec").write_text("q1 Q0 d1 1 1.0 x\n")
    with pytest.raises(
        FileExistsError, match=r"index: beside the index lies run\.trec, which replacing it would delete"
    ):
        build_index(tiny_corpus, beside, overwrite=True)
    assert (beside / "run.trec").exists() and docids(bm25(beside))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d1\tflea\nd2\tdog\nd1\tcat\n", r"corpus:3: docid d1 was given before at .*corpus:1"),
        ('{"_id": "d1", "text": "flea"}\n{"_id": "d2"\n', "corpus:2: not valid JSON"),
        ("", "no passages to index"),
        ('{"_id": "d1", "text": " "}\n', "no passages to index"),
    ],
)
def test_a_bad_corpus_is_refused_and_nothing_is_left_behind(tmp_path, text, message):
    (tmp_path / "corpus").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_index(tmp_path / "corpus", tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_passage_without_words_is_counted_and_named(tmp_path, caplog):
    (tmp_path / "corpus").write_text("d1\tflea\nd2\t \n")
    summary = build_index(tmp_path / "corpus", tmp_path / "index")
    assert (summary.docs, summary.empty_docs) == (1, 1)
    assert "docid d2 has neither title nor text" in caplog.text


def test_an_indexer_that_fails_shows_its_log(tiny_corpus, tmp_path, monkeypatch):
    home = tmp_path / "jdk"
    (home / "bin").mkdir(parents=True)
    (home / "release").write_text('JAVA_VERSION="21.0.1"\n')
    (home / "bin" / "java").write_text("#!/bin/sh\necho 'Error: no space left'\n")  # returns 0, as Anserini may
    (home / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(RuntimeError, match=r"(?s)exit status 0, None of 5 documents.*Error: no space left"):
        build_index(tiny_corpus, tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["jdk"]


# ----------------------------------------------------------------------------------------------------------------- bm25


def test_candidates_carry_title_and_text_as_the_corpus_has_them(tiny_index):
    [ranking] = bm25(tiny_index).retrieve([Query("q1", "東京 café")])
    assert ranking.candidates == (
        Candidate("d5", ranking.scores[0], "naïve café, 東京, 𝔘nicode flea \u2028 done", "Emoji 🙂"),
    )


def test_ids_of_digits_stay_apart(tiny_index):
    [spies, cat] = bm25(tiny_index).retrieve({"7": "spies", "007": "cat"})
    assert (spies.query.qid, spies.docids, cat.query.qid, cat.docids) == ("7", ("007",), "007", ("7",))


def test_queries_keep_their_order_over_many_chunks_and_threads(tiny_index):
    queries = [Query(f"q{number}", ("dog", "spies", "zebra")[number % 3]) for number in range(70)]
    rankings = list(bm25(tiny_index, threads=2).retrieve(queries))
    assert [ranking.query for ranking in rankings] == queries
    assert [ranking.docids for ranking in rankings[:3]] == [("d2",), ("007",), ()]


@pytest.mark.parametrize("text", ["zebra", "???", "the"])
def test_a_query_without_hits_gives_an_empty_ranking(tiny_index, text):
    assert list(bm25(tiny_index).retrieve([Query("q1", text)])) == [Ranking(Query("q1", text))]


def test_a_query_may_have_thousands_of_words(tiny_index):
    text = " ".join(f"word{number}" for number in range(3000)) + " dog"
    assert docids(bm25(tiny_index), Query("q1", text)) == [["d2"]]


def test_what_java_refuses_names_the_queries(tiny_index):
    text = " ".join(f"word{number}" for number in range(70000))
    with pytest.raises(RuntimeError, match="Java failed on a qid of q1, q2: JVM exception occurred"):
        docids(bm25(tiny_index), FLEA, Query("q2", text))


def test_fewer_hits_are_the_head_of_more(tiny_index):
    [everything] = docids(bm25(tiny_index))
    assert len(everything) == 4
    assert docids(bm25(tiny_index, hits=2)) == docids(bm25(tiny_index) % 2) == [everything[:2]]
    assert docids(bm25(tiny_index, hits=3) % 2 % 9) == [everything[:2]]
    assert (bm25(tiny_index) % 2).describe()["hits"] == 2


def test_documents_are_removed_before_the_cutoff(tiny_index):
    [everything] = docids(bm25(tiny_index))
    best, second, third, _ = everything
    source = bm25(tiny_index, hits=2, remove_query=True, exclude={best: [second], "other": everything})
    assert docids(source, Query(best, "flea"), FLEA) == [everything[2:], everything[:2]]
    assert docids(source % 1, Query(best, "flea")) == [[third]]


def test_pyserini_itself_does_not_remove_the_query(tiny_index):
    [everything] = docids(bm25(tiny_index))
    assert docids(bm25(tiny_index), Query(everything[0], "flea")) == [everything]


def test_tied_documents_come_in_lucenes_order(tmp_path):
    (tmp_path / "corpus").write_text("".join(f"d{number:03d}\tsame flea\n" for number in reversed(range(300))))
    build_index(tmp_path / "corpus", tmp_path / "index")
    [ranking] = bm25(tmp_path / "index").retrieve([FLEA])
    start_jvm()
    from pyserini.search.lucene import LuceneSearcher

    assert list(ranking.docids) == [hit.docid for hit in LuceneSearcher(str(tmp_path / "index")).search("flea", 1000)]


def test_parameters_reach_lucene(tiny_index):
    def scores(**parameters: float) -> tuple[float, ...]:
        return next(bm25(tiny_index, **parameters).retrieve([FLEA])).scores

    assert scores() == scores(k1=0.9, b=0.4)
    assert len({scores(), scores(k1=1.5), scores(b=0.9)}) == 3


def test_two_sources_on_one_index_do_not_disturb_each_other(tiny_index):
    plain, other = bm25(tiny_index), bm25(tiny_index, k1=2.0, b=0.0)
    alone = [next(source.retrieve([FLEA])) for source in (plain, other)]
    queries = [FLEA] + [Query(f"x{number}", "flea") for number in range(40)]  # more than one chunk, interleaved
    together = list(zip(plain.retrieve(queries), other.retrieve(queries), strict=True))
    assert [ranking.scores for ranking in together[-1]] == [ranking.scores for ranking in alone]


def test_fields_search_the_title_of_a_multifield_index(tiny_corpus, tmp_path):
    index = build_index(tiny_corpus, tmp_path / "index", multifield=True).path
    query = Query("q1", "emoji")
    assert docids(bm25(index), query) == [[]]
    assert docids(bm25(index, fields={"contents": 1.0, "title": 1.0}), query) == [["d5"]]


def test_a_field_that_the_index_lacks_is_refused(tiny_index):
    with pytest.raises(ValueError, match=r"no field 'title' to search, it has contents; headrank index --multifield"):
        list(bm25(tiny_index, fields={"contents": 1.0, "title": 2.0}).retrieve({"q1": "flea"}))
    with pytest.raises(ValueError, match=r"fields: contents has the boost -2.0; expected a number above 0"):
        bm25(tiny_index, fields={"contents": -2.0})


@pytest.fixture(scope="module")
def german_index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("german")
    (folder / "corpus.tsv").write_text("d1\tDie Häuser am Meer.\nd2\tDer Hund schläft.\n", encoding="utf-8")
    return build_index(folder / "corpus.tsv", folder / "index", language="de").path


def test_an_index_is_searched_in_the_language_it_was_built_for(german_index, tmp_path):
    query = Query("q1", "Haus")
    source = bm25(german_index)
    assert docids(source, query) == docids(bm25(german_index, language="de"), query) == [["d1"]]
    assert source.describe()["language"] == source.describe()["index_identity"]["language"] == "de"
    foreign = shutil.copytree(german_index, tmp_path / "foreign")
    (foreign / IDENTITY_FILE).unlink()  # as somebody else built it
    assert docids(bm25(foreign), query) == [[]]
    assert docids(bm25(foreign, language="de"), query) == [["d1"]]


def test_a_language_that_is_not_the_indexs_or_has_no_analyzer_is_refused(
    german_index, tiny_index, tiny_corpus, tmp_path
):
    with pytest.raises(ValueError, match="built for the language 'de', asked for 'zh'; leave it out, or build"):
        bm25(german_index, language="zh")
    with pytest.raises(ValueError, match="built for the language 'en', asked for 'de'"):
        bm25(tiny_index, language="de")
    with pytest.raises(ValueError, match=r"language 'german': Anserini has no analyzer for it; expected .*'de'"):
        build_index(tiny_corpus, tmp_path / "index", language="german")


def test_the_languages_are_those_of_anserini():
    start_jvm()
    import jnius

    known = jnius.autoclass("io.anserini.analysis.AnalyzerMap").analyzerMap.keySet().toArray()
    for language in ("en", *known):
        check_language(language)
    with pytest.raises(ValueError, match=re.escape(str(sorted(["en", *known])))):
        check_language("sw")


def test_an_index_without_stored_passages_gives_candidates_without_text(slim_index):
    source = bm25(slim_index)
    [ranking] = source.retrieve([Query("q1", "dog")])
    assert ranking.candidates == (Candidate("d2", ranking.scores[0]),)
    assert (source.describe()["docs"], source.describe()["index_identity"]) == (5, None)


def test_describe_states_every_parameter_without_starting_java(tiny_index, fresh_python):
    result = fresh_python(f"""
        import json, sys
        from headrank_pipeline.first_stage import bm25
        source = bm25({str(tiny_index)!r}, k1=0.8, hits=7, fields={{"title": 2.0}}, exclude={{"q": ["d"]}})
        print(json.dumps(source.describe()))
        assert "jnius" not in sys.modules
    """)
    described = json.loads(result.stdout)
    assert described.pop("index_identity")["docs"] == described.pop("docs") == 5
    assert len(described.pop("exclude_sha256")) == 64
    assert described == {
        "stage": "bm25",
        "index": str(tiny_index),
        "k1": 0.8,
        "b": 0.4,
        "hits": 7,
        "fields": {"title": 2.0},
        "remove_query": False,
        **versions(),
    }


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hits": 0}, "hits 0: expected at least 1"),
        ({"threads": 0}, "threads 0: expected at least 1"),
        ({"k1": -1.0}, "k1 -1.0, b 0.4: expected"),
        ({"k1": math.inf}, "k1 inf, b 0.4: expected a finite k1"),
        ({"b": 1.5}, "k1 0.9, b 1.5: expected"),
    ],
)
def test_parameters_out_of_range_are_refused_when_made(tiny_index, parameters, message):
    with pytest.raises(ValueError, match=message):
        bm25(tiny_index, **parameters)


def test_a_bare_string_is_no_collection_of_docids(tiny_index):
    with pytest.raises(TypeError, match=r"exclude\['q1'\]: expected a collection of docids"):
        bm25(tiny_index, exclude={"q1": "d12"})


@pytest.mark.parametrize("index", [Path("nowhere"), "nowhere/index", "./nowhere"])
def test_a_path_that_does_not_exist_says_how_to_build_one(index):
    with pytest.raises(FileNotFoundError, match="no such index folder; build one with `headrank index"):
        bm25(index)


def test_a_folder_without_an_index_is_refused_when_made(tmp_path):
    with pytest.raises(ValueError, match="holds no Lucene index"):
        bm25(tmp_path)


def test_an_unknown_prebuilt_name_lists_near_ones():
    source = bm25("beir-v1.0.0-scifacts.flat")
    with pytest.raises(
        FileNotFoundError, match=r"neither a folder nor a BM25 index .*; did you mean .*'beir-v1.0.0-scifact.flat'"
    ):
        next(source.retrieve([FLEA]))


# -------------------------------------------------------------------------------------------------------------- scifact


@pytest.mark.shared_data
def test_scifact_bm25_gives_the_published_figures(shared_data, scifact_index, tmp_path):
    qrels = read_qrels(shared_data / "scifact" / "qrels" / "test.tsv")
    queries = [query for query in read_topics(shared_data / "scifact" / "queries.jsonl") if query.qid in qrels]
    source = bm25(scifact_index, k1=0.9, b=0.4, hits=100, remove_query=True, threads=2)
    assert write_run(tmp_path / "run", source.retrieve(queries), "bm25") == 300
    run = {qid: {c.docid: c.score for c in found} for qid, found in read_run(tmp_path / "run").items()}
    result = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    means = {
        measure: sum(result.get(qid, {}).get(measure, 0.0) for qid in qrels) / len(qrels)
        for measure in ("ndcg_cut_10", "recall_100")
    }
    assert means == {"ndcg_cut_10": pytest.approx(0.6789, abs=5e-4), "recall_100": pytest.approx(0.925, abs=5e-4)}


@pytest.mark.shared_data
def test_scifact_with_1000_hits_begins_with_the_same_100(shared_data, scifact_index):
    queries = read_topics(shared_data / "scifact" / "queries.jsonl")[:10]
    for fewer, more in zip(
        bm25(scifact_index, hits=100).retrieve(queries), bm25(scifact_index, hits=1000).retrieve(queries), strict=True
    ):
        assert fewer == more.cut(100)


def test_anserinis_own_trec_eval_agrees_on_our_run_file(tmp_path):
    """Written scores such as 1e-20 must mean the same to the C program as to us."""
    scores = [1e30, 1.0, 1.0, 3e-20, 0.0, 0.0, -1e-40, -5e20]
    ranking = Ranking(Query("q", "x"), tuple(Candidate(f"d{rank}", score) for rank, score in enumerate(scores)))
    write_run(tmp_path / "run", [ranking], "t")
    command = [str(find_java().home / "bin" / "java"), "-cp", str(anserini_jar()), "trec_eval", "-m", "recip_rank"]
    for rank in range(len(scores)):
        (tmp_path / "qrels").write_text(f"q 0 d{rank} 1\n")
        done = subprocess.run(
            [*command, str(tmp_path / "qrels"), str(tmp_path / "run")], capture_output=True, text=True, check=True
        )
        assert float(done.stdout.split()[-1]) == pytest.approx(1 / (rank + 1), abs=1e-4)
