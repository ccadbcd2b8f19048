"""Does a programmatic dependent launch, with the first weights fetched ahead, shorten a decoding step? Patches decoding_kernels; run by step_pdl.py."""
import torch, triton, triton.language as tl
from humanomni import decoding_kernels as dk

@triton.jit
def multiply_pdl(x, weight, partial, rows, n, k, steps_each: tl.constexpr, padded_rows: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, stages: tl.constexpr, ahead: tl.constexpr):
    split = tl.program_id(1)
    row = tl.arange(0, padded_rows)
    column = tl.program_id(0) * block_n + tl.arange(0, block_n)
    weight_of_column = weight + column[:, None].to(tl.int64) * k
    first = split * steps_each
    if ahead > 0:
        line = tl.arange(0, ahead * block_k * 2 // 128) * 64  # bf16: 64 a line of 128 bytes
        at = (weight_of_column + first * block_k + line[None, :]).to(tl.int64)
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1)
    tl.extra.cuda.gdc_wait()
    x_of_row = x + row[None, :] * k
    total = tl.zeros((block_n, padded_rows), tl.float32)
    end = tl.minimum((split + 1) * steps_each, k // block_k)
    for step in tl.range(first, end, num_stages=stages):
        inner = step * block_k + tl.arange(0, block_k)
        total = tl.dot(tl.load(weight_of_column + inner[None, :]), tl.load(x_of_row + inner[:, None], mask=(row < rows)[None, :], other=0.0), total)
    tl.extra.cuda.gdc_launch_dependents()
    tl.store(partial + (split * rows + row)[None, :] * n + column[:, None], total, mask=(row < rows)[None, :])

AHEAD = 2

@torch.library.custom_op("probe::multiply", mutates_args=())
def multiply_op(x: torch.Tensor, weight: torch.Tensor, splits: int) -> torch.Tensor:
    rows, (n, k) = len(x), weight.shape
    out = torch.empty(splits, rows, n, dtype=torch.float32, device=x.device)
    steps = k // dk._BLOCK_K
    multiply_pdl[(n // dk._BLOCK_N, splits)](x, weight, out, rows, n, k, steps_each=-(-steps // splits), padded_rows=16, block_n=dk._BLOCK_N, block_k=dk._BLOCK_K, stages=dk._PRODUCT_STAGES, ahead=AHEAD, launch_pdl=True)
    return out

@multiply_op.register_fake
def _(x, weight, splits):
    return x.new_empty(splits, len(x), weight.shape[0], dtype=torch.float32)

def multiply(x, weight):
    n, k = weight.shape
    splits = max(min(dk._PROGRAMS_WANTED // (n // dk._BLOCK_N), k // dk._BLOCK_K, dk._MOST_SPLITS), 1)
    return multiply_op(x, weight, splits).sum(dim=0)
