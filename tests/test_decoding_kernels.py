"""The Triton kernels of a decoding step, against torch.

Without a GPU: tests/kernels_on_cpu.sh.
"""

import copy
import os
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from humanomni.decoding import Decoder
from humanomni.decoding_layers import DecodingLayers

decoding_kernels = pytest.importorskip("humanomni.decoding_kernels", reason="needs Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float16]  # the interpreter lacks bfloat16
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not os.environ.get("TRITON_INTERPRET"), reason="needs a GPU, or tests/kernels_on_cpu.sh"
)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [(8, 256, 512), (3, 128, 384), (1, 128, 128), (32, 1152, 896), (8, 16384, 128)],
    ids=["split", "three rows", "smallest", "most rows", "not split"],
)
def test_products_of_few_rows(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, weight = (torch.randn(*size, dtype=dtype, device=DEVICE) for size in ((rows, k), (n, k)))
    assert decoding_kernels.can_multiply(weight)
    product = decoding_kernels.multiply(x, weight)
    torch.testing.assert_close(product.sum(dim=0).double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-3)
    assert torch.equal(product, decoding_kernels.multiply(x, weight))
    assert torch.equal(product, decoding_kernels.multiply(x.T.contiguous().T, weight))


@pytest.mark.parametrize(("rows", "n", "k"), [(8, 256, 512), (3, 128, 384), (32, 1152, 896)])
def test_the_gated_product_is_that_of_two_products(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, k, dtype=dtype, device=DEVICE), torch.randn(n, k, dtype=dtype, device=DEVICE) / k**0.5
    gate, up = (x @ weight.T).chunk(2, dim=1)
    gated = decoding_kernels.multiply_gated(x, weight)
    torch.testing.assert_close(gated, F.silu(gate) * up, rtol=8 * torch.finfo(dtype).eps, atol=1e-2)
    assert torch.equal(gated, decoding_kernels.multiply_gated(x, weight))


@pytest.mark.parametrize("parts", [0, 1, 3], ids=["alone", "whole", "in parts"])
@pytest.mark.parametrize(("rows", "width"), [(8, 896), (3, 100)])
def test_a_product_added_and_the_norm_of_the_sum(parts: int, rows: int, width: int, dtype: torch.dtype) -> None:
    hidden, gain = (torch.randn(*size, dtype=dtype, device=DEVICE) for size in ((rows, width), (width,)))
    product, bias, expected = None, None, hidden
    if parts:
        product, bias = torch.randn(parts, rows, width, device=DEVICE), gain.roll(1)
        expected = hidden + (product.sum(dim=0) + bias).to(dtype)
    added, normed = decoding_kernels.add_normed(hidden, product, bias, gain, 1e-6)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(added, expected, rtol=2 * eps, atol=eps)
    by_torch = F.rms_norm(expected.double(), (width,), gain.double(), 1e-6)
    torch.testing.assert_close(normed.double(), by_torch, rtol=4 * eps, atol=eps)


@torch.no_grad()
def test_a_step_is_a_forward_pass(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose products the kernels take but for one, and whose MLP is theirs altogether."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=200, num_hidden_layers=2, **sizes)).to(DEVICE, dtype)
    model.eval().requires_grad_(False)
    layers = DecodingLayers(model.model, model.lm_head, dtype)
    layers.kernels = decoding_kernels
    monkeypatch.setattr(decoding_kernels, "can_step", lambda *_: True)
    gated = mock.Mock(wraps=decoding_kernels.multiply_gated)
    monkeypatch.setattr(decoding_kernels, "multiply_gated", gated)
    ids, mask = torch.randint(200, (3, 24), device=DEVICE), torch.ones(3, 24, dtype=torch.long, device=DEVICE)
    mask[0, :5] = 0
    by_library = model(ids, attention_mask=mask).logits[:, 20:].double()
    expected = copy.deepcopy(model).double()(ids, attention_mask=mask).logits[:, 20:]
    decoder = Decoder(layers, rows=3, positions=24)
    decoder.prefill(model.model.embed_tokens(ids[:, :20]), mask[:, :20], copies=1)
    logits = torch.stack([decoder.step(tokens).clone() for tokens in ids[:, 20:].T], dim=1).double()
    assert (logits - expected).abs().max() < 2 * (by_library - expected).abs().max()
    assert gated.call_count >= 2 * len(layers.layers)


def test_what_the_products_do_not_take(dtype: torch.dtype) -> None:
    whole = torch.zeros(128, 256, dtype=dtype, device=DEVICE)
    assert decoding_kernels.can_multiply(whole)
    assert not decoding_kernels.can_multiply(whole[:, :192].contiguous())
    assert not decoding_kernels.can_multiply(whole[:64])
    assert not decoding_kernels.can_multiply(whole[:, :128])
    assert not decoding_kernels.can_multiply(whole.float())
    assert not decoding_kernels.can_multiply(whole.new_zeros(128 * 256 + 3)[3:].view(128, 256))


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "capacity", "width", "filled"),
    [(2, 14, 2, 640, 64, 500), (3, 28, 4, 256, 128, 10), (1, 4, 4, 128, 32, 127), (129, 2, 1, 128, 32, 64)],
    ids=["split", "splits without a position", "whole cache", "not split, alone in its block"],
)
@pytest.mark.parametrize("parts", [1, 3], ids=["whole", "in parts"])
def test_attention_over_the_cache(
    rows: int, heads: int, kv_heads: int, capacity: int, width: int, filled: int, parts: int, dtype: torch.dtype
) -> None:
    """Prompts are padded to the left, and what lies beyond the slot is left of an earlier batch."""

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=dtype, device=DEVICE)

    projected, projection_bias = random(parts, rows, (heads + 2 * kv_heads) * width), None
    if parts > 1:
        projected, projection_bias = projected.float(), random((heads + 2 * kv_heads) * width)
    angles = 6 * torch.rand(rows, width // 2, device=DEVICE).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    keys, values = random(rows, kv_heads, capacity, width), random(rows, kv_heads, capacity, width)
    bias = torch.full((rows, 1, 1, capacity), torch.finfo(dtype).min, dtype=dtype, device=DEVICE)
    for row in range(rows):
        bias[row, ..., min(7 * row, filled) : filled + 1] = 0

    whole = projected.float().sum(dim=0) + (0 if projection_bias is None else projection_bias)
    of_heads = whole.to(dtype).view(rows, 1, -1, width).transpose(1, 2).float()
    query, key, value = of_heads.split([heads, kv_heads, kv_heads], dim=1)
    query, key = apply_rotary_pos_emb(query, key, cos[:, None].float(), sin[:, None].float())
    new_keys, new_values = keys.clone(), values.clone()
    new_keys[:, :, filled], new_values[:, :, filled] = key.squeeze(2).to(dtype), value.squeeze(2).to(dtype)
    expected = F.scaled_dot_product_attention(
        query.to(dtype).double(),
        new_keys.double(),
        new_values.double(),
        attn_mask=bias.double(),
        scale=width**-0.5,
        enable_gqa=True,
    ).flatten(1)

    eps = torch.finfo(dtype).eps
    assert decoding_kernels.can_attend(keys)
    token, slot = (projected, projection_bias, cos, sin), torch.tensor([filled], device=DEVICE)
    attended, again = (decoding_kernels.attend(*token, keys, values, slot, bias, width**-0.5) for _ in range(2))
    assert attended.dtype == dtype
    # The weights are rounded to the values' precision before they are summed.
    torch.testing.assert_close(attended.double(), expected, rtol=eps, atol=4 * eps)
    assert torch.equal(attended, again)
    # The key was summed and turned in another order.
    torch.testing.assert_close(keys, new_keys, rtol=2 * eps, atol=2 * eps)
    torch.testing.assert_close(values, new_values, rtol=2 * eps, atol=2 * eps)
