"""Which model to run and how it is loaded: the options that every program with a model takes, and what they mean.

torch and the model are imported where a model is loaded, so that ``--help`` and a wrong path are answered at once.
"""

import argparse
import dataclasses
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from humanomni.json_files import read_object

if TYPE_CHECKING:
    from humanomni.modeling import HumanOmniForConditionalGeneration
    from humanomni.processing import HumanOmniProcessor

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "flash_attention_2", "eager")
QUANTIZATIONS = ("8bit", "4bit")
_HALF = ("bfloat16", "float16")
_ADAPTER_CONFIG = "adapter_config.json"


class LoadError(ValueError):
    """A model that cannot be loaded as asked; the message names the folder or the option, and the mend."""


@dataclass(frozen=True)
class LoadOptions:
    """A model and how it is loaded.

    Attributes:
        model: native HumanOmni folder, or the folder of a LoRA adapter, which names its base.
        adapter: folder of a LoRA adapter on ``model``.
        dtype: of :data:`DTYPES`; "auto" is bfloat16 on a GPU, and else the checkpoint's own.
        attention: of :data:`ATTENTIONS`; responses are decoded with sdpa whatever it is.
        quantize: of :data:`QUANTIZATIONS`, the language model's weights alone; None is none.
    """

    model: Path
    adapter: Path | None = None
    dtype: str = "auto"
    attention: str = "sdpa"
    quantize: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace, model: Path) -> Self:
        """What :func:`add_load_arguments` parsed."""
        return cls(model, arguments.adapter, arguments.dtype, arguments.attention, arguments.quantize)

    def resolved(self) -> Self:
        """The same with base and adapter apart, once all that needs no model to be checked has been checked.

        Raises:
            LoadError: a folder that is no native checkpoint or no LoRA adapter, and an option that needs what is not
                installed.
        """
        model, adapter = self.model, self.adapter
        if adapter is None and (model / _ADAPTER_CONFIG).is_file():
            model, adapter = _base_of(model), model
        _require_native(model)
        if adapter is not None and read_object(adapter / _ADAPTER_CONFIG, LoadError).get("peft_type") != "LORA":
            raise LoadError(f"{adapter} holds another adapter than LoRA; only LoRA can be merged into its base")
        if self.quantize and importlib.util.find_spec("bitsandbytes") is None:
            raise LoadError("--quantize needs bitsandbytes: pip install -e '.[quantize]', or load without it")
        if self.attention == "flash_attention_2":
            # transformers would otherwise fetch a compiled kernel from the hub.
            if importlib.util.find_spec("flash_attn") is None:
                raise LoadError("--attention flash_attention_2 needs flash-attn: install it, or take sdpa")
            if self.dtype not in _HALF:
                raise LoadError(f"--attention flash_attention_2 needs --dtype {' or '.join(_HALF)}, not {self.dtype}")
        return dataclasses.replace(self, model=model, adapter=adapter)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of :class:`LoadOptions`, but for the model, and ``--device``."""
    add = parser.add_argument
    add("--adapter", type=Path, help="folder of a LoRA adapter to merge into the model")
    add("--dtype", choices=DTYPES, default="auto", help="precision (bfloat16 on a GPU, else the checkpoint's own)")
    add(
        "--attention",
        choices=ATTENTIONS,
        default="sdpa",
        help="attention of towers and scoring (%(default)s); decoding takes sdpa",
    )
    add("--quantize", choices=QUANTIZATIONS, help="keep the language model's weights in 8 or 4 bits (bitsandbytes)")
    add("--device", help="as torch names it (a process's own GPU; without one, cpu)")


def load_processor(options: LoadOptions) -> "HumanOmniProcessor":
    """The processor of the base's folder.

    Raises:
        LoadError: as :meth:`LoadOptions.resolved`, and when the folder lacks a part of it.
    """
    from humanomni.processing import HumanOmniProcessor

    folder = options.resolved().model
    try:
        return HumanOmniProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(f"{folder}: its processor cannot be loaded: {error}") from error


def load_model(options: LoadOptions, device: str = "cpu") -> "HumanOmniForConditionalGeneration":
    """The model, frozen and in evaluation mode, its adapter merged.

    On quantised weights the adapter stays beside them: merging would round it away.

    Raises:
        LoadError: as :meth:`LoadOptions.resolved`, when weights or adapter do not fit the model, and for a device that
            this machine or this torch does not have.
    """
    _require_device(device)
    from safetensors import SafetensorError

    from humanomni.modeling import HumanOmniForConditionalGeneration

    options = options.resolved()
    try:
        loaded: Any = HumanOmniForConditionalGeneration.from_pretrained(
            options.model,
            dtype=_precision(options.dtype, device),
            attn_implementation=options.attention,
            quantization_config=_quantization(options),
            device_map=device,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise LoadError(f"{options.model} cannot be loaded: {error}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise LoadError(f"{options.model} lacks {len(missing)} tensors, the first is {missing[0]}: make it again")
    if options.adapter is not None:
        model = _with_adapter(model, options.adapter, merge=options.quantize is None)
    return model.eval().requires_grad_(False)


def _precision(dtype: str, device: str) -> str:
    """What "auto" means on a device. Training on one GPU writes float32, far slower to compute in."""
    import torch

    if dtype == "auto" and torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(False):
        return "bfloat16"
    return dtype


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # the former of a torch without CUDA
        reason = str(error).splitlines()[0]
        raise LoadError(
            f"--device {device} cannot be used: {reason}; leave --device out to take a GPU where torch sees one, and "
            "else the CPU"
        ) from error


def _with_adapter(model: Any, adapter: Path, merge: bool) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, adapter)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, UserWarning, SafetensorError) as error:
        raise LoadError(f"{adapter} does not fit {model.name_or_path}: {type(error).__name__}: {error}") from error
    return wrapped.merge_and_unload(safe_merge=True) if merge else wrapped.get_base_model()


def _quantization(options: LoadOptions) -> Any:
    """bitsandbytes' configuration, or None.

    Towers, projectors, BERT and gate keep their precision: they are a tenth of the 7B and read once a clip.
    """
    if options.quantize is None:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    from humanomni.modeling import PARTS

    skipped = ["lm_head", *(prefix.rstrip(".") for part in PARTS if part != "language_model" for prefix in PARTS[part])]
    if options.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    compute = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=skipped,
    )


def _base_of(adapter: Path) -> Path:
    named = read_object(adapter / _ADAPTER_CONFIG, LoadError).get("base_model_name_or_path")
    if not named or not Path(named).is_dir():
        raise LoadError(
            f"{adapter} is a LoRA adapter on {named!r}, which is no folder here: name its base as the model, "
            f"and --adapter {adapter}"
        )
    return Path(named)


def _require_native(folder: Path) -> None:
    if not folder.is_dir():
        raise LoadError(f"{folder} is no folder")
    if not (folder / "config.json").is_file():
        raise LoadError(f"{folder} holds no config.json: it is no checkpoint")
    kind = read_object(folder / "config.json", LoadError).get("model_type")
    if kind != "humanomni":
        raise LoadError(
            f"{folder} is a checkpoint of type {kind!r}, not a native HumanOmni folder; of a published one "
            f"python scripts/convert_checkpoint.py --legacy {folder} --output DIR makes one"
        )
