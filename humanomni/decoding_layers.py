"""The language model's layers as decoding runs them: whole weights of one precision, and few, large products.

Shape suffixes: B rows, P positions of the prompt, S positions of a pass (P or 1), C positions of the cache, N heads,
K key-value heads, H head width, D model width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb


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


class DecodingLayers:
    """A language model's layers and vocabulary head, to be shared by all who decode with them.

    Args:
        language_model: Qwen2 with full attention in every layer.
        lm_head: its vocabulary head.
        dtype: what to compute in; weights of another one, with a LoRA adapter or in FSDP's shards are copied, whole
            and the adapter merged, and :meth:`refresh` brings the copy up to date. Frozen weights of this one are laid
            side by side where one product can then take the place of several; the model's parameters become parts of
            the whole.

    Attributes:
        read: one layer on whole prompts, :func:`_read`; on a GPU compiled, once for all layers.
        read_last: the last layer likewise, :func:`_read_last`.
        enter, go_on, end: a step, on one token a row: :func:`_enter`, :func:`_go_on` and :func:`_end`; likewise.
    """

    def __init__(self, language_model: Qwen2Model, lm_head: nn.Linear, dtype: torch.dtype) -> None:
        self.dtype, self.device = dtype, lm_head.weight.device
        self.config: Any = language_model.config
        self._source: nn.ModuleList = nn.ModuleList([language_model, lm_head])
        self._adapted = list(_adapted_layers(self._source))
        if any(isinstance(parameter, DTensor) for parameter in self._source.parameters()):
            self._modules = _whole_copy(language_model, lm_head, dtype)
        elif self._adapted or any(parameter.dtype != dtype for parameter in self._source.parameters()):
            self._modules = _merged_copy(self._source, dtype)
        else:
            self._modules = self._source
        self.language_model = cast(Any, self._modules[0])
        kernels = _kernels() if self.device.type == "cuda" else None
        self.layers = [_Layer(layer, kernels) for layer in self.language_model.layers]
        self.head = _Product(self._modules[1], kernels)
        self.read: Callable[..., tuple[Tensor, Tensor, Tensor]] = _read
        self.read_last: Callable[..., tuple[Tensor, Tensor, Tensor]] = _read_last
        self.enter: Callable[..., _Parts] = _enter
        self.go_on: Callable[..., tuple[Tensor, _Parts]] = _go_on
        self.end: Callable[..., None] = _end
        if self.device.type == "cuda":
            self.read = torch.compile(_read, fullgraph=True, dynamic=True)
            self.read_last = torch.compile(_read_last, fullgraph=True, dynamic=True)
            # As `decoding_kernels` has it, a step's kernels do not wait to be launched until the one before has ended.
            options: dict[str, Any] = {"triton.enable_pdl": True}
            compiled = partial(torch.compile, fullgraph=True, dynamic=False, options=options)
            self.enter, self.go_on, self.end = compiled(_enter), compiled(_go_on), compiled(_end)

    def serve(self, lm_head: nn.Linear, dtype: torch.dtype) -> bool:
        """Whether these are the layers of this model and precision."""
        same = self._source[1] is lm_head and self.device == lm_head.weight.device and self.dtype == dtype
        return same and self._adapted == list(_adapted_layers(self._source))

    def refresh(self) -> None:
        """Copies the weights again, after an optimizer step; free where they are shared.

        Where they are sharded, every process must take part.
        """
        if self._modules is not self._source:
            with torch.no_grad():
                for parameter, value in zip(self._modules.parameters(), _merged_parameters(self._source), strict=True):
                    parameter.copy_(value.full_tensor() if isinstance(value, DTensor) else value)


def _kernels() -> ModuleType:
    """Imported here, because Triton comes with torch for GPUs alone."""
    from humanomni import decoding_kernels

    return decoding_kernels


class _Product(nn.Module):
    """A linear layer; on one token a row it goes through the kernel for few rows, where that takes its weight.

    Args:
        kernels: :mod:`humanomni.decoding_kernels` on a GPU.
    """

    def __init__(self, linear: nn.Module, kernels: ModuleType | None) -> None:
        super().__init__()
        self.linear = linear
        # A quantised layer's weight is not what it multiplies by.
        plain = type(linear) is nn.Linear
        self._kernels = kernels if kernels and plain and kernels.can_multiply(linear.weight) else None

    def kernels_for(self, x_BSD: Tensor) -> ModuleType | None:
        """Those that multiply such an input by this weight, if any do."""
        few = x_BSD.shape[1] == 1 and self._kernels is not None and len(x_BSD) <= self._kernels.MOST_ROWS
        return self._kernels if few else None

    def forward(self, x_BSD: Tensor) -> Tensor:
        if self.kernels_for(x_BSD) is None:
            return cast(Tensor, self.linear(x_BSD))
        return self.parts(x_BSD).whole(x_BSD.dtype)

    def parts(self, x_B1D: Tensor) -> "_Parts":
        """The product as the kernel leaves it, for those who sum it as they read it."""
        kernels = self.kernels_for(x_B1D)
        if kernels is None:
            return _Parts(self.linear(x_B1D).transpose(0, 1), None)
        linear = cast(nn.Linear, self.linear)
        return _Parts(kernels.multiply(x_B1D.squeeze(1), linear.weight), linear.bias)


class _Parts(NamedTuple):
    """A product of one token a row in parts of its inner dimension.

    Attributes:
        sums: [parts, B, N].
        bias: [N], still to be added to their sum; None where there is none.
    """

    sums: Tensor
    bias: Tensor | None

    def whole(self, dtype: torch.dtype) -> Tensor:
        """[B, 1, N]."""
        y_BN = self.sums.sum(dim=0)
        return (y_BN if self.bias is None else y_BN + self.bias).to(dtype).unsqueeze(1)


class _Layer(nn.Module):
    """A Qwen2 layer around its attention; products of the same input are one product where their weights can be."""

    def __init__(self, layer: Any, kernels: ModuleType | None) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_width, self.scaling = attention.head_dim, attention.scaling
        self.input_norm, self.post_attention_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_key_value = _Product(_side_by_side([attention.q_proj, attention.k_proj, attention.v_proj]), kernels)
        self.output = _Product(attention.o_proj, kernels)
        self.gate_up = _Product(_side_by_side([mlp.gate_proj, mlp.up_proj]), kernels)
        self.activation, self.down = mlp.act_fn, _Product(mlp.down_proj, kernels)
        config = attention.config
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        self._kernels = kernels

    def before_attention(self, hidden_BSD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B, N, S, H], key and value [B, K, S, H], turned to their positions."""
        return self._turned(self.query_key_value(self.input_norm(hidden_BSD)), cos, sin)

    def _turned(self, projected_BSW: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = projected_BSW.unflatten(2, (-1, self.head_width)).transpose(1, 2)
        query, key, value = heads.split(self.heads, dim=1)
        return *apply_rotary_pos_emb(query, key, cos, sin), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, may_look: Tensor | None) -> Tensor:
        """[B, S, N * H]; without a mask, causally."""
        # Grouped-query heads read the cache as it is: to repeat it first would move several times its bytes.
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=may_look, is_causal=may_look is None, scale=self.scaling, enable_gqa=True
        )
        return attended.transpose(1, 2).flatten(2)

    def attend_to_cache(
        self, projected: _Parts, rotation: tuple[Tensor, Tensor], cache: LayerCache, dtype: torch.dtype
    ) -> Tensor:
        """[B, 1, N * H], of query, key and value in parts; writes key and value into the cache."""
        if self._kernels is not None and self._kernels.can_attend(cache.keys):
            cos_BH, sin_BH = (table.squeeze(1) for table in rotation)
            attended_BNH = self._kernels.attend(*projected, cos_BH, sin_BH, *cache, self.scaling)
            return cast(Tensor, attended_BNH.to(dtype).flatten(1).unsqueeze(1))
        query, key, value = self._turned(projected.whole(dtype), *rotation)
        cache.keys.index_copy_(2, cache.slot, key)
        cache.values.index_copy_(2, cache.slot, value)
        return self.attend(query, cache.keys, cache.values, cache.bias)

    def after_attention(self, hidden_BSD: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [B, S, D]."""
        hidden_BSD = hidden_BSD + self.output(attended)
        return hidden_BSD + self.down(self._gated(self.post_attention_norm(hidden_BSD)))

    def _gated(self, x_BSD: Tensor) -> Tensor:
        """activation(gate) * up."""
        kernels = self.gate_up.kernels_for(x_BSD)
        if kernels is not None and isinstance(self.activation, nn.SiLU):
            return cast(Tensor, kernels.multiply_gated(x_BSD.squeeze(1), self.gate_up.linear.weight).unsqueeze(1))
        gate, up = self.gate_up(x_BSD).chunk(2, dim=-1)
        return cast(Tensor, self.activation(gate) * up)


def _read(
    layer: _Layer, hidden_BPD: Tensor, cos: Tensor, sin: Tensor, may_look: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer on whole prompts; also their keys and values [B, K, P, H]."""
    query, key, value = layer.before_attention(hidden_BPD, cos, sin)
    return layer.after_attention(hidden_BPD, layer.attend(query, key, value, may_look)), key, value


def _read_last(
    layer: _Layer, hidden_BPD: Tensor, cos: Tensor, sin: Tensor, mask_BP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last layer on whole prompts: output [B, 1, D] of the last position alone, keys and values of all."""
    query, key, value = layer.before_attention(hidden_BPD, cos, sin)
    attended = layer.attend(query[:, :, -1:], key, value, mask_BP[:, None, None])
    return layer.after_attention(hidden_BPD[:, -1:], attended), key, value


def _enter(layer: _Layer, hidden_B1D: Tensor) -> _Parts:
    """A layer on one token a row up to its attention: query, key and value."""
    return layer.query_key_value.parts(layer.input_norm(hidden_B1D))


def _leave(
    layer: _Layer, cache: LayerCache, hidden_B1D: Tensor, projected: _Parts, rotation: tuple[Tensor, Tensor]
) -> Tensor:
    """The same layer from its attention on: its output."""
    attended = layer.attend_to_cache(projected, rotation, cache, hidden_B1D.dtype)
    return layer.after_attention(hidden_B1D, attended)


def _go_on(
    layer: _Layer,
    cache: LayerCache,
    following: _Layer,
    hidden_B1D: Tensor,
    projected: _Parts,
    rotation: tuple[Tensor, Tensor],
) -> tuple[Tensor, _Parts]:
    """From one layer's attention to the next one's: what ends a layer and begins another becomes one kernel."""
    hidden_B1D = _leave(layer, cache, hidden_B1D, projected, rotation)
    return hidden_B1D, _enter(following, hidden_B1D)


def _end(
    layer: _Layer,
    cache: LayerCache,
    norm: nn.Module,
    head: nn.Module,
    hidden_B1D: Tensor,
    projected: _Parts,
    rotation: tuple[Tensor, Tensor],
    logits_BV: Tensor,
) -> None:
    """From the last layer's attention to the logits, which it writes, rounded as the head's are."""
    logits_BV.copy_(head(norm(_leave(layer, cache, hidden_B1D, projected, rotation))).squeeze(1))


class _InTurn(nn.ModuleList):
    """Layers that read the same input, each with a product of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self], dim=-1)


