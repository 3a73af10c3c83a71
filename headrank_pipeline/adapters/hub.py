"""Models and head sets to the Hugging Face hub: what is pushed, with a card that says what it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import CALIBRATION_FILE, HEADS_FILE, RECIPE_FILE, read_recipe
from headrank_pipeline.comparison.finished import FinishedRun, read_finished
from headrank_pipeline.files import atomic_writer
from headrank_pipeline.learn.card import base_model_of, new_metadata

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from headrank_pipeline.rerank.calibrated import Calibration

__all__ = ["CardFacts", "prepare", "upload"]

_CARD = "README.md"
# What a model is loaded from. Weights in other formats can hold code, so they are never pushed.
_NEEDED = ("config.json", "tokenizer.json", HEADS_FILE)
_TAKEN = re.compile(
    r"model[\w.-]*\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json|tokenizer\.json|"
    r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|"
    r"chat_template\.jinja|card\.json|LICENSE"
    rf"|{re.escape(HEADS_FILE)}|{re.escape(RECIPE_FILE)}|{re.escape(_CARD)}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What the card says beyond what the files do; None where the files' own card says it.

    Args:
        base_model: ``owner/name`` of the model that it was made from, or whose heads they are.
        license: its name on the hub, such as ``apache-2.0``; derived weights have that of the base model.
        datasets: names on the hub of what it was trained on.
        runs: finished run directories with an evaluation, made with this model or these heads.
    """

    base_model: str | None = None
    license: str | None = None
    datasets: Sequence[str] = ()
    runs: Sequence[Path] = ()


def prepare(source: Path, target: Path, repository: str, facts: CardFacts) -> list[str]:
    """Write into a folder what would be pushed; return the names in `source` that are left out.

    Args:
        source: a model folder with its heads, as `headrank train` writes it, or a head set's JSON file.
        target: a folder that does not exist yet, or is empty.
        repository: ``owner/name``; the card shows how it is used by it.
        facts: what the card says.

    Raises:
        FileExistsError: a target with files in it.
        FileNotFoundError: no source, or one that lacks a file.
        ValueError: a name that the hub does not take, weights that are not safetensors, a damaged head set or recipe,
            no license, no base model, or a run or a calibration of another model.
    """
    _check_repository(repository)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target}: is not empty; name a new folder")
    if not source.exists():
        raise FileNotFoundError(f"{source}: neither a model folder nor a head set's JSON file")
    taken = _model_files(source) if source.is_dir() else []
    heads = HeadSet.load(source / HEADS_FILE if source.is_dir() else source)
    calibration = _calibration(source, heads)
    text = _card_text(source, heads, repository, facts)
    target.mkdir(parents=True, exist_ok=True)
    for file in taken:
        shutil.copyfile(file, target / file.name)
    if calibration is not None:
        calibration.save(target / CALIBRATION_FILE)
    if source.is_file():
        heads.save(target / HEADS_FILE)
    with atomic_writer(target / _CARD) as stream:
        stream.write(text)
    kept = {file.name for file in taken} | {_CARD, CALIBRATION_FILE}
    return sorted({entry.name for entry in source.iterdir()} - kept) if source.is_dir() else []


def upload(folder: Path, repository: str, *, private: bool = False) -> str:
    """Push a folder that `prepare` wrote in one commit, making the repository where there is none; return its URL.

    The token is huggingface_hub's: ``HF_TOKEN``, or what ``hf auth login`` stored.

    Raises:
        ConnectionError: the hub cannot be reached.
        OSError: the hub refused, with its own words.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    api = HfApi(library_name="headrank_pipeline")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Push from headrank_pipeline")
    except HfHubHTTPError:  # an HTTPError, too: the hub's own words
        raise
    except HTTPError as error:
        raise ConnectionError(f"{repository}: {api.endpoint} cannot be reached ({error}); try again") from error
    return str(commit.commit_url)


def _check_repository(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, and not in __all__

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"repository {repository!r}: {error}") from error
    if "/" not in repository:
        raise ValueError(f"repository {repository!r}: expected owner/name")


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a model that are pushed."""
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: has no {name}; expected a folder that headrank train wrote")
    files = sorted(file for file in folder.iterdir() if file.is_file() and _TAKEN.fullmatch(file.name))
    if not any(file.suffix == ".safetensors" for file in files):
        found = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".gguf"})
        raise ValueError(f"{folder}: no safetensors weights, found {found}; only safetensors are pushed, save it again")
    read_recipe(folder / RECIPE_FILE if (folder / RECIPE_FILE).is_file() else None)
    return files


