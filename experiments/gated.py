"""SwiGLU within the product: silu(x @ gate.T) * (x @ up.T) of gate and up one upon the other."""
import torch, triton, triton.language as tl
from humanomni import decoding_kernels as dk

@triton.jit
def multiply_gated(x, weight, out, rows, n, k, padded_rows: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, stages: tl.constexpr):
    row = tl.arange(0, padded_rows)
    is_row = (row < rows)[None, :]
    column = tl.program_id(0) * block_n + tl.arange(0, block_n)
    gate_of_column = weight + column[:, None].to(tl.int64) * k
    up_of_column = weight + (n + column)[:, None].to(tl.int64) * k
    x_of_row = x + row[None, :] * k
    gate = tl.zeros((block_n, padded_rows), tl.float32)
    up = tl.zeros((block_n, padded_rows), tl.float32)
    for step in tl.range(0, k // block_k, num_stages=stages):
        inner = step * block_k + tl.arange(0, block_k)
        g = tl.load(gate_of_column + inner[None, :])
        u = tl.load(up_of_column + inner[None, :])
        x_block = tl.load(x_of_row + inner[:, None], mask=is_row, other=0.0)
        gate = tl.dot(g, x_block, gate)
        up = tl.dot(u, x_block, up)
    # Rounded where the layers' products would be.
    gate = gate.to(out.dtype.element_ty).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty)
    tl.store(out + row[None, :] * n + column[:, None], silu * up.to(out.dtype.element_ty), mask=is_row)

BLOCK_K, STAGES = 128, 2
def gated(x, weight):
    n, k = weight.shape[0] // 2, weight.shape[1]
    out = x.new_empty(len(x), n)
    multiply_gated[(n // 64,)](x, weight, out, len(x), n, k, padded_rows=16, block_n=64, block_k=BLOCK_K, stages=STAGES)
    return out

def after_attention(self, hidden, attended):
    hidden = hidden + self.output(attended)
    normed = self.post_attention_norm(hidden)
    if normed.shape[1] == 1 and self._kernels is not None:
        return hidden + self.down(gated(normed.squeeze(1), self.gate_up.linear.weight).unsqueeze(1))
    gate, up = self.gate_up(normed).chunk(2, dim=-1)
    return hidden + self.down(self.activation(gate) * up)
