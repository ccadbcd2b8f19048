"""End to end, variant by variant. VARS: names, comma separated."""
import os, sys, tempfile, time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from unittest import mock
import torch
sys.path.insert(0, "benchmarks"); sys.path.insert(0, os.path.dirname(__file__))
from workload import SIZES, make_clips, make_model, make_processor, question_of, save_model
from humanomni import inference, decoding_kernels as dk, decoding
from humanomni.gpu_partition import Partition
from humanomni.inference import Item, Predictor
from humanomni.loading import LoadOptions
from humanomni.records import Record
SIZE = os.environ.get("SIZE", "7B"); B = int(os.environ.get("B", "8")); N = int(os.environ.get("N", "6"))
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
log("ready", round(time.time() - t0, 1), torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).multi_processor_count)

BASE = None
def run(name, skip=2):
    global BASE
    torch.cuda.synchronize(); times = []; out = []
    answers = predictor.predict(items, B, 8)
    for n in range(N):
        b = time.perf_counter(); out += [str(o) for _, o in islice(answers, B)]; torch.cuda.synchronize(); times.append(time.perf_counter() - b)
    steady = times[skip:-1]; BASE = BASE or out
    log(f"{name:34s} {B / (sum(steady) / len(steady)):.2f}/s  batch {sum(steady)/len(steady):.3f}", [round(t, 2) for t in times], f"{torch.cuda.max_memory_allocated()/2**30:.1f} GiB same {sum(a == b for a, b in zip(BASE, out))}")
def reset():
    torch.compiler.reset(); model._decoding_layers = None; model._idle_decoders.clear(); torch.cuda.empty_cache()
over = mock.patch.object
def variant(name, share=None, in_turn=False, **patch):
    with ExitStack() as stack:
        try:
            for k, v in patch.items(): stack.enter_context(over(dk, k, v))
            if share: stack.enter_context(over(predictor, "_partition", Partition(model.device, share)))
            if in_turn:
                def seq(self, decoded, size):
                    batch = list(islice(decoded, size)); return inference.Begun(batch, [inference.Row(i, c, {}) for i, c in batch], None)
                stack.enter_context(over(Predictor, "_begin", seq))
            if patch: reset()
            run(name)
            if os.environ.get("STEPS"):
                decoder = model._idle_decoders[0]
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p: decoder._graph.replay(); torch.cuda.synchronize()
                for e in sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)[:16]: log(f"    {e.self_device_time_total:9.1f} us {e.count:4d} x {e.self_device_time_total/e.count:7.1f}  {e.key[:100]}")
            if patch: reset()
        except Exception as error:
            import traceback; log(name, repr(error)[:400]); traceback.print_exc(limit=4); reset()
V = {
 "base": dict(), "base2": dict(), "turn": dict(in_turn=True), "share4": dict(share=.4), "share6": dict(share=.6),
 "s4": dict(_STAGES=4), "p512": dict(_PROGRAMS_WANTED=512),
}
for name in os.environ["VARS"].split(","): variant(name, **V[name])
