"""What clients send and get: the requests, replies and errors of Cohere, Jina and Text Embeddings Inference (TEI)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = [
    "MAX_DOCUMENTS",
    "TEI_PATH",
    "CohereError",
    "CohereReply",
    "CohereRequest",
    "Document",
    "Refusal",
    "TeiError",
    "TeiRank",
    "TeiRequest",
    "above",
    "as_ranking",
    "cohere_reply",
    "error_body",
    "tei_reply",
    "what_is_wrong",
]

MAX_DOCUMENTS = 1000  # of one request, as Cohere has it
TEI_PATH = "/rerank"

_TOLD_ERRORS = 3


class Refusal(Exception):
    """A request that gets an error.

    Args:
        status: HTTP's number.
        message: what was wrong, expected and to do.
        headers: the reply's.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


# ------------------------------------------------------------------------------------------------------------ requests


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start} is not valid Unicode") from error
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(f"got {text[:20]!r}, expected text")
    return text


def _as_object(document: object) -> object:
    if isinstance(document, str):
        return {"text": document}
    if not isinstance(document, dict | Document):
        raise ValueError(f"expected a string or an object with text, got {type(document).__name__}")
    return document


_Whole = Annotated[str, AfterValidator(_whole)]
_Text = Annotated[_Whole, AfterValidator(_not_blank)]


class _Request(BaseModel):
    """A null is a field left out; an unknown field is refused, since ignoring it would change what was asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class Document(_Request):
    """A passage; fields besides these are not read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: _Text
    title: Annotated[_Whole | None, Field(description="Read before the text, as the system's prompt has it.")] = None


_Threshold = Annotated[
    float | None,
    Field(ge=0, le=1, description="Ours: leaves out documents of a lower probability; needs a calibrated server."),
]


class CohereRequest(_Request):
    """A request of Cohere's or Jina's clients."""

    query: _Text
    documents: list[Annotated[Document, BeforeValidator(_as_object, json_schema_input_type=str | Document)]] = Field(
        min_length=1, max_length=MAX_DOCUMENTS, description="Candidates in the first stage's order."
    )
    top_n: Annotated[int | None, Field(ge=1, description="Results to return; all of them by default.")] = None
    return_documents: bool = False
    threshold: _Threshold = None
    model: Annotated[str | None, Field(description="The served model's name; others are refused.")] = None


class TeiRequest(_Request):
    """A request of TEI's clients; a list of any length is read, so that the fields about truncation change nothing."""

    query: _Text
    texts: list[_Text] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    raw_scores: Annotated[bool, Field(description="Scores are no logits: both give the same.")] = False
    return_text: bool = False
    threshold: _Threshold = None
    truncate: bool = False
    truncation_direction: Literal["right", "Right"] = "right"


def as_ranking(query: str, documents: Iterable[Document]) -> Ranking:
    """Return a request's list, best first as it came; a document's place, from 0, is its docid.

    The qid comes from the query's text: a shuffled prompt goes by it, and one request must always get one answer.

    Examples:
        >>> as_ranking("flea", [Document(text="a"), Document(text="a")]).docids
        ('0', '1')
    """
    candidates = (Candidate(str(index), 0.0, d.text, d.title) for index, d in enumerate(documents))
    return Ranking(Query(sha256(query.encode(errors="surrogatepass")).hexdigest()[:16], query), tuple(candidates))


def above(ranking: Ranking, threshold: float) -> Ranking:
    """Return a ranking without the candidates that score below the threshold."""
    return replace(ranking, candidates=tuple(c for c in ranking.candidates if c.score >= threshold))


# ------------------------------------------------------------------------------------------------------------- replies


class CohereResult(BaseModel):
    """One document's place in the order."""

    index: Annotated[int, Field(description="Of the document in the request, from 0.")]
    relevance_score: Annotated[float, Field(description="As the Python reranker gives it.")]
    document: dict[str, str] | None = None


class CohereReply(BaseModel):
    """The best first; what Cohere's and what Jina's clients look for stands side by side."""

    id: str
    model: str
    results: list[CohereResult]
    usage: Annotated[dict[str, int] | None, Field(description="Jina's; absent where the system counts none.")] = None
    meta: dict[str, Any]


class TeiRank(BaseModel):
    """One text's place in the order."""

    index: int
    score: float
    text: str | None = None


class CohereError(BaseModel):
    """The same words twice: Cohere's clients read message, Jina's detail."""

    message: str
    detail: str


class TeiError(BaseModel):
    """What was wrong, and of which kind."""

    error: str
    error_type: Literal["validation", "overloaded", "backend"]


def cohere_reply(request: CohereRequest, ranking: Ranking, model: str, version: str) -> dict[str, Any]:
    """Return a `CohereReply` as JSON-ready values; `version` is of the API."""
    results = []
    for candidate in ranking.candidates[: request.top_n]:
        result: dict[str, Any] = {"index": int(candidate.docid), "relevance_score": candidate.score}
        if request.return_documents:
            result["document"] = request.documents[int(candidate.docid)].model_dump(exclude_none=True)
        results.append(result)
    meta: dict[str, Any] = {"api_version": {"version": version}}
    reply = {"id": ranking.query.qid, "model": model, "results": results, "meta": meta}
    if (tokens := ranking.notes.get("prompt_tokens")) is not None:
        reply["usage"] = {"total_tokens": int(tokens), "prompt_tokens": int(tokens)}
        meta["tokens"] = {"input_tokens": int(tokens)}
    if cut := int(ranking.notes.get("passages_cut", 0)):
        meta["warnings"] = [f"{cut} of {len(request.documents)} documents were cut to fit the model"]
    if (nothing := ranking.notes.get("nothing_relevant")) is not None:
        meta["nothing_relevant"] = float(nothing)
    return reply


def tei_reply(request: TeiRequest, ranking: Ranking) -> list[dict[str, Any]]:
    """Return a list of `TeiRank` as JSON-ready values."""
    ranks: list[dict[str, Any]] = [{"index": int(c.docid), "score": c.score} for c in ranking.candidates]
    return [{**rank, "text": request.texts[rank["index"]]} for rank in ranks] if request.return_text else ranks


def error_body(path: str, status: int, message: str) -> dict[str, str]:
    """Return an error in the shape that clients of this path know.

    Examples:
        >>> error_body("/rerank", 429, "busy")
        {'error': 'busy', 'error_type': 'overloaded'}
        >>> error_body("/v2/rerank", 429, "busy")
        {'message': 'busy', 'detail': 'busy'}
    """
    if path != TEI_PATH:
        return {"message": message, "detail": message}
    kind = "overloaded" if status == 429 else "backend" if status >= 500 else "validation"
    return {"error": message, "error_type": kind}


def what_is_wrong(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return pydantic's errors as one line: where, then what.

    Examples:
        >>> what_is_wrong([{"loc": ("body", "documents", 3, "text"), "msg": "Field required", "type": "missing"}])
        'documents[3].text: field required'
    """
    told = [f"{_place(error['loc'])}: {_message(error)}" for error in errors[:_TOLD_ERRORS]]
    more = len(errors) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _place(location: Sequence[str | int]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    place = "".join(steps).removeprefix(".")
    return place.removeprefix("body.")


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "this field is not known here; leave it out"
    if error["type"] == "json_invalid":
        return f"no JSON: {error['ctx']['error']}"
    if error["type"] == "model_attributes_type":
        return "expected a JSON object, sent as Content-Type: application/json"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
