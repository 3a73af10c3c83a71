"""HeadRank among PyTerrier's own transformers, those that need no Java."""

import math
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

pt = pytest.importorskip("pyterrier", reason="PyTerrier is not installed: pip install 'headrank-pipeline[pyterrier]'")

from headrank_pipeline import headrank, icr  # noqa: E402
from headrank_pipeline.pipeline import Source, as_queries  # noqa: E402
from headrank_pipeline.pyterrier import HeadRank  # noqa: E402
from headrank_pipeline.records import Candidate, Query, Ranking  # noqa: E402

RESULTS = pd.DataFrame(
    [
        ("q1", "how long does a flea live", "d1", "The dog sleeps in the sun.", 3.0, "x"),
        ("q1", "how long does a flea live", "d2", "A flea can live up to a year.", 2.0, "y"),
        ("q2", "capital of France", "d1", "The dog sleeps in the sun.", 9.0, "z"),
        ("q2", "capital of France", "d3", "Paris is the capital of France.", 1.0, "w"),
    ],
    columns=["qid", "query", "docno", "text", "score", "mine"],
)
QRELS = pd.DataFrame({"qid": ["q1", "q2"], "docno": ["d2", "d3"], "label": [1, 1]})
TOPICS = RESULTS[["qid", "query"]].drop_duplicates(ignore_index=True)


@pytest.fixture(scope="module", autouse=True)
def no_report_as_warning() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
        yield


@pytest.fixture(scope="module")
def transformer() -> HeadRank:
    return HeadRank("embedded")


def test_rows_come_back_best_first_with_the_columns_of_the_caller(transformer: HeadRank):
    before = RESULTS.copy()
    after = transformer.transform(RESULTS)
    assert list(after.columns) == ["qid", "query", "docno", "text", "mine", "score", "rank"]
    assert after[["qid", "docno", "mine", "rank"]].values.tolist() == [
        ["q1", "d2", "y", 0], ["q1", "d1", "x", 1], ["q2", "d3", "w", 0], ["q2", "d1", "z", 1],
    ]  # fmt: skip
    expected = headrank("embedded").rerank_batch(Ranking.from_frame(RESULTS))
    assert after["score"].tolist() == pytest.approx([score for one in expected for score in one.scores])
    pd.testing.assert_frame_equal(RESULTS, before)


def test_text_and_query_suffice_and_the_batch_size_changes_nothing(transformer: HeadRank):
    bare = RESULTS.drop(columns=["score", "mine"])
    whole = transformer.transform(bare)
    assert whole["docno"].tolist() == ["d2", "d1", "d3", "d1"]
    pd.testing.assert_frame_equal(HeadRank("embedded", batch_size=1).transform(bare), whole)


def test_an_empty_frame_stays_empty_with_the_columns_that_pt_inspect_knows(transformer: HeadRank):
    after = transformer.transform(RESULTS.iloc[:0])
    assert len(after) == 0
    assert (after["score"].dtype, after["rank"].dtype) == ("float64", "int64")
    assert pt.inspect.transformer_inputs(transformer) == [["qid", "docno", "query", "text"]]
    assert pt.inspect.transformer_outputs(transformer, list(RESULTS.columns)) == list(after.columns)


def test_missing_columns_and_missing_text_are_named(transformer: HeadRank):
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        transformer.transform(RESULTS.drop(columns="text"))
    holes = RESULTS.assign(text=["a", None, math.nan, "b"])
    with pytest.raises(ValueError, match=r"qid q1 docno d2: the passage has no text \(2 of 4 rows have none\)"):
        transformer.transform(holes)
    mixing = HeadRank("embedded", first_stage_weight=0.5)
    with pytest.raises(pt.validate.InputValidationError, match="score"):
        mixing.transform(RESULTS.drop(columns="score"))


def test_the_weight_of_the_first_stage_reads_the_scores_of_the_frame():
    after = HeadRank("embedded", first_stage_weight=1.0).transform(RESULTS)
    assert after["docno"].tolist() == ["d1", "d2", "d1", "d3"]


