"""headrank doctor: what is there, what is missing, whether a model is read right; it starts no JVM."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from headrank_pipeline.attention import model_files
from headrank_pipeline.attention.model_files import named_model
from headrank_pipeline.attention.packaged_model import cache_folder
from headrank_pipeline.cli.commands import echo_json, refuse_typed, table
from headrank_pipeline.experiment.facts import datasets_home
from headrank_pipeline.pipeline import MissingPrerequisite

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["Check", "checks", "doctor"]

_MISSING, _WRONG = 3, 6

# What can be left out, by the extra of pyproject.toml that brings it.
_EXTRAS = {
    "retrieval": "first stages and indexes",
    "report": "pictures",
    "endpoint": "rankgpt through a server",
    "train": "LoRA",
    "ray": "--workers",
    "gguf": "GGUF files",
    "server": "headrank serve",
    "mcp": "headrank mcp",
    "calibrate": "headrank calibrate",
}

# What a CPU does with bfloat16, by what `attention.tap.bfloat16_products` calls it.
_BFLOAT16 = {
    "AMX": "--option dtype=bfloat16 is about three times as fast on this processor (AMX); its orders differ a little",
    "AVX-512": "--option dtype=bfloat16 takes about two thirds of the time on this processor; orders differ a little",
    "converted": "",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Args:
        name: what was looked at.
        status: ``missing`` is something that the package cannot do without, ``none`` something it can; ``wrong`` are
            scores that differ by more than rounding.
        found: what is there.
        action: what to do about it, or nothing.
    """

    name: str
    status: Literal["ok", "none", "missing", "wrong"]
    found: str
    action: str = ""


@click.command()
@click.option(
    "--model",
    help="Read short lists with this model in several ways and print how far the scores are apart: what rerank takes.",
)
@click.option("--heads", help="Heads to read, as in rerank.  [default: those that a trained model brings, else 'all']")
@click.option(
    "--device", default="auto", show_default=True, help="Device that the model runs on: auto, cpu, cuda, cuda:1, …"
)
@click.option(
    "--dtype", default="auto", show_default=True, help="Type of its weights: auto, float32, bfloat16 or float16."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, model: str | None, heads: str | None, device: str, dtype: str, as_json: bool) -> None:
    """Look at Java, GPU, dtype, versions and cache folders, and say what is missing; with --model, read lists with it.

    With --model it looks at nothing else, and ends with status 6 if scores differ by more than rounding.
    """
    if model is None:
        refuse_typed("heads", "device", "dtype", because="no model is read without --model")
    found = list(checks() if model is None else _reading(model, heads, device, dtype))
    if as_json:
        echo_json([asdict(check) for check in found])
    else:
        rows = [[check.name, check.status, check.found, check.action] for check in found]
        click.echo(table(["what", "status", "found", "what to do"], rows))
    statuses = {check.status for check in found}
    if "missing" in statuses or "wrong" in statuses:
        ctx.exit(_MISSING if "missing" in statuses else _WRONG)


def _reading(model: str, heads: str | None, device: str, dtype: str) -> Iterator[Check]:
    """Yield how far the scores of one model are apart, read in several ways."""
    from headrank_pipeline.rerank.self_check import check_model

    folder = str(named_model(model, trained=heads is None))
    for found in check_model(folder, heads, device=device, dtype=dtype):
        difference = f"largest difference {found.largest:.1e} (rounding up to {found.allowed:.0e})"
        orders = f"order differs in {found.turned} of {found.lists} lists" if found.turned else "equal orders"
        note = f"; {found.note}" if found.note else ""
        advice = (
            "" if found.agrees else "do not trust its scores here: compare versions (headrank doctor) and report it"
        )
        yield Check(found.name, "ok" if found.agrees else "wrong", f"{difference}, {orders}{note}", advice)


