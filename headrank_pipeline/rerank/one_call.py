"""rank(): passages in order for one query, in one call. No index, no files, no Java.

What the adapters for other frameworks share stands here, too: rerankers that are opened once and kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from headrank_pipeline.passages import TEXT_FIELDS
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import SystemSpec

if TYPE_CHECKING:
    import pandas as pd

    from headrank_pipeline.attention.heads import HeadSet

__all__ = ["KEPT", "Passages", "RankedPassage", "kept_reranker", "rank", "rerank_in_turn"]

logger = logging.getLogger(__name__)

# Texts, (id, text) pairs, dictionaries, {id: text}, or a data frame with a column of texts.
Passages: TypeAlias = "Iterable[str | tuple[str, str] | Mapping[str, Any]] | Mapping[str, str] | pd.DataFrame"

KEPT = 2  # rerankers that stay loaded between calls: enough to compare two, few enough for one GPU

_ID_FIELDS = ("docno", "docid", "id", "_id")
_QID = "query"  # what errors call the only query

_kept: list[tuple[SystemSpec, tuple[Any, ...], Reranker]] = []  # the one used last is at the end
# A model's buffers serve one list at a time, and frameworks call from many threads.
_turn = threading.RLock()


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """One passage after ranking.

    Args:
        index: its place in the input, from 0.
        id: what was given, or the index as a string where none was.
        score: higher is better; what it means depends on the system (`headrank`: shares of attention, which sum to 1).
        text: the passage, unchanged.
    """

    index: int
    id: str
    score: float
    text: str


def rank(
    query: str,
    passages: Passages,
    *,
    model: str | Path | Reranker | None = None,
    heads: HeadSet | str | Path | None = None,
    system: str = "headrank",
    **options: Any,
) -> list[RankedPassage]:
    """Return the passages, best first; equal scores keep the given order.

    ``rank("flea life span", ["The dog sleeps.", "A flea lives a year."], model="embedded")`` reads both in one forward
    pass. A model that is named is loaded by the first call and kept for those that follow; the `KEPT` used last stay
    loaded. One whose files have changed is loaded again.

    Args:
        query: words to rank by; white space alone is refused.
        passages: texts, ``(id, text)`` pairs, dictionaries (text, and if there are any: id, title), ``{id: text}``, or
            a data frame with a column ``text`` (and ``docno`` or another id, ``title``). Ids are strings, and may
            repeat.
        model: a folder, a Hugging Face name, a GGUF file, ``embedded`` or ``smollm2``; or a `Reranker`. Must be given.
        heads: what `headrank` takes; None for the heads that the model brings, or the system's own.
        system: a name of `headrank_pipeline.rerank.systems.system_names`.
        **options: what the system takes, such as ``device="cuda"`` or ``passage_words=100``.

    Raises:
        TypeError: no model; passages or ids that are not strings.
        ValueError: an empty query, a passage without text, an unknown system or option, or what the system refuses.
    """
    reranker = kept_reranker(model, heads, system=system, **options)
    given = _given(passages)
    candidates = tuple(
        Candidate(str(index), -float(index), text, title) for index, (_, text, title) in enumerate(given)
    )
    (ranked,) = rerank_in_turn(reranker, [Ranking(Query(_QID, query), candidates)])
    results = []
    for candidate in ranked.candidates:
        index = int(candidate.docid)
        results.append(RankedPassage(index, given[index][0], candidate.score, given[index][1]))
    return results


def kept_reranker(
    model: str | Path | Reranker | None,
    heads: HeadSet | str | Path | None = None,
    *,
    system: str = "headrank",
    **options: Any,
) -> Reranker:
    """Return the reranker that the arguments describe, opened now or by one of the last calls; arguments as in `rank`.

    Raises:
        TypeError: no model, a `Reranker` together with what would describe another, or scores to mix in.
    """
    if mixing := sorted(options.keys() & {"first_stage_weight", "log_scores"}):
        raise TypeError(f"no {', '.join(mixing)} here: the passages have no scores of a first stage to mix in")
    if isinstance(model, Reranker):
        if heads is not None or system != "headrank" or options:
            raise TypeError("a Reranker is complete: heads, system and options go to the function that makes it")
        return model
    if model is None:
        raise TypeError(
            "no model named; none is the default, as orders depend on it: model='embedded' ships with the package (for "
            "trying things out), model='smollm2' is better (headrank doctor says how to install it), or name your own "
            "with heads"
        )
    spec = SystemSpec(system, model, heads, options)
    with _turn:
        state = _state(spec)
        found = next((entry for entry in _kept if entry[:2] == (spec, state)), None)
        if found is None:
            _kept[:] = [entry for entry in _kept if entry[0] != spec][-(KEPT - 1) :]  # room first, then the new one
            found = (spec, state, spec.open())
        else:
            _kept.remove(found)
        _kept.append(found)
        return found[2]


def rerank_in_turn(reranker: Reranker, rankings: Sequence[Ranking]) -> list[Ranking]:
    """Return the rankings rescored, while other threads wait; passages that were cut to fit are logged as a warning."""
    with _turn:
        reranked = reranker.rerank_batch(rankings)
    for ranking in reranked:
        if cut := ranking.notes.get("passages_cut"):
            logger.warning("qid %s: %d of %d passages were cut to fit", ranking.query.qid, cut, len(ranking))
    return reranked


def _state(spec: SystemSpec) -> tuple[Any, ...]:
    """Return what tells the local files of a model and a head set from others of the same name."""
    paths = [Path(path) for path in (spec.model, spec.heads) if isinstance(path, str | Path)]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _given(passages: Passages) -> list[tuple[str, str, str | None]]:
    """Return id, text and title of every passage."""
    if isinstance(passages, str) or (isinstance(passages, Mapping) and isinstance(passages.get("text"), str)):
        raise TypeError(f"passages {passages!r:.60}: expected several passages, got one; write [passage]")
    if isinstance(passages, Set) or not isinstance(passages, Iterable):
        kind = type(passages).__name__
        raise TypeError(f"passages {passages!r:.60}: expected a list or another order of passages, got {kind}")
    entries: Iterable[Any]
    if hasattr(passages, "columns"):  # asking for a frame's type would load pandas
        frame: Any = passages
        entries = frame.astype(object).where(frame.notna(), None).to_dict("records")
    else:
        entries = passages.items() if isinstance(passages, Mapping) else passages
    return [_one(index, entry) for index, entry in enumerate(entries)]


def _one(index: int, entry: Any) -> tuple[str, str, str | None]:
    where = f"passage {index}"
    passage_id: Any = str(index)
    title = None
    if isinstance(entry, Mapping):
        text = _first(entry, TEXT_FIELDS)
        if text is None:
            raise ValueError(
                f"{where}: no text; expected one of the fields {', '.join(TEXT_FIELDS)}, found {list(entry)}"
            )
        given_id, title = _first(entry, _ID_FIELDS), entry.get("title")
        passage_id = passage_id if given_id is None else given_id
    elif isinstance(entry, tuple | list) and len(entry) == 2:
        passage_id, text = entry
    else:
        text = entry
    for name, value in (("id", passage_id), ("text", text), ("title", title)):
        if not isinstance(value, str) and (name != "title" or value is not None):
            known = "give str(id)" if name == "id" else "passages are texts, (id, text) pairs or dictionaries"
            raise TypeError(f"{where}: {name} {value!r:.60}: expected str, got {type(value).__name__}; {known}")
    return passage_id, text, title


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)
