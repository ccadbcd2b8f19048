"""A decoding step's kernels on a GPU, in Triton: products of few rows, attention over the cache, and what is between.

A step reads every weight and the whole cache for one token a row, so its time is the bytes by the memory's rate. What
the libraries give for such shapes stays behind that rate (docs/performance.md, "A decoding step's kernels").

All sum in an order that hangs on the shapes alone: the same step gives the same bits every time, which it did not with
cuDNN's attention.

On Hopper and its successors weights come through the tensor memory accelerator, and a kernel is launched while the one
before it still runs ("programmatic dependent launch"): it waits for that one's end before it reads what was made in the
step, and then lets its own successor in.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

MOST_ROWS = 32  # a step of the 0.5B with so many takes 1.10 ms in place of 1.32 with cuBLAS; more were not timed

_PROGRAMS_WANTED = 256  # about two for each multiprocessor of an H200
_BLOCK_N, _BLOCK_K, _STAGES, _GATED_STAGES = 64, 128, 3, 2
_BLOCK_C, _ATTENTION_STAGES, _MOST_SPLITS = 64, 3, 8  # sums over no more than 8 are unrolled by the compiler
_SMALLEST = 16  # side of what the tensor cores multiply
_ALIGNMENT = 16  # bytes, of what the tensor memory accelerator reads


def can_step(rows: int, keys_BKCH: Tensor) -> bool:
    """Whether a step of so many rows over such caches is for these kernels."""
    return rows <= MOST_ROWS and can_attend(keys_BKCH) and _is_hopper(keys_BKCH.device)


def can_multiply(weight_ND: Tensor) -> bool:
    """Whether :func:`multiply` takes this weight; :func:`multiply_gated`, for twice the columns."""
    n, k = weight_ND.shape
    whole_blocks = n % (2 * _BLOCK_N) == 0 and k % _BLOCK_K == 0
    aligned = weight_ND.is_contiguous() and weight_ND.data_ptr() % _ALIGNMENT == 0
    return _is_half(weight_ND) and whole_blocks and aligned


def multiply(x_BD: Tensor, weight_ND: Tensor) -> Tensor:
    """x_BD @ weight_ND.T of no more than :data:`MOST_ROWS` rows, in float32 and in parts of D [parts, B, N].

    Where N alone makes too few programs, D is split among several. The parts' sum is left to what reads them.
    """
    rows, (n, k) = len(x_BD), weight_ND.shape
    parts = max(min(_PROGRAMS_WANTED // (n // _BLOCK_N), k // _BLOCK_K, _MOST_SPLITS), 1)
    product_SBN = x_BD.new_empty(parts, rows, n, dtype=torch.float32)
    _multiply[(n // _BLOCK_N, parts)](
        x_BD.contiguous(),
        TensorDescriptor.from_tensor(weight_ND, [_BLOCK_N, _BLOCK_K]),
        product_SBN,
        rows,
        n,
        k,
        steps_each=-(-(k // _BLOCK_K) // parts),
        padded_rows=_padded(rows),
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        stages=_STAGES,
        **_launch(weight_ND),
    )
    return product_SBN


def multiply_gated(x_BD: Tensor, weight_ND: Tensor) -> Tensor:
    """silu(x_BD @ gate.T) * (x_BD @ up.T) [B, N / 2], of a weight that is gate and up, one upon the other.

    Rounded where products, SiLU and their own product would be, one after the other.
    """
    rows, (n, k) = len(x_BD), weight_ND.shape
    gated_BN = x_BD.new_empty(rows, n // 2)
    _multiply_gated[(n // 2 // _BLOCK_N,)](
        x_BD.contiguous(),
        TensorDescriptor.from_tensor(weight_ND, [_BLOCK_N, _BLOCK_K]),
        gated_BN,
        rows,
        n // 2,
        k,
        padded_rows=_padded(rows),
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        stages=_GATED_STAGES,
        **_launch(weight_ND),
    )
    return gated_BN


def add_normed(
    hidden_BD: Tensor, product_SBD: Tensor | None, bias_D: Tensor | None, norm_weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual stream [B, D] with a product in parts, and its bias, added; and that one's RMS norm [B, D].

    Rounded where a sum, an addition and a norm would be, one after the other.
    """
    rows, width = hidden_BD.shape
    added_BD, normed_BD = torch.empty_like(hidden_BD), torch.empty_like(hidden_BD)
    _add_normed[(rows,)](
        hidden_BD.contiguous(),
        None if product_SBD is None else product_SBD.contiguous(),
        bias_D,
        norm_weight_D,
        added_BD,
        normed_BD,
        eps,
        rows,
        parts=0 if product_SBD is None else len(product_SBD),
        width=width,
        block=triton.next_power_of_2(width),
        biased=bias_D is not None,
        num_warps=8,
        **_launch(hidden_BD),
    )
    return added_BD, normed_BD


