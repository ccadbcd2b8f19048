"""The 7B's decoding step, variant by variant: ms a step, kernels' sums, whether it repeats itself, whether its tokens are the first variant's."""
import os, sys, torch
sys.path.insert(0, "benchmarks"); sys.path.insert(0, os.path.dirname(__file__))
from contextlib import ExitStack
from unittest import mock
from torch import nn
from transformers import Qwen2Model
from torch.profiler import ProfilerActivity, profile
from workload import SIZES
from humanomni import decoding_kernels as dk, decoding_layers as dl
from humanomni.decoding import Decoder
import pdl, gated
SIZE = os.environ.get("SIZE", "7B"); B = int(os.environ.get("B", "8")); P = {"7B": 2168, "0.5B": 992}[SIZE]
torch.set_default_dtype(torch.bfloat16); torch.manual_seed(0)
with torch.device("cuda"):
    cfg = SIZES[SIZE].config().text_config; cfg._attn_implementation = "sdpa"
    lm = Qwen2Model(cfg).eval().requires_grad_(False); head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False).requires_grad_(False)
embeds = torch.randn(B, P, cfg.hidden_size, device="cuda") * .02; mask = torch.ones(B, P, dtype=torch.long, device="cuda")
first = None
def run(name, rows=8):
    global first
    with torch.inference_mode():
        d = Decoder(dl.DecodingLayers(lm, head, torch.bfloat16), B, P + 256)
        logits = d.prefill(embeds, mask, 1).clone()
        def decode():
            d.prefill(embeds, mask, 1); l = logits; out = []
            torch.cuda.synchronize(); a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True); a.record()
            for _ in range(255):
                t = l.float().argmax(-1); out.append(t); l = d.step(t)
            b.record(); torch.cuda.synchronize(); return torch.stack(out), a.elapsed_time(b) / 255
        decode(); one, two = decode(), decode()
        first = one[0] if first is None else first
        print(f"{name:30s} {one[1]:.3f} {two[1]:.3f} ms", "repeats", torch.equal(one[0], two[0]), "as the first", (one[0] == first).float().mean().item(), flush=True)
        with profile(activities=[ProfilerActivity.CUDA]) as p:
            d._graph.replay(); torch.cuda.synchronize()
        for e in sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)[:rows]: print(f"    {e.self_device_time_total:9.1f} us {e.count:4d} x {e.self_device_time_total/e.count:7.1f}  {e.key[:90]}", flush=True)
    torch.compiler.reset(); torch.cuda.empty_cache()
def variant(name, *patches, rows=3, **config):
    with ExitStack() as stack:
        for patch in patches: stack.enter_context(patch)
        try: run(name, rows)
        except Exception as error: print(name, repr(error)[:300], flush=True); torch.compiler.reset()
over = mock.patch.object
ours = dict(multiply=over(dk, "multiply", pdl.multiply))
inductor = getattr(torch._inductor.config.triton, "enable_pdl", None)
print("inductor enable_pdl", inductor, torch.__version__, torch.cuda.get_device_name())
variant("as it is", rows=12)
variant("swiglu within", over(dl._Layer, "after_attention", gated.after_attention))
variant("swiglu within, 64 x 3", over(dl._Layer, "after_attention", gated.after_attention), over(gated, "BLOCK_K", 64), over(gated, "STAGES", 3))
variant("stages 3", over(dk, "_PRODUCT_STAGES", 3))
variant("stages 5", over(dk, "_PRODUCT_STAGES", 5))
variant("block n 128", over(dk, "_BLOCK_N", 128))
variant("programs 132", over(dk, "_PROGRAMS_WANTED", 132))
variant("custom op, prefetch 0", over(dk, "multiply", pdl.multiply), over(pdl, "AHEAD", 0))
variant("custom op, prefetch 2", over(dk, "multiply", pdl.multiply))
if inductor is not None:
    variant("with inductor's", over(dk, "multiply", pdl.multiply), over(torch._inductor.config.triton, "enable_pdl", True), rows=12)
    variant("with inductor's, prefetch 4", over(dk, "multiply", pdl.multiply), over(pdl, "AHEAD", 4), over(torch._inductor.config.triton, "enable_pdl", True))
