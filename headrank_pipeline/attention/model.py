"""A model cut off after the deepest layer that is read: how it is loaded, and what memory a pass through it takes.

Its attention function is the tap (attention/tap.py).
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from headrank_pipeline.attention.gguf import read_tokenizer, weights_of
from headrank_pipeline.attention.heads import HeadSet, resolve_heads
from headrank_pipeline.attention.model_files import commit_of, gguf_file, load_config
from headrank_pipeline.attention.recipe import check_vocabulary
from headrank_pipeline.attention.tap import IMPLEMENTATION, bfloat16_products, has_flash_attention, register
from headrank_pipeline.pipeline import MissingPrerequisite

__all__ = [
    "BATCH_TOKENS",
    "LoadedModel",
    "ModelSource",
    "TokenBudget",
    "batch_tokens_for",
    "bytes_per_token",
    "choose_device",
    "choose_dtype",
    "fast_dtype",
    "fingerprint",
    "free_memory",
    "give_back_memory",
    "is_out_of_memory",
    "kept_bytes_per_token",
    "load",
    "load_causal",
    "load_tokenizer",
    "prefer_flash_attention",
    "quiet_transformers",
    "readable_by_others",
    "reading_weights",
    "sampled_sha256",
    "save_weights",
    "source_of",
    "tokens_beside",
    "weights_origin",
]

logger = logging.getLogger(__name__)

# Weight files up to this size are hashed whole. Of larger ones both ends and a sample in every stride: 2 GB that are
# not in memory took 0.6 s so, and 5 to 9 s whole. Training moves all of a matrix, and q and k of models that are worth
# reading are larger than a stride.
_HASH_WHOLE = 64 * 2**20
_HASH_END = 2**20
_HASH_STRIDE, _HASH_SAMPLE = 2**18, 2**12

# Files of a folder that a model is loaded from. Other files come and go without changing what it computes: a
# calibration is written beside weights whose fingerprint it holds. Heads, recipe and chat template are recorded apart,
# each with a digest of its own.
_IDENTIFYING = re.compile(
    r".*\.(safetensors|bin|model)|.*\.(safetensors|bin)\.index\.json|(generation_|adapter_|.*quant.*_)?config\.json|"
    r"(tokenizer|vocab|tekken)[\w.-]*\.json|(special_tokens_map|added_tokens)\.json|(vocab|merges)\.txt"
)


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


def load_causal(name: str, config: Any, revision: str | None, dtype: torch.dtype) -> Any:
    """Return a whole model with its language-model head, frozen.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a checkpoint that is damaged or lacks weights.
    """
    with reading_weights(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **weights_origin(name, revision),
            config=config,
            dtype=dtype,
            output_loading_info=True,
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model {name}: the checkpoint lacks {len(missing)} weights ({', '.join(missing[:3])}, …), which would be "
            f"random; a folder saved for reading attention heads has no language-model head, name the whole model"
        )
    return model.eval().requires_grad_(False)


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
    if not model.is_dir():
        return sampled_sha256([model])
    files = (path for path in sorted(model.iterdir()) if path.is_file())
    return sampled_sha256(path for path in files if _IDENTIFYING.fullmatch(path.name))


def sampled_sha256(paths: Iterable[Path]) -> str:
    """Return a SHA-256 over the names, sizes and bytes of files; see `_HASH_WHOLE`."""
    digest = hashlib.sha256()
    for path in paths:
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


# ----------------------------------------------------------------------------------------------------- memory of a pass
#
# How many tokens fit into one forward pass: estimated from free memory beforehand, corrected when memory runs out. The
# estimate counts the tensors that are alive at once where a layer holds the most of them (docs/performance.md has the
# formula and what it comes to). It is meant to be a little too large; running out of memory costs a repeated batch.


# Tokens of one forward pass, padding included. More fill a GPU better; a single longer prompt goes alone.
BATCH_TOKENS = 16384

# ``auto`` never asks for more: a GPU is busy long before, and a batch is what is lost when a run is interrupted.
_MOST_TOKENS = 65536
# Left to the allocator's fragmentation and to what else lives in the process.
_SHARE_USED = 0.8

TokenBudget = int | Literal["auto"]


def batch_tokens_for(
    budget: TokenBudget, config: Any, heads: int, dtype: torch.dtype, device: torch.device, *, reserved: int = 0
) -> int:
    """Return the padded tokens of one forward pass.

    Args:
        budget: a number, or ``auto`` for what the free memory of the device allows.
        config: the truncated model's.
        heads: number of heads read.
        dtype: type of the weights, which are loaded already.
        device: where they lie.
        reserved: what a passage cache may still fill of the free memory [bytes].

    Raises:
        ValueError: a budget below 1, another word than ``auto``, or ``auto`` where free memory cannot be told or is
            all reserved.
    """
    if budget == "auto":
        free = free_memory(device)
        fitting = int((_SHARE_USED * free - reserved) / bytes_per_token(config, heads, dtype))
        if reserved and fitting < 1:
            raise ValueError(
                f"batch_tokens auto: the passage cache may hold {reserved / 2**30:.1f} GiB more, {device} has "
                f"{free / 2**30:.1f} GiB free; let it hold less (passage_cache_memory)"
            )
        return max(1, min(_MOST_TOKENS, fitting))
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"batch_tokens {budget!r}: expected auto or a whole number of at least 1")
    return budget


def bytes_per_token(config: Any, heads: int, dtype: torch.dtype) -> int:
    """Return what one token of a batch takes at the pass's peak, weights left aside [bytes].

    The larger of the MLP's peak (residual, normalised input, gate, its activation, up, and their product) and that of
    the attention (residual, normalised input, queries three times while they are rotated, keys and values likewise,
    one more in float32 inside the norms), plus what is kept of it (`kept_bytes_per_token`).

    Args:
        config: hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim, num_hidden_layers.
        heads: number of heads read.
        dtype: type of weights and activations.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    mlp = 2 * config.hidden_size + 4 * config.intermediate_size
    attention = 2 * config.hidden_size + 3 * queries + 4 * keys
    exact = 4 * max(config.hidden_size, queries)
    return int(max(mlp, attention) * dtype.itemsize + exact) + kept_bytes_per_token(config, heads, dtype)


