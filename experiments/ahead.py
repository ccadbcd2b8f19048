"""7B batch 8: sequential with cuBLAS, sequential with kernels, and reading ahead at several shares."""
import os, sys, tempfile, time
from itertools import islice
from pathlib import Path
from unittest import mock
import torch
sys.path.insert(0, "benchmarks")
from workload import SIZES, make_clips, make_model, make_processor, question_of, save_model
from humanomni import inference, decoding_kernels
from humanomni.gpu_partition import Partition
from humanomni.inference import Item, Predictor
from humanomni.loading import LoadOptions
from humanomni.records import Record
SIZE = os.environ.get("SIZE", "7B"); B = int(os.environ.get("B", "8")); N = int(os.environ.get("N", "6")); SHARES = os.environ.get("SHARES", "0.6").split()
sys.path.insert(0, os.path.dirname(__file__))
if os.environ.get("PDL"):
    import pdl
    decoding_kernels.multiply = pdl.multiply
    if os.environ["PDL"] == "2": torch._inductor.config.triton.enable_pdl = True
log = lambda *a: print(*a, flush=True)
t0 = time.time(); tmp = tempfile.TemporaryDirectory(); folder = Path(tmp.name)
config = SIZES[SIZE].config(); processor = make_processor(config); question = question_of(processor, 100)
clips = make_clips(folder / "clips", B * N)
loading = LoadOptions(save_model(config, processor, folder / "model"))
model = make_model(config, "cuda", torch.bfloat16).eval().requires_grad_(False)
with mock.patch.object(inference, "load_model", return_value=model):
    predictor = Predictor(loading, max_new_tokens=256, device="cuda", clip_cache=folder / "cache")
g = predictor.model.generation_config
g.suppress_tokens = [*processor.placeholder_ids, processor.tokenizer.eos_token_id]; g.pad_token_id = processor.tokenizer.pad_token_id; g.eos_token_id = processor.tokenizer.eos_token_id
items = [Item(n, Record(c.stem, str(c), question, None), c) for n, c in enumerate(clips)]
from humanomni.decode_ahead import decode_ahead
list(decode_ahead(items, predictor._clips, 16, B))
log("ready", round(time.time() - t0, 1), torch.cuda.get_device_name())
def run(name, skip=2):
    torch.cuda.synchronize(); times = []; out = []
    answers = predictor.predict(items, B, 8)
    for n in range(N):
        b = time.perf_counter(); out += [str(o) for _, o in islice(answers, B)]; torch.cuda.synchronize(); times.append(time.perf_counter() - b)
    steady = times[skip:-1]
    log(f"{name:20s} {B / (sum(steady) / len(steady)):.2f}/s  batch {sum(steady)/len(steady):.3f}", [round(t, 2) for t in times], f"{torch.cuda.max_memory_allocated()/2**30:.1f} GiB")
    return out
def sequential(self, decoded, size):
    batch = list(islice(decoded, size))
    return inference.Begun(batch, [inference.Row(i, c, {}) for i, c in batch], None)
original = Predictor._begin
def reset():
    torch.compiler.reset(); model._decoding_layers = None; model._idle_decoders.clear(); torch.cuda.empty_cache()
if os.environ.get("BASE", "1") == "1":
    with mock.patch.object(Predictor, "_begin", sequential):
        with mock.patch.object(decoding_kernels, "can_multiply", lambda *a: False), mock.patch.object(decoding_kernels, "can_attend", lambda *a: False):
            run("cublas, in turn")
        reset()
        one = run("kernels, in turn"); two = run("kernels, in turn"); log("twice the same", sum(a == b for a, b in zip(one, two)), "of", len(one))
for share in SHARES:
    predictor._partition = Partition(model.device, float(share)) if float(share) else None
    out = run(f"ahead, share {share}")
    if "one" in globals(): log("   same as in turn", sum(a == b for a, b in zip(one, out)))
    else: one = out
if os.environ.get("PROFILE", "1") == "1":
    rows = [inference.Row(i, predictor._clips.load(i.clip), {}) for i in items[:B]]
    inputs = {k: v.cuda() for k, v in predictor.inputs(rows).items()}
    from torch.profiler import profile, ProfilerActivity
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CUDA]) as p:
        model.model.embed(inputs["input_ids"], **{k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}); torch.cuda.synchronize()
    log("embed", sum(e.self_device_time_total for e in p.key_averages()))
    for e in sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)[:24]: log(f"    {e.self_device_time_total:9.1f} us {e.count:4d} x {e.self_device_time_total/e.count:8.1f}  {e.key[:110]}")
