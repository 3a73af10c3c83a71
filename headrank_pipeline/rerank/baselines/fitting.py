"""How many words of each passage fit a model."""

from __future__ import annotations

from collections.abc import Callable

from headrank_pipeline.rerank.baselines.windows import Window

__all__ = ["fitted_words"]


def fitted_words(window: Window, longest: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number of words per passage, up to `longest`, with which a window fits.

    RankGPT takes words off one by one until it fits; halving the range finds the same number.

    Raises:
        ValueError: it does not fit with a single word of each passage.
    """
    if fits(longest):
        return longest
    lowest, highest = 0, longest - 1
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        lowest, highest = (middle, highest) if fits(middle) else (lowest, middle - 1)
    if lowest < 1:
        raise ValueError(
            f"qid {window.query.qid}: a window of {len(window.candidates)} passages does not fit the model with a "
            f"single word of each; lower window_size (or max_new_tokens), or raise max_prompt_tokens"
        )
    return lowest