def kept_bytes_per_token(config: Any, heads: int, dtype: torch.dtype) -> int:
    """Return what is kept of a token after its pass, while more is asked about it [bytes]; arguments as above.

    The keys and values of all layers, for a content-free query or the question to isolated passages, and the readings:
    H float32 values, twice while they are put in order.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_key_value_heads * width * config.num_hidden_layers * dtype.itemsize + 2 * 4 * heads)


def tokens_beside(kept: int, room: int, config: Any, heads: int, dtype: torch.dtype) -> int:
    """Return the tokens of a pass over a part of `kept` tokens that are all to be kept.

    It takes no more memory than a pass of `room` tokens; at most `room`, and 1 where nothing is left.

    Examples:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(
        ...     hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        ...     num_hidden_layers=3,
        ... )
        >>> [tokens_beside(kept, 300, config, 4, torch.float32) for kept in (300, 800, 5000)]
        [300, 126, 1]
    """
    whole, keeping = bytes_per_token(config, heads, dtype), kept_bytes_per_token(config, heads, dtype)
    return max(1, min(room, (room * whole - kept * keeping) // (whole - keeping)))


def free_memory(device: torch.device) -> int:
    """Return how much memory could be allocated on a device [bytes]: a GPU's, or what Linux calls available.

    Raises:
        ValueError: it cannot be told.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "cpu" and Path("/proc/meminfo").is_file():
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return min(1024 * int(lines["MemAvailable"].split()[0]), _left_in_control_group())
    raise ValueError(f"batch_tokens auto: free memory of device {device} cannot be told here; give a number of tokens")


def _left_in_control_group() -> int:
    """Return what a container's limit leaves, or a number beyond any memory where there is no limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and Path(used).is_file():
            allowed = Path(limit).read_text(encoding="ascii").strip()
            if allowed.isdigit():
                return max(0, int(allowed) - int(Path(used).read_text(encoding="ascii")))
    return 2**63


def give_back_memory() -> None:
    """Give freed memory of the CPU back to the system, where C's allocator can; else do nothing.

    glibc keeps it for what is allocated next. Passes differ in length, so the holes that one leaves seldom fit the
    tensors of the next, and a process grew with the number of passes (docs/long-lists.md).
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error)  # the CPU's allocator and oneDNN raise plain RuntimeErrors
    # Its code or its scratch space found no memory; what is not supported reads otherwise.
    if words in ("could not create a primitive", "could not execute a primitive"):
        return True
    return any(said in words for said in ("not enough memory", "can't allocate memory", "could not create a memory"))
