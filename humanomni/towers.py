"""The frozen encoders: SigLIP of frames and Whisper of sound.

Shape suffixes as in :mod:`humanomni.modeling`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipVisionModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class VisionTower(SiglipVisionModel):
    """SigLIP up to the layer that HumanOmni reads: ``hidden_states[-2]`` of the published tower, without post-norm."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_layernorm = nn.Identity()  # type: ignore[assignment]


def vision_tower(config: Any) -> VisionTower:
    """A tower with drawn weights; whole also under ZeRO-3, where transformers' ``_from_config`` would spread it."""
    tower = VisionTower(config)
    tower.encoder.layers[0].register_forward_pre_hook(_contiguous_input)
    return tower


def audio_tower(config: Any) -> WhisperEncoder:
    """A tower with drawn weights; no subclass, for which transformers would leave Whisper's sinusoids out."""
    tower = WhisperEncoder(config)
    tower.layers[0].register_forward_pre_hook(_contiguous_input)
    return tower


def encode_frames(tower: VisionTower, pixel_values: Tensor) -> Tensor:
    """Frames [B, T, 3, H, W] -> SigLIP patches [B, T, N, V], in the tower's own precision."""
    with _computing_in_its_dtype(tower):
        patches = tower(pixel_values.flatten(0, 1).to(tower.dtype)).last_hidden_state
    return patches.unflatten(0, pixel_values.shape[:2])


def encode_audio(tower: WhisperEncoder, input_features: Tensor) -> Tensor:
    """Log-mel [B, M, F] -> Whisper states [B, F/2, A], after the encoder's final norm, in the tower's own precision."""
    with _computing_in_its_dtype(tower):
        return tower(input_features.to(tower.dtype)).last_hidden_state


def _contiguous_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook that lays out a tower's hidden states [B, N, V] row by row.

    They come from a convolution, transposed, and sums keep their operands' strides: every residual and norm of a tower
    would go through memory by columns (docs/performance.md has the time).
    """
    return inputs[0].contiguous(), *inputs[1:]


def _computing_in_its_dtype(module: PreTrainedModel) -> torch.autocast:
    """Turns autocast off for a module in half precision, whose every norm it would answer with float32."""
    half = module.dtype != torch.float32
    return torch.autocast(module.device.type, enabled=not half and torch.is_autocast_enabled(module.device.type))