def _calibration(source: Path, heads: HeadSet) -> Calibration | None:
    """Return the calibration of a model folder as it is pushed, or None where there is none.

    On the hub a model goes by its commit, which is not known before the push. So the file states no fingerprint: it
    then belongs to the weights that it lies beside.
    """
    if not (source / CALIBRATION_FILE).is_file():
        return None
    from headrank_pipeline.attention.model import fingerprint
    from headrank_pipeline.rerank.calibrated import Calibration

    found = Calibration.load(source / CALIBRATION_FILE)
    own = {"fingerprint": (None, fingerprint(source)), "heads": (heads.digest(),)}
    if differ := [name for name, known in own.items() if found.reading.get(name, "") not in known]:
        raise ValueError(
            f"{source / CALIBRATION_FILE}: was fitted for another reading than that of {source}: {', '.join(differ)} "
            f"differ; fit one with headrank calibrate, or take the file out of the folder"
        )
    return replace(found, reading={**found.reading, "fingerprint": None})


def _card_text(source: Path, heads: HeadSet, repository: str, facts: CardFacts) -> str:
    """Return the source's own card, or a new one, with its metadata completed."""
    from huggingface_hub import ModelCard

    own = source / _CARD
    has_card = source.is_dir() and own.is_file()
    content = own.read_text(encoding="utf-8") if has_card else _body(source, heads, repository)
    card = ModelCard(content if content.startswith("---") else f"---\n{{}}\n---\n{content}")
    data: Any = card.data  # ModelCardData, which ModelCard does not declare
    known = {name: value for name, value in data.to_dict().items() if value is not None}
    before = {name: value for name, value in known.items() if name not in ("tags", "model-index")}
    base = facts.base_model or before.get("base_model") or base_model_of(str(source), heads.model)
    license_ = facts.license or before.get("license")
    for flag, value in (("--license", license_), ("--base-model", base)):
        if value is None:
            raise ValueError(f"{source}: its card names no {flag[2:].replace('-', ' ')}; say which: {flag}")
    results = [*(data.eval_results or []), *_results(source, heads, facts.runs)]
    metadata = new_metadata(
        **{
            **{name: value for name, value in before.items() if name not in ("pipeline_tag", "library_name")},
            "base_model": base,
            "license": license_,
            "datasets": list(dict.fromkeys([*_listed(before.get("datasets")), *facts.datasets])) or None,
            "model_name": repository.split("/")[1] if results else None,
            "eval_results": results or None,
        }
    )
    metadata.tags = list(dict.fromkeys([*_listed(known.get("tags")), *metadata.tags]))
    text = card.text.lstrip().replace(f'("{source.resolve().name}")  # this folder', f'("{repository}")')
    return f"---\n{metadata.to_yaml().strip()}\n---\n\n{text}"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _body(source: Path, heads: HeadSet, repository: str) -> str:
    what = (
        "A passage reranker" if source.is_dir() else "A set of attention heads that rerank passages, without weights,"
    )
    named = f'"{repository}"' if source.is_dir() else f'"{heads.model}", "{repository}"'
    title = repository.split("/")[1]
    return f"""# {title}

{what} for headrank_pipeline: it reads attention and generates nothing.

- Heads: {len(heads.heads)} ({heads.name}), the deepest in layer {heads.depth - 1}
- Selected on: {heads.model or "a model that the set does not name"}

```python
from headrank_pipeline import headrank

reranker = headrank({named})
```
"""


def _results(source: Path, heads: HeadSet, runs: Sequence[Path]) -> Iterator[EvalResult]:
    """Yield the measures of evaluated runs, each checked to be one of this model or of these heads."""
    from huggingface_hub import EvalResult

    for path in runs:
        run = read_finished(path)
        _check_same(source, heads, run)
        evaluation = run.recorded_evaluation
        if evaluation is None:
            raise ValueError(f"{path}: was not evaluated; give it --qrels, or leave it out")
        benchmark = run.identity["benchmark"]
        name = benchmark["name"] if benchmark else path.resolve().name
        for measure, value in evaluation["reranked"]["means"].items():
            yield EvalResult(
                task_type="text-ranking",
                dataset_type=name,
                dataset_name=name,
                metric_type=measure.lower().replace("@", "_at_"),
                metric_name=measure,
                metric_value=round(float(value), 4),
            )


def _check_same(source: Path, heads: HeadSet, run: FinishedRun) -> None:
    from headrank_pipeline.attention.model import fingerprint

    reranker = run.identity["reranker"]
    read = reranker.get("heads", {}).get("sha256") if isinstance(reranker.get("heads"), dict) else None
    if read != heads.digest():
        raise ValueError(f"{run.directory.path}: was not made with the heads of {source}")
    if source.is_dir() and reranker.get("fingerprint") != fingerprint(source):
        raise ValueError(f"{run.directory.path}: was not made with the model in {source}, whose files are others")