def test_it_follows_a_transformer_and_takes_part_in_an_experiment(transformer: HeadRank):
    first = pt.Transformer.from_df(pt.model.add_ranks(RESULTS.copy()))  # % reads ranks
    table = pt.Experiment(
        [first, first % 2 >> transformer],
        TOPICS,
        QRELS,
        ["recip_rank", "P_1"],
        names=["first", "HeadRank"],
        plan="tree",
    )
    assert table.set_index("name")["recip_rank"].to_dict() == {"first": 0.5, "HeadRank": 1.0}
    assert table.set_index("name")["P_1"].to_dict() == {"first": 0.0, "HeadRank": 1.0}


def test_any_system_and_any_reranker_can_be_had(transformer: HeadRank):
    by_name = HeadRank("embedded", "all", system="icr").transform(RESULTS)
    given = HeadRank(icr("embedded")).transform(RESULTS)
    pd.testing.assert_frame_equal(by_name, given)
    assert not by_name["score"].equals(transformer.transform(RESULTS)["score"])


class TestInputAndOutput(pt.testing.transformer_test_class(lambda: HeadRank("embedded"))):
    """PyTerrier's own test of what goes in and comes out; its other half draws with Java's help."""

    def test_schematic(self) -> None:
        self.skipTest("needs a network")


def test_pyterrier_finds_it_by_its_entry_point(tmp_path: Path, fresh_python):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    points = project["project"]["entry-points"]["pyterrier.modules"]
    info = tmp_path / "any-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: any\nVersion: 1\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[pyterrier.modules]\n{lines}")
    done = fresh_python(f"""
    import sys, warnings
    warnings.simplefilter("ignore")
    sys.path.insert(0, {str(tmp_path)!r})
    import pyterrier as pt
    print(pt.headrank.HeadRank.__module__, "torch" in sys.modules)
    """)
    assert done.stdout.strip() == "headrank_pipeline.pyterrier False", done.stderr


# ------------------------------------------------------------------------------------------ our operators, their stages


class First(Source):
    """What the frame holds; a third query finds nothing."""

    def retrieve(self, queries):
        found = {ranking.query.qid: ranking for ranking in Ranking.from_frame(RESULTS)}
        for query in as_queries(queries):
            yield found.get(query.qid, Ranking(query))

    def describe(self):
        return {}


QUERIES = [Query("q1", "how long does a flea live"), Query("none", "nothing"), Query("q2", "capital of France")]


def found(source: Source) -> list[tuple[str, ...]]:
    return [ranking.docids for ranking in source.retrieve(QUERIES)]


def test_a_transformer_may_follow_our_first_stage(transformer: HeadRank):
    assert found(First() >> transformer) == [("d2", "d1"), (), ("d3", "d1")]
    assert found(First() >> transformer % 1) == [("d2",), (), ("d3",)]
    by_length = pt.apply.doc_score(lambda row: float(len(row["text"])))
    assert found(First() >> by_length >> headrank("embedded")) == [("d2", "d1"), (), ("d3", "d1")]


def test_a_transformer_may_follow_our_reranker_and_the_texts_stay(transformer: HeadRank):
    def reversed_without_text(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(score=-frame["score"]).drop(columns=["text", "title"])

    chained = headrank("embedded") >> pt.apply.generic(reversed_without_text)
    rankings = list((First() >> chained).retrieve(QUERIES))
    assert [ranking.docids for ranking in rankings] == [("d1", "d2"), (), ("d1", "d3")]
    assert rankings[0].candidates[1].text == "A flea can live up to a year."
    assert chained.rerank_batch([Ranking(QUERIES[1])]) == [Ranking(QUERIES[1])]


def test_its_description_has_no_address(transformer: HeadRank):
    described = (First() >> pt.apply.doc_score(len)).describe()
    assert "0x" not in described["reranker"]["pyterrier"]
    assert (First() >> transformer).describe()["reranker"] == {"pyterrier": "HeadRank('embedded')"}


def test_other_things_are_still_refused():
    with pytest.raises(TypeError, match=">> takes a reranker on its right, got 5"):
        First() >> 5
    with pytest.raises(TypeError, match=">> takes a reranker on its right, got 'x'"):
        headrank("embedded") >> "x"
    assert Candidate("d", 1.0).text is None


def test_the_weight_goes_with_any_reranker_and_logarithms_with_a_weight():
    after = HeadRank(headrank("embedded"), first_stage_weight=1.0).transform(RESULTS)
    assert after["docno"].tolist() == ["d1", "d2", "d1", "d3"]
    with pytest.raises(ValueError, match="log_scores says how first_stage_weight mixes"):
        HeadRank("embedded", log_scores=True)
