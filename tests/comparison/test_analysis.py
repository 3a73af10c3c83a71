"""Middle zone, places, order and length: small lists worked out by hand, and the command on whole runs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from pipes import piped

import numpy as np
import pytest
from click.testing import CliRunner
from run_directories import Scripted, graded_candidates, make_run, shuffled_copy, write_qrels
from scipy import stats

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import prompt_order
from headrank_pipeline.cli.comparison import ANALYSES as CLI_ANALYSES
from headrank_pipeline.cli.comparison import analyze as analyze_command
from headrank_pipeline.comparison.analysis import Zone, middle_zone, place_shares, score_positions
from headrank_pipeline.comparison.analysis_report import ANALYSES, analyze, save_analysis
from headrank_pipeline.comparison.biases import length_bias, order_sensitivity
from headrank_pipeline.comparison.compare import FIRST_STAGE
from headrank_pipeline.comparison.finished import read_finished_runs
from headrank_pipeline.comparison.significance import kendall_tau, overlap, rank_biased_overlap, spearman
from headrank_pipeline.experiment.batches import supply_from_file
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

pytestmark = pytest.mark.usefixtures("small_pictures")

LETTERS = "abcdefgh"


def lettered(folder: Path, *, words: dict[str, int] | None = None, scores: dict[str, float] | None = None) -> Path:
    """One query with the candidates a to h, in this order."""
    lengths = words or {}
    found = [
        Candidate(d, (scores or {}).get(d, 8.0 - place), " ".join(["w"] * lengths.get(d, 3)))
        for place, d in enumerate(LETTERS)
    ]
    write_candidates(folder / "letters.jsonl", [Ranking(Query("q1", "flea"), tuple(found))])
    return folder / "letters.jsonl"


def in_order(order: str) -> dict[str, float]:
    """Scores that give this order."""
    return {docid: float(len(order) - place) for place, docid in enumerate(order)}


def run_of(folder: Path, candidates: Path, order: str, *, name: str = "run", reverse=False, seed=None, **plan) -> Path:
    scores = plan.pop("scores", None) or in_order(order)
    reranker = Scripted({}, by_docid=scores, reverse=reverse, shuffle_seed=seed)
    return make_run(folder / name, candidates, None, reranker, **plan)


# ----------------------------------------------------------------------------------------------------- middle zone


def test_promotion_rates_of_a_list_of_eight_by_hand(tmp_path):
    """The zone holds c d e f (quartiles 2 and 3), the top two ranks are a success: d and c get there, e just not."""
    [run] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "dceabfgh")])
    grades = {"q1": {"d": 2, "e": 1, "c": 0, "a": 3}}
    row = middle_zone([run], grades).iloc[0]
    assert (row["relevant"], row["relevant_rate"]) == (2, 0.5)  # d of d, e
    assert (row["irrelevant"], row["irrelevant_rate"]) == (2, 0.5)  # c of c, f; f is not judged
    assert row["gap"] == 0.0
    strict = middle_zone([run], grades, relevance_level=2, judged_only=True).iloc[0]
    assert (strict["relevant"], strict["relevant_rate"]) == (1, 1.0)
    assert (strict["irrelevant"], strict["irrelevant_rate"]) == (2, 0.5)  # c of c, e; f is left out
    assert strict["gap"] == 0.5


def test_another_zone_and_another_success(tmp_path):
    [run] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "dcabefgh")])
    row = middle_zone([run], {"q1": {"a": 1}}, zone=Zone(0.0, 0.25, 0.5)).iloc[0]
    assert (row["relevant"], row["relevant_rate"], row["irrelevant"], row["irrelevant_rate"]) == (1, 1.0, 1, 1.0)
    [short] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "cab", name="short", depth=3)])
    assert middle_zone([short], {"q1": {"a": 1}}).iloc[0]["queries"] == 0  # three passages have no middle
    with pytest.raises(ValueError, match=r"zone 0.7 to 0.3"):
        Zone(0.7, 0.3)


def test_chance_is_what_a_random_order_of_short_lists_promotes(tmp_path):
    paths = [run_of(tmp_path, lettered(tmp_path), "abcde"[turn:] + "abcde"[:turn], name=str(turn), depth=5)
             for turn in range(5)]  # fmt: skip
    frame = middle_zone(read_finished_runs(paths), {"q1": {"c": 1}})
    assert frame["chance"].tolist() == pytest.approx([0.2] * 5)  # one of five: two would be more than a quarter
    assert frame["relevant_rate"].mean() == pytest.approx(0.2)
    assert frame["irrelevant_rate"].mean() == pytest.approx(0.2)


def test_places_are_those_of_the_prompt_when_it_is_reversed(tmp_path):
    """Cut at depth 4 and turned round, the prompt is d c b a: the zone holds c and b, not b and c of eight."""
    candidates = lettered(tmp_path)
    paths = [run_of(tmp_path, candidates, "cabdefgh", name=str(r), reverse=r, depth=4) for r in (False, True)]
    plain, turned = read_finished_runs(paths)
    assert plain.prompt_order("q1") == ["a", "b", "c", "d"]
    assert turned.prompt_order("q1") == ["d", "c", "b", "a"]
    first_half = Zone(0.0, 0.5, 0.25)
    rates = middle_zone([plain, turned], {"q1": {"c": 1}}, zone=first_half)
    assert list(rates["relevant"]) == [0, 1]
    assert math.isnan(rates["relevant_rate"][0])
    assert rates["relevant_rate"][1] == 1.0


# ------------------------------------------------------------------------------------------------- scores by place


def test_spread_and_ranks_by_place_by_hand(tmp_path):
    """Two parts of four passages; after reranking the first part has one score and the second has all the spread."""
    scores = {**dict.fromkeys("abcd", 0.5), "e": 4.0, "f": 3.0, "g": -3.0, "h": -6.0}
    [run] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "", scores=scores)])
    frame = score_positions([run], {"q1": {"e": 1}}, bins=2)
    values = np.array([0.5, 0.5, 0.5, 0.5, 4, 3, -3, -6])
    assert list(frame["spread_after"]) == pytest.approx([0.0, values[4:].std() / values.std()])
    first = np.log(np.arange(8, 0, -1))
    assert list(frame["spread_before"]) == pytest.approx([first[:4].std() / first.std(), first[4:].std() / first.std()])
    assert set(frame["scale"]) == {"raw scores"}
    # Final order: e f a b c d g h. Relevant e is at the first of 8 ranks; f g h at 2, 7, 8.
    assert math.isnan(frame["rank_relevant"][0])
    assert frame["rank_relevant"][1] == pytest.approx(0.5 / 8)
    assert frame["rank_irrelevant"][1] == pytest.approx((1.5 + 6.5 + 7.5) / 24)


def test_the_first_stage_is_turned_round_with_the_prompt(tmp_path):
    candidates = lettered(tmp_path, scores={"a": 50.0})
    paths = [run_of(tmp_path, candidates, LETTERS, name=str(r), reverse=r) for r in (False, True)]
    plain, turned = (score_positions([run], {"q1": {}}, bins=2) for run in read_finished_runs(paths))
    assert plain["spread_before"][0] > plain["spread_before"][1]
    assert list(turned["spread_before"]) == pytest.approx(list(plain["spread_before"])[::-1])
    assert list(turned["rank_irrelevant"]) == pytest.approx([6 / 8, 2 / 8])


def test_places_of_a_shuffled_prompt_are_drawn_again(tmp_path):
    candidates = lettered(tmp_path, scores={"a": 50.0})
    paths = [run_of(tmp_path, candidates, LETTERS, name=str(r), reverse=r, seed=1) for r in (False, True)]
    plain, turned = read_finished_runs(paths)
    order = [LETTERS[i] for i in prompt_order("q1", LETTERS, shuffle_seed=1)]
    assert plain.prompt_order("q1") == order != list(LETTERS)
    assert turned.prompt_order("q1") == order[::-1]
    frame = score_positions([plain], {"q1": {}}, bins=2)
    assert frame["spread_before"].argmax() == order.index("a") // 4
    ranks = [(LETTERS.index(docid) + 0.5) / 8 for docid in order]
    assert list(frame["rank_irrelevant"]) == pytest.approx([np.mean(ranks[:4]), np.mean(ranks[4:])])


def test_shares_by_place_by_hand(tmp_path):
    found = tuple(Candidate(docid, 8.0 - place, "w") for place, docid in enumerate("abcd"))
    other = tuple(Candidate(docid, 8.0 - place, "w") for place, docid in enumerate("dcba"))
    lists = [Ranking(Query("q1", "flea"), found), Ranking(Query("q2", "flea"), other), Ranking(Query("q3", "flea"))]
    write_candidates(tmp_path / "two.jsonl", [*lists, Ranking(Query("q4", "flea"), found[:3])])
    scores = {"a": 4.0, "b": 2.0, "c": 1.0, "d": 1.0}
    paths = [
        run_of(tmp_path, tmp_path / "two.jsonl", "", scores=scores, name=f"r{r}", reverse=r) for r in (False, True)
    ]
    negative = run_of(tmp_path, tmp_path / "two.jsonl", "", scores={**scores, "d": -1.0}, name="negative")
    frame = place_shares(read_finished_runs([*paths, negative])).set_index("system")
    # q1: 2, 1, .5, .5 of 8 scores, q2 backwards; q4 has fewer passages than parts
    assert list(frame.loc["rFalse", "share"]) == pytest.approx([1.25, 0.75, 0.75, 1.25])
    assert list(frame.loc["rFalse", "error"]) == pytest.approx(np.array([0.75, 0.25, 0.25, 0.75]) / math.sqrt(2))
    assert set(frame.loc["rFalse", "queries"]) == {2}
    assert list(frame.loc["rTrue", "share"]) == pytest.approx([1.25, 0.75, 0.75, 1.25])
    assert set(frame["order"]) == {"as given", "as given, reversed"}
    assert frame.loc["negative", "share"].isna().all()
    (run,) = read_finished_runs([run_of(tmp_path, tmp_path / "two.jsonl", "", scores=scores, name="halves", depth=3)])
    halves = place_shares([run], places=2)  # a b, c of a b c; d c, b of d c b: the middle one is in the second half
    expected = (np.array([4 / 7 * 3, 3 / 7 * 3 / 2]) * 2 + np.array([1 / 4 * 3, 3 / 4 * 3 / 2])) / 3
    assert list(halves["share"]) == pytest.approx(expected.tolist())


def test_shares_of_shuffled_prompts_are_by_their_own_places(tmp_path):
    order = [LETTERS[i] for i in prompt_order("q1", LETTERS, shuffle_seed=2)]
    scores = {docid: 1.0 + place for place, docid in enumerate(order)}  # goes by place and nothing else
    [run] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "", scores=scores, seed=2)])
    frame = place_shares([run])
    assert list(frame["share"]) == pytest.approx([n / 4.5 for n in range(1, 9)])
    assert list(frame["fitted"]) == pytest.approx(list(frame["share"]), abs=0.01)
    assert set(frame["order"]) == {"shuffled, seed 2"}


def test_the_position_analysis_shows_shares_before_and_after(made):
    names = ["good-1", "good-2"]
    found = analyze([made / "runs" / name for name in names], qrels=made / "qrels.txt", only=["position"])
    table = found.tables[0]
    assert [row[0] for row in table.rows] == names
    frame = found.frames["place-shares"]
    part = frame[frame["system"] == "good-1"]
    smooth, rough = (part[name].max() / part[name].min() for name in ("fitted", "share"))
    assert len(part) == 20 and table.rows[0][6] == pytest.approx(smooth) and smooth < rough
    picture = next(picture for picture in found.pictures if picture.name == "place-shares")
    assert "Dashes: good-1, the first run given." in picture.caption


def test_positive_scores_are_compared_by_their_logarithms(tmp_path):
    scores = dict(zip(LETTERS, 2.0 ** np.array([0, 1, 2, 3, 4, 5, 6, 7]), strict=True))
    [run] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "", scores=scores)])
    auto, raw, rank = (score_positions([run], {"q1": {}}, bins=2, scale=scale) for scale in ("auto", "raw", "rank"))
    even = np.arange(4).std() / np.arange(8).std()
    assert list(auto["spread_after"]) == pytest.approx([even, even])  # equal steps
    assert raw["spread_after"][0] < 0.1 < raw["spread_after"][1]
    assert list(rank["spread_after"]) == pytest.approx([even, even])
    [zero] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "", name="zero", scores={**scores, "a": 0.0})])
    assert set(score_positions([zero], {"q1": {}}, bins=2)["scale"]) == {"raw scores"}


def test_a_query_without_relevant_passages_there_is_in_no_mean_of_their_ranks(tmp_path):
    found = tuple(Candidate(docid, 8.0 - place, "w") for place, docid in enumerate(LETTERS))
    write_candidates(tmp_path / "two.jsonl", [Ranking(Query(qid, "flea"), found) for qid in ("q1", "q2")])
    [run] = read_finished_runs([run_of(tmp_path, tmp_path / "two.jsonl", LETTERS)])
    frame = score_positions([run], {"q1": {"e": 1}, "q2": {}}, bins=2)
    assert frame["rank_relevant"][1] == pytest.approx(4.5 / 8)


def test_a_list_whose_scores_are_all_equal_has_no_spread(tmp_path):
    [run] = read_finished_runs([run_of(tmp_path, lettered(tmp_path), "", scores=dict.fromkeys(LETTERS, 1.0))])
    assert list(score_positions([run], {"q1": {}}, bins=2)["spread_after"]) == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------------------ order


def test_agreement_equals_scipy():
    chance = np.random.default_rng(1)
    one, other = list(map(str, range(30))), list(map(str, chance.permutation(30)))
    ranks = [other.index(docid) for docid in one]
    assert kendall_tau(one, other) == pytest.approx(stats.kendalltau(range(30), ranks).statistic)
    numbers = [float(n % 7) for n in ranks]
    assert spearman(numbers, ranks) == pytest.approx(stats.spearmanr(numbers, ranks).statistic)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
    assert kendall_tau(["a"], ["a"]) == overlap(["a", "b"], ["b", "a"], 10) == 1.0


def test_rank_biased_overlap_by_hand():
    """Agreement is 0, 1 at depths 1, 2: (1 - p)/p * (0 p + 1 p^2) + 1 p^2, with p = 0.5."""
    assert rank_biased_overlap(["a", "b"], ["b", "a"], 0.5) == pytest.approx(0.25 + 0.25)
    assert rank_biased_overlap(["a", "b"], ["a", "b"], 0.5) == pytest.approx(1.0)


def test_order_sensitivity_by_hand(tmp_path):
    candidates = lettered(tmp_path)
    qrels = write_qrels(tmp_path / "q.txt", {"q1": {"a": 1}})
    runs = [
        run_of(tmp_path, candidates, "abcdefgh", name="sys-forward"),
        run_of(tmp_path, candidates, "hbcdefga", name="sys-reverse", reverse=True),
    ]
    third = run_of(tmp_path, candidates, "abcdefgh", name="sys-shuffled", seed=1)
    assert order_sensitivity(read_finished_runs([*runs, third]), qrels, measure="RR")[0].iloc[0]["orders"] == 3
    summary, per_query = order_sensitivity(read_finished_runs(runs), qrels, measure="RR")
    row = summary.iloc[0]
    assert (row["system"], row["orders"], row["queries"]) == ("sys", 2, 1)
    assert row["kendall_tau"] == pytest.approx(1 - 2 * 13 / 28)  # 13 of 28 pairs change
    assert row["given_tau"] == -1.0
    assert (row["RR"], row["lowest"], row["highest"]) == (pytest.approx(0.5625), 0.125, 1.0)
    assert list(per_query["spread"]) == [0.875]


def test_order_sensitivity_needs_two_orders_of_the_same_candidates(tmp_path):
    candidates = lettered(tmp_path)
    qrels = write_qrels(tmp_path / "q.txt", {"q1": {"a": 1}})
    same = [run_of(tmp_path, candidates, "abcdefgh", name=name) for name in ("x-1", "x-2")]
    with pytest.raises(ValueError, match="only one run of each system"):
        order_sensitivity(read_finished_runs(same[:1]), qrels)
    with pytest.raises(ValueError, match="give the candidates in the same order"):
        order_sensitivity(read_finished_runs(same), qrels)
    other = run_of(tmp_path, candidates, "abcdefgh", name="x-3", depth=5)
    with pytest.raises(ValueError, match="x-1 and x-3 reranked different candidates"):
        order_sensitivity(read_finished_runs([same[0], other]), qrels)


# ----------------------------------------------------------------------------------------------------------- length


def test_the_length_test_keeps_queries_with_short_relevant_passages(tmp_path):
    """b is relevant with 10 words, h the longest irrelevant one with 20: just kept at a ratio of 0.5."""
    candidates = lettered(tmp_path, words={"b": 10, "h": 20})
    qrels = write_qrels(tmp_path / "q.txt", {"q1": {"b": 1}})
    runs = [
        run_of(tmp_path, candidates, "hbacdefg", name="long"),
        run_of(tmp_path, candidates, "bhacdefg", name="short"),
    ]
    grades = {"q1": {"b": 1}}
    frame = length_bias(read_finished_runs(runs), qrels, grades).set_index("system")
    assert list(frame.index) == [FIRST_STAGE, "long", "short"]
    assert list(frame["queries"]) == [1, 1, 1]
    assert list(frame["gold_above_longest"]) == [1.0, 0.0, 1.0]
    assert frame.loc["long", "nDCG@10"] == pytest.approx(1 / math.log2(3))
    assert frame.loc["short", "nDCG@10"] == 1.0
    wanted = stats.spearmanr([20, 10, 3, 3, 3, 3, 3, 3], range(8, 0, -1)).statistic
    assert frame.loc["long", "length_correlation"] == pytest.approx(wanted)
    none = length_bias(read_finished_runs(runs), qrels, grades, ratio=0.49)
    assert list(none["queries"]) == [0, 0, 0]
    assert none["gold_above_longest"].isna().all()
    several = {"q1": {"b": 1, "g": 1}}  # g has 3 words
    either = length_bias(read_finished_runs(runs), qrels, several)
    assert list(either["gold_above_longest"]) == [1.0, 0.0, 1.0]
    assert list(length_bias(read_finished_runs(runs), qrels, several, ratio=0.2)["queries"]) == [0, 0, 0]
    capped = length_bias(read_finished_runs(runs), qrels, grades, words=12)
    assert list(capped["queries"]) == [0, 0, 0]  # 10 of 12 words


def test_the_length_test_knows_which_saved_candidates_a_run_left_out(tmp_path):
    candidates = lettered(tmp_path, words={"a": 40, "b": 10, "d": 20})
    supply = supply_from_file(candidates)
    rest = replace(supply, rankings=lambda: (ranking.without({"a"}) for ranking in supply.rankings()))
    execute(RunPlan(output=tmp_path / "run", reranker=Scripted({}, by_docid=in_order("bcd")), supply=rest, depth=3))
    qrels = write_qrels(tmp_path / "q.txt", {"q1": {"b": 1}})
    frame = length_bias(read_finished_runs([tmp_path / "run"]), qrels, {"q1": {"b": 1}})
    assert list(frame["gold_above_longest"]) == [1.0, 1.0]  # d was read in place of a and is the longest


def test_texts_are_taken_only_from_the_candidates_that_the_run_read(tmp_path):
    candidates = lettered(tmp_path)
    qrels = write_qrels(tmp_path / "q.txt", {"q1": {"b": 1}})
    runs = read_finished_runs([run_of(tmp_path, candidates, LETTERS)])
    moved = candidates.rename(tmp_path / "moved.jsonl")
    with pytest.raises(FileNotFoundError, match="name the file with candidates=FILE"):
        length_bias(runs, qrels, {"q1": {"b": 1}})
    assert len(length_bias(runs, qrels, {"q1": {"b": 1}}, candidates=moved)) == 2
    other = lettered(tmp_path, words={"a": 9})
    with pytest.raises(ValueError, match="not the candidates of"):
        length_bias(runs, qrels, {"q1": {"b": 1}}, candidates=other)


# ---------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of one system, the second on shuffled candidates; qrels with four grades."""
    folder = tmp_path_factory.mktemp("analysis")
    candidates, qrels, grades = graded_candidates(folder, 8, 20)
    shuffled = shuffled_copy(candidates, folder / "shuffled.jsonl", 2)
    for name, path in (("good-1", candidates), ("good-2", shuffled)):
        make_run(folder / "runs" / name, path, qrels, Scripted(grades, 0.5, name="good"))
    return folder


