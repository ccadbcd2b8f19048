"""A decoding step's two readers of memory on a GPU, in Triton: products of few rows, and attention over the cache.

A step reads every weight and the whole cache for one token a row, so its time is the bytes by the memory's rate. What
the libraries give for such shapes stays behind that rate (docs/performance.md, "A decoding step's kernels").

Both kernels sum in an order that hangs on the shapes alone: the same step gives the same bits every time, which it did
not with cuDNN's attention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS_WANTED = 256  # about two for each multiprocessor of an H200
_MOST_ROWS = 16  # what the smallest tile holds; with 32 a step of the 0.5B was slower than cuBLAS's
_BLOCK_N, _BLOCK_K, _PRODUCT_STAGES = 64, 128, 4
_BLOCK_C, _ATTENTION_STAGES, _MOST_SPLITS = 64, 3, 8  # sums over no more than 8 are unrolled by the compiler
_SMALLEST = 16  # side of what the tensor cores multiply


def can_multiply(rows: int, weight_ND: Tensor) -> bool:
    """Whether :func:`multiply` takes this weight and so many rows."""
    n, k = weight_ND.shape
    whole_blocks = n % _BLOCK_N == 0 and k % _BLOCK_K == 0
    return _is_half(weight_ND) and weight_ND.is_contiguous() and whole_blocks and rows <= _MOST_ROWS


def multiply(x_BD: Tensor, weight_ND: Tensor) -> Tensor:
    """x_BD @ weight_ND.T [B, N], in float32.

    Where N alone makes too few programs, D is split among several. Their sum is left to the operation that follows,
    into which ``torch.compile`` takes it.
    """
    rows, (n, k) = len(x_BD), weight_ND.shape
    blocks, steps = n // _BLOCK_N, k // _BLOCK_K
    splits = max(min(_PROGRAMS_WANTED // blocks, steps, _MOST_SPLITS), 1)
    partial_SBN = x_BD.new_empty(splits, rows, n, dtype=torch.float32)
    _multiply[(blocks, splits)](
        x_BD,
        weight_ND,
        partial_SBN,
        rows,
        n,
        k,
        steps_each=-(-steps // splits),
        padded_rows=_MOST_ROWS,
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        stages=_PRODUCT_STAGES,
    )
    return partial_SBN.sum(dim=0)


def can_attend(keys_BKCH: Tensor) -> bool:
    """Whether :func:`attend` takes such a cache."""
    width = keys_BKCH.shape[-1]
    return _is_half(keys_BKCH) and width >= _SMALLEST and width & (width - 1) == 0


def attend(
    query_BNH: Tensor, keys_BKCH: Tensor, values_BKCH: Tensor, slot: Tensor, bias_BC: Tensor, scaling: float
) -> Tensor:
    """Attention of one query a row over the cache up to ``slot`` [1], in float32 [B, N, H].

    Args:
        bias_BC: added to the scores; every row must be free to look somewhere.
    """
    rows, kv_heads, capacity, width = keys_BKCH.shape
    group = query_BNH.shape[1] // kv_heads
    splits = max(min(_PROGRAMS_WANTED // (rows * kv_heads), _MOST_SPLITS), 1)
    sums = query_BNH.new_empty(splits, rows, kv_heads * group, width, dtype=torch.float32)
    largest, totals = query_BNH.new_empty(2, splits, rows, kv_heads * group, 1, dtype=torch.float32)
    _attend[(rows * kv_heads, splits)](
        query_BNH,
        keys_BKCH,
        values_BKCH,
        slot,
        bias_BC,
        sums,
        largest,
        totals,
        capacity,
        kv_heads,
        scaling=scaling,
        group=group,
        padded_group=max(triton.next_power_of_2(group), _SMALLEST),
        width=width,
        block=_BLOCK_C,
        stages=_ATTENTION_STAGES,
    )
    shares = (largest - largest.amax(dim=0)).exp()  # 0 of a split that was given no position
    return (sums * shares).sum(dim=0) / (totals * shares).sum(dim=0)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


@triton.jit
def _multiply(
    x,
    weight,
    partial,
    rows,
    n,
    k,
    steps_each: tl.constexpr,
    padded_rows: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
):
    """One program: block_n columns of the result, over the steps of its split."""
    split = tl.program_id(1)
    row = tl.arange(0, padded_rows)
    column = tl.program_id(0) * block_n + tl.arange(0, block_n)
    weight_of_column = weight + column[:, None].to(tl.int64) * k
    x_of_row = x + (row % rows)[None, :] * k
    total = tl.zeros((block_n, padded_rows), tl.float32)
    end = tl.minimum((split + 1) * steps_each, k // block_k)
    for step in tl.range(split * steps_each, end, num_stages=stages):
        inner = step * block_k + tl.arange(0, block_k)
        # The weight stands first: it is large enough to be a tensor core's left side, and the few rows are not.
        total = tl.dot(tl.load(weight_of_column + inner[None, :]), tl.load(x_of_row + inner[:, None]), total)
    tl.store(partial + (split * rows + row)[None, :] * n + column[:, None], total, mask=(row < rows)[None, :])


@triton.jit
def _attend(
    query,
    keys,
    values,
    slot,
    bias,
    sums,
    largest,
    totals,
    capacity,
    kv_heads,
    scaling: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """One program: the queries that share a key-value head of a row, over the positions of its split."""
    row_head, split = tl.program_id(0), tl.program_id(1)
    row = row_head // kv_heads
    filled = tl.load(slot).to(tl.int32) + 1
    each = tl.cdiv(tl.cdiv(filled, block), tl.num_programs(1)) * block
    member, in_width = tl.arange(0, padded_group), tl.arange(0, width)
    is_member = member < group
    head = row_head * group + member
    of_query = tl.load(query + head[:, None] * width + in_width[None, :], mask=is_member[:, None], other=0.0)
    cached = row_head.to(tl.int64) * capacity * width
    top = tl.full((padded_group,), float("-inf"), tl.float32)
    total = tl.zeros((padded_group,), tl.float32)
    summed = tl.zeros((padded_group, width), tl.float32)
    for begin in tl.range(split * each, tl.minimum((split + 1) * each, filled), block, num_stages=stages):
        position = begin + tl.arange(0, block)
        inside = position < filled
        at = cached + position[:, None] * width + in_width[None, :]
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        may_look = tl.load(bias + row * capacity + position, mask=inside, other=float("-inf"))
        scores = tl.dot(of_query, tl.trans(key)) * scaling + may_look[None, :].to(tl.float32)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        summed = tl.dot(weights.to(value.dtype), value, summed * shrink[:, None])
        top = higher
    to = split * tl.num_programs(0) * group + head
    tl.store(sums + to[:, None] * width + in_width[None, :], summed, mask=is_member[:, None])
    tl.store(largest + to, top, mask=is_member)
    tl.store(totals + to, total, mask=is_member)
