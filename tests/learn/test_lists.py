"""Graded lists: joined from candidates and judgments, read back, resampled, refused where they cannot be trusted."""

from __future__ import annotations

import json
from pipes import piped

import pytest
from graded_lists import overlap_lists
from hypothesis import given
from hypothesis import strategies as st

from headrank_pipeline.learn.lists import (
    GradedList,
    arranged,
    graded_line,
    read_lists,
    save_lists,
    sublist,
    write_lists,
)
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

LINE = '{"query": {"qid": "q1", "text": "flea"}, "candidates": [%s]}\n'
ENTRY = '{"docid": "d%d", "score": %d, "doc": {"text": "Fleas."}, "grade": %s}'


@pytest.fixture
def files(tmp_path):
    """Candidates of q1 (d1, d2, d3) and q2 (d1), a corpus of d1-d4 and judgments."""
    texts = {f"d{i}": Candidate(f"d{i}", 4.0 - i, f"Text {i}.", f"Title {i}") for i in (1, 2, 3)}
    rankings = [Ranking(Query("q1", "flea"), tuple(texts.values())), Ranking(Query("q2", "bird"), (texts["d1"],))]
    write_candidates(tmp_path / "candidates.jsonl", rankings)
    (tmp_path / "qrels.txt").write_text("q1 0 d2 2\nq1 0 d4 1\nq9 0 d1 1\n")
    corpus = [{"_id": f"d{i}", "title": f"Title {i}", "text": f"Text {i}."} for i in (1, 2, 3, 4)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in corpus))
    return tmp_path


def made(files, **options):
    counts = write_lists(files / "candidates.jsonl", files / "qrels.txt", files / "train.jsonl", **options)
    return counts, read_lists(files / "train.jsonl")


def test_unjudged_passages_get_grade_zero(files):
    counts, (graded,) = made(files)
    assert graded.ranking.docids == ("d1", "d2", "d3")
    assert graded.grades == (0, 2, 0)
    assert graded.ranking.candidates[1].title == "Title 2"
    assert (counts.written, counts.passages, counts.judged) == (1, 3, 1)
    assert (counts.without_judgements, counts.without_candidates) == (1, 1)  # q2, q9


def test_judged_passages_that_the_first_stage_missed_come_from_the_corpus(files):
    counts, (graded,) = made(files, corpus=files / "corpus.jsonl", cutoff=2)
    assert graded.ranking.docids == ("d1", "d2", "d4")
    assert graded.grades == (0, 2, 1)
    assert graded.ranking.candidates[2].text == "Text 4."
    assert counts.added == 1
    (files / "qrels.txt").write_text("q1 0 d3 1\nq1 0 d4 2\n")
    _, (graded,) = made(files, corpus=files / "corpus.jsonl", cutoff=1)
    assert graded.ranking.docids == ("d1", "d4", "d3")  # the best grade first


def test_unjudged_passages_can_be_left_out(files):
    counts, (graded,) = made(files, corpus=files / "corpus.jsonl", unjudged="drop")
    assert graded.grades == (2, 1)
    assert counts.dropped == 2
    found = tuple(Candidate(docid, 0.0, "text") for docid in ("d1", "d2", "d3"))
    write_candidates(files / "candidates.jsonl", [Ranking(Query(qid, "flea"), found) for qid in "ab"])
    (files / "qrels.txt").write_text("".join(f"{qid} 0 d1 1\n{qid} 0 d2 0\n" for qid in "ab"))
    assert made(files, unjudged="drop")[0].dropped == 2  # one of each


def test_lists_of_one_grade_are_left_out_and_counted(files):
    (files / "qrels.txt").write_text("q1 0 d2 1\nq2 0 d1 1\n")
    counts, lists = made(files)
    assert [graded.qid for graded in lists] == ["q1"]
    assert (counts.one_grade, counts.without_candidates) == (1, 0)


def test_nothing_to_learn_from_is_an_error_and_leaves_no_file(files):
    (files / "qrels.txt").write_text("q7 0 d2 1\n")
    with pytest.raises(ValueError, match="no list with two grades: 2 queries are not judged"):
        made(files)
    assert not (files / "train.jsonl").exists()


