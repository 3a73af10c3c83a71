"""HeadRank as a PyTerrier transformer: ``bm25 % 100 >> HeadRank("embedded")``.

PyTerrier finds it by itself, as ``pt.headrank.HeadRank``. The extra ``pyterrier`` installs PyTerrier.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrank_pipeline.pipeline import Reranker, require_extra
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.one_call import kept_reranker, rerank_in_turn
from headrank_pipeline.rerank.systems import check_mixing

require_extra("pyterrier", "the adapter for PyTerrier", "pyterrier")
import pyterrier as pt

if TYPE_CHECKING:
    import pandas as pd

    from headrank_pipeline.attention.heads import HeadSet

__all__ = ["HeadRank"]


class HeadRank(pt.Transformer):
    """Rescores the passages of each query; takes qid, query, docno and text, and keeps all other columns.

    The rows come back best first, query by query in the order in which they came, with ``score`` and ``rank`` (from 0).
    Where the frame has a ``score``, or else a ``rank``, it decides the order in which passages stand in the prompt; a
    ``title`` is read where the prompt has a place for it.

    Args:
        model: what `headrank_pipeline.rank` takes: a name, a path, or any `Reranker`.
        heads: what `headrank_pipeline.headrank` takes.
        system: the reranker's name: ``headrank``, ``icr``, ``rankgpt``, …
        first_stage_weight: mix in the frame's own scores, 0 to 1; then ``score`` is required.
        log_scores: mix with the logarithm of the reranker's scores.
        batch_size: queries handed to the reranker at once.
        **options: what the system takes, such as ``device="cuda"``.

    Raises:
        ValueError: while transforming: a row without text, or what the records refuse.
    """

    def __init__(
        self,
        model: str | Path | Reranker | None = None,
        heads: HeadSet | str | Path | None = None,
        *,
        system: str = "headrank",
        first_stage_weight: float | None = None,
        log_scores: bool = False,
        batch_size: int = 8,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        check_mixing(first_stage_weight, log_scores=log_scores)
        self.reranker = kept_reranker(model, heads, system=system, **options)
        if first_stage_weight is not None:
            self.reranker = interpolated(self.reranker, first_stage_weight, logs=log_scores)
        self.batch_size = batch_size
        self._name = str(model) if not isinstance(model, Reranker) else type(model).__name__
        self._columns = ["query", "text"] if first_stage_weight is None else ["query", "text", "score"]

    def __repr__(self) -> str:
        return f"HeadRank({self._name!r})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Return the rows, best first, with new scores and ranks."""
        pt.validate.result_frame(inp, self._columns, context=self)
        _check_texts(inp)
        places = {key: place for place, key in enumerate(zip(inp["qid"], inp["docno"], strict=True))}
        rankings = Ranking.from_frame(inp)
        rows: list[int] = []
        scores: list[float] = []
        ranks: list[int] = []
        for start in range(0, len(rankings), self.batch_size):
            for ranking in rerank_in_turn(self.reranker, rankings[start : start + self.batch_size]):
                rows += [places[ranking.query.qid, docid] for docid in ranking.docids]
                scores += ranking.scores
                ranks += range(pt.model.FIRST_RANK, pt.model.FIRST_RANK + len(ranking))
        kept = inp.drop(columns=["score", "rank"], errors="ignore").iloc[rows].reset_index(drop=True)
        kept["score"], kept["rank"] = _typed(scores, "float64"), _typed(ranks, "int64")
        return kept


def _typed(values: list[Any], dtype: str) -> pd.Series[Any]:
    """A column of the right type, also where there is no row."""
    import pandas as pd

    return pd.Series(values, dtype=dtype)


def _check_texts(frame: pd.DataFrame) -> None:
    missing = frame[frame["text"].isna()]
    if len(missing):
        qid, docno = missing.iloc[0][["qid", "docno"]]
        raise ValueError(
            f"qid {qid} docno {docno}: the passage has no text ({len(missing)} of {len(frame)} rows have none); put "
            f"pt.text.get_text(dataset, 'text') before HeadRank, or retrieve with metadata=['docno', 'text']"
        )
