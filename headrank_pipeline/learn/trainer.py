"""The training loop: graded lists in, weights that move so that selected heads order passages by grade.

Every step is a pure function of weights, optimiser state, configuration and step number (see `schedule.plan`), so that
a run taken up from a checkpoint ends with the very weights of one that was never interrupted (bit-equal on a CPU).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from headrank_pipeline.attention.model import LoadedModel
from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.learn.checkpoint import TrainingDirectory
from headrank_pipeline.learn.lists import GradedList, arranged, lists_sha256
from headrank_pipeline.learn.movable import (
    LOW_RANK,
    checkpointed_activations,
    fold_lora,
    load_movable,
    movable_weights,
    set_movable,
)
from headrank_pipeline.learn.preference import ListLoss, list_loss
from headrank_pipeline.learn.schedule import Draw, TrainingConfig, learning_rate, plan
from headrank_pipeline.learn.scorer import ListScorer, mean_ndcg

__all__ = ["NotFiniteError", "Trainer", "TrainingData", "TrainingReport"]

logger = logging.getLogger(__name__)

_End = Literal["finished", "patience", "paused"]


class NotFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite; the message names the list or lists."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What is learned from.

    Args:
        lists: training lists.
        dev: lists for early stopping, scored whole in the order given; may be empty.
        origin: what they are (files and checksums), for the setup file and the model card.
    """

    lists: Sequence[GradedList]
    dev: Sequence[GradedList] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lists:
            raise ValueError("no training lists; headrank lists makes them")
        shared = {graded.qid for graded in self.lists} & {graded.qid for graded in self.dev}
        if shared:
            raise ValueError(f"qid {min(shared)} and {len(shared) - 1} others are in both training and dev lists")

    def describe(self) -> dict[str, Any]:
        """Return origin, numbers of lists and their checksums, JSON-ready; an origin may say nothing."""
        parts = {"lists": self.lists, "dev_lists": self.dev}
        counts = {name: len(lists) for name, lists in parts.items()}
        return {**self.origin, **counts, **{f"{name}_sha256": lists_sha256(lists) for name, lists in parts.items()}}


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """How a run ended.

    Attributes:
        end: ``finished``, ``patience`` (early stopping) or ``paused``.
        steps: taken so far.
        best_step: whose weights the model now has (0: those it started with), or the last one without dev lists.
        dev_before: mean dev nDCG@10 before the first step, or None without dev lists.
        dev_best: the score of the best step.
        directory: log, checkpoint and best weights.
    """

    end: _End
    steps: int
    best_step: int
    dev_before: float | None
    dev_best: float | None
    directory: Path


@dataclass
class _Progress:
    """The counters of a checkpoint."""

    step: int = 0
    best_step: int = 0
    dev_before: float | None = None
    dev_best: float | None = None
    without_gain: int = 0


