"""The service: its paths, and what each answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from headrank_pipeline.records import Ranking
from headrank_pipeline.serve.batcher import Batcher
from headrank_pipeline.serve.gate import CONTENT_TYPE, Gate, Metrics, refused
from headrank_pipeline.serve.shapes import (
    TEI_PATH,
    CohereError,
    CohereReply,
    CohereRequest,
    Document,
    Refusal,
    TeiError,
    TeiRank,
    TeiRequest,
    above,
    as_ranking,
    cohere_reply,
    tei_reply,
    what_is_wrong,
)

__all__ = ["create_app"]

_RERANK_PATHS = ("/v1/rerank", "/v2/rerank", TEI_PATH)
_OPEN_PATHS = ("/health", "/docs", "/openapi.json")  # what tells nothing of requests needs no key
_PATHS = (*_RERANK_PATHS, "/metrics", *_OPEN_PATHS)

_COHERE: dict[int | str, dict[str, Any]] = {status: {"model": CohereError} for status in (401, 413, 422, 429, 500, 504)}
_TEI: dict[int | str, dict[str, Any]] = {status: {"model": TeiError} for status in _COHERE}


def create_app(batcher: Batcher, *, model: str, system: str, key: str | None = None) -> Gate:
    """Return the ASGI application.

    Args:
        batcher: the reranker and its queue; closed with the application.
        model: the served model's name.
        system: its method, told by ``/health``.
        key: what requests must bear; None asks for none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        calls = asyncio.create_task(batcher.run())
        yield
        calls.cancel()
        batcher.close()

    app = FastAPI(title="headrank", lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    metrics = Metrics(_RERANK_PATHS)
    bearer = [Depends(HTTPBearer(auto_error=False))]  # for the page only; the gate checks the key
    app.include_router(_rerank_routes(batcher, metrics, model), dependencies=bearer)
    _add_error_handlers(app)

    @app.head("/health", include_in_schema=False)  # what many probes ask
    @app.get("/health")
    async def health() -> dict[str, str | int]:
        """Say that the service answers, and with what."""
        return {"status": "ok", "model": model, "system": system, "waiting": batcher.waiting}

    @app.get("/metrics", response_class=Response, dependencies=bearer)
    async def counted() -> Response:
        """Return the counters in Prometheus' text format."""
        return Response(metrics.text(batcher.waiting, batcher.calls), media_type=CONTENT_TYPE)

    return Gate(app, limits=batcher.limits, metrics=metrics, open_paths=_OPEN_PATHS, known_paths=_PATHS, key=key)


def _rerank_routes(batcher: Batcher, metrics: Metrics, model: str) -> APIRouter:
    router = APIRouter()

    async def reranked(query: str, documents: list[Document], threshold: float | None) -> Ranking:
        if threshold is not None and not batcher.scores_are_probabilities:
            raise Refusal(
                422,
                "threshold: this server's scores are no probabilities; leave it out, or start it with "
                "--option calibration=FILE",
            )
        ranking = await batcher.rerank(as_ranking(query, documents))
        metrics.reranked(len(documents), ranking)
        return ranking if threshold is None else above(ranking, threshold)

    async def cohere(request: CohereRequest, version: str) -> Response:
        if request.model not in (None, model):
            raise Refusal(404, f"model: {request.model!r} is not served here; name {model!r}, or leave model out")
        ranking = await reranked(request.query, request.documents, request.threshold)
        return JSONResponse(cohere_reply(request, ranking, model, version))

    @router.post("/v1/rerank", response_model=CohereReply, responses=_COHERE)
    async def cohere_v1(request: CohereRequest) -> Response:
        """Rerank as Cohere's first API and Jina's have it."""
        return await cohere(request, "1")

    @router.post("/v2/rerank", response_model=CohereReply, responses=_COHERE)
    async def cohere_v2(request: CohereRequest) -> Response:
        """Rerank as Cohere's second API has it."""
        return await cohere(request, "2")

    @router.post(TEI_PATH, response_model=list[TeiRank], responses=_TEI)
    async def tei(request: TeiRequest) -> Response:
        """Rerank as Text Embeddings Inference has it."""
        ranking = await reranked(request.query, [Document(text=text) for text in request.texts], request.threshold)
        return JSONResponse(tei_reply(request, ranking))

    return router


def _add_error_handlers(app: FastAPI) -> None:
    """Answer each error in the shape of the path that was asked."""

    async def of_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        malformed = any(one["type"] == "json_invalid" for one in error.errors())
        return refused(request.url.path, Refusal(400 if malformed else 422, what_is_wrong(error.errors())))

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404:
            message += f"; there are {', '.join(_PATHS)}"
        return refused(request.url.path, Refusal(error.status_code, message, error.headers))

    async def of_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return refused(request.url.path, error)

    async def of_us(request: Request, error: Exception) -> Response:
        return refused(request.url.path, Refusal(500, f"the server failed: {type(error).__name__}"))

    app.add_exception_handler(RequestValidationError, of_request)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Refusal, of_refusal)
    app.add_exception_handler(Exception, of_us)
