"""What a model wrote about a window, and the order that it means: parsed, repaired, every repair counted.

The rule of this package: a reply that names at least one passage is repaired (passages it leaves out follow in their
present order); a reply that names none says nothing about the order, and a query whose replies all say nothing fails.
What the baselines count is in `NOTES`, with what it means. Rerankers that read attention note some of the same names,
and others that their own modules explain: windows and copies in rerank/long_lists.py, for example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NOTES", "NoReply", "ParsedReply", "Reply", "parse_reply", "without_thinking"]

NOTES: Mapping[str, str] = {
    "prompt_tokens": "tokens read, over all prompts",
    "generated_tokens": "tokens written, thinking and the end-of-turn token included",
    "forward_passes": "passes through the model: one per prompt (it gives the first token), one per further token",
    "requests_repeated": "requests sent again to a server after a timeout, a lost connection or an error of its own",
    "replies": "replies that had to be parsed, one per window",
    "replies_well_formed": "those that were `[2] > [1] > …` with every identifier exactly once, and nothing else",
    "replies_repaired": "the others",
    "replies_without_identifier": "those of them that named no passage: garbage, empty, thinking without an end",
    "replies_cut": "replies that ended at max_new_tokens",
    "identifiers_missing": "passages that replies left out; they follow in their present order",
    "identifiers_duplicate": "repeated identifiers; the first one counts",
    "identifiers_out_of_range": "identifiers that no passage of the window has",
    "passages": "passages of isolated lists, where there is a passage cache",
    "passages_cached": "those of them that lay in it when their query came",
    "passages_cut": "passages of which the model saw a part only",
    "words_dropped": "words of passages that the model did not see",
    "tokens_dropped": "tokens of passages that the model did not see",
    "control_tokens_neutralised": "control tokens broken up in queries and passages",
}

_BRACKETED = re.compile(r"\[\s*(\d+)\s*\]")
_NUMBER = re.compile(r"\d+")
_WELL_FORMED = re.compile(r"\[\d+\](?:\s*>\s*\[\d+\])*")
_LONGEST_NUMBER = 9  # digits; longer ones are nobody's rank, and int() refuses very long ones


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote.

    Args:
        text: what was written, without the end-of-turn token.
        prompt_tokens: tokens read; None where the server does not say.
        generated_tokens: tokens written; likewise.
        forward_passes: passes through the model; None where another process ran it.
        cut: ended at the limit of tokens rather than by itself.
        requests_repeated: requests that were sent again before it came; None without a server.
    """

    text: str
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    forward_passes: int | None = None
    cut: bool = False
    requests_repeated: int | None = None

    def notes(self) -> dict[str, float]:
        """Return the counts that are known."""
        counts: dict[str, float | None] = {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "forward_passes": self.forward_passes,
            "requests_repeated": self.requests_repeated,
        }
        return {name: count for name, count in counts.items() if count is not None} | {"replies_cut": int(self.cut)}


@dataclass(frozen=True, slots=True)
class NoReply:
    """A prompt that got none.

    Args:
        error: why; names the query.
        requests_repeated: requests that were sent again in vain.
    """

    error: RuntimeError
    requests_repeated: int

    def notes(self) -> dict[str, float]:
        """Return the counts that are known."""
        return {"requests_repeated": self.requests_repeated}


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The order that a reply means.

    Args:
        order: index of every passage of the window, best first.
        named: passages that the reply named.
        duplicate: repeated identifiers.
        out_of_range: identifiers that no passage has.
        well_formed: exactly what was asked for.
    """

    order: tuple[int, ...]
    named: int
    duplicate: int
    out_of_range: int
    well_formed: bool

    def notes(self) -> dict[str, float]:
        """Return the counts of one reply."""
        return {
            "replies": 1,
            "replies_well_formed": int(self.well_formed),
            "replies_repaired": int(not self.well_formed),
            "replies_without_identifier": int(not self.named),
            "identifiers_missing": len(self.order) - self.named,
            "identifiers_duplicate": self.duplicate,
            "identifiers_out_of_range": self.out_of_range,
        }


def parse_reply(text: str, passages: int) -> ParsedReply:
    """Return the order of `passages` passages that a reply means, for any text whatever.

    Thinking is taken off first. Numbers in brackets count; only where there are none, bare numbers do, so that
    ``Here are the 3 passages: [2] > [1]`` names two passages (RankGPT's own parser takes every number).

    Examples:
        >>> parse_reply("[2] > [4] > [2]", 3)
        ParsedReply(order=(1, 0, 2), named=1, duplicate=1, out_of_range=1, well_formed=False)
        >>> parse_reply("3, 1, 2", 3).order
        (2, 0, 1)
    """
    answer = without_thinking(text).strip()
    order: list[int] = []
    duplicate = out_of_range = 0
    for digits in _BRACKETED.findall(answer) or _NUMBER.findall(answer):
        rank = int(digits) if len(digits) <= _LONGEST_NUMBER else 0
        if not 1 <= rank <= passages:
            out_of_range += 1
        elif rank - 1 in order:
            duplicate += 1
        else:
            order.append(rank - 1)
    named = len(order)
    complete = named == passages and not duplicate and not out_of_range
    well_formed = complete and _WELL_FORMED.fullmatch(answer) is not None
    rest = [index for index in range(passages) if index not in order]
    return ParsedReply(tuple(order + rest), named, duplicate, out_of_range, well_formed)


def without_thinking(text: str) -> str:
    """Return what follows the thinking; thinking that never ends leaves no answer.

    Examples:
        >>> without_thinking("<think>[1] is best</think>[2] > [1]")
        '[2] > [1]'
        >>> without_thinking("<think>[1] or [2]")
        ''
    """
    _, _, after = text.rpartition("</think>")
    return after.partition("<think>")[0]