def test_a_failed_call_leaves_the_lists_of_an_earlier_one(files):
    made(files)
    before = (files / "train.jsonl").read_bytes()
    (files / "qrels.txt").write_text("q7 0 d2 1\n")
    with pytest.raises(ValueError, match="no list with two grades"):
        made(files)
    assert (files / "train.jsonl").read_bytes() == before


def test_judged_passage_that_the_corpus_lacks_is_named_with_its_line(files):
    (files / "qrels.txt").write_text("q1 0 d2 2\nq1 0 d77 1\n")
    with pytest.raises(ValueError, match=r"qrels\.txt:2: qid q1 docid d77 is judged but not in the corpus"):
        made(files, corpus=files / "corpus.jsonl")


def test_candidate_without_text_is_named_with_its_line(files):
    bare = Ranking(Query("q1", "flea"), (Candidate("d1", 2.0, "Text."), Candidate("d2", 1.0)))
    write_candidates(files / "candidates.jsonl", [Ranking(Query("q0", "x")), bare])
    with pytest.raises(ValueError, match=r"candidates\.jsonl:2: .* docid d2 has no text; pass corpus=FILE"):
        made(files)
    _, (graded,) = made(files, corpus=files / "corpus.jsonl")
    assert graded.ranking.candidates[1].text == "Text 2."
    (files / "corpus.jsonl").write_text('{"_id": "d4", "text": "Text 4."}\n')
    (files / "qrels.txt").write_text("q1 0 d1 2\n")
    with pytest.raises(ValueError, match=r"candidates\.jsonl:2: .* docid d2 has no text and is not in the corpus"):
        made(files, corpus=files / "corpus.jsonl")


@pytest.mark.parametrize(
    ("grade", "problem"),
    [("-1", "grade -1 is negative"), ("1.5", r"grade '1\.5': expected a whole number"), ("?", "expected a whole")],
)
def test_grades_that_are_not_whole_numbers_from_0_are_refused_in_qrels(files, grade, problem):
    (files / "qrels.txt").write_text(f"q1 0 d2 2\nq1 0 d3 {grade}\n")
    with pytest.raises(ValueError, match=rf"qrels\.txt:2: .*{problem}"):
        made(files)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("", "qid q1: an empty list"),
        (ENTRY % (1, 1, -1), "candidate 1 docid d1: grade -1 is negative"),
        (ENTRY % (1, 1, 0.5), r"candidate 1 docid d1: grade 0\.5: expected a whole number"),
        (ENTRY % (1, 1, '"high"'), "grade 'high': expected a whole number"),
        (ENTRY % (1, 1, "null"), "grade None: expected a whole number"),
        (ENTRY % (1, 1, "true"), "grade True: expected a whole number"),
        ('{"docid": "d1", "score": 1, "doc": {"text": "x"}}', "candidate 1 docid d1: no grade"),
        ('{"docid": "d1", "score": 1, "grade": 1}', "candidate 1 docid d1: no text"),
        (ENTRY % (1, 2, 1) + ", " + ENTRY % (2, 1, '0, "teacher": 0.5'), "1 teacher scores for 2 candidates"),
    ],
)
def test_malformed_lists_are_refused_with_file_and_line(tmp_path, entries, problem):
    path = tmp_path / "train.jsonl"
    path.write_text(LINE.replace("q1", "q0") % (ENTRY % (1, 1, 1)) + LINE % entries)
    with pytest.raises(ValueError, match=rf"train\.jsonl:2: .*{problem}"):
        read_lists(path)


def test_file_without_lists_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no lists in it"):
        read_lists(tmp_path / "train.jsonl")


def test_lists_survive_being_written_and_read(tmp_path):
    ranking = Ranking(Query("q1", "flea"), (Candidate("d1", 0.1 + 0.2, "a", "t"), Candidate("007", 0.3, "", None)))
    lists = [GradedList(ranking, (3, 0), (0.25, -1.5))]
    assert save_lists(tmp_path / "lists.jsonl.gz", lists) == 1
    assert read_lists(tmp_path / "lists.jsonl.gz") == lists
    assert json.loads(graded_line(lists[0]))["candidates"][0]["grade"] == 3


def test_wrong_number_of_grades_is_refused():
    ranking = Ranking(Query("q1", "flea"), (Candidate("d1", 1.0, "a"),))
    with pytest.raises(ValueError, match="2 grades for 1 candidates"):
        GradedList(ranking, (1, 0))


