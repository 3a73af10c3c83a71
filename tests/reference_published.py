"""ICR, QRHead, CoRe and QRRanker by the letter of their authors' code, slowly: eager attention of the whole model.

Shares no code with the package. Spans come the way each of them finds them: offsets in a string that is put together
here (ICR, QRHead), counting the tokens of ever longer beginnings of the prompt (CoRe), or of its pieces (QRRanker).
Read: OSU-NLP-Group/In-Context-Reranking (1b965f8) src/in_context_reranker.py; princeton-pli/QRHead (e2bf69f)
src/qrretriever/attn_retriever.py; linhhtran/CoRe-Reranking (dfa01a2) experiments/src/reranker_calib.py;
anrgct/autodev-codebase (0c587c4) src/code-index/rerankers/qrranker.ts. ChatML for ICR is Selective-ICR's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above."
LLAMA3 = ("<|start_header_id|>user<|end_header_id|>", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>")
MISTRAL = ("[INST]", "[/INST]")
CHATML = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
MARKUP = {
    "icr": {"llama3": LLAMA3, "mistral": MISTRAL, "chatml": CHATML},
    "qrhead": {"llama3": LLAMA3, "chatml": ("<|im_start|>user", "<|im_end|>\n<|im_start|>assistant")},
    "core": {
        "chatml": CHATML,  # not published: the authors' words and spans in Qwen's markup
        "llama3": LLAMA3,
        "mistral": MISTRAL,
        "phi": ("<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>"),
        "granite": (
            "<|start_of_role|>user<|end_of_role|>",
            "<|end_of_text|><|start_of_role|>assistant<|end_of_role|>",
        ),
    },
    "qrranker": {"chatml": CHATML},
}


@dataclass
class Asked:
    """A prompt as the authors' code writes and marks it; spans half open, columns in the order of the passages."""

    text: str
    ids: list[int]
    rows: tuple[int, int]
    columns: list[tuple[int, int]]


def scores(system, family, model, tokenizer, query, passages, heads=None):
    """Return one score per (title, text) of `passages`, best first, and the prompt; heads None means all."""
    ask = {"icr": _icr_or_qrhead, "qrhead": _icr_or_qrhead, "core": _core, "qrranker": _qrranker}[system]
    asked = ask(system, family, tokenizer, query, passages)
    values = _values(model, asked, heads)
    if system == "qrranker":
        count = len(heads)
        return [float(values[start:end].sum()) / count for start, end in asked.columns], asked
    blank = _values(model, ask(system, family, tokenizer, "N/A", passages), heads)
    found = []
    for start, end in asked.columns:
        calibrated = values[start:end] - blank[start:end]
        if len(calibrated) > 1:  # where theirs is NaN and drops the token, ours keeps it
            calibrated = calibrated[calibrated > calibrated.mean() - 2 * calibrated.std()]
        found.append(float(calibrated.sum()))
    return found, asked


def _icr_or_qrhead(system, family, tokenizer, query, passages):
    prefix, suffix = MARKUP[system][family]
    separator = " \n\n" if family == "llama3" or (system, family) == ("icr", "chatml") else "\n\n"
    text = prefix + " Here are some paragraphs:"
    spans = []
    for place, (title, body) in enumerate(reversed(passages), start=1):
        if system == "qrhead":
            passage = body if title is None else f"{title}\n{body}"
        else:
            passage = f"{title or ''}\n{body}".strip()
        text += separator
        spans.append((len(text), len(text) + len(f"[{place}] {passage}")))
        text += f"[{place}] {passage}"
    text += separator
    asked_at = len(text)
    text += f"{INSTRUCTION}{separator}Query: {query}{suffix}"
    ids, tokens = _tokens_of(tokenizer, text)
    columns = [tokens(*span) for span in reversed(spans)]
    return Asked(text, ids, tokens(asked_at, len(text)), columns)


def _core(system, family, tokenizer, query, passages):
    def count(text):
        return len(tokenizer(text).input_ids)

    prefix, suffix = MARKUP[system][family]
    off_set = 1 if family == "mistral" else 0
    text = prefix + " Here are some paragraphs:\n\n"
    columns = []
    for place, (_, body) in enumerate(passages, start=1):
        text += f"[document {place}]"
        start = count(text)
        text += f" {body}"
        columns.append((start, count(text) - off_set + 1))
        text += "\n\n"
    start = count(text)
    text += f"{INSTRUCTION}\n\nQuery: {query}"
    rows = (start, count(text) - off_set + 1)
    text += suffix
    return Asked(text, tokenizer(text).input_ids, rows, columns)


def _qrranker(system, family, tokenizer, query, passages):
    def count(text):
        return len(tokenizer(text).input_ids)

    prefix, suffix = MARKUP[system][family]
    text = prefix + "Here are some retrieved chunks:\n\n"
    at = count(text)
    columns = []
    for place, (title, body) in enumerate(passages, start=1):
        chunk = f"[{place}] Title: {title}: {body}\n\n"
        columns.append((at, at + count(chunk)))
        at += count(chunk)
        text += chunk
    closing = f"Use the retrieved chunks to answer the user's query.\n\nQuery: {query}"
    text += closing + suffix
    return Asked(text, tokenizer(text).input_ids, (at, at + count(closing)), columns)


def _tokens_of(tokenizer, text):
    encoded = tokenizer(text, return_offsets_mapping=True)

    def tokens(start, end):
        inside = [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
        return inside[0], inside[-1] + 1

    return encoded["input_ids"], tokens


def _values(model, asked, heads):
    """Return [N] float64: the mean over rows of each head's attention, summed over heads."""
    with torch.no_grad():
        attentions = model(torch.tensor([asked.ids]), output_attentions=True).attentions
    total = torch.zeros(len(asked.ids), dtype=torch.float64)
    for layer, attention in enumerate(attentions):
        for head, one in enumerate(attention[0].double()):
            if heads is None or (layer, head) in heads:
                total += one[slice(*asked.rows)].mean(0)
    return total
