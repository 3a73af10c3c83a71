"""Rerankers as values: a system's name, a model, heads and options, and how they become a reranker.

Python's functions (`headrank`, `icr`, …), the command line, Ray workers and servers all open a `SystemSpec`: one way
from names to a reranker, and a value that can be sent to another process before any model is loaded.

Another package adds a system by an entry point of the group ``headrank_pipeline.systems``. The entry point's name is
the system's name, its object a function that takes the `SystemSpec` and returns a `Reranker`::

    [project.entry-points."headrank_pipeline.systems"]
    overlap = "my_package.overlap:open_overlap"

Nothing here imports torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import RECIPES
from headrank_pipeline.options import nearest
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.rerank.interpolation import interpolated

if TYPE_CHECKING:
    from headrank_pipeline.rerank.attention_reranker import AttentionReranker

__all__ = [
    "GROUP",
    "OWN_SYSTEMS",
    "Opener",
    "SystemSpec",
    "check_mixing",
    "check_system",
    "core",
    "forbid_hub",
    "headrank",
    "icr",
    "open_system",
    "qrhead",
    "qrranker",
    "system_names",
]

GROUP = "headrank_pipeline.systems"

Opener: TypeAlias = "Callable[[SystemSpec], Reranker]"

_ROOM = "headrank_pipeline.rerank"
_OPENERS = {
    **dict.fromkeys(RECIPES, f"{_ROOM}.attention_reranker:open_attention"),
    "rankgpt": f"{_ROOM}.baselines.rankgpt:open_rankgpt",
    "first-token": f"{_ROOM}.baselines.first_token:open_first_token",
    "qwen3-reranker": f"{_ROOM}.baselines.pointwise:open_qwen3_reranker",
}
OWN_SYSTEMS = tuple(_OPENERS)


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A reranker before it is loaded: frozen, picklable, opened where it is wanted.

    Args:
        system: a name of `system_names`.
        model: a local folder, a Hugging Face name, a GGUF file, ``embedded`` or ``smollm2``; with an endpoint, the name
            by which the server knows it.
        heads: a HeadSet, a JSON file, a published name, ``"all"`` or ``"layers:10-13"``; None for the system's own.
        options: name -> value: all else that the system knows, such as ``{"passage_words": 100, "device": "cuda"}``.
            The system refuses a name that it does not know, with the nearest.
        first_stage_weight: mix in the first stage's scores with this weight (`interpolated`); None mixes nothing in.
        log_scores: mix with the logarithm of the reranker's scores.
        offline: keep the Hugging Face libraries off the network while the reranker is opened.

    Raises:
        TypeError: a model that is neither a name nor a path.
        ValueError: fields that do not go together.
    """

    system: str
    model: str | Path
    heads: HeadSet | str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    first_stage_weight: float | None = None
    log_scores: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        wanted = "expected a folder, a Hugging Face name, a GGUF file, embedded or smollm2"
        if not isinstance(self.model, str | os.PathLike):
            raise TypeError(f"model {self.model!r:.60}: {wanted}, got {type(self.model).__name__}")
        if not str(self.model).strip():
            raise ValueError(f"model '': {wanted}")
        check_mixing(self.first_stage_weight, log_scores=self.log_scores)
        if self.offline and self.options.get("endpoint") is not None:
            raise ValueError(f"{self.system}: an endpoint opens a socket, which offline forbids; leave one of them out")

    @property
    def device(self) -> str:
        """The device that the model is asked to be on; an endpoint's model is elsewhere and needs no GPU here."""
        return "cpu" if self.options.get("endpoint") is not None else str(self.options.get("device", "auto"))

    def refuse_heads(self) -> None:
        """Raise ValueError if heads are named: for systems that read none."""
        if self.heads is not None:
            raise ValueError(f"{self.system} reads no attention heads; leave heads out (got {str(self.heads)!r})")

    def open(self) -> Reranker:
        """Return the reranker, with its model loaded.

        Raises:
            FileNotFoundError: no such model or head set.
            MissingPrerequisite: a GPU was named and there is none, or a package that the system needs is missing.
            ValueError: an unknown system or option, or a value that one refuses.
        """
        with _hub_forbidden() if self.offline else nullcontext():
            reranker = _opener(self.system)(self)
        if not isinstance(reranker, Reranker):
            raise TypeError(f"system {self.system!r}: its opener returned {type(reranker).__name__}, not a Reranker")
        if self.first_stage_weight is None:
            return reranker
        return interpolated(reranker, self.first_stage_weight, logs=self.log_scores)


def open_system(
    system: str,
    model: str | Path,
    heads: HeadSet | str | Path | None = None,
    *,
    first_stage_weight: float | None = None,
    log_scores: bool = False,
    **options: Any,
) -> Reranker:
    """Return a system's reranker by name; arguments and errors as in `SystemSpec` and its `open`."""
    spec = SystemSpec(system, model, heads, options, first_stage_weight=first_stage_weight, log_scores=log_scores)
    return spec.open()


