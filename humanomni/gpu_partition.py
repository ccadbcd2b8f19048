"""A part of a GPU's multiprocessors, for work that would otherwise hold them all.

The products of a prompt's reading fill every multiprocessor for milliseconds. What another stream launches meanwhile
waits for their end, although a decoding step needs the memory's rate more than it needs multiprocessors.
"""

import logging
from functools import cache
from typing import Any, cast

import torch
from torch.cuda import green_contexts

logger = logging.getLogger(__name__)

_STEP = 8  # multiprocessors are given away by eights


class Partition:
    """A share of a GPU's multiprocessors and a stream whose kernels run on these alone.

    Where torch or the driver cannot part a GPU, the stream's kernels run on all.

    Attributes:
        stream: is the partition's as long as the partition lives.
    """

    def __init__(self, device: torch.device, share: float) -> None:
        count = torch.cuda.get_device_properties(device).multi_processor_count
        try:
            self._context = cast(Any, green_contexts.GreenContext).create(
                num_sms=max(round(share * count / _STEP), 1) * _STEP, device_id=device.index
            )
            self.stream = self._context.Stream()
        except RuntimeError as error:
            logger.info("the GPU's multiprocessors cannot be parted: %s", error)
            self.stream = torch.cuda.Stream(device)


@cache
def partition(device: torch.device, share: float) -> Partition:
    """The device's partition of this share, made once: what a stream has freed serves that stream's work alone."""
    return Partition(device, share)
