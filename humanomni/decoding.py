"""Decoding of a batch over a cache of fixed size: on a GPU, a step is compiled once a layer and replayed as one graph.

transformers' loop launches each of a step's thousand kernels from Python, some 25 ms a token whatever the model's size.
Here a step's shapes and addresses never change, so a CUDA graph replays it; sampling stays outside, with transformers'
own processors. One layer is compiled and serves all: seconds, not the half minute that a whole model takes.

Shape suffixes: B rows, P positions of the prompt, S positions of a pass (P or 1), C positions of the cache, N heads,
K key-value heads, H head width, D model width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import Qwen2Model
from transformers.cache_utils import Cache
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

_CAPACITY_STEP = 128  # prompts of about one length share a cache and its graph


class Decoder:
    """A language model with a key-value cache for ``rows`` sequences of up to ``capacity`` tokens.

    Args:
        language_model: Qwen2 with full attention in every layer.
        lm_head: its vocabulary head.
        dtype: what to compute in; weights of another one, with a LoRA adapter or in FSDP's shards are copied, whole
            and the adapter merged, and :meth:`refresh` brings the copy up to date. Frozen weights of this one are laid
            side by side where one product can then take the place of several; the model's parameters become parts of
            the whole.
        rows: B.
        positions: what the cache must hold at least; C is the next multiple of 128.
    """

    def __init__(
        self, language_model: Qwen2Model, lm_head: nn.Linear, dtype: torch.dtype, rows: int, positions: int
    ) -> None:
        self.rows, self.capacity = rows, -(-positions // _CAPACITY_STEP) * _CAPACITY_STEP
        self.dtype = dtype
        self._source: nn.ModuleList = nn.ModuleList([language_model, lm_head])
        self._adapted = list(_adapted_layers(self._source))
        if any(isinstance(parameter, DTensor) for parameter in self._source.parameters()):
            self._modules = _whole_copy(language_model, lm_head, dtype)
        elif self._adapted or any(parameter.dtype != dtype for parameter in self._source.parameters()):
            self._modules = _merged_copy(self._source, dtype)
        else:
            self._modules = self._source
        self._layers = [_Layer(layer) for layer in self._parts[0].layers]
        config: Any = language_model.config
        device = lm_head.weight.device
        shape = (len(self._layers), rows, config.num_key_value_heads, self.capacity, self._layers[0].head_width)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros_like(self._keys)
        # What the steps read and write in place, because a graph knows tensors by their address.
        self._bias = torch.zeros(rows, 1, 1, self.capacity, dtype=dtype, device=device)  # 0 where a row may look
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._logits = torch.zeros(rows, config.vocab_size, dtype=dtype, device=device)
        self._read: Callable[..., tuple[Tensor, Tensor, Tensor]] = _read
        self._decode: Callable[..., Tensor] = _decode
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._read = torch.compile(_read, fullgraph=True, dynamic=True)
            self._decode = torch.compile(_decode, fullgraph=True, dynamic=False)

    @property
    def _parts(self) -> tuple[Any, Any]:
        return self._modules[0], self._modules[1]

    def fits(self, lm_head: nn.Linear, dtype: torch.dtype, rows: int, positions: int) -> bool:
        """Whether this decoder can take a batch of these weights and sizes."""
        same_weights = self._source[1] is lm_head and self._keys.device == lm_head.weight.device
        same_weights = same_weights and self._adapted == list(_adapted_layers(self._source))
        writable = self._keys.is_inference() == torch.is_inference_mode_enabled()
        large_enough = rows <= self.rows and positions <= self.capacity
        return same_weights and writable and dtype == self.dtype and large_enough

    def refresh(self) -> None:
        """Copies the weights again, after an optimizer step; free where they are shared.

        Where they are sharded, every process must take part.
        """
        if self._modules is not self._source:
            with torch.no_grad():
                for parameter, value in zip(self._modules.parameters(), _merged_parameters(self._source), strict=True):
                    parameter.copy_(value.full_tensor() if isinstance(value, DTensor) else value)

    def prefill(self, embeds_BPD: Tensor, mask_BP: Tensor, copies: int) -> Tensor:
        """Reads prompts, left-padded, and lays each into the cache ``copies`` times.

        Returns:
            Logits of the next token, one row a copy, [B * copies, vocabulary].
        """
        language_model, lm_head = self._parts
        hidden_BPD = embeds_BPD.to(self.dtype)
        rotation = language_model.rotary_emb(hidden_BPD, _positions(mask_BP))
        may_look = None if mask_BP.all() else _causal(mask_BP)
        for number, layer in enumerate(self._layers):
            hidden_BPD, keys_BKPH, values_BKPH = self._read(layer, hidden_BPD, *rotation, may_look)
            self._keep(number, keys_BKPH, values_BKPH, copies)
        self._start(mask_BP, copies)
        return lm_head(language_model.norm(hidden_BPD[:, -1])).repeat_interleave(copies, dim=0)

    def adopt(self, cache: Cache, mask_BP: Tensor, copies: int) -> None:
        """Goes on after prompts that the model itself has read into ``cache``, as after :meth:`prefill`."""
        for number, layer in enumerate(cast(Sequence[Any], cache.layers)):
            self._keep(number, layer.keys, layer.values, copies)
        self._start(mask_BP, copies)

    def _keep(self, number: int, keys_BKPH: Tensor, values_BKPH: Tensor, copies: int) -> None:
        """A layer's keys and values of prompts, ``copies`` rows each."""
        for cached, read in ((self._keys, keys_BKPH), (self._values, values_BKPH)):
            cached[number, : len(read) * copies, :, : read.shape[2]] = read.repeat_interleave(copies, dim=0)

    def _start(self, mask_BP: Tensor, copies: int) -> None:
        """Steps go on after prompts of this mask, ``copies`` rows each."""
        prompts, length = mask_BP.shape
        rows = prompts * copies
        self._bias.fill_(torch.finfo(self.dtype).min)
        seen_BP = mask_BP.bool().repeat_interleave(copies, dim=0)
        self._bias[:rows, 0, 0, :length].masked_fill_(seen_BP, 0)
        self._positions[:rows] = _positions(mask_BP)[:, -1].repeat_interleave(copies)
        self._slot.fill_(length - 1)

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
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            hidden_B1D = self._decode(layer, hidden_B1D, *rotation, keys, values, self._slot, self._bias)
        self._logits.copy_(lm_head(language_model.norm(hidden_B1D)[:, 0]))


