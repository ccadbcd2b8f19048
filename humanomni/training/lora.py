"""LoRA on the language model's linear layers, and its folder, which is peft's.

The other trained parts are trained in full, and peft's adapter folder carries them too (``modules_to_save``), so that
adapter and base are the whole of what was learnt.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from humanomni.modeling import PARTS, HumanOmniForConditionalGeneration
from humanomni.training.run import ConfigurationError

_LAYERS = r"model\.language_model\.layers\..*_proj"
_ADAPTER = "default"  # peft's name for the only one
_WEIGHTS = "adapter_model.safetensors"


def add_adapter(
    model: HumanOmniForConditionalGeneration,
    parts: Iterable[str],
    *,
    rank: int,
    alpha: int,
    dropout: float,
    seed: int,
    base: Path,
) -> None:
    """Puts an adapter that changes nothing yet on the language model; it is trained, and ``parts`` but that one.

    Args:
        parts: of :data:`PARTS`, with ``language_model``.
        rank, alpha, dropout: LoRA's; its output is scaled by alpha / rank.
        seed: of its initial weights, which every process and every resumed run must share.
        base: the folder of the model's weights, which the saved adapter names.
    """
    full = [part for part in parts if part != "language_model"]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_LAYERS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    config.base_model_name_or_path = str(base.resolve())
    # Only now: peft would keep a frozen twin of each, which it needs to switch them off.
    config.modules_to_save = [prefix.rstrip(".") for part in full for prefix in PARTS[part]]
    model.set_trainable(full)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)


def is_adapted(model: nn.Module) -> bool:
    """Whether :func:`add_adapter` was there."""
    return hasattr(model, "peft_config")


def save_adapter(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapter, and the parts that are trained in full, as peft does.

    Args:
        state: the model's state where its own is in shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(model)
    config.save_pretrained(str(folder))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _saved(state or model.state_dict(), config)}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Reads what :func:`save_adapter` wrote of the same configuration.

    Raises:
        ConfigurationError: when it is of another, or there is none.
    """
    file = folder / _WEIGHTS
    saved = load_file(file) if file.exists() else {}
    ours = dict(_saved(model.state_dict(), _config(model)))
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in ours.items()}:
        raise ConfigurationError(
            f"{folder} is of a run with another lora_rank or other trainable_parts: set those, or another output_dir"
        )
    for name, tensor in ours.items():
        tensor.copy_(saved[name])


def switch_off_adapter(model: nn.Module) -> None:
    """Lets the adapted layers compute as their base does."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(False)


def _config(model: Any) -> LoraConfig:
    return model.peft_config[_ADAPTER]


def _saved(state: Mapping[str, Tensor], config: LoraConfig) -> Iterator[tuple[str, Tensor]]:
    """What an adapter folder holds of a model's state, under peft's names."""
    full = tuple(f"{module}." for module in config.modules_to_save or ())
    for name, tensor in state.items():
        if ".lora_" in name or name.startswith(full):
            yield f"base_model.model.{name}".replace(f".{_ADAPTER}.", "."), tensor