def test_judgments_may_come_through_a_pipe(made):
    runs = [made / "runs" / "good-1", made / "runs" / "good-2"]
    filed = analyze(runs, qrels=made / "qrels.txt", only=["order-sensitivity"])
    with piped((made / "qrels.txt").read_bytes()) as qrels:
        found = analyze(runs, qrels=qrels, only=["order-sensitivity"])
    assert found.frames["order-sensitivity"].equals(filed.frames["order-sensitivity"])


def test_without_a_flag_everything_that_applies_is_done_and_the_rest_told(made, tmp_path):
    found = analyze([made / "runs" / "good-1", made / "runs" / "good-2"], qrels=made / "qrels.txt")
    assert list(found.skipped) == ["scatter", "head-map"]  # the two runs have other candidates, and read no heads
    assert "candidates_sha256" in found.skipped["scatter"]
    names = ["middle-zone", "position", "place-shares", "order-sensitivity", "order-sensitivity-per-query"]
    assert list(found.frames) == [*names, "length-bias"]
    pictures = ["middle-zone", "place-shares", "score-spread", "position", "order", "length-bias"]
    assert [p.name for p in found.pictures] == pictures
    for picture in found.pictures:
        assert picture.png.startswith(b"\x89PNG")
        assert "good-1, good-2 (made by commit" in picture.caption
        assert "Command: headrank analyze" in picture.caption
    written = save_analysis(found, tmp_path)
    assert {path.suffix for path in written} == {".png", ".csv", ".md", ".html"}
    page = (tmp_path / "analysis.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "scatter left out" in page


TABLE = "layer\thead\tdiscrimination\tconstant_lists\tscore\tchosen\n{rows}"


def head_table(path: Path, chosen: set[tuple[int, int]]) -> Path:
    rows = [f"{layer}\t{head}\t0.{layer}{head}\t0\t{head - layer}.5\t{int((layer, head) in chosen)}\n"
            for layer in range(2) for head in range(3)]  # fmt: skip
    path.write_text(TABLE.format(rows="".join(rows)))
    return path


class Reading(Scripted):
    """Says which heads it read, as attention rerankers do."""

    heads: HeadSet

    def describe(self):
        return {**super().describe(), "model": "m", "heads": {"sha256": self.heads.digest()}}


def reading_run(folder: Path, name: str, heads: HeadSet, command: str) -> Path:
    reranker = Reading({}, by_docid=in_order(LETTERS))
    reranker.heads = heads
    plan = RunPlan(output=folder / name, supply=supply_from_file(lettered(folder)), reranker=reranker)
    return execute(plan, command=command).directory.path


def test_head_maps_come_from_the_tables_beside_the_head_sets_of_the_runs(tmp_path):
    one, other = (HeadSet(name, (pair,)) for name, pair in (("one", (1, 2)), ("other", (0, 1))))
    for heads in (one, other):
        heads.save(tmp_path / f"{heads.name}.json")
        head_table(tmp_path / f"{heads.name}.tsv", set(heads.heads))
    changed = tmp_path / "changed.json"
    one.save(changed)
    head_table(changed.with_suffix(".tsv"), {(1, 2)})
    runs = [
        reading_run(tmp_path, "a", one, f"headrank rerank --heads {tmp_path}/one.json --system headrank"),
        reading_run(tmp_path, "b", other, f"headrank rerank --heads={tmp_path}/other.json"),
        reading_run(tmp_path, "c", other, f"headrank rerank --heads {changed}"),
    ]
    qrels = write_qrels(tmp_path / "qrels.txt", {"q1": {"a": 1}})
    found = analyze(runs, qrels=qrels, only=["head-map"])
    assert [picture.name for picture in found.pictures] == ["head-map-1", "head-map-2"]
    assert "outlined" in found.pictures[0].caption and "one.tsv" in found.pictures[0].caption
    frame = found.frames["head-map"]
    assert list(frame[frame["chosen"] == 1][["system", "layer", "head", "score"]].itertuples(index=False)) == [
        ("a", 1, 2, 1.5), ("b", 0, 1, 1.5),
    ]  # fmt: skip
    assert found.tables[0].note.endswith("No table is known for c.")  # that file holds other heads by now
    with pytest.raises(ValueError, match="no head table is known for c: select-heads writes one beside the head set"):
        analyze(runs[2:], qrels=qrels, only=["head-map"])


def test_a_named_head_table_is_drawn_by_any_of_its_measures(made, tmp_path):
    table = head_table(tmp_path / "heads.tsv", {(0, 0)})
    arguments = [str(made / "runs" / "good-1"), "--qrels", str(made / "qrels.txt"), "--heads-table", str(table)]
    arguments += ["--head-map", "--output", str(tmp_path / "report")]
    done = CliRunner().invoke(analyze_command, [*arguments, "--head-measure", "discrimination"], catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "report" / "figures" / "head-map.png").read_bytes().startswith(b"\x89PNG")
    assert "discrimination by layer and head" in (tmp_path / "report" / "analysis.html").read_text()
    with pytest.raises(ValueError, match="no measure 'nDCG'; it has layer, head, discrimination"):
        CliRunner().invoke(analyze_command, [*arguments, "--head-measure", "nDCG"], catch_exceptions=False)


def test_an_analysis_that_was_asked_for_and_does_not_apply_is_an_error(made):
    with pytest.raises(ValueError, match="candidates_sha256"):
        analyze([made / "runs" / "good-1", made / "runs" / "good-2"], qrels=made / "qrels.txt", only=["scatter"])
    with pytest.raises(ValueError, match="no analysis length; known: middle-zone"):
        analyze([made / "runs" / "good-1"], qrels=made / "qrels.txt", only=["length"])


def test_the_command_does_what_its_flags_say(made):
    arguments = [str(made / "runs" / "good-1"), "--qrels", str(made / "qrels.txt"), "--middle-zone", "--scatter"]
    result = CliRunner().invoke(analyze_command, [*arguments, "--top", "0.5", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(result.output)
    assert list(record["analyses"]) == ["middle-zone", "per-query"]
    assert record["analyses"]["middle-zone"][0]["queries"] == 8


def test_what_is_left_out_is_told_with_the_commands_flags(made):
    arguments = [str(made / "runs" / "good-1"), "--qrels", str(made / "qrels.txt")]
    result = CliRunner().invoke(analyze_command, arguments, catch_exceptions=False)
    assert "head-map left out" in result.stderr and "--heads-table FILE" in result.stderr


def test_the_command_knows_every_analysis():
    assert tuple(CLI_ANALYSES) == ANALYSES
