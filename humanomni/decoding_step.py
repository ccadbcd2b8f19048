"""A decoding step: one token a row through all layers, over their caches.

Few rows in half precision go through the kernels of :mod:`humanomni.decoding_kernels`, on Hopper and its successors;
all else goes through one layer that torch compiles for a GPU, once for all layers.

Shape suffixes are those of :mod:`humanomni.decoding_layers`, W queries, keys and values of all heads, S parts of a sum.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from humanomni.decoding_layers import DecodingLayers, Layer

Rotation = tuple[Tensor, Tensor]


class LayerCache(NamedTuple):
    """A layer's part of a decoder's cache.

    Attributes:
        keys, values: [B, K, C, H].
        slot: [1], where the last token of each row stands; nothing beyond it is looked at.
        bias: [B, 1, 1, C], added to the scores: 0 where a row may look, which is nowhere beyond the slot.
    """

    keys: Tensor
    values: Tensor
    slot: Tensor
    bias: Tensor


def step(layers: DecodingLayers, caches: Sequence[LayerCache], hidden_BD: Tensor, rotation: Rotation) -> Tensor:
    """Logits [B, vocabulary] after one token a row, in float32; writes the tokens' keys and values into the caches.

    Args:
        hidden_BD: the tokens' embeddings.
        rotation: cosines and sines of their positions, [B, H] each.
    """
    kernels, keys = layers.kernels, caches[0].keys
    if kernels is not None and kernels.can_step(len(hidden_BD), keys):
        return _step_by_kernels(kernels, layers, caches, hidden_BD, rotation)
    through_layer, to_logits = (_through_layer, _to_logits) if kernels is None else _compiled()
    attend = torch.ops.humanomni.attend if kernels is not None and kernels.can_attend(keys) else None
    for layer, layer_cache in zip(layers.layers, caches, strict=True):
        hidden_BD = through_layer(layer, layer_cache, hidden_BD, rotation, attend)
    return to_logits(layers.norm, layers.head, hidden_BD)


@cache
def _compiled() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    return compiled(_through_layer), compiled(_to_logits)


def _through_layer(
    layer: Layer,
    layer_cache: LayerCache,
    hidden_BD: Tensor,
    rotation: Rotation,
    attend: Callable[..., Tensor] | None,
) -> Tensor:
    """The layer's output [B, D]; ``attend`` is :func:`humanomni.decoding_kernels.attend` where that takes the cache."""
    if attend is not None:
        projected_BW = layer.query_key_value(layer.input_norm(hidden_BD))
        attended_BW = attend(projected_BW.unsqueeze(0), None, *rotation, *layer_cache, layer.scaling)
        return layer.after_attention(hidden_BD, attended_BW)
    keys, values, slot, bias = layer_cache
    cos_B1H, sin_B1H = (table.unsqueeze(1) for table in rotation)
    query, key, value = layer.before_attention(hidden_BD.unsqueeze(1), cos_B1H, sin_B1H)
    keys.index_copy_(2, slot, key)
    values.index_copy_(2, slot, value)
    return layer.after_attention(hidden_BD, layer.attend(query, keys, values, bias).squeeze(1))


def _to_logits(norm: nn.Module, head: nn.Module, hidden_BD: Tensor) -> Tensor:
    return head(norm(hidden_BD)).float()


def _step_by_kernels(
    kernels: ModuleType,
    layers: DecodingLayers,
    caches: Sequence[LayerCache],
    hidden_BD: Tensor,
    rotation: Rotation,
) -> Tensor:
    """:func:`step`; a product stays in parts until what reads it next sums them."""
    product: _Product | None = None
    for layer, layer_cache in zip(layers.layers, caches, strict=True):
        hidden_BD, normed_BD = _add_normed(kernels, hidden_BD, product, layer.input_norm)
        projected = _multiply(kernels, layer.query_key_value, normed_BD)
        attended_BW = kernels.attend(*projected, *rotation, *layer_cache, layer.scaling)
        product = _multiply(kernels, layer.output, attended_BW)
        hidden_BD, normed_BD = _add_normed(kernels, hidden_BD, product, layer.post_attention_norm)
        product = _multiply(kernels, layer.down, _gated(kernels, layer, normed_BD))
    _, normed_BD = _add_normed(kernels, hidden_BD, product, layers.norm)
    return _multiply(kernels, layers.head, normed_BD).whole(hidden_BD.dtype).float()


class _Product(NamedTuple):
    """A product in parts of its inner dimension.

    Attributes:
        parts: [S, B, N].
        bias: [N], still to be added to their sum; None where there is none.
    """

    parts: Tensor
    bias: Tensor | None

    def whole(self, dtype: torch.dtype) -> Tensor:
        """[B, N]."""
        whole_BN = self.parts.sum(dim=0) if len(self.parts) > 1 else self.parts.squeeze(0)
        return (whole_BN if self.bias is None else whole_BN + self.bias).to(dtype)


def _multiply(kernels: ModuleType, linear: nn.Module, x_BD: Tensor) -> _Product:
    if not _is_for(kernels, linear):
        return _Product(linear(x_BD).unsqueeze(0), None)
    return _Product(kernels.multiply(x_BD, linear.weight), cast(Tensor | None, linear.bias))


def _gated(kernels: ModuleType, layer: Layer, x_BD: Tensor) -> Tensor:
    if not (layer.is_swiglu and _is_for(kernels, layer.gate_up) and layer.gate_up.bias is None):
        return layer.gated(x_BD)
    return cast(Tensor, kernels.multiply_gated(x_BD, layer.gate_up.weight))


def _is_for(kernels: ModuleType, linear: nn.Module) -> bool:
    """Whether the kernels multiply by this layer's weight; a quantised layer's is not what it multiplies by."""
    return type(linear) is nn.Linear and kernels.can_multiply(linear.weight)


def _add_normed(kernels: ModuleType, hidden_BD: Tensor, product: _Product | None, norm: Any) -> tuple[Tensor, Tensor]:
    parts, bias = product or (None, None)
    return cast(tuple[Tensor, Tensor], kernels.add_normed(hidden_BD, parts, bias, norm.weight, norm.variance_epsilon))
