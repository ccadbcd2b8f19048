"""A look at what a GPU has computed for which it need not wait."""

import torch
from torch import Tensor

_STEPS_BEHIND = 6  # what the GPU has to do while the next steps are launched, and at most does in vain


class LateLook:
    """Whether any row of a batch goes on; on a GPU, as it was a few steps ago.

    A look at the latest step would wait for its end, and the GPU then for the next one's launch. The thread that looks
    sleeps: torch's other ways to wait keep a core busy that may have clips to decode.

    Args:
        rows: B.
        device: where the steps run.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._device, self._steps = device, 0
        if device.type == "cuda":
            self._flags = torch.ones(_STEPS_BEHIND, rows, dtype=torch.bool, pin_memory=True)
            self._copied = [torch.cuda.Event(blocking=True) for _ in self._flags]

    def any_goes_on(self, going_on_B: Tensor) -> bool:
        """To be asked after every step, with its rows."""
        if self._device.type != "cuda":
            return bool(going_on_B.any())
        slot = self._steps % _STEPS_BEHIND
        flags_B, copied = self._flags[slot], self._copied[slot]
        went_on = True
        if self._steps >= _STEPS_BEHIND:
            copied.synchronize()
            went_on = bool(flags_B.any())
        flags_B.copy_(going_on_B, non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        self._steps += 1
        return went_on
