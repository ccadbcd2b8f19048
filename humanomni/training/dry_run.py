"""What a run would do, said without a GPU: records, steps, parameters, memory, the judge's health."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from humanomni.modeling import PARTS
from humanomni.training.checkpoints import checkpoint_bytes, count

_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU before activations, by what they hold."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    rollouts: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name) / _GIB:.1f}" for name in vars(self) if getattr(self, name))
        return f"{self.total / _GIB:.1f} GiB a GPU ({parts}); activations, and in GRPO the cache, come on top"


def estimate_memory(
    trained: int,
    frozen: int,
    processes: int,
    stage: int,
    bf16: bool,
    reference: bool = False,
    wide: int = 0,
    copied: int = 0,
) -> Memory:
    """Bytes a GPU before activations, with AdamW.

    Args:
        trained, frozen: the model's parameters.
        processes: GPUs of the run.
        stage: of ZeRO; 0 for one GPU or DDP, 3 for FSDP's full shards too.
        bf16: arithmetic in bfloat16, with masters in float32.
        reference: there is a reference model, which shares the policy's frozen parameters unless they are sharded.
        wide: frozen parameters that stay in float32 without sharding, as :func:`wide_parameters` counts them.
        copied: parameters of which GRPO's rollouts read a copy, as :func:`copied_parameters` counts them.
    """
    parameters, width = trained + frozen, 2 if bf16 else 4
    if stage == 0:
        # Masters are the weights; autocast keeps a bfloat16 copy of the trained ones through a forward and backward,
        # and DDP reduces gradients in buckets beside them.
        copies = 2 * trained if bf16 else 0
        buckets = 4 * trained if processes > 1 else 0
        return Memory(
            weights=4 * trained + width * frozen + (4 - width) * wide + copies,
            gradients=4 * trained + buckets,
            optimizer=8 * trained,
            reference=width * trained * reference,
            rollouts=width * copied,
        )
    masters = 4 * trained / processes if bf16 else 0
    weights = width * parameters / (processes if stage == 3 else 1)
    return Memory(
        weights=weights,
        gradients=4 * trained / processes,  # accumulated in float32
        optimizer=8 * trained / processes + masters,
        reference=width * reference * (parameters / processes if stage == 3 else trained),
        rollouts=width * copied,
    )


def wide_parameters(model: nn.Module) -> int:
    """Frozen parameters in float32: embeddings above all, which autocast leaves as they are."""
    return sum(count(p) for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32)


def copied_parameters(language_model: int, arguments: Any) -> int:
    """Parameters that rollouts copy, to cast them or to merge an adapter; sharded ones are read as they are."""
    stage = arguments.sharding_stage
    cast = arguments.bf16 and stage == 0
    return language_model if arguments.rows_a_record > 1 and stage < 3 and (cast or arguments.lora_rank) else 0


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Trained and frozen parameters of each part of the model."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))
        counts[part][not parameter.requires_grad] += count(parameter)
    return {part: (trained, frozen) for part, (trained, frozen) in counts.items()}


def describe_run(arguments: Any, model: nn.Module, samples: int, reference: bool = False) -> str:
    """Records, steps, parameters and memory of a run of ``arguments.processes`` processes.

    Args:
        arguments: a stage's.
        samples: records of the training data.
        reference: a second copy of what is trained is held, as GRPO does while beta is not 0.
    """
    counts = count_parameters(model)
    trained, frozen = (sum(column) for column in zip(*counts.values(), strict=True))
    rows = [
        f"{part:<16} {ours / 1e6:>10.2f} M trained {theirs / 1e6:>10.2f} M frozen"
        for part, (ours, theirs) in counts.items()
    ]
    a_step = arguments.records_an_optimizer_step
    # As transformers counts: the last step of an epoch takes the batches that are left.
    steps_an_epoch = max(1, math.ceil(arguments.batches_an_epoch(samples) / arguments.gradient_accumulation_steps))
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_an_epoch * arguments.num_train_epochs)
    memory = estimate_memory(
        trained,
        frozen,
        arguments.processes,
        arguments.sharding_stage,
        arguments.bf16,
        reference,
        wide_parameters(model),
        copied_parameters(sum(counts["language_model"]), arguments),
    )
    return "\n".join(
        [
            f"records            {samples}",
            f"records a step     {a_step} over {arguments.processes} processes "
            f"(batch {arguments.per_device_train_batch_size} x accumulation {arguments.gradient_accumulation_steps})",
            f"optimizer steps    {steps}",
            f"output             {arguments.output_dir}",
            *rows,
            f"{'in all':<16} {trained / 1e6:>10.2f} M trained {frozen / 1e6:>10.2f} M frozen",
            f"memory             {memory}",
            f"a checkpoint       {checkpoint_bytes(model, arguments.sharding_stage > 0) / _GIB:.1f} GiB on disk",
        ]
    )
