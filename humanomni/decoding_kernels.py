"""A decoding step's readers of memory on a GPU, in Triton: products of few rows, and attention over the cache.

A step reads every weight and the whole cache for one token a row, so its time is the bytes by the memory's rate. What
the libraries give for such shapes stays behind that rate (docs/performance.md, "A decoding step's kernels").

They sum in an order that hangs on the shapes alone: the same step gives the same bits every time, which it did
not with cuDNN's attention.

On Hopper and its successors weights come through the tensor memory accelerator, and a kernel is launched while the one
before it still runs ("programmatic dependent launch"): it waits for that one's end before it reads, and then lets its
own successor in. torch's compiled kernels do likewise where they are told to. As operators of torch's, the functions
here are opaque to its compiler, which launches kernels of others in the ordinary way alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

MOST_ROWS = 16  # of a product: what the smallest tile holds; with 32 a step of the 0.5B was slower than cuBLAS's

_PROGRAMS_WANTED = 256  # about two for each multiprocessor of an H200
_BLOCK_N, _BLOCK_K, _STAGES, _GATED_STAGES = 64, 128, 3, 2
_BLOCK_C, _ATTENTION_STAGES, _MOST_SPLITS = 64, 3, 8  # sums over no more than 8 are unrolled by the compiler
_SMALLEST = 16  # side of what the tensor cores multiply
_ALIGNMENT = 16  # bytes, of what the tensor memory accelerator reads


def can_multiply(weight_ND: Tensor) -> bool:
    """Whether :func:`multiply` takes this weight; :func:`multiply_gated`, for twice the columns."""
    n, k = weight_ND.shape
    whole_blocks = n % (2 * _BLOCK_N) == 0 and k % _BLOCK_K == 0
    aligned = weight_ND.is_contiguous() and weight_ND.data_ptr() % _ALIGNMENT == 0
    return _is_half(weight_ND) and whole_blocks and aligned and (not weight_ND.is_cuda or _is_hopper(weight_ND))


def multiply(x_BD: Tensor, weight_ND: Tensor) -> Tensor:
    """x_BD @ weight_ND.T of no more than :data:`MOST_ROWS` rows, in float32 and in parts of D [parts, B, N].

    Where N alone makes too few programs, D is split among several. The parts' sum is left to the operation that
    follows, into which ``torch.compile`` takes it.
    """
    n, k = weight_ND.shape
    splits = max(min(_PROGRAMS_WANTED // (n // _BLOCK_N), k // _BLOCK_K, _MOST_SPLITS), 1)
    return _multiply_split(x_BD, weight_ND, splits)


@torch.library.custom_op("humanomni::multiply", mutates_args=())
def _multiply_split(x_BD: Tensor, weight_ND: Tensor, splits: int) -> Tensor:
    rows, (n, k) = len(x_BD), weight_ND.shape
    partial_SBN = x_BD.new_empty(splits, rows, n, dtype=torch.float32)
    _multiply[(n // _BLOCK_N, splits)](
        x_BD.contiguous(),
        TensorDescriptor.from_tensor(weight_ND, [_BLOCK_N, _BLOCK_K]),
        partial_SBN,
        rows,
        n,
        k,
        steps_each=-(-(k // _BLOCK_K) // splits),
        padded_rows=MOST_ROWS,
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        stages=_STAGES,
        **_launch(weight_ND),
    )
    return partial_SBN


@_multiply_split.register_fake
def _(x_BD: Tensor, weight_ND: Tensor, splits: int) -> Tensor:
    return x_BD.new_empty(splits, len(x_BD), len(weight_ND), dtype=torch.float32)


@torch.library.custom_op("humanomni::multiply_gated", mutates_args=())
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
        padded_rows=MOST_ROWS,
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        stages=_GATED_STAGES,
        **_launch(weight_ND),
    )
    return gated_BN


@multiply_gated.register_fake
def _(x_BD: Tensor, weight_ND: Tensor) -> Tensor:
    return x_BD.new_empty(len(x_BD), len(weight_ND) // 2)


def can_attend(keys_BKCH: Tensor) -> bool:
    """Whether :func:`attend` takes such a cache."""
    width = keys_BKCH.shape[-1]
    return _is_half(keys_BKCH) and width >= _SMALLEST and width & (width - 1) == 0


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
    """Attention of one token a row over the cache up to its ``slot`` [1], in float32 [B, N, H].

    Writes the token's key and value into the cache, the key turned to its position like the query.

    Args:
        projected_SBW: queries of all heads, keys and values of all key-value heads, side by side; to be summed over S.
        projection_bias_W: to be added to their sum, which is then rounded to the cache's precision.
        cos_BH, sin_BH: of the rows' positions.
        bias_B11C: added to the scores; every row may look at its own slot.
    """
    rows, kv_heads, _, width = keys_BKCH.shape
    heads = projected_SBW.shape[2] // width - 2 * kv_heads
    splits = max(min(_PROGRAMS_WANTED // (rows * kv_heads), _MOST_SPLITS), 1)
    token = (projected_SBW, projection_bias_W, cos_BH, sin_BH)
    cache = (keys_BKCH, values_BKCH, slot, bias_B11C)
    sums, largest, totals = _attend_split(*token, *cache, scaling, heads, splits)
    shares = (largest - largest.amax(dim=0)).exp()  # 0 of a split that was given no position
    return (sums * shares).sum(dim=0) / (totals * shares).sum(dim=0)


@torch.library.custom_op("humanomni::attend", mutates_args=("keys_BKCH", "values_BKCH"))
def _attend_split(
    projected_SBW: Tensor,
    projection_bias_W: Tensor | None,
    cos_BH: Tensor,
    sin_BH: Tensor,
    keys_BKCH: Tensor,
    values_BKCH: Tensor,
    slot: Tensor,
    bias_B11C: Tensor,
    scaling: float,
    heads: int,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``splits`` parts of the positions: values by weight [splits, B, N, H], largest score and weights' sum [.., 1].

    Weights are those of scores less the part's largest.
    """
    rows, kv_heads, capacity, width = keys_BKCH.shape
    group = heads // kv_heads
    sums, largest, totals = _empty_parts(projected_SBW, splits, rows, heads, width)
    _attend[(rows * kv_heads, splits)](
        projected_SBW.contiguous(),
        projection_bias_W,
        cos_BH.contiguous(),
        sin_BH.contiguous(),
        keys_BKCH,
        values_BKCH,
        slot,
        bias_B11C,
        sums,
        largest,
        totals,
        rows,
        capacity,
        kv_heads,
        parts=len(projected_SBW),
        biased=projection_bias_W is not None,
        scaling=scaling,
        group=group,
        padded_group=max(triton.next_power_of_2(group), _SMALLEST),
        width=width,
        block=_BLOCK_C,
        stages=_ATTENTION_STAGES,
        **_launch(keys_BKCH),
    )
    return sums, largest, totals


