"""The model of a run: its parts trained and frozen, in the precision that training wants."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
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
    if arguments.deepspeed and arguments.sharding_stage == 3 and not arguments.dry_run:
        gather_by_blocks(model)


def gather_by_blocks(model: HumanOmniForConditionalGeneration) -> None:
    """Has ZeRO-3 gather frozen encoders, decoder layers and the projector's second stages whole.

    By itself it gathers the weights of each linear layer, by hooks that cost some 0.8 ms each: a GRPO step of the 0.5B
    goes through 2,570 of them (docs/performance.md).
    """
    from deepspeed.utils import set_z3_leaf_module  # an optional dependency

    core, layers = model.model, model.model.language_model.layers
    before_layers = (core.language_model.embed_tokens, core.projector, core.audio_projector)
    blocks = [encoder for encoder in (core.vision_tower, core.audio_tower, core.bert) if is_frozen(encoder)]
    # A trained block must have inputs with gradients, after which its own are reduced: frames have none, so that the
    # projector's first stages stay as they are, and embeddings have some where they or a projector are trained.
    blocks += [core.projector.video.stage2, core.projector.body.stage2]
    if is_frozen(layers) or not all(map(is_frozen, before_layers)):
        blocks += layers
    for block in blocks:
        set_z3_leaf_module(block, True)


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing of a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


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
