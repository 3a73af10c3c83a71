"""ICR by the letter of its paper, slowly: eager attention of the whole model, loops over layers, heads, rows, tokens.

Shares no code with the package. Spans come from adding up the lengths of the strings the prompt is made of.
"""

from __future__ import annotations

import torch

INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above."


def icr_scores(model, tokenizer, query, passages, layers=None):
    """Return one score per (title, text) of `passages`; the first of them stands last in the prompt."""
    head = "<|im_start|>user\n Here are some paragraphs:"
    spans = []
    for place, (title, text) in enumerate(reversed(passages), start=1):
        head += " \n\n"
        begin = len(head)
        head += f"[{place}] " + (f"{title}\n" if title else "") + text
        spans.append((begin, len(head)))
    head += " \n\n"
    spans.reverse()
    real = token_values(model, tokenizer, head, query, layers)
    blank = token_values(model, tokenizer, head, "N/A", layers)
    scores = []
    for begin, end in spans:
        values = []
        for index, (start, stop) in enumerate(real["offsets"]):
            if start < end and stop > begin:
                values.append(real["values"][index] - blank["values"][index])
        values = torch.tensor(values, dtype=torch.float64)
        if len(values) > 1:
            values = values[values > values.mean() - 2 * values.std()]
        scores.append(float(values.sum()))
    return scores


def token_values(model, tokenizer, head, query, layers):
    prompt = f"{head}{INSTRUCTION} \n\nQuery: {query}<|im_end|>\n<|im_start|>assistant\n"
    encoded = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
    offsets = encoded["offset_mapping"]
    rows = [i for i, (_, stop) in enumerate(offsets) if stop > len(head)]
    with torch.no_grad():
        attentions = model(torch.tensor([encoded["input_ids"]]), output_attentions=True).attentions
    values = [0.0] * len(offsets)
    for layer, attention in enumerate(attentions):
        if layers is not None and layer not in layers:
            continue
        for one_head in attention[0].double():
            mean = sum(one_head[row] for row in rows) / len(rows)
            for index in range(len(offsets)):
                values[index] += float(mean[index])
    return {"offsets": offsets, "values": values}