# ------------------------------------------------------------------------------------------------------ resampling

(WHOLE,) = overlap_lists(1, passages=12)


@given(size=st.integers(2, 15), seed=st.integers(0, 50), epoch=st.integers(0, 5))
def test_sublists_keep_a_passage_of_every_grade_and_every_passages_grade(size, seed, epoch):
    part = sublist(WHOLE, size, seed=seed, epoch=epoch)
    grade_of = dict(zip(WHOLE.ranking.docids, WHOLE.grades, strict=True))
    assert len(part) == min(size, 12)
    assert len(set(part.ranking.docids)) == len(part)
    assert set(part.grades) == ({0, 1, 2} if size > 2 else {2, 1})
    assert [grade_of[docid] for docid in part.ranking.docids] == list(part.grades)


def test_sublists_are_the_same_for_the_same_seed_and_differ_between_epochs_and_draws():
    drawn = [sublist(WHOLE, 6, seed=1, epoch=epoch, draw=draw) for epoch in (0, 1) for draw in (0, 1)]
    assert drawn == [sublist(WHOLE, 6, seed=1, epoch=epoch, draw=draw) for epoch in (0, 1) for draw in (0, 1)]
    assert len({part.ranking.docids for part in drawn}) == 4


def test_sublist_is_the_same_in_every_process():
    assert sublist(WHOLE, 3, seed=0).ranking.docids == ("q0d6", "q0d9", "q0d5")  # printed by another process


def test_teacher_scores_follow_their_passages():
    taught = GradedList(WHOLE.ranking, WHOLE.grades, tuple(float(i) for i in range(12)))
    part = sublist(taught, 5, seed=3)
    assert part.teacher == tuple(float(docid.removeprefix("q0d")) for docid in part.ranking.docids)


def test_orders_given_and_reversed():
    assert arranged(WHOLE, None, "given", seed=0).ranking.docids == WHOLE.ranking.docids
    assert arranged(WHOLE, None, "reversed", seed=0).ranking.docids == WHOLE.ranking.docids[::-1]
    part = arranged(WHOLE, 5, "given", seed=2)
    assert set(part.ranking.docids) == set(sublist(WHOLE, 5, seed=2).ranking.docids)
    places = [WHOLE.ranking.docids.index(docid) for docid in part.ranking.docids]
    assert places == sorted(places)
    with pytest.raises(ValueError, match="order 'sideways'"):
        arranged(WHOLE, None, "sideways", seed=0)


def test_list_size_below_two_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        sublist(WHOLE, 1, seed=0)


def test_lists_are_made_of_and_read_from_pipes_without_losing_one(tmp_path):
    rankings = [
        Ranking(Query(f"q{n}", "flea"), (Candidate("d1", 2.0, "Fleas live."), Candidate("d2", 1.0))) for n in range(300)
    ]
    write_candidates(tmp_path / "cand.jsonl", rankings)
    candidates = (tmp_path / "cand.jsonl").read_bytes()
    qrels = "".join(f"q{n} 0 d1 1\n" for n in range(300)).encode()
    corpus = b"d1\tFleas live.\nd2\tDogs sleep.\n"
    with piped(candidates) as first, piped(qrels) as second, piped(corpus) as third:
        counts = write_lists(first, second, tmp_path / "lists.jsonl", corpus=third)
    assert (counts.written, counts.without_judgements, counts.without_candidates) == (300, 0, 0)
    with piped((tmp_path / "lists.jsonl").read_bytes()) as path:
        assert read_lists(path) == read_lists(tmp_path / "lists.jsonl")


@pytest.mark.parametrize("grade", [100_001, 10**30])
def test_a_grade_beyond_what_evaluators_count_is_refused(tmp_path, grade):
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps({"query": {"qid": "q", "text": "flea"}, "candidates": [
        {"docid": "d", "score": 1, "doc": {"text": "A"}, "grade": grade}]}) + "\n")  # fmt: skip
    with pytest.raises(
        ValueError, match=rf"lists.jsonl:1: qid q candidate 1 docid d: grade {str(grade)[:20]}.*: expected"
    ):
        read_lists(path)
