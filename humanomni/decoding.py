"""Decoding of a batch over a cache of fixed size: on a GPU, a step is compiled once a layer and replayed as one graph.

transformers' loop launches each of a step's thousand kernels from Python, some 25 ms a token whatever the model's size.
Here a step's shapes and addresses never change, so a CUDA graph replays it; sampling stays outside, with transformers'
own processors. One layer is compiled and serves all: seconds, not the half minute that a whole model takes.

Shape suffixes: B rows, P positions of the prompt, C positions of the cache, N heads, K key-value heads, H head width,
D model width.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2Model
from transformers.cache_utils import DynamicCache
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

_CAPACITY_STEP = 128  # prompts of about one length share a cache and its graph


class Decoder:
    """A language model with a key-value cache for ``rows`` sequences of up to ``capacity`` tokens.

    Args:
        language_model: Qwen2 with full attention in every layer.
        lm_head: its vocabulary head.
        dtype: what to compute in; weights of another one, or with a LoRA adapter, are copied, the adapter merged, and
            :meth:`refresh` brings the copy up to date.
        rows: B.
        positions: what the cache must hold at least; C is the next multiple of 128.
    """

    def __init__(
        self, language_model: Qwen2Model, lm_head: nn.Linear, dtype: torch.dtype, rows: int, positions: int
    ) -> None:
        self.rows, self.capacity = rows, -(-positions // _CAPACITY_STEP) * _CAPACITY_STEP
        self.dtype = dtype
        self._source: nn.ModuleList = nn.ModuleList([language_model, lm_head])
        same = all(parameter.dtype == dtype for parameter in self._source.parameters())
        self._modules = (
            self._source if same and not _adapted_layers(self._source) else _merged_copy(self._source, dtype)
        )
        config: Any = language_model.config
        device = lm_head.weight.device
        first_layer: Any = language_model.layers[0]
        head_width = first_layer.self_attn.head_dim
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, self.capacity, head_width)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros_like(self._keys)
        # What the steps read and write in place, because a graph knows tensors by their address.
        self._bias = torch.zeros(rows, 1, 1, self.capacity, dtype=dtype, device=device)  # 0 where a row may look
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._logits = torch.zeros(rows, config.vocab_size, dtype=dtype, device=device)
        self._layer: Callable[..., Tensor] = _decode_layer
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._layer = torch.compile(_decode_layer, fullgraph=True, dynamic=False)

    @property
    def _parts(self) -> tuple[Any, Any]:
        return self._modules[0], self._modules[1]

    def fits(self, lm_head: nn.Linear, dtype: torch.dtype, rows: int, positions: int) -> bool:
        """Whether this decoder can take a batch of these weights and sizes."""
        same_weights = self._source[1] is lm_head and self._keys.device == lm_head.weight.device
        writable = self._keys.is_inference() == torch.is_inference_mode_enabled()
        large_enough = rows <= self.rows and positions <= self.capacity
        return same_weights and writable and dtype == self.dtype and large_enough

    def refresh(self) -> None:
        """Copies the weights again, after an optimizer step; free where they are shared."""
        if self._modules is not self._source:
            with torch.no_grad():
                for parameter, value in zip(self._modules.parameters(), _merged_parameters(self._source), strict=True):
                    parameter.copy_(value)

    def prefill(self, embeds_BPD: Tensor, mask_BP: Tensor, copies: int) -> Tensor:
        """Reads prompts, left-padded, and lays each into the cache ``copies`` times.

        Returns:
            Logits of the next token, one row a copy, [B * copies, vocabulary].
        """
        language_model, lm_head = self._parts
        prompts, length = mask_BP.shape
        positions_BP = (mask_BP.cumsum(dim=1) - 1).clamp(min=0)
        cache: Any = DynamicCache(config=language_model.config)
        hidden = language_model(
            inputs_embeds=embeds_BPD.to(self.dtype),
            attention_mask=mask_BP,
            position_ids=positions_BP,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        rows = prompts * copies
        for index, layer in enumerate(cache.layers):
            self._keys[index, :rows, :, :length] = layer.keys.repeat_interleave(copies, dim=0)
            self._values[index, :rows, :, :length] = layer.values.repeat_interleave(copies, dim=0)
        self._bias.fill_(torch.finfo(self.dtype).min)
        seen_BP = mask_BP.bool().repeat_interleave(copies, dim=0)
        self._bias[:rows, 0, 0, :length].masked_fill_(seen_BP, 0)
        self._positions[:rows] = positions_BP[:, -1].repeat_interleave(copies)
        self._slot.fill_(length - 1)
        return lm_head(hidden[:, -1]).repeat_interleave(copies, dim=0)

    def step(self, tokens_B: Tensor) -> Tensor:
        """Takes one token a row and returns the logits [B, vocabulary] of the next, valid until the next call."""
        rows = len(tokens_B)
        self._tokens[:rows] = tokens_B
        if self._tokens.is_cuda:
            if self._graph is None:
                self._capture()
            assert self._graph is not None
            self._graph.replay()
        else:
            self._run()
        return self._logits[:rows]

    def _capture(self) -> None:
        state = [tensor.clone() for tensor in (self._positions, self._slot, self._bias)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets the libraries choose their kernels
                self._slot.copy_(state[1])
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._run()
        for tensor, value in zip((self._positions, self._slot, self._bias), state, strict=True):
            tensor.copy_(value)

    def _run(self) -> None:
        """One step, in place; no look at a value, so that it can be captured."""
        language_model, lm_head = self._parts
        self._positions.add_(1)
        self._slot.add_(1)
        self._bias.index_fill_(3, self._slot, 0)
        hidden_B1D = language_model.embed_tokens(self._tokens).unsqueeze(1)
        rotation = language_model.rotary_emb(hidden_B1D, self._positions.unsqueeze(1))
        for layer, keys, values in zip(language_model.layers, self._keys, self._values, strict=True):
            hidden_B1D = self._layer(layer, hidden_B1D, *rotation, keys, values, self._slot, self._bias)
        self._logits.copy_(lm_head(language_model.norm(hidden_B1D)[:, 0]))


def _decode_layer(
    layer: Any,
    hidden_B1D: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys_BKCH: Tensor,
    values_BKCH: Tensor,
    slot: Tensor,
    bias_B11C: Tensor,
) -> Tensor:
    """One Qwen2 layer on one token a row; writes its keys and values at ``slot``."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden_B1D)
    heads = (len(hidden_B1D), 1, -1, attention.head_dim)
    query_BN1H = attention.q_proj(normed).view(heads).transpose(1, 2)
    key_BK1H = attention.k_proj(normed).view(heads).transpose(1, 2)
    value_BK1H = attention.v_proj(normed).view(heads).transpose(1, 2)
    query_BN1H, key_BK1H = apply_rotary_pos_emb(query_BN1H, key_BK1H, cos, sin)
    keys_BKCH.index_copy_(2, slot, key_BK1H)
    values_BKCH.index_copy_(2, slot, value_BK1H)
    # Grouped-query heads read the cache as it is: to repeat it first would move several times its bytes.
    attended = F.scaled_dot_product_attention(
        query_BN1H, keys_BKCH, values_BKCH, attn_mask=bias_B11C, scale=attention.scaling, enable_gqa=True
    )
    hidden_B1D = hidden_B1D + attention.o_proj(attended.transpose(1, 2).flatten(2))
    return hidden_B1D + layer.mlp(layer.post_attention_layernorm(hidden_B1D))


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
    return merged


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
