"""Decoding of a batch over a cache of fixed size: on a GPU, a step is captured once and replayed as one graph.

transformers' loop launches each of a step's thousand kernels from Python, some 25 ms a token whatever the model's size.
Here a step's shapes and addresses never change, so a CUDA graph replays it; sampling stays outside, with transformers'
own processors.

Shape suffixes are those of :mod:`humanomni.decoding_layers`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from humanomni.decoding_layers import DecodingLayers
from humanomni.decoding_step import LayerCache, step

_MOST_SIZES = 256  # that a process compiles its steps for; at dynamo's own limit, 8, the ninth is an error
_CAPACITY_STEP = 128  # prompts of about one length share a cache and its graph


class Decoder:
    """A key-value cache for ``rows`` sequences of up to ``capacity`` tokens, and the steps that fill it.

    Args:
        layers: may be shared with other decoders.
        rows: B.
        positions: what the cache must hold at least; C is the next multiple of 128.
    """

    def __init__(self, layers: DecodingLayers, rows: int, positions: int) -> None:
        self.layers = layers
        self.rows, self.capacity = rows, -(-positions // _CAPACITY_STEP) * _CAPACITY_STEP
        config, dtype, device = layers.config, layers.dtype, layers.device
        # What the steps read and write in place, because a graph knows tensors by their address.
        self._bias = torch.zeros(rows, 1, 1, self.capacity, dtype=dtype, device=device)  # 0 where a row may look
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._cos_CH, self._sin_CH = self._rotations()
        shape = (rows, config.num_key_value_heads, self.capacity, layers.layers[0].head_width)
        empty = partial(torch.zeros, shape, dtype=dtype, device=device)
        self._caches = [LayerCache(empty(), empty(), self._slot, self._bias) for _ in layers.layers]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None  # of the latest step; a graph writes them to the same address every time

    def _rotations(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines [C, H] of every position that a token may have."""
        positions_1C = torch.arange(self.capacity, device=self.layers.device).unsqueeze(0)
        like = torch.empty(0, dtype=self.layers.dtype, device=self.layers.device)
        cos_1CH, sin_1CH = self.layers.language_model.rotary_emb(like, positions_1C)
        return cos_1CH.squeeze(0), sin_1CH.squeeze(0)

    def fits(self, layers: DecodingLayers, rows: int, positions: int) -> bool:
        """Whether this decoder can take a batch of these sizes with these layers."""
        writable = self._slot.is_inference() == torch.is_inference_mode_enabled()
        return layers is self.layers and writable and rows <= self.rows and positions <= self.capacity

    def prefill(self, embeds_BPD: Tensor, mask_BP: Tensor, copies: int) -> Tensor:
        """Reads prompts, left-padded, and lays each into the cache ``copies`` times.

        Returns:
            Logits of the next token in float32, one row a copy, [B * copies, vocabulary].
        """
        layers = self.layers
        with self._compiling():
            hidden_BPD = embeds_BPD.to(layers.dtype)
            rotation = layers.language_model.rotary_emb(hidden_BPD, _positions(mask_BP))
            may_look = None if mask_BP.all() else _causal(mask_BP)
            *earlier, last = layers.layers
            for number, layer in enumerate(earlier):
                hidden_BPD, keys_BKPH, values_BKPH = layers.read(layer, hidden_BPD, *rotation, may_look)
                self._keep(number, keys_BKPH, values_BKPH, copies)
            hidden_B1D, keys_BKPH, values_BKPH = layers.read_last(last, hidden_BPD, *rotation, mask_BP.bool())
            self._keep(len(earlier), keys_BKPH, values_BKPH, copies)
            self._start(mask_BP, copies)
            logits_BV = layers.head(layers.norm(hidden_B1D)).squeeze(1)
            return logits_BV.float().repeat_interleave(copies, dim=0)

    def adopt(self, cache: Cache, mask_BP: Tensor, copies: int) -> None:
        """Goes on after prompts that the model itself has read into ``cache``, as after :meth:`prefill`."""
        with self._compiling():
            for number, layer in enumerate(cast(Sequence[Any], cache.layers)):
                self._keep(number, layer.keys, layer.values, copies)
            self._start(mask_BP, copies)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """On the cache's device, by which Triton and graphs go, and for as many sizes of batches as there may be."""
        if not self._slot.is_cuda:
            yield
            return
        with torch.cuda.device(self._slot.device), torch._dynamo.config.patch(recompile_limit=_MOST_SIZES):
            yield

    def _keep(self, number: int, keys_BKPH: Tensor, values_BKPH: Tensor, copies: int) -> None:
        """A layer's keys and values of prompts, ``copies`` rows each."""
        cache = self._caches[number]
        for cached, read in ((cache.keys, keys_BKPH), (cache.values, values_BKPH)):
            rows = cached[: len(read) * copies, :, : read.shape[2]]
            rows.unflatten(0, (len(read), copies)).copy_(read.unsqueeze(1))

    def _start(self, mask_BP: Tensor, copies: int) -> None:
        """Steps go on after prompts of this mask, ``copies`` rows each."""
        prompts, length = mask_BP.shape
        rows = prompts * copies
        self._bias.fill_(torch.finfo(self._bias.dtype).min)
        seen_BP = mask_BP.bool().repeat_interleave(copies, dim=0)
        self._bias[:rows, 0, 0, :length].masked_fill_(seen_BP, 0)
        self._positions.zero_()  # also of rows that this batch does not use, which take part in its steps
        self._positions[:rows] = _positions(mask_BP)[:, -1].repeat_interleave(copies)
        self._slot.fill_(length - 1)
        if self._graph is None and self._slot.is_cuda:
            self._graph = self._captured()

    def step(self, tokens_B: Tensor) -> Tensor:
        """Takes one token a row and returns the logits [B, vocabulary] of the next, in float32, until the next call."""
        rows = len(tokens_B)
        self._tokens[:rows] = tokens_B
        with torch.cuda.device_of(self._tokens):
            if self._graph:
                self._graph.replay()
            else:
                self._logits = self._run()
        return cast(Tensor, self._logits)[:rows]

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step; with the prompts, because dynamo lets no thread run what is compiled while another compiles."""
        state = [tensor.clone() for tensor in (self._positions, self._slot, self._bias)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets the libraries choose their kernels
                self._slot.copy_(state[1])
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # A stream of this device, which the one that torch would take need not be. Another thread may read prompts.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._logits = self._run()
        for tensor, value in zip((self._positions, self._slot, self._bias), state, strict=True):
            tensor.copy_(value)
        return graph

    def _run(self) -> Tensor:
        """One step; no look at a value, so that it can be captured."""
        self._positions.add_(1)
        self._slot.add_(1)
        self._bias.index_fill_(3, self._slot, 0)
        hidden_BD = self.layers.language_model.embed_tokens(self._tokens)
        rotation = self._cos_CH.index_select(0, self._positions), self._sin_CH.index_select(0, self._positions)
        return step(self.layers, self._caches, hidden_BD, rotation)


def _positions(mask_BP: Tensor) -> Tensor:
    """Positions [B, P], which count from each row's first token."""
    return (mask_BP.cumsum(dim=1) - 1).clamp(min=0)


def _causal(mask_BP: Tensor) -> Tensor:
    """Which positions a position may look at [B, 1, P, P]: its row's own up to itself, and of padding itself."""
    length = mask_BP.shape[1]
    earlier_PP = torch.ones(length, length, dtype=torch.bool, device=mask_BP.device).tril()
    itself_PP = torch.eye(length, dtype=torch.bool, device=mask_BP.device)
    return ((mask_BP.bool()[:, None] & earlier_PP) | itself_PP)[:, None]


@dataclass(frozen=True)
class ReadPrompts:
    """Prompts in a decoder's cache, from where it goes on.

    Attributes:
        logits: of each row's first token [B, vocabulary], in float32.
    """

    decoder: Decoder
    logits: Tensor
