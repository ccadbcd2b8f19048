"""The model of a run: its parts trained and frozen, in the precision that training wants."""

from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration, cast_ahead
from humanomni.projector import RegBlock
from humanomni.training.lora import add_adapter

_KINDS_COMPILED = 32


def load_model(path: Path, arguments: Any) -> HumanOmniForConditionalGeneration:
    """The model of a run, its parts trained and frozen as the arguments say; in a dry run without weights."""
    if arguments.dry_run:
        unset_hf_deepspeed_config()  # under ZeRO-3 it would want a process group to spread what is not there
        with torch.device("meta"):
            model = HumanOmniForConditionalGeneration(HumanOmniConfig.from_pretrained(path))
    else:
        # float32 masters whatever the checkpoint holds: AdamW's steps at these rates are lost in bfloat16 weights.
        model = HumanOmniForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    prepare(model, path, arguments)
    return model


def prepare(model: HumanOmniForConditionalGeneration, path: Path, arguments: Any) -> None:
    """Trains and freezes the parts of a model of the folder ``path``, with an adapter where one is asked for."""
    if arguments.lora_rank:
        add_adapter(
            model,
            arguments.trainable_parts,
            rank=arguments.lora_rank,
            alpha=arguments.lora_alpha or 2 * arguments.lora_rank,
            dropout=arguments.lora_dropout,
            seed=arguments.seed,
            base=path,
        )
    else:
        model.set_trainable(arguments.trainable_parts)
    # Sharded weights are of one precision, which DeepSpeed or FSDP sees to.
    if arguments.bf16 and arguments.sharding_stage == 0:
        cast_ahead(model, torch.bfloat16)


def compile_layers(model: HumanOmniForConditionalGeneration, arguments: Any) -> None:
    """Compiles the language model's layers and the projector's blocks where that pays: on a GPU, with whole weights.

    All layers share one compiled layer. It fuses norms, rotations, activations and autocast's casts, which are a third
    of a step of the 0.5B (docs/performance.md).
    """
    # A compiled backward pass takes the tensors of its own forward pass alone. What gradient checkpointing recomputes
    # may come from another: one compiled for more sizes since, or for the thread that the backward pass runs in.
    if torch.cuda.is_available() and arguments.sharding_stage < 3 and not arguments.gradient_checkpointing:
        # There are four kinds of block, and each is compiled for one size, then for any, and for evaluation again.
        torch._dynamo.config.recompile_limit = _KINDS_COMPILED
        blocks = [module for module in model.model.projector.modules() if isinstance(module, RegBlock)]
        for layer in (*model.model.language_model.layers, *blocks):
            layer.compile()
