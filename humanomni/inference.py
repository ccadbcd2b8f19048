"""Records in, responses out: clips decoded ahead by processes, left-padded batches, greedy or seeded decoding.

While a batch is decoded, a thread reads the prompts of the next: decoding waits for the GPU's memory, reading for its
arithmetic, and side by side they take less than one after the other.

A record's response depends on the record alone, not on its batch: rows are left-padded and masked (the authors' release
pads on the right and goes on after the padding), and a row that fails takes no other with it. In float32 that holds to
the byte; in half precision another size or order of batches may decide a near tie between two tokens differently.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from humanomni.batching import plan_batches
from humanomni.completion import parse_completion
from humanomni.decode_ahead import Failure, Item, decode_ahead, start_fork_server
from humanomni.decoding import ReadPrompts
from humanomni.gpu_partition import Partition, partition
from humanomni.loading import LoadOptions, load_model, load_processor
from humanomni.records import Record
from humanomni.sampling import DRAW_INPUTS, GumbelNoise, Sampling
from humanomni.training.clips import ClipLoader, TrainingClip, batch_media

logger = logging.getLogger(__name__)

# "Early" mode: the model answers without an explanation, because an empty one is put into its mouth.
FORCED_EMPTY_THINK = "<think></think>\n<answer>"
_ANSWER_END = "</answer>"

_PREFETCHED_BATCHES = 3  # decoded ahead of the batch that the model works on


@dataclass(frozen=True)
class Row:
    """One response to make: a record may ask for several.

    Attributes:
        draw: its seed and temperature, of `Sampling.rows`; empty when decoding is greedy.
    """

    item: Item
    clip: TrainingClip
    draw: Mapping[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """Prompts of a batch that the model has read.

    To be kept until the responses are there: what was made on a stream is free for that stream's next work once nobody
    holds it.

    Attributes:
        input_ids, attention_mask: [B, S], on the model's device.
        draws: of `Sampling.rows`; empty when decoding is greedy.
    """

    input_ids: Tensor
    attention_mask: Tensor
    draws: Mapping[str, Tensor]
    prompts: ReadPrompts


@dataclass(frozen=True)
class Begun:
    """A batch whose clips are there.

    Attributes:
        rows: of the items that have a clip.
        reading: None where the prompts are still to be read, an error where that failed.
    """

    batch: Sequence[tuple[Item, TrainingClip | Failure]]
    rows: Sequence[Row]
    reading: Reading | Exception | None


def pick_device(local_rank: int = 0) -> str:
    """A rank's own GPU, or the CPU."""
    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"


def _reading_share(rows: int) -> float:
    """Of a GPU's multiprocessors, for the prompts of so many rows that are read while as many others are decoded.

    More rows take longer to read, but hardly longer to decode: the best of 0.5 to 0.8 on H200s (docs/performance.md).
    """
    return 0.6 if rows <= 16 else 0.7


