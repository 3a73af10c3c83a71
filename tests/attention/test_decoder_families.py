"""Every decoder family of transformers is read as it attends itself, or refused with a reason."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from bird_prompts import builder, prompts
from decoder_families import FAMILIES, LAYERS, family_folder
from transformers import AutoModel

from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import headrank

TOLERANCE = 1e-5
MODELS = Path(__file__).resolve().parents[2] / "docs" / "models.md"

# One of each way to be different: plain, fused, norms over all heads, latent attention, sinks, capped logits, code of
# its own, no rotation. All of them take a minute.
USUAL = ("qwen3", "phi3", "olmo2", "deepseek_v3", "gpt_oss", "gemma2", "falcon", "nemotron", "biogpt")
EVERY = [
    pytest.param(family, marks=() if family in USUAL else pytest.mark.slow) for family in sorted(FAMILIES)
]  # fmt: skip


def own_attention(folder, prompt):
    """[L * A, N] of a prompt, the mean over its rows, from the family's eager attention."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        shown = model(input_ids=torch.from_numpy(prompt.token_ids)[None], output_attentions=True).attentions
    return torch.cat([layer[0, :, slice(*prompt.rows)].mean(1) for layer in shown])


def standing(family, folder):
    """What docs/models.md says of a family: read or refused, and what is left out for it or why."""
    try:
        family_folder(folder, family)
        reader = AttentionReader(load(folder, "all", device="cpu"))
    except ValueError as error:
        return "refused", reason_of(str(error).replace(f"{folder.name}: ", ""))
    made_by = builder()
    made = prompts(made_by)
    calibrated = reader.read_calibrated([(prompt, made_by.with_query(prompt, "N/A")) for prompt in made])
    for prompt, read, (branch, _) in zip(made, reader.read(made), calibrated, strict=True):
        expected = own_attention(folder, prompt)
        assert (read - expected).abs().max() <= TOLERANCE
        assert (branch - expected).abs().max() <= TOLERANCE
    off = [name.replace("_", " ") for name in ("spared_deepest", "shared_prefix") if name in reader.without]
    try:
        reader.check_isolated()
    except ValueError:
        off.append("isolated passages")
    return "read", f"without {', '.join(off)}" if off else ""


def reason_of(message):
    if "code of its own" in message:
        return "attends by code of its own"
    if "is no decoder" in message:
        return "its layers have no self_attn"
    if kinds := re.search(r"has layers of kind \['(\w+)'", message):
        return f"has layers of kind {kinds[1]}"
    found = re.search(r"is not read right here \((.*)\); choose", message)
    assert found, message
    reason = re.sub(r"^\w+Error: |/\S+: ", "", found[1])
    return re.sub(r"^[\d.e-]+ of its attention", "some of its attention", reason)


def table():
    """The rows of docs/models.md: family -> (standing, note)."""
    rows = re.findall(
        r"^\| `(\w+)` \| (read|refused) \|(?: (.*?))? \|$", MODELS.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {family: (found, note) for family, found, note in rows}


@pytest.mark.parametrize("family", EVERY)
def test_a_family_agrees_with_its_own_attention_or_is_refused_as_the_table_says(family, tmp_path):
    assert standing(family, tmp_path) == table()[family]


def test_the_table_has_every_family():
    assert list(table()) == sorted(FAMILIES)


def test_attention_in_both_directions_is_refused(tmp_path):
    folder = family_folder(tmp_path, "gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(ValueError, match=r"of a Gemma3TextModel is not read right here \(tokens look at later ones\)"):
        AttentionReader(load(folder, "all", device="cpu"))


def test_what_is_left_out_is_in_the_log_and_in_the_manifest(tmp_path, caplog):
    folder = family_folder(tmp_path, "olmo2")
    with caplog.at_level(logging.INFO):
        described = headrank(folder, "all", device="cpu").origins()["kernels"]
    assert re.search(r"\(Olmo2Model\) is read without spared_deepest: RuntimeError", caplog.text)
    assert described.endswith(", without spared_deepest")


def test_refused_isolated_passages_name_the_family(tmp_path):
    reranker = headrank(family_folder(tmp_path, "diffllama"), "all", passages="isolated", device="cpu")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"isolated passages are not read right with a DiffLlamaModel \(.*causal"):
            reranker.rerank(ranking("q1", 2, 1))


# ----------------------------------------------------------------------------------------------------- positions


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 300,
    "factor": 4.0,
}


def ranking(qid, passages, words):
    texts = (f"Passage {number} of birds and fish. " * words for number in range(passages))
    candidates = tuple(Candidate(f"d{n}", -n, text) for n, text in enumerate(texts))
    return Ranking(Query(qid, "do birds swim?"), candidates)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_long_neighbour_does_not_change_a_short_list(tmp_path, calibrated):
    folder = family_folder(
        tmp_path, "phi3", rope_parameters=LONG_ROPE, original_max_position_embeddings=300, max_position_embeddings=1200
    )
    reranker = headrank(folder, "all", content_free="N/A" if calibrated else None, device="cpu")
    short, long, edge = ranking("q1", 3, 1), ranking("q2", 8, 4), ranking("q3", 4, 4)
    together = reranker.rerank_batch([short, long, edge])
    assert together[0].notes["prompt_tokens"] <= 300 < together[1].notes["prompt_tokens"]
    for given, found in zip([short, long, edge], together, strict=True):
        assert found.scores == pytest.approx(reranker.rerank(given).scores, rel=1e-4, abs=1e-6)
    for given in (short, long):
        prompt = reranker.builder.build(given)
        (read,) = reranker.reader.read([prompt])
        assert (read - own_attention(folder, prompt)).abs().max() <= TOLERANCE


def test_isolated_passages_beyond_the_short_positions_are_refused(tmp_path):
    folder = family_folder(
        tmp_path, "phi3", rope_parameters=LONG_ROPE, original_max_position_embeddings=300, max_position_embeddings=1200
    )
    reranker = headrank(folder, "all", passages="isolated", device="cpu")
    assert len(reranker.rerank(ranking("q1", 8, 4)).scores) == 8
    with pytest.raises(ValueError, match=r"^[^/]+: a list with isolated passages takes \d+ positions; beyond 300 its"):
        reranker.rerank(ranking("q2", 2, 60))


def test_a_window_as_long_as_the_positions_is_none(tmp_path):
    folder = family_folder(tmp_path / "wide", "mistral", sliding_window=2048)
    made = prompts(builder())
    readings = AttentionReader(load(folder, "all", device="cpu")).read(made)
    for prompt, read in zip(made, readings, strict=True):
        assert (read - own_attention(folder, prompt)).abs().max() <= TOLERANCE
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    mixed = family_folder(tmp_path / "mixed", "cohere2", sliding_window=4096, layer_types=kinds)
    assert len(AttentionReader(load(mixed, "all", device="cpu")).heads.heads) == 4 * LAYERS
    narrow = family_folder(tmp_path / "narrow", "mistral", sliding_window=2047)
    with pytest.raises(ValueError, match="has layers of kind"):
        load(narrow, "all", device="cpu")
