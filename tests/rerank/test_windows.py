"""Windows, the loop that applies them, and the order that a reply means."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.replies import NOTES, Reply, parse_reply, without_thinking
from headrank_pipeline.rerank.baselines.windows import Ordered, Windowing, slide


def listed(length: int, qid: str = "q") -> Ranking:
    return Ranking(Query(qid, "fleas"), tuple(Candidate(f"d{i}", 0.0, str(i)) for i in range(length)))


def by_number(windows):
    """A model that knows: the highest number first."""
    orders = [
        sorted(range(len(window.candidates)), key=lambda i, w=window: -int(w.candidates[i].text)) for window in windows
    ]
    return [Ordered(tuple(order), {"replies": 1}) for order in orders]


SETTINGS = st.integers(2, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1)))


@given(SETTINGS)
def test_windows_of_every_length_cover_overlap_and_end_at_rank_1(setting):
    window_size, stride = setting
    windowing = Windowing(window_size, stride)
    for length in range(1, 121):
        spans = windowing.spans(length)
        assert {rank for start, end in spans for rank in range(start, end)} == set(range(length))
        assert spans[0][1] == length and spans[-1][0] == 0
        assert all(0 < end - start <= window_size for start, end in spans)
        assert len(spans) == 1 or length > window_size
        for (start, end), (next_start, next_end) in pairwise(spans):
            assert next_start < start < next_end < end


def test_an_empty_list_has_no_window():
    assert Windowing().spans(0) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((20, 20), "stride 20: expected less than the window_size 20"),
        ((20, 21), "stride 21: expected less"),
        ((20, 0), "stride 0: expected at least 1"),
        ((1, 1), "window_size 1: expected at least 2"),
        ((20, 10, 0), "num_passes 0: expected at least 1"),
    ],
)
def test_windows_that_cannot_carry_candidates_up_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Windowing(*settings)


@pytest.mark.parametrize("length", [0, 1, 2, 9, 20, 21, 37, 97, 120])
def test_sliding_keeps_every_candidate_and_carries_the_best_to_the_top(length):
    (ranking,) = slide([listed(length)], Windowing(20, 10), by_number)
    assert sorted(ranking.docids) == sorted(listed(length).docids)
    assert list(ranking.docids[:10]) == [f"d{i}" for i in range(length)][::-1][:10]
    assert ranking.scores == tuple(float(n) for n in range(length, 0, -1)) or not length


def test_more_passes_sort_further_down():
    once, thrice = (slide([listed(40)], Windowing(20, 10, passes), by_number)[0] for passes in (1, 3))
    assert once.docids[10:20] != thrice.docids[10:20]
    assert list(thrice.docids[:30]) == [f"d{i}" for i in range(39, 9, -1)]


def test_windows_of_different_queries_at_one_step_go_together():
    steps = []

    def order(windows):
        steps.append([(window.place, len(window.candidates)) for window in windows])
        return by_number(windows)

    slide([listed(25), listed(0), listed(5), listed(1), listed(35)], Windowing(20, 10), order)
    assert steps == [[(0, 20), (2, 5), (4, 20)], [(0, 15), (4, 20)], [(4, 15)]]


def test_a_passage_cut_in_two_windows_counts_once():
    (ranking,) = slide(
        [listed(5)],
        Windowing(3, 1),
        lambda windows: [Ordered((0, 1, 2), {"replies": 1}, {"d2": 4, "d3": 1}) for _ in windows],
    )
    assert ranking.notes == {"replies": 3, "passages_cut": 2, "words_dropped": 5}


# ------------------------------------------------------------------------------------------------------------- replies


@given(st.text() | st.text(alphabet="[]0123456789 >,٣²"), st.integers(1, 30))
def test_any_reply_means_a_permutation(text, passages):
    parsed = parse_reply(text, passages)
    assert sorted(parsed.order) == list(range(passages))
    assert parsed.notes()["identifiers_missing"] == passages - parsed.named


@given(st.permutations(range(7)))
def test_a_well_formed_reply_is_read_as_it_stands(order):
    parsed = parse_reply(" > ".join(f"[{index + 1}]" for index in order) + "\n", 7)
    assert parsed.order == tuple(order) and parsed.well_formed


@pytest.mark.parametrize(
    ("text", "order", "named", "duplicate", "out_of_range", "well_formed"),
    [
        ("[2] > [1] > [3]", (1, 0, 2), 3, 0, 0, True),
        ("[2]>[1]>[3]", (1, 0, 2), 3, 0, 0, True),
        ("2 > 1 > 3", (1, 0, 2), 3, 0, 0, False),
        ("3,1,2", (2, 0, 1), 3, 0, 0, False),
        ("[3]", (2, 0, 1), 1, 0, 0, False),
        ("[3] > [3] > [1]", (2, 0, 1), 2, 1, 0, False),
        ("[0] > [4] > [2]", (1, 0, 2), 1, 0, 2, False),
        ("Here are the 3 passages: [2] > [1] > [3].", (1, 0, 2), 3, 0, 0, False),
        ("1. [3]\n2. [2]\n3. [1]", (2, 1, 0), 3, 0, 0, False),
        ("<think>[1] > [2] > [3]</think>\n\n[3] > [2] > [1]", (2, 1, 0), 3, 0, 0, True),
        ("so [1] wins</think>[3] > [2] > [1]", (2, 1, 0), 3, 0, 0, True),
        ("<think>[3] > [2] > [1]", (0, 1, 2), 0, 0, 0, False),
        ("", (0, 1, 2), 0, 0, 0, False),
        ("I cannot rank them.", (0, 1, 2), 0, 0, 0, False),
        ("[" + "9" * 5000 + "]", (0, 1, 2), 0, 0, 1, False),
    ],
)
def test_replies_are_repaired_and_counted(text, order, named, duplicate, out_of_range, well_formed):
    parsed = parse_reply(text, 3)
    assert (parsed.order, parsed.named) == (order, named)
    assert (parsed.duplicate, parsed.out_of_range, parsed.well_formed) == (duplicate, out_of_range, well_formed)
    notes = parsed.notes()
    assert notes["replies_well_formed"] + notes["replies_repaired"] == notes["replies"] == 1
    assert notes["replies_without_identifier"] == (named == 0)


def test_thinking_twice_leaves_what_follows_the_last():
    assert without_thinking("<think>a</think>b<think>c</think>d") == "d"


def test_every_count_has_its_meaning_written_down():
    counted = {*parse_reply("", 2).notes(), *Reply("", 1, 1, 1).notes(), "passages_cut", "words_dropped"}
    assert counted <= set(NOTES)
    assert "generated_tokens" not in Reply("").notes()