class Predictor:
    """A model that answers records.

    Args:
        loading: which model, and how it is loaded.
        modality: media in the prompt, a key of :data:`humanomni.prompts.MODALITIES`.
        early: force the empty explanation.
        max_new_tokens: tokens after which a response is cut.
        sampling: draw candidates instead of decoding one response greedily.
        device: as torch names it.
        clip_cache: folder of decoded clips, shared with training; None decodes every time.
        gpu_decoding: have the GPU's decoder read the clips that it can, to the same frames unless a clip is damaged:
            for a model that the cores cannot keep up with (docs/performance.md). Without workers there is none.

    Raises:
        LoadError: the model cannot be loaded as asked.
    """

    def __init__(
        self,
        loading: LoadOptions,
        modality: str = "video_audio",
        early: bool = False,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        device: str = "cpu",
        clip_cache: Path | None = None,
        gpu_decoding: bool = False,
    ) -> None:
        self.modality, self.early, self.max_new_tokens = modality, early, max_new_tokens
        self.sampling = sampling
        if gpu_decoding:
            start_fork_server()
        self.processor = load_processor(loading)
        # Any, because the annotations of transformers' generate() refuse the media inputs that it passes on.
        self.model: Any = load_model(loading, device)
        # Greedy, also under a draw's noise; what else the checkpoint's generation_config.json asks for (end tokens,
        # suppressed placeholders, a repetition penalty) holds.
        self.model.generation_config.update(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None)
        self._clips = ClipLoader(self.processor, modality, clip_cache)
        self._decodes_on = (self.model.device.index or 0) if gpu_decoding else None
        self._largest_batch: int | None = None  # known after the first batch that was too large for the memory
        # Neither reads prompts nor holds a tokenizer's settings for two threads at once.
        self._model_reads, self._tokenizer_works = Lock(), Lock()
        self._partition: Partition | None = None  # known with the size of batches

    def predict(
        self,
        items: Iterable[Item],
        batch_size: int = 16,
        num_workers: int | None = None,
        token_budget: int | None = None,
    ) -> Iterator[tuple[Item, dict[str, Any] | Failure]]:
        """Yields each item, longest first, with its prediction or with why it has none.

        A prediction is ``{"id", "video", "gt", "pred", "think_text", "raw_response"}``: gt the record's target as
        written, pred the answer's text, None where none can be read. With sampling the last three are of the first
        candidate, and ``"candidates"`` lists them of each, with its ``"temperature"``. A part of a clip has its
        ``"start"`` and ``"end"`` in seconds. Where the model listens, ``"has_audio"`` says whether there was anything
        but silence to hear.

        Between two results, wait for CUDA streams, not for the device (``torch.cuda.synchronize``): a thread reads
        prompts meanwhile, and while it captures a graph CUDA refuses to wait for all of a GPU.

        Args:
            batch_size: rows of a batch; halved for good when the GPU's memory does not suffice.
            num_workers: of :func:`humanomni.decode_ahead.decode_ahead`.
            token_budget: the most of a batch's rows times its longest prompt and response, in tokens; None for no end.
        """
        if self.model.device.type == "cuda":
            self._partition = partition(self.model.device, _reading_share(batch_size))
        items = list(items)
        rows_a_record = self.sampling.n if self.sampling else 1
        lengths = [length * rows_a_record for length in self._lengths(items)]
        planned = list(plan_batches(lengths, max(batch_size // rows_a_record, 1), token_budget))
        in_order = [items[position] for batch in planned for position in batch]
        ahead = batch_size * _PREFETCHED_BATCHES
        clips = decode_ahead(in_order, self._clips, num_workers, ahead, self._decodes_on)
        decoded = zip(in_order, clips, strict=True)
        coming: deque[Future[Begun]] = deque()
        reader = ThreadPoolExecutor(1, "reader")
        try:
            for batch in planned:
                coming.append(reader.submit(self._begin, decoded, len(batch)))
                if len(coming) > 1:
                    yield from self._predict_batch(coming.popleft().result())
            while coming:
                yield from self._predict_batch(coming.popleft().result())
        finally:
            reader.shutdown(cancel_futures=True)

    def _begin(self, decoded: Iterator[tuple[Item, TrainingClip | Failure]], size: int) -> Begun:
        """Takes a batch's clips and reads its prompts, on a part of the GPU: another batch is being decoded."""
        batch = list(islice(decoded, size))
        rows = [
            Row(item, clip, draw)
            for item, clip in batch
            if isinstance(clip, TrainingClip)
            for draw in self._draws(item.record)
        ]
        if not rows or not self._may_hold(rows):
            return Begun(batch, rows, None)
        stream = self._partition.stream if self._partition else None
        try:
            with torch.cuda.stream(stream):
                reading = self._read(rows)
            if stream:  # what was read is used on another one
                read = torch.cuda.Event(blocking=True)  # which lets the core decode clips meanwhile
                read.record(stream)
                read.synchronize()
            return Begun(batch, rows, reading)
        except (ValueError, RuntimeError) as error:
            # Without the frames, which hold on to the tensors of the attempt.
            return Begun(batch, rows, error.with_traceback(None))

    def _lengths(self, items: Sequence[Item]) -> list[int]:
        """Tokens of each item's prompt, with its media, and response."""
        known: dict[str, int] = {}
        for question in dict.fromkeys(item.record.question for item in items):
            try:
                known[question] = self.processor.text_inputs([self._prompt(question)])["input_ids"].shape[1]
            except ValueError:  # fails again, and is recorded, in its batch
                known[question] = 0
        return [known[item.record.question] + self.max_new_tokens for item in items]

    def _predict_batch(self, begun: Begun) -> Iterator[tuple[Item, dict[str, Any] | Failure]]:
        failures = {item.line: clip for item, clip in begun.batch if isinstance(clip, Failure)}
        clips = {row.item.line: row.clip for row in begun.rows}
        responses: dict[int, list[str]] = {}
        for row, response in zip(begun.rows, self.respond(begun.rows, begun.reading), strict=True):
            if isinstance(response, Failure):
                failures[row.item.line] = response
            else:
                responses.setdefault(row.item.line, []).append(response)
        for item, _ in begun.batch:
            failure = failures.get(item.line)
            yield item, failure or self._prediction(item.record, clips[item.line], responses[item.line])

    def _draws(self, record: Record) -> list[dict[str, Tensor]]:
        if self.sampling is None:
            return [{}]
        drawn = self.sampling.rows([record.id])
        return [{name: values[candidate] for name, values in drawn.items()} for candidate in range(self.sampling.n)]

    def _prompt(self, question: str) -> str:
        return self.processor.prompt(question, self.modality) + (FORCED_EMPTY_THINK if self.early else "")

    def inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The model's inputs [B, ...], a row each."""
        questions = [row.item.record.question for row in rows]
        with self._tokenizer_works:
            inputs = self.processor.text_inputs([self._prompt(question) for question in questions])
        clips, modalities = [row.clip for row in rows], [self.modality] * len(rows)
        inputs |= batch_media(clips, modalities, self.processor, self.model.device)
        if "pixel_values" in inputs:
            inputs |= self.processor.gate_inputs(questions, self.modality)
        return inputs | {name: torch.stack([row.draw[name] for row in rows]) for name in rows[0].draw}

    def respond(
        self, rows: Sequence[Row], reading: Reading | Exception | None = None, alone_before: bool = False
    ) -> list[str | Failure]:
        """One response a row.

        A batch that fails is halved until the row that fails stands alone, and that row is tried twice; for lack of
        memory, later batches are halved too.

        Args:
            reading: the rows' prompts, read, or why that failed.
            alone_before: this is a lone row's second try.

        Raises:
            torch.AcceleratorError: the GPU is in a state in which every further row would fail.
        """
        if not rows:
            return []
        half = (len(rows) + 1) // 2
        if self._may_hold(rows):
            try:
                if isinstance(reading, Exception):
                    raise reading
                return list(self._generate(reading or self._read(rows)))
            except torch.AcceleratorError:
                raise
            except (ValueError, RuntimeError) as error:
                if alone_before:
                    return [Failure.of(error)]
                logger.warning(
                    "a batch of %d failed and is %s: %s", len(rows), "halved" if rows[1:] else "tried again", error
                )
                if isinstance(error, torch.OutOfMemoryError):
                    self._largest_batch = half
            # Only here, where the error no longer holds on to the tensors of the attempt. And not while prompts are
            # read: a step may be captured with them, which forbids other threads to wait for the whole device.
            with self._model_reads:
                torch.cuda.empty_cache()
        if len(rows) == 1:
            return self.respond(rows, alone_before=True)
        return [*self.respond(rows[:half]), *self.respond(rows[half:])]

    def _may_hold(self, rows: Sequence[Row]) -> bool:
        return self._largest_batch is None or len(rows) <= self._largest_batch

    @torch.inference_mode()
    def _read(self, rows: Sequence[Row]) -> Reading:
        inputs = self.inputs(rows)
        draws = {name: inputs.pop(name) for name in DRAW_INPUTS if name in inputs}
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        with self._model_reads:
            prompts = self.model.read_prompts(ids, mask, ids.shape[1] + self.max_new_tokens, **inputs)
        return Reading(ids, mask, draws, prompts)

    @torch.inference_mode()
    def _generate(self, reading: Reading) -> list[str]:
        draw = []
        if self.sampling:
            draw.append(GumbelNoise(self.sampling, device=self.model.device, **reading.draws))
        ids = self.model.generate(
            input_ids=reading.input_ids,
            attention_mask=reading.attention_mask,
            read=reading.prompts,
            max_new_tokens=self.max_new_tokens,
            logits_processor=draw,
        )
        responses = ids[:, reading.input_ids.shape[1] :].cpu()
        with self._tokenizer_works:
            return self.processor.tokenizer.batch_decode(
                responses, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    def _prediction(self, record: Record, clip: TrainingClip, responses: Sequence[str]) -> dict[str, Any]:
        readings = [self._reading(response) for response in responses]
        prediction: dict[str, Any] = {"id": record.id, "video": record.video, "gt": record.target, **readings[0]}
        prediction |= record.part
        if clip.mel is not None:
            prediction["has_audio"] = clip.has_audio
        if self.sampling is None:
            return prediction
        temperatures = [self.sampling.temperature(candidate) for candidate in range(self.sampling.n)]
        candidates = [{"temperature": t} | reading for t, reading in zip(temperatures, readings, strict=True)]
        return prediction | {"candidates": candidates}

    def _reading(self, response: str) -> dict[str, str | None]:
        if self.early:
            answer, think = response.partition(_ANSWER_END)[0].strip() or None, None
        else:
            completion = parse_completion(response)
            answer, think = completion.answer, completion.think
        return {"pred": answer, "think_text": think, "raw_response": response}
