"""The reranker behind every recipe: prompts from a template, attention from a reader, scores from a rule.

`open_attention` makes one from a `SystemSpec`: a recipe, a model, its heads and what its options change.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrank_pipeline.attention.contexts import cached_passages
from headrank_pipeline.attention.heads import HeadSet, published_names
from headrank_pipeline.attention.model import BATCH_TOKENS, load
from headrank_pipeline.attention.model_files import (
    HEADS_FILE,
    TrainedFiles,
    calibration_of,
    named_model,
    read_recipe,
    trained_files,
)
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import CHATS, RECIPE_OPTIONS, RECIPES, Recipe
from headrank_pipeline.attention.scoring import check_finite, check_places, passage_scores
from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import Failure, Reranker, all_reranked
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.explanation import Explanation, explained
from headrank_pipeline.rerank.long_lists import LongLists, Scale

if TYPE_CHECKING:
    from torch import Tensor

    from headrank_pipeline.rerank.systems import SystemSpec

__all__ = ["AttentionReranker", "EngineSettings", "open_attention"]

# What is read where no heads are named. HeadRank's heads are those that a trained model brings; QRHead and CoRe select
# theirs for each model.
_HEADS = {"icr": "all", "qrranker": "qrranker-qwen3-4b"}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is loaded and fed: options of every system that reads attention.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        revision: branch, tag or commit of a Hugging Face model.
        batch_tokens: padded tokens of one forward pass at most, or ``auto`` for what free memory allows.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.
        long_lists: how lists are read that take more tokens than that (`rerank.long_lists.LongLists`).
        duplicates: whether passages of the same title and text are read ``once``, or ``each``. None: once by
            ``headrank``, each by the published systems, as their code does.
        calibration: makes scores probabilities (`rerank.calibrated`): a file that headrank calibrate wrote, or ``own``,
            the one that a model brings. None leaves them as they are.
        threshold: leaves out passages whose probability is below it, by the model's own calibration where none is
            named. None keeps all.
        chat: turn markup; ``auto`` is what the tokenizer knows.
        passage_cache: folder that keeps the keys of isolated passages from query to query, or a `PassageCache`.
        passage_cache_memory: GiB of cached keys kept on the device, with or without a folder; None for 2 GiB with a
            folder, else no cache.
        passage_cache_limit: GiB that the folder may hold; what was not used for longest goes first. None for 64 GiB.

    Raises:
        ValueError: a number out of range, markup that there is not, or settings of a cache that do not go together.
    """

    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    batch_tokens: Any = BATCH_TOKENS
    max_prompt_tokens: int | None = None
    long_lists: str = "auto"
    duplicates: str | None = None
    calibration: str | None = None
    threshold: float | None = None
    chat: str = "auto"
    passage_cache: Any = None
    passage_cache_memory: float | None = None
    passage_cache_limit: float | None = None

    def __post_init__(self) -> None:
        tokens = self.batch_tokens
        if tokens != "auto" and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
            raise ValueError(f"batch_tokens {tokens!r}: expected auto or a whole number of at least 1")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens {self.max_prompt_tokens}: expected at least 1")
        if self.chat != "auto" and self.chat not in CHATS:
            raise ValueError(f"chat {self.chat!r}: expected auto or one of {', '.join(CHATS)}")
        if not isinstance(self.passage_cache, PassageCache | str | Path | None):
            raise ValueError(f"passage_cache {self.passage_cache!r}: expected a folder or a PassageCache")
        sized = [name for name in ("passage_cache_memory", "passage_cache_limit") if getattr(self, name) is not None]
        for name in sized:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected GiB, a number from 0")
        if sized and isinstance(self.passage_cache, PassageCache):
            raise ValueError(f"{sized[0]}: the PassageCache has its own size; name a folder, or leave it out")
        if self.threshold is not None and self.calibration is None:  # a threshold is a probability
            object.__setattr__(self, "calibration", "own")
        if self.passage_cache_limit is not None and self.passage_cache is None:
            raise ValueError("passage_cache_limit bounds a folder; name it as passage_cache")

    def cache(self) -> PassageCache | None:
        """Return the passage cache that the settings describe."""
        if isinstance(self.passage_cache, PassageCache):
            return self.passage_cache
        sizes = {"memory_bytes": self.passage_cache_memory, "folder_bytes": self.passage_cache_limit}
        given = {name: int(gib * 2**30) for name, gib in sizes.items() if gib is not None}
        return PassageCache(self.passage_cache, **given) if given or self.passage_cache is not None else None