def _side_by_side(layers: Sequence[nn.Module]) -> nn.Module:
    """One linear layer in the place of several of the same input, whose parameters become parts of its own.

    Not of quantised or sharded weights, nor of trained ones, which an optimizer may have laid out in its own way.
    """
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    plain = all(type(layer) is nn.Linear for layer in layers) and all(type(p) is nn.Parameter for p in parameters)
    if not plain or any(parameter.requires_grad for parameter in parameters):
        return _InTurn(layers)
    linears = cast(Sequence[nn.Linear], layers)
    out_features = sum(linear.out_features for linear in linears)
    joined = nn.Linear(linears[0].in_features, out_features, bias=False, device="meta")
    # Outside of inference mode, so that the model can still be trained and saved.
    with torch.inference_mode(False), torch.no_grad():
        for name, _ in linears[0].named_parameters():
            setattr(joined, name, _joined([getattr(linear, name) for linear in linears]))
    return joined


def _joined(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return nn.Parameter(whole, requires_grad=False)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters and no buffer: rotary frequencies in bfloat16 turn the thousandth position by a radian."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _merged_copy(modules: nn.ModuleList, dtype: torch.dtype) -> nn.ModuleList:
    """A copy with plain layers in place of those with a LoRA adapter; its values are :func:`_merged_parameters`."""
    merged = copy.deepcopy(modules)
    for name, layer in _adapted_layers(merged).items():
        merged.set_submodule(name, layer.base_layer)
    cast_parameters(merged, dtype)
    return merged.requires_grad_(False)


def _whole_copy(language_model: Qwen2Model, lm_head: nn.Linear, dtype: torch.dtype) -> nn.ModuleList:
    """Plain modules of the sizes of sharded ones, which cannot be copied; their values come with a refresh."""
    with torch.device("meta"):  # nothing is drawn, which would change the rollouts
        whole = Qwen2Model(cast(Any, language_model.config))
        modules = nn.ModuleList([whole, nn.Linear(lm_head.in_features, lm_head.out_features, bias=False)])
    cast_parameters(modules, dtype)
    modules.to_empty(device=lm_head.weight.device)
    whole.rotary_emb = copy.deepcopy(language_model.rotary_emb)
    if lm_head.weight is language_model.embed_tokens.weight:
        modules[1].weight = whole.embed_tokens.weight
    return modules.requires_grad_(False)


def _merged_parameters(modules: nn.Module) -> Iterator[Tensor]:
    """Parameters in their order, a LoRA adapter added to the weights that it adapts."""
    layers = _adapted_layers(modules)
    for name, parameter in modules.named_parameters():
        layer = layers.get(name.partition(".base_layer.")[0].partition(".lora_")[0])
        if layer is not None and name.endswith(".base_layer.weight"):
            with torch.autocast(parameter.device.type, enabled=False):
                yield parameter + layer.get_delta_weight(*layer.active_adapters)
        elif layer is None or ".lora_" not in name:
            yield parameter


def _adapted_layers(modules: nn.Module) -> dict[str, Any]:
    """Layers with peft's adapter whose weights can take it in, which quantised ones cannot."""
    adapted: dict[str, Any] = {name: module for name, module in modules.named_modules() if hasattr(module, "lora_A")}
    return {name: layer for name, layer in adapted.items() if layer.base_layer.weight.is_floating_point()}