class _Layer(nn.Module):
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
        gate, up = self.gate_up(self.post_attention_norm(hidden_BSD)).chunk(2, dim=-1)
        return hidden_BSD + self.down(self.activation(gate) * up)


def _read(
    layer: _Layer, hidden_BPD: Tensor, cos: Tensor, sin: Tensor, may_look: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer on whole prompts; also their keys and values [B, K, P, H]."""
    query, key, value = layer.before_attention(hidden_BPD, cos, sin)
    return layer.after_attention(hidden_BPD, layer.attend(query, key, value, may_look)), key, value


def _decode(
    layer: _Layer,
    hidden_B1D: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys_BKCH: Tensor,
    values_BKCH: Tensor,
    slot: Tensor,
    bias_B11C: Tensor,
) -> Tensor:
    """One layer on one token a row; writes its keys and values at ``slot``."""
    query, key, value = layer.before_attention(hidden_B1D, cos, sin)
    keys_BKCH.index_copy_(2, slot, key)
    values_BKCH.index_copy_(2, slot, value)
    return layer.after_attention(hidden_B1D, layer.attend(query, keys_BKCH, values_BKCH, bias_B11C))


def _positions(mask_BP: Tensor) -> Tensor:
    """Positions [B, P], which count from each row's first token."""
    return (mask_BP.cumsum(dim=1) - 1).clamp(min=0)


def _causal(mask_BP: Tensor) -> Tensor:
    """Which positions a position may look at [B, 1, P, P]: its row's own up to itself, and of padding itself."""
    length = mask_BP.shape[1]
    earlier_PP = torch.ones(length, length, dtype=torch.bool, device=mask_BP.device).tril()
    itself_PP = torch.eye(length, dtype=torch.bool, device=mask_BP.device)
    return ((mask_BP.bool()[:, None] & earlier_PP) | itself_PP)[:, None]


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