class Trainer:
    """Trains the weights of a loaded model in place.

    Args:
        loaded: truncated at its deepest selected head, as `attention.model.load` returns it; its heads are trained.
        reading: prompt template and rule, for example `attention.recipe.HEADRANK`.
        data: training and dev lists.
        config: everything else.
        directory: folder for log and checkpoints; a run with the same setup goes on from there.
        overwrite: start anew where the folder holds a run; files of others in it stay.

    Raises:
        MissingPrerequisite: LoRA without peft.
        RuntimeError: another process trains in the folder.
        ValueError: the folder holds another run, or a half-precision model on a CPU.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        reading: Recipe,
        data: TrainingData,
        config: TrainingConfig | None = None,
        *,
        directory: str | Path,
        overwrite: bool = False,
    ) -> None:
        self.loaded, self.data, self.config = loaded, data, config or TrainingConfig()
        self.directory = TrainingDirectory(Path(directory))
        self.scorer = ListScorer(AttentionReader(loaded), reading, max_prompt_tokens=self.config.max_prompt_tokens)
        self._dtype: torch.dtype = loaded.model.dtype
        self._device = self.scorer.reader.device
        self._autocast = self._use_autocast()
        self.steps = self.config.steps(len(data.lists))
        self._setup = self._setup_of(reading)
        with self.directory.locked():
            resumes = self.directory.claim(self._setup, overwrite=overwrite)
            self.done = self.directory.load_state()["progress"]["step"] if resumes else 0
        self._progress = _Progress()
        self._gpus = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(self._gpus):
            torch.manual_seed(self.config.seed)
            set_movable(
                loaded.model,
                self.config.moves,
                read={layer for layer, _ in loaded.heads.heads},
                lora_rank=self.config.lora_rank,
                lora_alpha=self.config.lora_alpha,
                lora_dropout=self.config.lora_dropout,
            )
        self._weights = movable_weights(loaded.model)
        self._optimiser = self._new_optimiser()
        averaged = {} if self.config.averaging is None else self._weights
        self._means = {name: weight.detach().clone() for name, weight in averaged.items()}

    def run(
        self, *, pause_after: int | None = None, on_event: Callable[[Mapping[str, Any]], None] | None = None
    ) -> TrainingReport:
        """Train to the end, or for `pause_after` steps, and return how it went.

        At the end the model holds its best weights (the last ones without dev lists), LoRA folded in, frozen again.

        Args:
            pause_after: checkpoint and return after so many steps; the next run with this directory goes on.
            on_event: called with every event of the log (for a progress bar).

        Raises:
            NotFiniteError: a loss or gradient that is NaN or infinite; the last checkpoint stays.
            RuntimeError: another process trains in the folder.
            ValueError: another process has left another run in it.
        """
        self._on_event = on_event
        with self.directory.locked():
            with self._training():
                self._start()
                end = self._steps(pause_after)
                if not self._saved():
                    self._save()
            if end != "paused":
                self._finish(end)
        return self._report(end)

    # ------------------------------------------------------------------------------------------- start and end

    def _start(self) -> None:
        if self.directory.claim(self._setup):  # once more: the directory was free since the trainer was made
            self._load()
            logger.info("going on after step %d of %d", self._progress.step, self.steps)
        elif self.data.dev:
            self._evaluate()
            self._progress.dev_before = self._progress.dev_best
            self._save()

    def _steps(self, most: int | None) -> _End:
        """Take the steps that are left, or `most` of them, and return why it ended."""
        first = self._progress.step
        for draws in islice(plan(self.config, len(self.data.lists)), first, None):
            if self._out_of_patience():
                return "patience"
            if most is not None and self._progress.step - first >= most:
                return "paused"
            self._step(draws)
        return "finished"

    def _finish(self, end: str) -> None:
        if self.data.dev:
            load_movable(self.loaded.model, self.directory.load_best())
            if not self._progress.best_step:
                logger.warning("no step did better on the dev lists than the weights training started with")
        else:
            self._progress.best_step = self._progress.step
            if self._means:
                load_movable(self.loaded.model, self._means)
        self._log("end", end=end, best_step=self._progress.best_step, dev_ndcg=self._progress.dev_best)
        if self.config.moves in LOW_RANK:
            fold_lora(self.loaded.model)
        self.loaded.model.requires_grad_(False).to(self._dtype)  # type: ignore[arg-type]

    def _report(self, end: _End) -> TrainingReport:
        at = self._progress
        return TrainingReport(end, at.step, at.best_step, at.dev_before, at.dev_best, self.directory.path)

    def _setup_of(self, reading: Recipe) -> dict[str, Any]:
        source = self.loaded.source
        return {
            "model": {"name": source.label, "revision": source.revision, "fingerprint": source.fingerprint},
            "heads": self.loaded.heads.describe(),
            "template": self.scorer.builder.template.describe(),
            "rule": reading.rule.describe(),
            "data": self.data.describe(),
            "config": self.config.describe(),
        }

    def _use_autocast(self) -> bool:
        wanted, on_gpu = self.config.precision, self._device.type == "cuda"
        if self._dtype != torch.float32 and (wanted == "float32" or not on_gpu):
            raise ValueError(
                f"training in {wanted} on {self._device.type}: load the model with dtype float32, not {self._dtype}"
            )
        return wanted == "bfloat16" or (wanted == "auto" and on_gpu)

    def _new_optimiser(self) -> torch.optim.AdamW:
        config = self.config
        groups = [
            {"params": [w for name, w in self._weights.items() if ("embed" in name) == embedding], "factor": factor}
            for embedding, factor in ((False, 1.0), (True, config.embedding_factor))
        ]
        filled = [group for group in groups if group["params"]]
        return torch.optim.AdamW(filled, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)

    @contextmanager
    def _training(self) -> Iterator[None]:
        model = self.loaded.model
        with ExitStack() as stack:
            stack.enter_context(checkpointed_activations(model, enabled=self.config.checkpoint_activations))
            stack.enter_context(torch.random.fork_rng(self._gpus))
            model.train()
            try:
                yield
            finally:
                model.train(False)

    # ---------------------------------------------------------------------------------------------------- a step

    def _step(self, draws: Sequence[Draw]) -> None:
        began, step = time.perf_counter(), self._progress.step
        rate = learning_rate(self.config, step, self.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self._optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(_seed(self.config.seed, "dropout", step))  # no generator's state, a GPU's least, is kept
        losses = [loss for part in self._passes(draws) for loss in self._backward(part, share=1 / len(draws))]
        norm = self._clip(draws)
        self._optimiser.step()
        for name, mean in self._means.items():
            mean.lerp_(self._weights[name].detach(), 1 - self.config.averaging)  # type: ignore[operator]  # not None
        self._progress.step += 1
        self._log("step", epoch=draws[0].epoch, lr=rate, gradient_norm=norm, **_summary(losses),
                  seconds=round(time.perf_counter() - began, 4))  # fmt: skip
        self._after_step()

    def _after_step(self) -> None:
        step, config = self._progress.step, self.config
        every = config.evaluate_every or config.steps_per_epoch(len(self.data.lists))
        evaluated = bool(self.data.dev) and (step % every == 0 or step == self.steps)
        if evaluated:
            self._evaluate()
        if evaluated or (config.save_every and step % config.save_every == 0):
            self._save()

    def _passes(self, draws: Sequence[Draw]) -> Iterator[list[tuple[Draw, GradedList]]]:
        """Yield the lists of a step in groups that share a forward pass, those of similar length together."""
        config = self.config
        drawn = [(draw, self._drawn(draw)) for draw in draws]
        if config.lists_per_pass > 1:
            drawn.sort(key=lambda item: sum(len(c.text or "") for c in item[1].ranking.candidates))
        for start in range(0, len(drawn), config.lists_per_pass):
            yield drawn[start : start + config.lists_per_pass]

    def _drawn(self, draw: Draw) -> GradedList:
        config = self.config
        return arranged(
            self.data.lists[draw.index],
            config.list_size,
            config.order,
            seed=config.seed,
            epoch=draw.epoch,
            draw=draw.draw,
        )

    def _backward(self, part: Sequence[tuple[Draw, GradedList]], *, share: float) -> list[ListLoss]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            prompts = self.scorer.prompts([graded for _, graded in part])
            scores = self.scorer.forward(prompts)
        losses = [
            self._loss(draw, graded, prompt, one)
            for (draw, graded), prompt, one in zip(part, prompts, scores, strict=True)
        ]
        total = torch.stack([loss.loss for loss in losses]).sum() * share
        total.backward()  # type: ignore[no-untyped-call]
        return losses

    def _loss(self, draw: Draw, graded: GradedList, prompt: Prompt, scores: Tensor) -> ListLoss:
        grades = torch.tensor(graded.grades, device=self._device)
        teacher = None if graded.teacher is None else torch.tensor(graded.teacher, device=self._device)
        seed = _seed(self.config.seed, "pairs", draw.epoch, draw.draw, graded.qid)
        texts = torch.tensor(graded.ranking.first_with_text(), device=self._device)
        places = torch.from_numpy(prompt.places).to(self._device)
        loss = list_loss(self.config.objective, scores, grades, teacher=teacher, seed=seed, texts=texts, places=places)
        if not torch.isfinite(loss.loss):
            raise NotFiniteError(
                f"step {self._progress.step + 1}: the loss of qid {graded.qid} (epoch {draw.epoch}, passages "
                f"{', '.join(graded.ranking.docids[:3])}, …) is {float(loss.loss.detach())}; weights and checkpoint "
                f"are those of the steps before. A smaller learning rate or precision float32 is the usual cure"
            )
        return loss

    def _clip(self, draws: Sequence[Draw]) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), self.config.clip or float("inf"))
        if not torch.isfinite(norm):
            qids = ", ".join(self.data.lists[draw.index].qid for draw in draws)
            raise NotFiniteError(f"step {self._progress.step + 1}: the gradient is {float(norm)} after qids {qids}")
        return float(norm)

    # --------------------------------------------------------------------------------- evaluation and checkpoints

    def _evaluate(self) -> None:
        self.loaded.model.train(False)
        with self._judged_weights() as weights:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                value = mean_ndcg(self.scorer, self.data.dev)
            at = self._progress
            better = at.dev_best is None or value > at.dev_best
            at.without_gain = 0 if better else at.without_gain + 1
            if better:
                at.dev_best, at.best_step = value, at.step
                self.directory.save_best(weights)
        self.loaded.model.train()
        self._log("dev", ndcg=value, best=better)

    @contextmanager
    def _judged_weights(self) -> Iterator[Mapping[str, Tensor]]:
        """Put the weights that are judged and kept into the model inside the block: the running means, if any."""
        moving = {name: self._weights[name].detach().clone() for name in self._means}
        if self._means:
            load_movable(self.loaded.model, self._means)
        try:
            yield self._weights
        finally:
            if self._means:
                load_movable(self.loaded.model, moving)

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self._progress.without_gain >= self.config.patience

    def _log(self, event: str, **values: Any) -> None:
        record = {"event": event, "step": self._progress.step, **values}
        self.directory.append(record)
        if self._on_event is not None:
            self._on_event(record)

    def _saved(self) -> bool:
        return self.directory.state.is_file() and self._last_saved == self._progress.step

    def _save(self) -> None:
        self.directory.save_state(
            {
                "progress": asdict(self._progress),
                "weights": {name: weight.detach() for name, weight in self._weights.items()},
                "means": self._means,
                "optimiser": self._optimiser.state_dict(),
            }
        )
        self._last_saved = self._progress.step

    def _load(self) -> None:
        state = self.directory.load_state()
        self._progress = _Progress(**state["progress"])
        load_movable(self.loaded.model, state["weights"])
        self._means = {name: mean.to(self._device) for name, mean in state["means"].items()}
        self._optimiser.load_state_dict(state["optimiser"])
        self._last_saved = self._progress.step
        self.directory.rewind(self._progress.step)

    _on_event: Callable[[Mapping[str, Any]], None] | None = None
    _last_saved: int = -1


def _seed(*parts: object) -> int:
    """Return a seed for what is drawn by chance at one place of a run."""
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def _summary(losses: Sequence[ListLoss]) -> dict[str, float]:
    """Return the means of a step's losses and the sums of its pairs, for the log."""
    lists = len(losses)
    return {
        "loss": sum(float(loss.loss.detach()) for loss in losses) / lists,
        "main": sum(loss.main for loss in losses) / lists,
        "regulariser": sum(loss.regulariser for loss in losses) / lists,
        "lists": lists,
        "pairs": sum(loss.pairs for loss in losses),
        "violations": sum(loss.violations for loss in losses),
    }