def can_attend(keys_BKCH: Tensor) -> bool:
    """Whether :func:`attend` takes such a cache."""
    width = keys_BKCH.shape[-1]
    return _is_half(keys_BKCH) and width >= _SMALLEST and width & (width - 1) == 0


@torch.library.custom_op("humanomni::attend", mutates_args=("keys_BKCH", "values_BKCH"))
def attend(
    projected_SBW: Tensor,
    projection_bias_W: Tensor | None,
    cos_BH: Tensor,
    sin_BH: Tensor,
    keys_BKCH: Tensor,
    values_BKCH: Tensor,
    slot: Tensor,
    bias_B11C: Tensor,
    scaling: float,
) -> Tensor:
    """Attention of one token a row over the cache up to its ``slot`` [1], of all heads side by side [B, N * H].

    Writes the token's key and value into the cache, the key turned to its position like the query.

    Args:
        projected_SBW: queries of all heads, keys and values of all key-value heads, side by side; to be summed over S.
        projection_bias_W: to be added to their sum, which is then rounded to the cache's precision.
        cos_BH, sin_BH: of the rows' positions.
        bias_B11C: added to the scores; every row may look at its own slot.
    """
    rows, kv_heads, capacity, width = keys_BKCH.shape
    heads = projected_SBW.shape[2] // width - 2 * kv_heads
    group = heads // kv_heads
    splits = max(min(_PROGRAMS_WANTED // (rows * kv_heads), _MOST_SPLITS), 1)
    # Of each split of the positions: values by weight, the largest score, and the sum of weights, which are those of
    # scores less the largest.
    sums_SBNH = projected_SBW.new_empty(splits, rows, heads, width, dtype=torch.float32)
    largest_SBN, totals_SBN = sums_SBNH.new_empty(2, splits, rows, heads)
    attended_BW = keys_BKCH.new_empty(rows, heads * width)
    _attend[(rows * kv_heads, splits)](
        projected_SBW.contiguous(),
        projection_bias_W,
        cos_BH.contiguous(),
        sin_BH.contiguous(),
        keys_BKCH,
        values_BKCH,
        slot,
        bias_B11C,
        sums_SBNH,
        largest_SBN,
        totals_SBN,
        rows,
        capacity,
        kv_heads,
        parts=len(projected_SBW),
        biased=projection_bias_W is not None,
        scaling=scaling,
        group=group,
        padded_group=_padded(group),
        width=width,
        block=_BLOCK_C,
        stages=_ATTENTION_STAGES,
        **_launch(keys_BKCH),
    )
    _combine[(rows * heads,)](
        sums_SBNH,
        largest_SBN,
        totals_SBN,
        attended_BW,
        rows * heads,
        splits=splits,
        padded_splits=triton.next_power_of_2(splits),
        width=width,
        num_warps=1,
        **_launch(keys_BKCH),
    )
    return attended_BW


@attend.register_fake
def _(projected_SBW: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor, keys_BKCH: Tensor, *others: Any) -> Tensor:
    rows, kv_heads, _, width = keys_BKCH.shape
    return keys_BKCH.new_empty(rows, projected_SBW.shape[2] - 2 * kv_heads * width)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _is_hopper(device: torch.device) -> bool:
    """Whether the device is a GPU of Nvidia's that is Hopper or later."""
    on_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return on_nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def _padded(size: int) -> int:
    """Of a side of what the tensor cores multiply."""
    return max(triton.next_power_of_2(size), _SMALLEST)


def _launch(tensor: Tensor) -> dict[str, bool]:
    """How a kernel on this tensor's device is launched: on Hopper so that it follows another before that one's end."""
    return {"follows": True, "launch_pdl": True} if _is_hopper(tensor.device) else {"follows": False}


@triton.jit
def _follow(follows: tl.constexpr):
    """Waits for the kernel before this one, and lets the next one in."""
    if follows:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


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
    follows: tl.constexpr,
):
    """One program: block_n columns of the result, over the steps of its split."""
    split, first = tl.program_id(1), tl.program_id(0) * block_n
    row = tl.arange(0, padded_rows)
    is_row = (row < rows)[None, :]
    x_of_row = x + row[None, :] * k
    total = tl.zeros((block_n, padded_rows), tl.float32)
    end = tl.minimum((split + 1) * steps_each, k // block_k)
    _follow(follows)
    for step in tl.range(split * steps_each, end, num_stages=stages):
        inner = step * block_k + tl.arange(0, block_k)
        x_block = tl.load(x_of_row + inner[:, None], mask=is_row, other=0.0)
        # The weight stands first: it is large enough to be a tensor core's left side, and the few rows are not.
        total = tl.dot(weight.load([first, step * block_k]), x_block, total)
    column = first + tl.arange(0, block_n)
    tl.store(partial + (split * rows + row)[None, :] * n + column[:, None], total, mask=is_row)


@triton.jit
def _multiply_gated(
    x,
    weight,
    gated,
    rows,
    n,
    k,
    padded_rows: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    follows: tl.constexpr,
):
    """One program: block_n columns of the result."""
    first = tl.program_id(0) * block_n
    row = tl.arange(0, padded_rows)
    is_row = (row < rows)[None, :]
    x_of_row = x + row[None, :] * k
    gate = tl.zeros((block_n, padded_rows), tl.float32)
    up = tl.zeros((block_n, padded_rows), tl.float32)
    _follow(follows)
    for step in tl.range(0, k // block_k, num_stages=stages):
        inner = step * block_k + tl.arange(0, block_k)
        x_block = tl.load(x_of_row + inner[:, None], mask=is_row, other=0.0)
        gate = tl.dot(weight.load([first, step * block_k]), x_block, gate)
        up = tl.dot(weight.load([n + first, step * block_k]), x_block, up)
    half = gated.dtype.element_ty
    gate = gate.to(half).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(half)
    column = first + tl.arange(0, block_n)
    tl.store(gated + row[None, :] * n + column[:, None], silu * up.to(half), mask=is_row)


@triton.jit
def _summed(row, part_size, bias, at, mask, parts: tl.constexpr, biased: tl.constexpr, dtype: tl.constexpr):
    """What stands at some places of a row that is in parts, rounded."""
    total = tl.zeros(at.shape, tl.float32)
    for part in tl.static_range(parts):
        total += tl.load(row + part * part_size + at, mask=mask, other=0.0).to(tl.float32)
    if biased:
        total += tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    return total.to(dtype).to(tl.float32)


@triton.jit
def _add_normed(
    hidden,
    product,
    bias,
    norm_weight,
    added,
    normed,
    eps,
    rows,
    parts: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    biased: tl.constexpr,
    follows: tl.constexpr,
):
    """One program: a row."""
    row, at = tl.program_id(0), tl.arange(0, block)
    inside = at < width
    half = hidden.dtype.element_ty
    gain = tl.load(norm_weight + at, mask=inside, other=0.0)
    _follow(follows)
    total = tl.load(hidden + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if parts > 0:
        total += _summed(product + row * width, rows * width, bias, at, inside, parts, biased, half)
        total = total.to(half).to(tl.float32)
    tl.store(added + row * width + at, total.to(half), mask=inside)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / width + eps)
    tl.store(normed + row * width + at, (gain * (total * scale).to(half)).to(half), mask=inside)


@triton.jit
def _attend(
    projected,
    projection_bias,
    cos,
    sin,
    keys,
    values,
    slot,
    bias,
    sums,
    largest,
    totals,
    rows,
    capacity,
    kv_heads,
    parts: tl.constexpr,
    biased: tl.constexpr,
    scaling: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
    follows: tl.constexpr,
):
    """One program: the queries that share a key-value head of a row, over the positions of its split.

    The program whose split the token's own position falls into also makes its key and value.
    """
    row_head, split = tl.program_id(0), tl.program_id(1)
    row, kv_head = row_head // kv_heads, row_head % kv_heads
    dtype: tl.constexpr = keys.dtype.element_ty
    row_width = kv_heads * (group + 2) * width
    of_row, part_size = projected + row * row_width, rows * row_width
    member, in_width = tl.arange(0, padded_group), tl.arange(0, width)
    partner = (in_width + width // 2) % width  # each place is turned with the one half a head away
    is_member, is_place = (member < group)[:, None], in_width >= 0
    head_at = ((kv_head * group + member) * width)[:, None]
    # What is there since the step began needs no waiting.
    own = tl.load(slot).to(tl.int32)
    each = tl.cdiv(tl.cdiv(own + 1, block), tl.num_programs(1)) * block
    cached = row_head.to(tl.int64) * capacity * width
    cosine = tl.load(cos + row * width + in_width).to(tl.float32)
    sine = tl.load(sin + row * width + in_width).to(tl.float32)
    sine = tl.where(in_width < width // 2, -sine, sine)
    _follow(follows)
    places, partners = head_at + in_width[None, :], head_at + partner[None, :]
    query = _summed(of_row, part_size, projection_bias, places, is_member, parts, biased, dtype)
    turned = _summed(of_row, part_size, projection_bias, partners, is_member, parts, biased, dtype)
    query = (query * cosine[None, :] + turned * sine[None, :]).to(dtype)
    top = tl.full((padded_group,), float("-inf"), tl.float32)
    total = tl.zeros((padded_group,), tl.float32)
    summed = tl.zeros((padded_group, width), tl.float32)
    for begin in tl.range(split * each, tl.minimum((split + 1) * each, own), block, num_stages=stages):
        position = begin + tl.arange(0, block)
        inside = position < own
        at = cached + position[:, None] * width + in_width[None, :]
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        may_look = tl.load(bias + row * capacity + position, mask=inside, other=float("-inf"))
        scores = tl.dot(query, tl.trans(key)) * scaling + may_look[None, :].to(tl.float32)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        summed = tl.dot(weights.to(value.dtype), value, summed * shrink[:, None])
        top = higher
    if own // each == split:
        key_at = (kv_heads * group + kv_head) * width
        value_at = key_at + kv_heads * width + in_width
        new = _summed(of_row, part_size, projection_bias, key_at + in_width, is_place, parts, biased, dtype)
        new_turned = _summed(of_row, part_size, projection_bias, key_at + partner, is_place, parts, biased, dtype)
        new_value = _summed(of_row, part_size, projection_bias, value_at, is_place, parts, biased, dtype)
        new_key = (new * cosine + new_turned * sine).to(dtype)
        tl.store(keys + cached + own * width + in_width, new_key)
        tl.store(values + cached + own * width + in_width, new_value.to(dtype))
        score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scaling
        highest = tl.maximum(top, score)
        weight = tl.exp(score - highest)
        last_shrink = tl.exp(top - highest)
        total = total * last_shrink + weight
        summed = summed * last_shrink[:, None] + weight.to(dtype).to(tl.float32)[:, None] * new_value[None, :]
        top = highest
    to = (split * tl.num_programs(0) + row_head) * group + member
    tl.store(sums + to[:, None] * width + in_width[None, :], summed, mask=is_member)
    tl.store(largest + to, top, mask=member < group)
    tl.store(totals + to, total, mask=member < group)


@triton.jit
def _combine(
    sums,
    largest,
    totals,
    attended,
    row_heads,
    splits: tl.constexpr,
    padded_splits: tl.constexpr,
    width: tl.constexpr,
    follows: tl.constexpr,
):
    """One program: a row's head, from all splits of the positions."""
    row_head = tl.program_id(0)
    split, in_width = tl.arange(0, padded_splits), tl.arange(0, width)
    is_split, at = split < splits, split * row_heads + row_head
    _follow(follows)
    top = tl.load(largest + at, mask=is_split, other=float("-inf"))
    share = tl.exp(top - tl.max(top, axis=0))  # 0 of a split that was given no position
    total = tl.sum(tl.load(totals + at, mask=is_split, other=0.0) * share, axis=0)
    summed = tl.load(sums + at[:, None] * width + in_width[None, :], mask=is_split[:, None], other=0.0)
    result = tl.sum(summed * share[:, None], axis=0) / total
    tl.store(attended + row_head * width + in_width, result.to(attended.dtype.element_ty))
