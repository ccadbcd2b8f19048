"""Sampling whose draws belong to a row: the same candidate comes out in any batch, on any rank, after any kill.

Greedy decoding of logits plus Gumbel noise samples from their softmax (the Gumbel-max trick). Each row draws its noise
from a generator of its own, so transformers' one generator for all rows, which makes a row hang on its batch, is not
used. Another device draws other numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

DRAW_INPUTS = ("seeds", "temperatures")  # what `Sampling.rows` adds to a batch


@dataclass(frozen=True)
class Sampling:
    """How the candidates of a record are drawn.

    Attributes:
        n: candidates a record.
        temperatures: the schedule: one a candidate, taken in turns.
        top_p: smallest share of the probability that stays in the draw.
        top_k: tokens that stay in the draw; 0 leaves all.
        seed: another one gives other candidates.
    """

    n: int
    temperatures: tuple[float, ...] = (1.0,)
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def temperature(self, candidate: int) -> float:
        """Temperature of a record's candidate, counted from 0."""
        return self.temperatures[candidate % len(self.temperatures)]

    def rows(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Seed and temperature of each row [len(ids) * n]: the candidates of the first record, of the second, ..."""
        pairs = [(identity, candidate) for identity in ids for candidate in range(self.n)]
        return {
            "seeds": torch.tensor([_seed(self.seed, *pair) for pair in pairs]),
            "temperatures": torch.tensor([self.temperature(candidate) for _, candidate in pairs]),
        }


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling with a generator a row.

    Args:
        sampling: top_p and top_k.
        seeds: [B] of int64.
        temperatures: [B].
        device: where the logits are.
    """

    def __init__(self, sampling: Sampling, seeds: Tensor, temperatures: Tensor, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        self._temperatures_B1 = temperatures.to(device).unsqueeze(1)
        self._warpers: list[LogitsProcessor] = []
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] whose largest is a draw from the softmax of the given ones, warped."""
        warped_BV = scores / self._temperatures_B1
        for warper in self._warpers:
            warped_BV = warper(input_ids, warped_BV)
        exponential_BV = torch.empty_like(warped_BV)
        for row, generator in zip(exponential_BV, self._generators, strict=True):
            row.exponential_(generator=generator)
        return warped_BV - exponential_BV.log()


def _seed(seed: int, identity: str, candidate: int) -> int:
    digest = hashlib.sha256(f"{seed}\n{candidate}\n{identity}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1  # a non-negative int64
