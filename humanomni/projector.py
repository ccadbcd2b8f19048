"""The three-branch projector: SigLIP patches to language-model tokens, mixed by the gate.

Shape suffixes: B batch, T frames, P patches a side, Q tokens a side after pooling (P' in the paper's terms),
V vision width, D language-model width, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from humanomni.configuration import PROJECTOR_TYPES, HumanOmniConfig


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an image [B, C, H, W]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, then LayerNorm2d (eps 1e-5)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = LayerNorm2d(out_channels, eps=1e-5)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.conv(x_BCHW))


class SqueezeExcite(nn.Module):
    """Channel gates from the spatial mean, through a bottleneck of ``squeezed`` channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        scale_BC11 = self.fc2(F.silu(self.fc1(x_BCHW.mean((2, 3), keepdim=True))))
        return x_BCHW * scale_BC11.sigmoid()


class RegBlock(GradientCheckpointingLayer):
    """RegNet's residual block with stride 1, bottleneck ratio 1 and a depthwise 3x3 convolution.

    Under gradient checkpointing it is recomputed like a decoder layer: the 7B's 16 blocks would keep about 8 GB a clip.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, channels)
        self.conv2 = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.se = SqueezeExcite(channels, squeezed=round(0.25 * in_channels))
        self.conv3 = ConvNorm(channels, channels)
        self.shortcut = ConvNorm(in_channels, channels) if in_channels != channels else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden = F.silu(self.conv1(x_BCHW))
        hidden = F.silu(self.conv2(hidden))
        hidden = self.conv3(self.se(hidden))
        return F.silu(hidden + self.shortcut(x_BCHW))


def reg_stage(depth: int, in_channels: int, channels: int) -> nn.Sequential:
    """``depth`` RegBlocks, of which the first changes the width."""
    return nn.Sequential(*(RegBlock(in_channels if i == 0 else channels, channels) for i in range(depth)))


def mlp(in_features: int, features: int) -> nn.Sequential:
    """Linear, GELU, Linear: the two-layer projection that most of the model's joints use."""
    return nn.Sequential(nn.Linear(in_features, features), nn.GELU(), nn.Linear(features, features))


class SpatioTemporalBranch(nn.Module):
    """The body of the ``video`` and ``body`` branches: convolutions in space, a strided one in space and time."""

    def __init__(self, config: HumanOmniConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        depth, padding = PROJECTOR_TYPES[config.projector_type]
        self.stage1 = reg_stage(depth, config.vision_config.hidden_size, width)
        self.sampler = nn.Conv3d(width, width, kernel_size=2, stride=(1, 2, 2), padding=padding)
        self.stage2 = reg_stage(depth, width, width)
        self.readout = mlp(width, width)

    def forward(self, patches_BTVPP: Tensor) -> Tensor:
        """[B, T, V, P, P] -> [B, T*Q*Q, D]."""
        batch, frames = patches_BTVPP.shape[:2]
        x_NDPP = self.stage1(patches_BTVPP.flatten(0, 1))
        x_BDTPP = x_NDPP.unflatten(0, (batch, frames)).transpose(1, 2)
        # Padding in time makes T+1 steps, of which the last is cut: step t sees frames t-1 and t.
        x_BDTQQ = F.silu(self.sampler(x_BDTPP))[:, :, :frames]
        x_NDQQ = self.stage2(x_BDTQQ.transpose(1, 2).flatten(0, 1))
        x_NLD = x_NDQQ.flatten(2).transpose(1, 2)
        return self.readout(x_NLD.unflatten(0, (batch, frames)).flatten(1, 2))


class FaceBranch(nn.Module):
    """The ``face`` branch: each patch projected on its own, then averaged down to the other branches' grid."""

    def __init__(self, config: HumanOmniConfig) -> None:
        super().__init__()
        self.mlp = mlp(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.token_grid_size = config.token_grid_size

    def forward(self, patches_BTVPP: Tensor) -> Tensor:
        """[B, T, V, P, P] -> [B, T*Q*Q, D]."""
        batch, frames = patches_BTVPP.shape[:2]
        x_NDPP = self.mlp(patches_BTVPP.flatten(0, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # Halving an even grid bilinearly without antialiasing is the mean of 2x2 patches.
        x_NDQQ = F.interpolate(x_NDPP, size=(self.token_grid_size,) * 2, mode="bilinear", align_corners=False)
        return x_NDQQ.flatten(2).transpose(1, 2).unflatten(0, (batch, frames)).flatten(1, 2)


class ThreeBranchProjector(nn.Module):
    """Three views of the same patches, weighted by what the instruction asks for (the BERT gate's softmax).

    The published model feeds all three branches with the same features: the names say what each was meant for.
    """

    def __init__(self, config: HumanOmniConfig) -> None:
        super().__init__()
        self.patch_grid_size = config.patch_grid_size
        self.video = SpatioTemporalBranch(config)
        self.body = SpatioTemporalBranch(config)
        self.face = FaceBranch(config)

    def forward(self, features_BTNV: Tensor, gate_B3: Tensor) -> Tensor:
        """Fused video tokens.

        Args:
            features_BTNV: SigLIP patches [B, T, P*P, V], row by row.
            gate_B3: weights of video, body and face, which sum to 1.

        Returns:
            Tokens [B, T*Q*Q, D].
        """
        grid = (self.patch_grid_size,) * 2
        patches_BTVPP = features_BTNV.transpose(2, 3).unflatten(3, grid)
        branches = torch.stack([branch(patches_BTVPP) for branch in (self.video, self.body, self.face)], dim=1)
        return torch.einsum("bk,bkld->bld", gate_B3.to(branches.dtype), branches)