def forbid_hub() -> None:
    """Keep the Hugging Face libraries of this process, and of those that it starts, off the network from now on."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:  # it read the variable when it came
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # a module like any other to mypy


@contextmanager
def _hub_forbidden() -> Iterator[None]:
    """Keep the Hugging Face libraries off the network while a model is loaded; other models may be had from it."""
    from huggingface_hub import constants  # before the variable is set: it keeps what it reads when it is imported

    variable, known = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    forbid_hub()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = known
        del os.environ["HF_HUB_OFFLINE"]
        if variable is not None:
            os.environ["HF_HUB_OFFLINE"] = variable


def system_names() -> list[str]:
    """Return the names of all systems: ours, then those of other installed packages."""
    return [*OWN_SYSTEMS, *sorted({point.name for point in entry_points(group=GROUP)} - {*OWN_SYSTEMS})]


def check_mixing(first_stage_weight: float | None, *, log_scores: bool) -> None:
    """Raise ValueError where logarithms are asked for and nothing is mixed."""
    if log_scores and first_stage_weight is None:
        raise ValueError("log_scores says how first_stage_weight mixes; give that, too")


def check_system(system: str) -> None:
    """Raise ValueError unless there is a system of this name; the message has the nearest one."""
    known = system_names()
    if system not in known:
        raise ValueError(f"no system {system!r}; {nearest(system, known, what='systems')}")


def _opener(system: str) -> Opener:
    """Return the function that opens a system.

    Raises:
        ValueError: an unknown name, or one that two packages use.
    """
    check_system(system)
    found = [*entry_points(group=GROUP, name=system)]
    if system in _OPENERS:
        found.append(EntryPoint(system, _OPENERS[system], GROUP))
    if len(homes := sorted({point.value for point in found})) > 1:
        raise ValueError(f"system {system!r} is defined more than once: {', '.join(homes)}; uninstall all but one")
    opener: Opener = found[0].load()
    return opener


def headrank(
    model: str | Path,
    heads: HeadSet | str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> AttentionReranker:
    """Return HeadRank: documents-only softmax, mean over rows and heads, one forward pass, no calibration.

    The score of passage i is the mean over selected heads and row tokens of the attention mass on its text, the
    softmax running over passage tokens only; scores of a list sum to 1. Reconstructed, since the paper's full text is
    not available: its prompt, rows and normalisation are our choices, which docs/method.md marks.

    Args:
        model: a local folder, a Hugging Face name, a GGUF file, ``embedded`` or ``smollm2`` (with `heads` the plain
            model, without the trained reranker); see `attention.model.load` for errors.
        heads: a HeadSet, a JSON file, a published name, ``"all"`` or ``"layers:10-13"``; None for the heads that a
            trained model brings along (heads.json, in its folder or at its revision on the hub).
        options: fields of `PromptTemplate`, `ScoringRule` or `EngineSettings` by name, such as ``{"reverse": True}``; a
            trained model's own prompt and rule (recipe.json) are the base.
        **given: the same, as keywords: ``passage_words=100, device="cuda"``. The rule's ``heads`` can only be an
            option.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no heads were named and the model brings none, or a name that no settings have, with the nearest.
    """
    return _attention("headrank", model, heads, options, given)


def icr(
    model: str | Path,
    heads: HeadSet | str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> AttentionReranker:
    """Return ICR (arXiv 2410.02642): all heads summed, calibrated with "N/A", outlying tokens dropped.

    Selective-ICR (arXiv 2602.22591) is ``icr(model, "layers:10-13", rows="query")``: a window of layers, and for Qwen3
    only the query's own tokens as rows. Differs from the published code in one point: a passage of one token keeps it
    (there its deviation is NaN and the passage scores 0).

    Args:
        model: what `headrank` takes.
        heads: what `headrank` takes; None for all heads.
        options: what `headrank` takes.
        **given: the same, as keywords; ``instruction`` is ``ie`` (the default) or ``qa`` (the authors use it for
            trec-covid, fiqa, webis-touche2020, dbpedia-entity, nq and the multi-hop sets), or words of your own.
    """
    return _attention("icr", model, heads, options, given)


def qrhead(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> AttentionReranker:
    """Return QRHead's retriever (arXiv 2506.09944): a fixed set of heads under ICR's scoring, 400-word passages.

    Differs from the published code in two points: spans of nested or repeated passages are their own (there a passage
    is found by its first occurrence), and a passage of one token keeps it. Arguments as in `headrank`.
    """
    return _attention("qrhead", model, heads, options, given)


def core(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> AttentionReranker:
    """Return CoRe reranking (arXiv 2510.02219): 8 contrastively selected heads, text without titles, given order.

    The authors rerank 40 candidates. They publish prompts for Llama, Mistral, Phi and Granite: on Qwen, ours puts their
    words into Qwen's markup. A passage of one token keeps it. Arguments as in `headrank`.
    """
    return _attention("core", model, heads, options, given)


def qrranker(
    model: str | Path,
    heads: HeadSet | str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> AttentionReranker:
    """Return QRRanker's scoring (arXiv 2602.12192): 16 heads, mean over heads and rows, whole chunk lines as columns.

    Prompt and head list are those of the public port of the released model; how it writes a chunk without a title is
    not known, ours leaves "Title: …: " out. Arguments as in `headrank`; without `heads` the published set is read.
    """
    return _attention("qrranker", model, heads, options, given)


def _attention(
    system: str,
    model: str | Path,
    heads: HeadSet | str | Path | None,
    options: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> AttentionReranker:
    options = options or {}
    if twice := sorted(given.keys() & options.keys()):
        raise ValueError(f"{system}: {', '.join(twice)} given as a keyword and in options; name it once")
    reranker: Any = SystemSpec(system, model, heads, {**options, **given}).open()
    opened: AttentionReranker = reranker
    return opened
