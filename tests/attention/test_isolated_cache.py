"""Keys of isolated passages kept from query to query: the same scores, and nothing kept for anything else."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from tiny_models import tiny_model

from headrank_pipeline.attention import passage_cache
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.passage_cache import KeyValues, PassageCache, entry_name, weights_digest
from headrank_pipeline.cli import main
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import headrank, icr
from headrank_pipeline.trec import write_candidates

HEADS = HeadSet("some", ((1, 0), (2, 3)))
ISOLATED = {"passages": "isolated"}
TEXTS = ["Birds fly over the sea.", "x", "", "Fish swim. " * 7, "x", "Ships sink."]
DISTINCT = len(set(TEXTS))  # a passage that occurs twice in a list is read once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("qwen3"))


def ranking(texts=TEXTS, query="do birds swim", qid="q"):
    return Ranking(Query(qid, query), tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(texts)))


def reranker_of(folder, cache, heads=HEADS, make=headrank, **options):
    return make(folder, heads, options=ISOLATED | options, device="cpu", passage_cache=cache)


def scores(reranker, *rankings):
    return [{hit.docid: hit.score for hit in one.candidates} for one in reranker.rerank_batch(rankings or [ranking()])]


def cached(reranker, *rankings):
    return [one.notes["passages_cached"] for one in reranker.rerank_batch(rankings or [ranking()])]


def files(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("make", [headrank, icr])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_cached_scores_equal_uncached_ones(folder, tmp_path, make, where):
    plain = reranker_of(folder, None, make=make)
    cache = PassageCache() if where == "memory" else PassageCache(tmp_path, memory_bytes=0)
    kept = reranker_of(folder, cache, make=make)
    lists = [ranking(), ranking([*TEXTS[2:], "Another."], "which ships sink?", "q2")]
    expected = scores(plain, *lists)
    for _ in range(3):  # filled, then read
        for one, other in zip(scores(kept, *lists), expected, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert (cache.held_bytes > 0) == (where == "memory")


def test_hits_are_counted_for_each_query(folder, tmp_path):
    reranker = reranker_of(folder, tmp_path)
    assert cached(reranker) == [0]
    assert cached(reranker, ranking(["x", "New.", "Ships sink."]), ranking(["Newer."])) == [2, 0]
    assert cached(reranker_of(folder, tmp_path)) == [DISTINCT]  # another process, as it were
    plain = reranker_of(folder, None).rerank(ranking()).notes
    assert "passages_cached" not in plain and plain["forward_passes"] == 2  # over the passages, then the question


def test_passages_found_are_not_run_again(folder, monkeypatch):
    reranker = reranker_of(folder, PassageCache())
    scores(reranker)
    ran = []
    prefill = reranker.reader.prefill
    monkeypatch.setattr(
        reranker.reader, "prefill", lambda ids, *rest, **more: (ran.append(ids), prefill(ids, *rest, **more))
    )
    scores(reranker, ranking([*TEXTS, "New."]))
    assert [len(ids) for ids in ran] == [1]


CHANGES = {
    "opening": {"opening": "Read these:"},
    "label": {"label": "* "},
    "separator": {"separator": "\n"},
    "text": {"passage_words": 1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_template_finds_nothing_of_it(folder, tmp_path, change):
    texts = ["Birds fly.", "Fish swim."]
    scores(reranker_of(folder, tmp_path), ranking(texts))
    assert cached(reranker_of(folder, tmp_path, **CHANGES[change]), ranking(texts)) == [0]


def test_another_question_or_rule_finds_all_of_it(folder, tmp_path):
    scores(reranker_of(folder, tmp_path))
    other = reranker_of(folder, tmp_path, instruction="Which?", support="all", rows="query")
    assert cached(other, ranking(query="other")) == [DISTINCT]


def test_another_model_depth_or_dtype_finds_nothing_of_it(folder, tmp_path):
    scores(reranker_of(folder, tmp_path / "cache"))
    deeper = reranker_of(folder, tmp_path / "cache", heads=HeadSet("deep", ((3, 0),)))
    trained = reranker_of(tiny_model(tmp_path / "trained", seed=1), tmp_path / "cache")
    half = headrank(folder, HEADS, options=ISOLATED, device="cpu", dtype="bfloat16", passage_cache=tmp_path / "cache")
    for other in (deeper, trained, half):
        assert cached(other) == [0]
    assert cached(deeper) == cached(half) == [DISTINCT]
    same_depth = reranker_of(folder, tmp_path / "cache", heads=HeadSet("other", ((2, 1),)))
    assert cached(same_depth) == [DISTINCT]


def test_each_part_of_the_identity_makes_another_name():
    identity = {"fingerprint": "a", "revision": None, "weights": "b", "depth": 3, "dtype": "float32"}
    opening, passage = np.array([1, 2]), np.array([3])
    name = entry_name(identity, opening, passage)
    others = [entry_name(identity | {part: "other"}, opening, passage) for part in identity]
    others += [entry_name(identity, np.array([1]), np.array([2, 3])), entry_name(identity, opening, np.array([4]))]
    assert len({name, *others}) == len(identity) + 3
    assert name == entry_name(dict(reversed(identity.items())), opening, passage)


def test_any_change_of_a_weight_changes_the_digest():
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    digests = {weights_digest(model)}
    for weight in model.state_dict().values():
        for place in range(weight.numel()):
            weight.view(-1)[place] += 1
            digests.add(weights_digest(model))
    with torch.no_grad():
        model.weight[:, [0, 1]] = model.weight[:, [1, 0]]
    digests.add(weights_digest(model))
    assert len(digests) == 1 + 8 + 1


def test_reader_knows_a_model_by_its_weights(folder):
    reader = reranker_of(folder, PassageCache()).reader
    before = reader.key_identity["weights"]
    assert reader.key_identity == {
        "fingerprint": reader.source.fingerprint,
        "revision": None,
        "weights": before,
        "depth": 3,
        "dtype": "torch.float32",
    }
    reader.model.layers[1].self_attn.q_proj.weight.data[0, 0] += 1
    assert weights_digest(reader.model) != before


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped bit":
        data[-1] ^= 1
    elif how == "cut":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped bit", "cut", "empty", "another's"])
def test_damaged_files_are_named_and_replaced(folder, tmp_path, caplog, how):
    expected = scores(reranker_of(folder, None))
    scores(reranker_of(folder, tmp_path))
    intact = [path.read_bytes() for path in files(tmp_path)]
    if how == "another's":
        files(tmp_path)[0].write_bytes(intact[1])
    else:
        damaged(files(tmp_path)[0], how)
    with caplog.at_level(logging.WARNING):
        (found,) = scores(reranker_of(folder, tmp_path))
    assert found == pytest.approx(expected[0], abs=1e-5)
    (record,) = warnings_of(caplog)
    assert str(files(tmp_path)[0]) in record.message and "computed again" in record.message
    assert len(files(tmp_path)[0].read_bytes()) == len(intact[0])
    caplog.clear()
    scores(reranker_of(folder, tmp_path))
    assert not warnings_of(caplog)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was said above the level of INFO, which an earlier command in this process may have turned on."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_interrupted_writing_leaves_nothing_to_be_found(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stop)
        scores(reranker_of(folder, tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_memory_holds_the_most_recently_used():
    def entry():
        return KeyValues((torch.zeros(2, 1, 4),), ())  # 32 bytes

    cache, cpu = PassageCache(memory_bytes=64), torch.device("cpu")
    cache.put("a", entry())
    cache.put("b", entry())
    assert cache.get("a", cpu) is not None
    cache.put("c", entry())
    assert [name in cache for name in "abc"] == [True, False, True]
    cache.put("c", entry())
    assert cache.held_bytes == 64
    cache.put("large", KeyValues((torch.zeros(2, 1, 40),), ()))
    assert "large" not in cache and cache.held_bytes == 64


def test_an_entry_put_twice_is_held_once_and_one_from_the_folder_is_held_as_well(tmp_path):
    entry = KeyValues((torch.zeros(2, 1, 4),), ())
    cache = PassageCache(tmp_path)
    cache.put("a", entry)
    cache.put("a", entry)
    assert cache.held_bytes == entry.bytes
    other = PassageCache(tmp_path)
    assert other.get("a", torch.device("cpu")) is not None
    other._path("a").unlink()
    assert other.get("a", torch.device("cpu")) is not None and other.held_bytes == entry.bytes


def test_a_folder_that_others_have_filled_is_looked_through_at_once(tmp_path):
    large, small = (KeyValues((torch.zeros(tokens, 1, 256),), ()) for tokens in (64, 1))
    for name in ("aa", "bb"):
        PassageCache(tmp_path).put(name, large)
    limit = 2 * large.bytes
    PassageCache(tmp_path, folder_bytes=limit).put("cc", small)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit


def test_entries_do_not_hold_on_to_their_batch():
    batch = torch.zeros(100, 1, 4)
    cache = PassageCache()
    cache.put("a", KeyValues((batch[:2],), ()))
    held = cache.get("a", torch.device("cpu"))
    assert held.keys[0].untyped_storage().nbytes() == 32


def test_others_may_read_what_one_has_written_to_a_shared_folder(tmp_path):
    before = os.umask(0o022)
    try:
        PassageCache(tmp_path).put("aa", KeyValues((torch.zeros(2, 1, 4),), ()))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o644]


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_each_reader_gets_an_entry_on_its_own_device(tmp_path, memory_bytes):
    cache = PassageCache(tmp_path, memory_bytes=memory_bytes)
    cache.put("aa", KeyValues((torch.zeros(2, 1, 4),) * 2, (torch.zeros(2, 1, 4),)))
    for device in map(torch.device, ("cpu", "meta", "cpu")):
        found = cache.get("aa", device)
        assert {tensor.device for tensor in found.keys + found.values} == {device}
        assert (len(found.keys), len(found.values)) == (2, 1)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the mappings of a process are told by Linux")
def test_entries_read_from_the_folder_do_not_keep_their_files_mapped(tmp_path):
    PassageCache(tmp_path).put("aa", KeyValues((torch.ones(2, 1, 4),), (torch.ones(2, 1, 4),)))
    found = PassageCache(tmp_path).get("aa", torch.device("cpu"))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert torch.equal(found.keys[0], torch.ones(2, 1, 4))


def test_gradients_do_not_meet_the_cache(folder):
    reader = reranker_of(folder, PassageCache()).reader
    prompts = [reranker_of(folder, None).builder.build(ranking())]
    reader.read(prompts)
    reader.model.requires_grad_(True)
    reader.forward(prompts)[0].sum().backward()
    assert reader.model.embed_tokens.weight.grad[prompts[0].token_ids[prompts[0].boundaries[0]]].any()


def test_causal_passages_have_no_cache(folder, tmp_path):
    with pytest.raises(ValueError, match="a passage cache needs isolated passages"):
        headrank(folder, HEADS, device="cpu", passage_cache=tmp_path)


def test_folder_keeps_what_was_used_last_within_its_limit(tmp_path):
    def entry():
        return KeyValues((torch.zeros(2, 1, 400),), ())

    cpu = torch.device("cpu")
    PassageCache(tmp_path).put("once", entry())
    size = files(tmp_path)[0].stat().st_size
    limit = 10 * size
    cache = PassageCache(tmp_path, memory_bytes=0, folder_bytes=limit)
    names = [f"{n:02}" for n in range(30)]
    for second, name in enumerate(["once", *names]):  # clocks may be coarse
        if second:
            cache.put(name, entry())
        os.utime(cache._path(name), (second, second))
        assert cache.get(names[0], cpu) is not None or second < 1
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    assert [path.stem for path in files(tmp_path)] == [names[0], *names[-8:]]  # a sixteenth is left free
    assert "once" not in cache


def test_an_entry_that_another_process_deletes_meanwhile_is_missing_and_no_more(tmp_path, caplog, monkeypatch):
    cache = PassageCache(tmp_path, memory_bytes=0)
    cache.put("a", KeyValues((torch.zeros(2, 1, 4),), ()))

    def deleted_then_opened(path, **options):
        path.unlink()
        return safe_open(path, **options)

    monkeypatch.setattr(passage_cache, "safe_open", deleted_then_opened)
    with caplog.at_level(logging.WARNING):
        assert cache.get("a", torch.device("cpu")) is None
    assert not warnings_of(caplog)


def test_unusable_places_and_sizes_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder, this is a file"):
        PassageCache(tmp_path / "file")
    with pytest.raises(ValueError, match="memory_bytes -1"):
        PassageCache(memory_bytes=-1)
    with pytest.raises(ValueError, match="folder_bytes -1"):
        PassageCache(tmp_path, folder_bytes=-1)


def invoke(*arguments, code=0):
    package = logging.getLogger("headrank_pipeline")
    handlers, level = list(package.handlers), package.level
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    package.handlers, package.level, package.propagate = handlers, level, True
    assert result.exit_code == code, result.output
    return result.output


def test_command_line_counts_hits_in_the_manifest(folder, tmp_path):
    HEADS.save(tmp_path / "heads.json")
    write_candidates(tmp_path / "candidates.jsonl", [ranking(qid="q1"), ranking(query="other", qid="q2")])
    command = ["rerank", "--candidates", tmp_path / "candidates.jsonl", "--model", folder, "--device", "cpu"]
    said = invoke(*command, "--option", "passage_cache_limit=1", "--output", tmp_path / "other", code=5)
    assert "passage_cache_limit bounds a folder" in said
    command += ["--option", f"passage_cache={tmp_path / 'cache'}", "--option", "passage_cache_memory=0.01"]
    command += ["--batch-size", 1]
    reads = ["--heads", tmp_path / "heads.json"]
    invoke(*command, *reads, "--option", "passages=isolated", "--output", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["environment"]["passage_cache"] == str(tmp_path / "cache")  # reported, and part of no identity
    assert "passage_cache" not in json.dumps(manifest["identity"]) + json.dumps(manifest["origins"])
    notes = manifest["totals"]["notes"]
    assert (notes["passages"], notes["passages_cached"]) == (2 * DISTINCT, DISTINCT)
    assert files(tmp_path / "cache")
    limited = ["--option", "passage_cache_limit=0", "--option", "label=* "]
    invoke(*command, *reads, *limited, "--option", "passages=isolated", "--output", tmp_path / "none")
    assert not files(tmp_path / "cache")
    said = invoke(*command, *reads, "--output", tmp_path / "other", code=5)
    assert "a passage cache needs isolated passages" in said
    said = invoke(*command, "--system", "rankgpt", "--output", tmp_path / "other", code=5)
    assert "rankgpt has no option 'passage_cache'" in said