@_attend_split.register_fake
def _(
    projected_SBW: Tensor,
    projection_bias_W: Tensor | None,
    cos_BH: Tensor,
    sin_BH: Tensor,
    keys_BKCH: Tensor,
    values_BKCH: Tensor,
    slot: Tensor,
    bias_B11C: Tensor,
    scaling: float,
    heads: int,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_parts(projected_SBW, splits, len(keys_BKCH), heads, keys_BKCH.shape[3])


def _empty_parts(like: Tensor, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    sums = like.new_empty(shape, dtype=torch.float32)
    return sums, sums.new_empty(*shape[:-1], 1), sums.new_empty(*shape[:-1], 1)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _is_hopper(tensor: Tensor) -> bool:
    """Whether the tensor is on a GPU of Nvidia's that is Hopper or later."""
    on_nvidia = tensor.is_cuda and torch.version.cuda is not None
    return on_nvidia and torch.cuda.get_device_capability(tensor.device) >= (9, 0)


def _launch(tensor: Tensor) -> dict[str, bool]:
    """How a kernel on this tensor's device is launched: on Hopper so that it follows another before that one's end."""
    return {"follows": True, "launch_pdl": True} if _is_hopper(tensor) else {"follows": False}


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
    """What stands ``at`` some places of a row that is in parts, rounded."""
    total = tl.zeros(at.shape, tl.float32)
    for part in tl.static_range(parts):
        total += tl.load(row + part * part_size + at, mask=mask, other=0.0).to(tl.float32)
    if biased:
        total += tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    return total.to(dtype).to(tl.float32)


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
    _follow(follows)
    cosine = tl.load(cos + row * width + in_width).to(tl.float32)
    sine = tl.load(sin + row * width + in_width).to(tl.float32)
    sine = tl.where(in_width < width // 2, -sine, sine)
    places, partners = head_at + in_width[None, :], head_at + partner[None, :]
    query = _summed(of_row, part_size, projection_bias, places, is_member, parts, biased, dtype)
    turned = _summed(of_row, part_size, projection_bias, partners, is_member, parts, biased, dtype)
    query = (query * cosine[None, :] + turned * sine[None, :]).to(dtype)
    own = tl.load(slot).to(tl.int32)
    each = tl.cdiv(tl.cdiv(own + 1, block), tl.num_programs(1)) * block
    cached = row_head.to(tl.int64) * capacity * width
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
