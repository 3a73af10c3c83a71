"""Loading a model cut off after the deepest layer that is read, with the tap as its attention function."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from headrank_pipeline.attention.gguf import read_tokenizer, weights_of
from headrank_pipeline.attention.heads import HeadSet, resolve_heads
from headrank_pipeline.attention.kernels import bfloat16_products
from headrank_pipeline.attention.markup import check_vocabulary
from headrank_pipeline.attention.model_files import commit_of, gguf_file, load_config
from headrank_pipeline.attention.tap import IMPLEMENTATION, has_flash_attention, register
from headrank_pipeline.pipeline import MissingPrerequisite

__all__ = [
    "LoadedModel",
    "ModelSource",
    "choose_device",
    "choose_dtype",
    "fast_dtype",
    "fingerprint",
    "load",
    "load_tokenizer",
    "prefer_flash_attention",
    "quiet_transformers",
    "readable_by_others",
    "reading_weights",
    "save_weights",
    "source_of",
    "weights_origin",
]

logger = logging.getLogger(__name__)

# Weight files up to this size are hashed whole. Of larger ones both ends and a sample in every stride: 2 GB that are
# not in memory took 0.6 s so, and 5 to 9 s whole. Training moves all of a matrix, and q and k of models that are worth
# reading are larger than a stride.
_HASH_WHOLE = 64 * 2**20
_HASH_END = 2**20
_HASH_STRIDE, _HASH_SAMPLE = 2**18, 2**12


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to run on; ``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        MissingPrerequisite: a GPU was named and there is none.
        ValueError: not a device.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: expected auto, cpu, cuda or cuda:0") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MissingPrerequisite(
            f"device {device!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            f"use device cpu, or a CUDA build of torch and a driver for it (headrank doctor)"
        )
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of weights and activations.

    ``auto`` is bfloat16 on GPUs from Ampere on, and float32 elsewhere: older GPUs have no attention kernel for bfloat16
    but the one that makes all logits, and float16 may overflow. On a CPU bfloat16 turns the order of most lists' first
    ten, so that it is chosen by name only, even where AMX multiplies it three times as fast (docs/performance.md).
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_flash_attention(device) else torch.float32
    if dtype not in known:
        raise ValueError(f"dtype {dtype!r}: expected auto or one of {', '.join(known)}")
    return known[dtype]


def fast_dtype(device: str = "auto") -> str:
    """Return the name of the dtype that a device multiplies fastest.

    That is bfloat16 on GPUs from Ampere on and on CPUs with AMX tiles, and float32 elsewhere: a CPU without them
    converts every product.
    """
    chosen = choose_device(device)
    if chosen.type == "cpu":
        return "bfloat16" if bfloat16_products() == "AMX" else "float32"
    return str(choose_dtype("auto", chosen)).removeprefix("torch.")


def prefer_flash_attention(device: torch.device) -> None:
    """Leave cuDNN's attention out in this process, where a model goes to a GPU.

    On data-centre GPUs from Hopper on PyTorch tries it first. It is compiled anew for each new batch size and length of
    queries and keys (pytorch/pytorch#155958), and what was compiled is kept for good. Prompts hardly ever repeat a
    length, and generation brings a new one with every token; flash attention takes any. For the whole process and not
    around a pass: a layer whose activations are recomputed must find the kernel of its first pass.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What was loaded: enough to repeat it and to notice that it changed."""

    name: str
    revision: str | None
    fingerprint: str
    layers: int
    heads_per_layer: int
    max_positions: int

    @property
    def label(self) -> str:
        """The name, of a path its last part: where it lies says nothing about a model, the fingerprint does."""
        path = Path(self.name)
        if path.is_file():  # not resolved: what the Hugging Face hub keeps are links to files without a name
            return path.name
        return path.resolve().name if path.is_dir() else self.name


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A truncated decoder, its tokenizer and the heads to read, checked against each other.

    Attributes:
        model: no language-model head, no layer above the deepest head, frozen, in evaluation mode.
        tokenizer: fast.
        heads: all within the model.
        source: what was loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    heads: HeadSet
    source: ModelSource


def load(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> LoadedModel:
    """Load the layers that the heads need, and the tokenizer.

    Args:
        model: a local folder, a Hugging Face name, or a GGUF file (a path, or ``org/repository/FILE.gguf``).
        heads: what `resolve_heads` takes.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        revision: branch, tag or commit of a Hugging Face model.

    Raises:
        FileNotFoundError: no such folder, file or model, or one without weights or tokenizer.
        MissingPrerequisite: a GPU was named and there is none, or a library that the weights need (GGUF, quantised) is
            absent.
        ValueError: heads the model lacks, sliding-window layers, no decoder, or a checkpoint that is damaged or lacks
            weights.
    """
    chosen, name = choose_device(device), str(model)
    config = load_config(name, revision)
    _check_full_attention(name, config)
    source = source_of(name, config, revision)
    head_set = resolve_heads(heads, layers=source.layers, heads_per_layer=source.heads_per_layer, model=name)
    if head_set.model is not None and Path(head_set.model).name != Path(name).name and not _brought(heads, name):
        logger.warning("head set %s was selected on %s and is read on %s", head_set.name, head_set.model, name)
    tokenizer = load_tokenizer(name, revision)  # before the weights, which may take minutes
    try:
        weights = _load_weights(name, config, head_set.depth, revision, choose_dtype(dtype, chosen))
    except ArithmeticError as error:
        raise ValueError(f"model {name}: no model has the sizes that its config.json states ({error})") from error
    check_vocabulary(name, weights, tokenizer)
    prefer_flash_attention(chosen)
    weights.to(device=chosen)  # type: ignore[call-arg]  # transformers' wrapper loses the signature
    logger.info("loaded %d of %d layers of %s on %s", head_set.depth, source.layers, name, chosen)
    loaded = LoadedModel(weights, tokenizer, head_set, source)
    _check_family(loaded)
    return loaded


def _check_family(loaded: LoadedModel) -> None:
    """Refuse a family whose attention is not read right, and note which shortcuts readers must leave out for it."""
    from headrank_pipeline.attention.reader import AttentionReader  # which reads what is loaded here

    AttentionReader(loaded)


def _brought(heads: HeadSet | str | Path, name: str) -> bool:
    """Return whether a model folder brings the heads itself; it may have been moved or renamed since."""
    return not isinstance(heads, HeadSet) and Path(heads).parent == Path(name)


def source_of(name: str, config: Any, revision: str | None) -> ModelSource:
    """Return what identifies a model; the fingerprint of a folder is made of its files, a GGUF file's of itself.

    Raises:
        ValueError: a configuration without layers of its own, as of a model that sees images, too.
    """
    stated = ("num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    if lacking := [field for field in stated if not hasattr(config, field)]:
        raise ValueError(
            f"model {name}: its configuration ({config.model_type}) states no {', '.join(lacking)}; expected a "
            f"text-only decoder, such as Qwen3, Qwen2 or Llama"
        )
    local = gguf_file(name, revision) or (Path(name) if Path(name).is_dir() else None)
    return ModelSource(
        name=name,
        revision=commit_of(name, revision),
        fingerprint=fingerprint(local) if local else "",
        layers=config.num_hidden_layers,
        heads_per_layer=config.num_attention_heads,
        max_positions=config.max_position_embeddings,
    )


def load_tokenizer(name: str, revision: str | None) -> Any:
    """Return the tokenizer of a local folder, a Hugging Face name or a GGUF file.

    Raises:
        FileNotFoundError: it has none. Transformers may then make one without any word and say nothing.
        ValueError: one that is damaged.
    """
    problem = ""
    try:
        file = gguf_file(name, revision)
        tokenizer: Any = (
            read_tokenizer(file)
            if file
            else AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        )
        if set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
            return tokenizer
    except (OSError, ValueError) as error:
        problem = f" ({str(error).splitlines()[0]})"
    except Exception as error:  # the tokenizers library raises no narrower one
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"model {name}: its tokenizer cannot be read ({told}); copy tokenizer.json and "
            f"tokenizer_config.json of the model there again"
        ) from error
    raise FileNotFoundError(
        f"model {name}: no tokenizer in it{problem}; copy tokenizer.json and tokenizer_config.json of the model there"
    )


def _check_full_attention(name: str, config: Any) -> None:
    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    if window is not None and window >= getattr(config, "max_position_embeddings", math.inf):
        kinds.discard("sliding_attention")  # no prompt is longer
        window = None
    if kinds - {"full_attention"} or (not kinds and window):
        raise ValueError(
            f"model {name}: has layers of kind {sorted(kinds) or ['sliding_attention']}; reading passages needs full "
            f"attention in every layer, as in Qwen3, Qwen2 and Llama"
        )


def _load_weights(name: str, config: Any, depth: int, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """Load the first `depth` layers with the tap as attention implementation."""
    register()
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    with reading_weights(name):
        model, report = AutoModel.from_pretrained(
            **weights_origin(name, revision),
            config=config,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model {name}: the checkpoint lacks {len(missing)} weights that the first {depth} layers need "
            f"({', '.join(missing[:3])}, …); they would be random. Is the folder truncated below the deepest head?"
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    _check_layers(name, loaded)
    return loaded


def weights_origin(name: str, revision: str | None) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that say where a model's weights are."""
    if file := gguf_file(name, revision):
        return {"pretrained_model_name_or_path": file.parent, **weights_of(file)}
    return {"pretrained_model_name_or_path": name, "revision": revision, "trust_remote_code": False}


def _check_layers(name: str, model: PreTrainedModel) -> None:
    """Refuse what the tap cannot read, such as the sentence encoder of a dense first stage."""
    layers: Any = getattr(model, "layers", ())
    if not len(layers) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise ValueError(
            f"model {name}: a {type(model).__name__} is no decoder whose heads can be read here: expected layers with "
            f"self_attn, as in Qwen3, Qwen2 and Llama; a sentence encoder belongs to a dense first stage"
        )


def save_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write the weights and the configuration of a truncated model into a folder.

    Raises:
        ValueError: weights that are not finite in the dtype.
    """
    weights = {key: weight.detach().to(dtype).cpu().contiguous() for key, weight in model.state_dict().items()}
    for key, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{key} is not finite in {dtype}; export in float32 or bfloat16")
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = dtype, [type(model).__name__]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    readable_by_others(folder)


def readable_by_others(folder: Path) -> None:
    """Give a folder's weights the mode of its configuration.

    safetensors writes for the owner's eyes only, whatever the umask says; others must read them as the rest.
    """
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)


@contextmanager
def reading_weights(name: str) -> Iterator[None]:
    """Keep transformers quiet while it loads the weights of a model, and name the model where it cannot.

    Raises:
        FileNotFoundError: there are none.
        MissingPrerequisite: they are quantised, and the library or the GPU that this needs is not there.
        ValueError: a damaged file, a pickle of more than tensors, or weights of other shapes than the configuration
            says.
    """
    try:
        with quiet_transformers():
            yield
    except OSError as error:
        raise FileNotFoundError(f"model {name}: no weights to be had: {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise ValueError(f"model {name}: a damaged weight file ({error}); copy or download it again") from error
    except (UnpicklingError, EOFError, KeyError) as error:  # torch's message advises to run what the file holds
        if error.args == (IMPLEMENTATION,):  # a table of attention functions that nobody can register in
            raise ValueError(
                f"model {name}: its family attends by code of its own, which transformers gives no way into; choose a "
                f"family of docs/models.md, such as Qwen3, Qwen2 or Llama"
            ) from error
        raise ValueError(
            f"model {name}: its weights (*.bin) are a pickle that holds other things than tensors, or a damaged one; "
            f"such a file can run code and is never unpacked: name a model whose weights are safetensors"
        ) from error
    except ImportError as error:
        raise MissingPrerequisite(
            f"model {name}: its weights are quantised ({_first_line(error)}); install what they need, or name the "
            f"model as it was before it was quantised"
        ) from error
    except RuntimeError as error:
        if "GPU is re" in str(error) or "GPU is need" in str(error):  # transformers' quantizers
            raise MissingPrerequisite(f"model {name}: its weights are quantised: {_first_line(error)}") from error
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"model {name}: its weights have other shapes than its config.json says; these files do not belong "
            f"together: copy or download all of them again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """It would list every weight of the layers that are left out, and draw a bar for each file."""
    before, progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if progress:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def fingerprint(model: Path) -> str:
    """Return a SHA-256 over a GGUF file, or a folder's configuration, tokenizer and weights; see `_HASH_WHOLE`."""
    digest = hashlib.sha256()
    for path in sorted(model.iterdir()) if model.is_dir() else [model]:
        if path != model and path.suffix not in {".json", ".safetensors", ".bin", ".txt", ".model"}:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as stream:
            for start, count in _hashed_parts(size):
                stream.seek(start)
                digest.update(stream.read(count))
    return digest.hexdigest()


def _hashed_parts(size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, bytes) of what is hashed of a file of `size` bytes."""
    if size <= _HASH_WHOLE:
        yield 0, size
        return
    yield 0, _HASH_END
    for start in range(_HASH_END, size - _HASH_END, _HASH_STRIDE):
        yield start, _HASH_SAMPLE
    yield size - _HASH_END, _HASH_END
