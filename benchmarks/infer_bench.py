"""Samples a second of batch inference on one GPU, the decoding of 720p clips included.

python benchmarks/infer_bench.py --size 0.5B               # two minutes on one H200
python benchmarks/infer_bench.py --size 7B --profile
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
from measure import Ceilings, Phases, profiled, synchronised_time
from roofline import Roofline
from workload import SIZES, make_clips, make_model, make_processor, question_of, save_model

from humanomni import inference
from humanomni.decode_ahead import decode_ahead
from humanomni.inference import Item, Predictor
from humanomni.loading import LoadOptions
from humanomni.records import Record
from humanomni.training.clips import ClipLoader

PROMPT_TEXT_TOKENS, NEW_TOKENS = 100, 256
WARM_UP = 5  # batches: the first compiles, and its successors' clips are decoded meanwhile
BATCH = {"0.5B": 32, "7B": 8}


def main(command_line: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument(
        "--batches", type=int, default=20, help=f"of which the first {WARM_UP} and the last are not timed"
    )
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--num_workers", type=int, help="processes that decode clips (one a core)")
    parser.add_argument("--cached", action="store_true", help="decode the clips beforehand, into a cache")
    parser.add_argument("--gpu_decoding", action="store_true", help="the GPU decodes clips, too")
    parser.add_argument("--profile", action="store_true", help="time the phases, and name the last batch's top costs")
    options = parser.parse_args(command_line)
    if options.batches < WARM_UP + 2:
        parser.error(
            f"--batches {options.batches}: {WARM_UP} warm up, and the last, beside which none is read, is left out"
        )
    batch = options.batch_size or BATCH[options.size]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = SIZES[options.size].config()
        processor = make_processor(config)
        question = question_of(processor, PROMPT_TEXT_TOKENS)
        clips = make_clips(folder / "clips", batch * options.batches)
        cache = folder / "cache" if options.cached else None
        loading = LoadOptions(save_model(config, processor, folder / "model"))
        # The folder holds no weights: they are drawn where they are to be.
        model = make_model(config, "cuda", torch.bfloat16).eval().requires_grad_(False)
        with mock.patch.object(inference, "load_model", return_value=model):
            predictor = Predictor(
                loading,
                max_new_tokens=NEW_TOKENS,
                device="cuda",
                clip_cache=cache,
                gpu_decoding=options.gpu_decoding,
            )
        # Random weights would end a response at any token.
        predictor.model.generation_config.suppress_tokens = [
            *processor.placeholder_ids,
            processor.tokenizer.eos_token_id,
        ]
        predictor.model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        predictor.model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        phases = Phases(options.profile)
        for method, part in (("inputs", "collate"), ("_read", "collate and read"), ("_generate", "decode")):
            phases.watch(predictor, method, part)
        items = [Item(line, Record(clip.stem, str(clip), question, None), clip) for line, clip in enumerate(clips)]
        loader = ClipLoader(processor, "video_audio", cache)
        if options.cached:
            list(decode_ahead(items, loader, options.num_workers, batch))
        answers = predictor.predict(items, batch, options.num_workers)
        seconds = []
        torch.cuda.reset_peak_memory_stats()
        for number in range(options.batches):
            begin = synchronised_time()
            if options.profile and number == options.batches - 1:
                with profiled():
                    list(islice(answers, batch))
            else:
                done = list(islice(answers, batch))
            seconds.append(synchronised_time() - begin)
        peak = torch.cuda.max_memory_allocated()  # before the ceilings are measured, which takes 8 GiB
        gpu = 0 if options.gpu_decoding else None
        decoded = decode_ahead(items, loader, options.num_workers, batch, gpu)
        list(islice(decoded, batch))  # while the workers start
        begin = time.perf_counter()
        decoding = len(list(islice(decoded, 4 * batch))) / (time.perf_counter() - begin)
        roofline = Roofline(config, predictor.model, Ceilings.measure(), PROMPT_TEXT_TOKENS)
        steady = seconds[WARM_UP:-1]  # beside the last one no other is read
        result = {
            "size": options.size,
            "batch": batch,
            "samples_a_s": round(batch * len(steady) / sum(steady), 2),
            "decoding_alone_samples_a_s": round(decoding, 2),
            "batches_s": [round(one, 3) for one in seconds],
            "roofline_batch_s": round(roofline.inference(batch, NEW_TOKENS), 3),
            "peak_gib": round(peak / 2**30, 1),
            "phases_mean_s": {name: round(total / len(seconds), 3) for name, total in phases.seconds.items()},
            "first_outcome": str(done[0][1])[:80],
        }
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