class AttentionReranker(Reranker):
    """Scores the passages of a ranking with attention heads in one prefill; made by `open_attention`.

    Args:
        reader: truncated model and heads.
        recipe: prompt and rule.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.
        long_lists: how lists are read that take more: ``auto``, ``whole``, ``windows`` or ``refine``
            (`rerank.long_lists.LongLists`).
        duplicates: whether passages of the same title and text are read ``once``, or ``each``.

    Raises:
        ValueError: a budget beyond the model's positions, chat markup that the tokenizer does not know, a passage
            cache without isolated passages, a rule about places that the prompt or the head set does not have, or
            another name for how long lists or duplicates are read.
    """

    def __init__(
        self,
        reader: AttentionReader,
        recipe: Recipe,
        *,
        max_prompt_tokens: int | None = None,
        long_lists: str = "auto",
        duplicates: str = "once",
    ) -> None:
        budget = reader.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        if budget > reader.max_prompt_tokens:
            raise ValueError(
                f"max_prompt_tokens {budget}: {reader.source.name} was made for {reader.max_prompt_tokens} positions"
            )
        if reader.passage_cache is not None and recipe.template.passages != "isolated":
            raise ValueError(
                f"{recipe.name}: a passage cache needs isolated passages, causal ones depend on those before them; add "
                f"the option passages='isolated', or leave the cache out"
            )
        check_places(recipe.rule, recipe.template, reader.heads)
        self.reader = reader
        self.builder = PromptBuilder(reader.tokenizer, recipe.template, max_prompt_tokens=budget)
        self.recipe = replace(recipe, template=self.builder.template)
        self.long_lists = LongLists.of(
            self.builder, reader.tokenizer, self.scale, strategy=long_lists, duplicates=duplicates
        )

    @property
    def scale(self) -> Scale:
        """How a passage's scores differ between prompts: shares by a factor, what can be negative by a shift, too."""
        if min(self.reader.heads.weights or (1.0,)) < 0:
            return "affine"
        return self.recipe.rule.scale_between_prompts

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored; empty ones come back as they are.

        Raises:
            ValueError: a candidate without text, a query that leaves no room for passages, or attention that is not
                finite, with the layer and head.
        """
        return all_reranked(self._attempts(rankings))

    def explain(self, ranking: Ranking, *, by_query_word: bool = False) -> Explanation:
        """Return which words of each passage the heads looked at: sums of words are the scores that `rerank` gives.

        Args:
            ranking: a ranking as it is given to `rerank`, not as it comes back: passages see those before them.
            by_query_word: tell for each word of the query apart what it looked at; one prompt more for each.

        Raises:
            ValueError: a list without candidates or of more than one prompt, a rule whose scores are no sums over
                words, or what `rerank_batch` refuses.
        """
        return explained(self, ranking, by_query_word=by_query_word)

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """A query whose prompt cannot be built fails alone; prompts are built as passes need them."""
        return self.long_lists.attempts(rankings, self._read)

    def _read(self, rankings: Sequence[Ranking], builder: PromptBuilder) -> list[Ranking | Failure]:
        """Return the rankings rescored from one prompt each, two where the rule reads both orders."""
        attempts: list[Ranking | Failure] = list(rankings)
        rule = self.recipe.rule
        waiting: deque[tuple[int, Prompt, dict[str, int]]] = deque()  # built, and not yet scored
        read: dict[int, list[tuple[Prompt, tuple[Tensor, ...]]]] = defaultdict(list)  # by index, one per order

        def lists() -> Iterator[tuple[Prompt, ...]]:
            for index in _longest_first(rankings):
                try:
                    orders = [self._prompts(rankings[index], builder, turned=turned) for turned in self._orders]
                except ValueError as error:
                    attempts[index] = Failure(rankings[index].query, error)
                    continue
                for prompts in orders:
                    waiting.append((index, prompts[0], self._cached(prompts[0])))
                    yield prompts

        needed = lists() if "build_ahead" not in self.reader.without else list(lists())
        for readings in self.reader.stream(needed, support=rule.support):
            index, prompt, kept = waiting.popleft()
            read[index].append((prompt, readings))
            if len(read[index]) == len(self._orders):
                attempts[index] = self._rescored(rankings[index], read.pop(index), kept)
        return attempts

    @property
    def _orders(self) -> tuple[bool, ...]:
        """Whether the prompt's order is turned round, for each order in which a list is read."""
        return (False, True) if self.recipe.rule.both_orders else (False,)

    def _prompts(self, ranking: Ranking, builder: PromptBuilder, *, turned: bool) -> tuple[Prompt, ...]:
        """Return the prompt of a ranking, and that of the content-free query where the rule has one."""
        prompt, blank = builder.build(ranking, turned=turned), self.recipe.rule.content_free
        return (prompt,) if blank is None else (prompt, builder.with_query(prompt, blank))

    def _rescored(
        self, ranking: Ranking, read: Sequence[tuple[Prompt, tuple[Tensor, ...]]], kept: Mapping[str, int]
    ) -> Ranking | Failure:
        """Return a ranking with the mean of its scores over the orders in which it was read."""
        # the passages, then what is asked about them
        passes = 1 if self.recipe.rule.content_free is None and self.recipe.template.passages == "causal" else 2
        tokens = sum(prompt.counts["prompt_tokens"] for prompt, _ in read)
        counts = {**read[0][0].counts, "prompt_tokens": tokens, "forward_passes": passes * len(read), **kept}
        ranking = replace(ranking, notes={**ranking.notes, **counts})
        try:
            for _, readings in read:
                for attention in readings:
                    check_finite(attention, self.reader.heads.heads, ranking.query.qid)
            scores = np.mean([self._scores(prompt, *readings) for prompt, readings in read], axis=0)
            return ranking.rescored(scores.tolist())
        except ValueError as error:
            return Failure(ranking.query, error, ranking.notes)

    def _cached(self, prompt: Prompt) -> dict[str, int]:
        """Return how many of the passages lay in the passage cache before the query came, where there is one."""
        if self.reader.passage_cache is None:
            return {}
        return {"passages": len(prompt.passages), "passages_cached": cached_passages(self.reader, prompt)}

    def _scores(self, prompt: Prompt, read: Tensor, blank: Tensor | None = None) -> np.ndarray:
        return passage_scores(read, blank, prompt.passages, prompt.places, self.recipe.rule, self.reader.heads)

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a score, with digests of the template and the heads."""
        template, read = self.recipe.template.describe(), self.reader.describe()
        if self.recipe.rule.place_profile is not None:
            read["heads"] = {**read["heads"], "places_sha256": self.reader.heads.digest(places=True)}
        return {
            "system": self.recipe.name,
            **read,
            "template": {**template, "sha256": sha256(repr(sorted(template.items())).encode()).hexdigest()},
            "rule": self.recipe.rule.describe(),
            "max_prompt_tokens": self.builder.max_prompt_tokens,
            "long_lists": self.long_lists.strategy,
            "duplicates": self.long_lists.duplicates,
        }

    def __repr__(self) -> str:
        heads = len(self.reader.heads.heads)
        return f"<{self.recipe.name}: {self.reader.source.name}, {heads} head{'' if heads == 1 else 's'}>"

    def origins(self) -> dict[str, str]:
        """Return where the model and the passage cache lie."""
        return self.reader.origins()


def _longest_first(rankings: Sequence[Ranking]) -> list[int]:
    """Return the indices of the rankings that have candidates, by what is known of their length without a tokenizer.

    Examples:
        >>> from headrank_pipeline.records import Candidate, Query
        >>> short, long = (Ranking(Query(text, "x"), (Candidate("d", 1.0, text),)) for text in ("ab", "abc"))
        >>> _longest_first([short, Ranking(Query("none", "x"), ()), long])
        [2, 0]
    """
    characters = [sum(len(candidate.text or "") for candidate in ranking.candidates) for ranking in rankings]
    filled = [index for index, ranking in enumerate(rankings) if ranking.candidates]
    return sorted(filled, key=lambda index: (-characters[index], index))


def open_attention(spec: SystemSpec) -> Reranker:
    """Return the reranker of a spec whose system is one of `RECIPES`; see `SystemSpec.open` for errors."""
    refuse_unknown(spec.system, spec.options, EngineSettings, others=RECIPE_OPTIONS)
    settings = read_settings(EngineSettings, spec.system, spec.options)
    own_heads = spec.heads is None and spec.system == "headrank"
    heads = _HEADS.get(spec.system) if spec.heads is None else spec.heads
    if heads is None and not own_heads:
        raise ValueError(f"{spec.system} needs heads; {_name_heads()}")
    model = named_model(spec.model, trained=own_heads)
    trained = trained_files(model, settings.revision)
    recipe = _varied(spec, read_recipe(trained.recipe))
    own = settings.calibration == "own"
    calibration = calibration_of(model, trained.revision) if own else settings.calibration
    loaded = load(
        model,
        _own_heads(model, trained) if heads is None else heads,
        device=settings.device,
        dtype=settings.dtype,
        revision=trained.revision,
    )
    reader = AttentionReader(loaded, batch_tokens=settings.batch_tokens, passage_cache=settings.cache())
    recipe = replace(recipe, template=replace(recipe.template, chat=CHATS.get(settings.chat)))
    reranker = AttentionReranker(
        reader,
        recipe,
        max_prompt_tokens=settings.max_prompt_tokens,
        long_lists=settings.long_lists,
        duplicates=settings.duplicates or ("once" if spec.system == "headrank" else "each"),
    )
    if calibration is None:
        return reranker
    from headrank_pipeline.rerank.calibrated import calibrated  # which knows this module

    return calibrated(reranker, calibration, threshold=settings.threshold)


def _varied(spec: SystemSpec, trained: Recipe) -> Recipe:
    """Return a system's recipe with the spec's options; HeadRank's own is that of the trained model."""
    recipe = trained if spec.system == "headrank" else RECIPES[spec.system]
    engine = {field.name for field in fields(EngineSettings)}
    changes = {name: value for name, value in spec.options.items() if name not in engine}
    # Weights trained for isolated passages are not read with causal ones, whatever prompt and rule they are read by.
    return recipe.varied({"passages": trained.template.passages, **changes})


def _own_heads(model: str | Path, trained: TrainedFiles) -> HeadSet | Path:
    if trained.heads is not None:
        return trained.heads if Path(model).is_dir() else replace(HeadSet.load(trained.heads), model=str(model))
    found = f"there is no folder {model}" if trained.revision is None else f"{model} brings no {HEADS_FILE}"
    found = f"{model} brings no {HEADS_FILE}" if Path(model).exists() else found
    raise ValueError(f"headrank needs heads: {found}; {_name_heads()}")


def _name_heads() -> str:
    return (
        "name a head set: a JSON file that headrank select-heads wrote, 'all', 'layers:10-13', or one that ships for "
        f"its model: {', '.join(published_names())}"
    )
