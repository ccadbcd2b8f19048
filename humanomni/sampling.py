"""Sampled responses that hang on record and seed alone, not on the batch that they are drawn in."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        count: responses of a record.
        temperature: divides the logits; 0 is greedy, where all responses would be one.
        seed: another one gives other responses.
    """

    count: int = 1
    temperature: float = 0.0
    seed: int = 0

    def streams(self, identity: str) -> list[int]:
        """The seeds of a record's responses."""
        names = (f"{self.seed}\n{sample}\n{identity}".encode() for sample in range(self.count))
        return [int.from_bytes(hashlib.sha256(name).digest()[:8]) >> 1 for name in names]


GREEDY = Sampling()


class SeededSampling(LogitsProcessor):
    """Makes the greedy choice a draw at a temperature, each row from a random stream of its own.

    The largest of logits/temperature plus Gumbel noise is a draw from their softmax. torch.multinomial, which
    generate() draws with, has one stream for all rows: there a row's tokens change with its neighbours, and a run that
    was killed would not be continued as it began. A GPU's streams differ from a CPU's.

    Args:
        temperature: above 0.
        streams: a seed a row.
        device: of the logits.
    """

    def __init__(self, temperature: float, streams: Sequence[int], device: torch.device) -> None:
        self.temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(stream) for stream in streams]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Noisy scores float32 [B, V] of scores [B, V]."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()