def checks() -> Iterator[Check]:
    """Yield every check."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    yield _java()
    packages = list(_packages())
    yield from packages
    if any(check.status == "missing" and check.name in ("torch", "transformers") for check in packages):
        yield Check("gpu", "none", "not looked at without torch and transformers")
    else:
        yield from _accelerator()
    yield _smollm2()
    yield from _caches()


def _java() -> Check:
    from headrank_pipeline.first_stage.jvm import find_java

    if find_spec("pyserini") is None:
        return Check("java", "none", "not looked at without pyserini")
    try:
        runtime = find_java()
    except MissingPrerequisite as error:
        return Check("java", "missing", "no Java 21", str(error))
    return Check("java", "ok", f"{runtime.version} from {runtime.source}: {runtime.home}")


def _packages() -> Iterator[Check]:
    """Every run-time requirement of this package, and those of its extras, against what is installed."""
    from packaging.requirements import Requirement

    seen = set()
    for text in metadata.requires("headrank-pipeline") or []:
        requirement = Requirement(text)
        extra = next((name for name in ("", *_EXTRAS) if _applies(requirement, name)), None)
        if extra is None or requirement.name in seen:
            continue
        seen.add(requirement.name)
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if extra:
                advice = f"for {_EXTRAS[extra]}: pip install 'headrank-pipeline[{extra}]'"
            yield Check(requirement.name, "none" if extra else "missing", "not installed", advice)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield Check(requirement.name, "ok" if fits else "missing", version, "" if fits else advice)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _accelerator() -> Iterator[Check]:
    import torch

    from headrank_pipeline.attention.model import choose_device, choose_dtype
    from headrank_pipeline.attention.tap import bfloat16_products

    device = choose_device("auto")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        yield Check("gpu", "ok", f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        advice = "fine for small models; for larger ones install a CUDA build of torch on a machine with a GPU"
        if torch.version.cuda:
            advice = (
                f"fine for small models; this torch is built for CUDA {torch.version.cuda}: if there is a GPU, "
                f"nvidia-smi must show it, with a driver for that CUDA, and CUDA_VISIBLE_DEVICES must not hide it"
            )
        yield Check("gpu", "none", f"torch {torch.__version__} sees no GPU, reranking runs on the CPU", advice)
    chosen = f"auto is {str(choose_dtype('auto', device)).removeprefix('torch.')} on {device.type}"
    yield Check("dtype", "ok", chosen, _BFLOAT16[bfloat16_products()] if device.type == "cpu" else "")


def _smollm2() -> Check:
    model = model_files.SMOLLM2
    kept, file = model.plain_folder, model.find()
    alone = "" if model.ships_adapter else "; no training of it ships: it reranks with --heads"
    if kept.is_dir():
        return Check("smollm2", "ok", f"unpacked: {kept}{alone}")
    lacking = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if file is None or lacking:
        missing = model.distribution if file is None else " and ".join(lacking)
        return Check("smollm2", "none", f"{missing} not installed", f"for --model smollm2: {model.install}")
    return Check("smollm2", "ok", f"{file}, unpacked at first use (about 20 s){alone}")


def _caches() -> Iterator[Check]:
    for name, folder in (
        ("models (HF_HOME)", Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")),
        ("indexes (PYSERINI_CACHE)", _pyserini_cache()),
        ("ir_datasets (IR_DATASETS_HOME)", datasets_home()),
        ("smollm2 (HEADRANK_CACHE)", cache_folder()),
    ):
        standing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(standing).free / 2**30
        state = "" if folder.exists() else ", made on first use"
        yield Check(name, "ok", f"{folder}{state}, {free:.0f} GiB free")


def _pyserini_cache() -> Path:
    """Pyserini's own rule, in which the present folder has a say."""
    if named := os.environ.get("PYSERINI_CACHE"):
        return Path(named)
    here = Path.cwd() / ".cache"
    return (here if here.exists() else Path.home() / ".cache") / "pyserini"
