"""The language model's layers as decoding runs them: whole weights of one precision, and few, large products.

Shape suffixes: B rows, P positions of the prompt, S positions of a pass (P or 1), C positions of the cache, N heads,
K key-value heads, H head width, D model width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb


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
        layers, norm, head: of the language model, as decoding runs them.
        read: one layer on whole prompts, :func:`_read`; on a GPU compiled, once for all layers.
        read_last: the last layer likewise, :func:`_read_last`.
        kernels: :mod:`humanomni.decoding_kernels` on a GPU, otherwise None.
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
        self.kernels = _kernels() if self.device.type == "cuda" else None
        self.layers = [Layer(layer) for layer in self.language_model.layers]
        self.norm, self.head = self.language_model.norm, self._modules[1]
        self.read: Callable[..., tuple[Tensor, Tensor, Tensor]] = _read
        self.read_last: Callable[..., tuple[Tensor, Tensor, Tensor]] = _read_last
        if self.device.type == "cuda":
            self.read = torch.compile(_read, fullgraph=True, dynamic=True)
            self.read_last = torch.compile(_read_last, fullgraph=True, dynamic=True)

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


class Layer(nn.Module):
    """A Qwen2 layer around its attention; products of the same input are one product where their weights can be."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_width, self.scaling = attention.head_dim, attention.scaling
        self.input_norm, self.post_attention_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_key_value = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = attention.o_proj
        self.gate_up = _side_by_side([mlp.gate_proj, mlp.up_proj])
        self.activation, self.down = mlp.act_fn, mlp.down_proj
        config = attention.config
        self.is_swiglu = config.hidden_act == "silu"
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]

    def before_attention(self, hidden_BSD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B, N, S, H], key and value [B, K, S, H], turned to their positions."""
        projected = self.query_key_value(self.input_norm(hidden_BSD)).unflatten(2, (-1, self.head_width))
        query, key, value = projected.transpose(1, 2).split(self.heads, dim=1)
        return *apply_rotary_pos_emb(query, key, cos, sin), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, may_look: Tensor | None) -> Tensor:
        """[B, S, N * H]; without a mask, causally."""
        # Grouped-query heads read the cache as it is: to repeat it first would move several times its bytes.
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=may_look, is_causal=may_look is None, scale=self.scaling, enable_gqa=True
        )
        return attended.transpose(1, 2).flatten(2)

    def after_attention(self, hidden_BSD: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [B, S, D]."""
        hidden_BSD = hidden_BSD + self.output(attended)
        return hidden_BSD + self.down(self.gated(self.post_attention_norm(hidden_BSD)))

    def gated(self, x_BSD: Tensor) -> Tensor:
        """activation(gate) * up."""
        gate, up = self.gate_up(x_BSD).chunk(2, dim=-1)
        return cast(Tensor, self.activation(gate) * up)


def _read(
    layer: Layer, hidden_BPD: Tensor, cos: Tensor, sin: Tensor, may_look: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer on whole prompts; also their keys and values [B, K, P, H]."""
    query, key, value = layer.before_attention(hidden_BPD, cos, sin)
    return layer.after_attention(hidden_BPD, layer.attend(query, key, value, may_look)), key, value


def _read_last(
    layer: Layer, hidden_BPD: Tensor, cos: Tensor, sin: Tensor, mask_BP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last layer on whole prompts: output [B, 1, D] of the last position alone, keys and values of all."""
    query, key, value = layer.before_attention(hidden_BPD, cos, sin)
    attended = layer.attend(query[:, :, -1:], key, value, mask_BP[:, None, None])
    return layer.after_attention(hidden_BPD[:, -1:], attended), key, value


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
