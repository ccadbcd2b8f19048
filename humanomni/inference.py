"""Records in, responses out: clips decoded ahead by threads, left-padded batches, greedy or seeded decoding.

A record's response depends on the record alone, not on its batch: rows are left-padded and masked (the authors' release
pads on the right and goes on after the padding), and a row that fails takes no other with it. In float32 that holds to
the byte; in half precision another batch size may decide a near tie between two tokens differently.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from humanomni.completion import parse_completion
from humanomni.media import MediaError
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.records import Record
from humanomni.sampling import DRAW_INPUTS, GumbelNoise, Sampling
from humanomni.training.clips import ClipLoader, TrainingClip, batch_media

logger = logging.getLogger(__name__)

# "Early" mode: the model answers without an explanation, because an empty one is put into its mouth.
FORCED_EMPTY_THINK = "<think></think>\n<answer>"
_ANSWER_END = "</answer>"

_PREFETCHED_BATCHES = 3  # decoded ahead of the batch that the model works on


@dataclass(frozen=True)
class Item:
    """A record of the input.

    Attributes:
        line: its line number.
        clip: its file.
    """

    line: int
    record: Record
    clip: Path


@dataclass(frozen=True)
class Failure:
    """Why a record has no response: the error's class and its message."""

    error: str
    detail: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        return cls(type(error).__name__, str(error))


def pick_device(local_rank: int) -> str:
    """A rank's own GPU, or the CPU."""
    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"


class Predictor:
    """A model that answers records.

    Args:
        model_path: native HumanOmni folder.
        modality: media in the prompt, a key of :data:`humanomni.prompts.MODALITIES`.
        early: force the empty explanation.
        sampling: draw candidates instead of decoding one response greedily.
        max_new_tokens: tokens after which a response is cut.
        device: as torch names it.
        dtype: as transformers names it; "auto" is the checkpoint's own.
    """

    def __init__(
        self,
        model_path: Path,
        modality: str = "video_audio",
        early: bool = False,
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        self.modality, self.early, self.sampling, self.max_new_tokens = modality, early, sampling, max_new_tokens
        self.processor = HumanOmniProcessor.from_pretrained(model_path)
        # Any, because the annotations of transformers' generate() refuse the media inputs that it passes on.
        self.model: Any = HumanOmniForConditionalGeneration.from_pretrained(model_path, dtype=dtype, device_map=device)
        # Greedy, also under a draw's noise; what else the checkpoint's generation_config.json asks for (end tokens,
        # suppressed placeholders, a repetition penalty) holds.
        self.model.generation_config.update(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None)
        self._clips = ClipLoader(self.processor, modality)
        self._largest_batch: int | None = None  # known after the first batch that was too large for the memory

    def predict(
        self, items: Iterable[Item], batch_size: int = 16, num_workers: int = 4
    ) -> Iterator[tuple[Item, dict[str, Any] | Failure]]:
        """Yields each item, in order, with its prediction or with why it has none.

        A prediction is ``{"id", "video", "gt", "pred", "think_text", "raw_response"}``: gt the record's target as
        written, pred the answer's text, None where none can be read. With sampling, "pred", "think_text" and
        "raw_response" are those of each of its "candidates", beside the candidate's "temperature".

        Args:
            batch_size: rows of a batch, a candidate each; halved for good when the GPU's memory does not suffice.
            num_workers: threads that decode clips.
        """
        with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
            clips = max(1, batch_size // self._rows_a_record)
            decoding = self._decode_ahead(pool, items, clips * _PREFETCHED_BATCHES)
            try:
                while batch := list(islice(decoding, clips)):
                    yield from self._predict_batch(batch)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _rows_a_record(self) -> int:
        return self.sampling.n if self.sampling else 1

    def _decode_ahead(
        self, pool: ThreadPoolExecutor, items: Iterable[Item], ahead: int
    ) -> Iterator[tuple[Item, "Future[TrainingClip]"]]:
        waiting: deque[tuple[Item, Future[TrainingClip]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(self._clips.load, item.clip)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting

    def _predict_batch(
        self, batch: list[tuple[Item, "Future[TrainingClip]"]]
    ) -> Iterator[tuple[Item, dict[str, Any] | Failure]]:
        decoded: list[tuple[Item, TrainingClip]] = []
        outcomes: dict[int, list[str] | Failure] = {}
        for item, future in batch:
            try:
                decoded.append((item, future.result()))
            except (MediaError, OSError, ValueError, RuntimeError, MemoryError) as error:
                outcomes[item.line] = Failure.of(error)
        if decoded:
            responses = self.respond(self.inputs(decoded))
            for start, (item, _) in zip(range(0, len(responses), self._rows_a_record), decoded, strict=True):
                rows = responses[start : start + self._rows_a_record]
                failure = next((row for row in rows if isinstance(row, Failure)), None)
                outcomes[item.line] = failure or [row for row in rows if isinstance(row, str)]
        for item, _ in batch:
            outcome = outcomes[item.line]
            yield item, outcome if isinstance(outcome, Failure) else self._prediction(item.record, outcome)

    def inputs(self, decoded: Sequence[tuple[Item, TrainingClip]]) -> dict[str, Tensor]:
        """The model's inputs [B, ...] for items and their clips; a row a candidate, and its draw, under sampling."""
        questions = [item.record.question for item, _ in decoded]
        ending = FORCED_EMPTY_THINK if self.early else ""
        prompts = [self.processor.prompt(question, self.modality) + ending for question in questions]
        inputs = self.processor.text_inputs(prompts) | batch_media([clip for _, clip in decoded], self.processor)
        if "pixel_values" in inputs:
            inputs |= self.processor.gate_inputs(questions)
        if self.sampling:
            inputs = {name: value.repeat_interleave(self.sampling.n, dim=0) for name, value in inputs.items()}
            inputs |= self.sampling.rows([item.record.id for item, _ in decoded])
        return inputs

    def respond(self, inputs: Mapping[str, Tensor]) -> list[str | Failure]:
        """One response a row of ``inputs`` [B, ...].

        A batch that fails is halved until the row that fails stands alone; for lack of memory, later batches are
        halved too.

        Raises:
            torch.AcceleratorError: the GPU is in a state in which every further row would fail.
        """
        rows = len(inputs["input_ids"])
        half = (rows + 1) // 2
        if self._largest_batch is None or rows <= self._largest_batch:
            try:
                return list(self._generate(inputs))
            except torch.AcceleratorError:
                raise
            except (ValueError, RuntimeError) as error:
                if rows == 1:
                    return [Failure.of(error)]
                logger.warning("a batch of %d failed and is halved: %s", rows, error)
                if isinstance(error, torch.OutOfMemoryError):
                    self._largest_batch = half
            # Only here, where the error no longer holds on to the tensors of the attempt.
            torch.cuda.empty_cache()
        parts = ({name: value[part] for name, value in inputs.items()} for part in (slice(half), slice(half, rows)))
        return [response for part in parts for response in self.respond(part)]

    @torch.inference_mode()
    def _generate(self, inputs: Mapping[str, Tensor]) -> list[str]:
        device = self.model.device
        on_device = {name: value.to(device) for name, value in inputs.items() if name not in DRAW_INPUTS}
        draw = []
        if self.sampling:
            draw.append(GumbelNoise(self.sampling, inputs["seeds"], inputs["temperatures"], device))
        ids = self.model.generate(**on_device, max_new_tokens=self.max_new_tokens, logits_processor=draw)
        return self.processor.tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _prediction(self, record: Record, responses: list[str]) -> dict[str, Any]:
        clip = {"id": record.id, "video": record.video, "gt": record.target}
        if self.sampling is None:
            return clip | self._reading(responses[0])
        candidates = [
            {"temperature": self.sampling.temperature(candidate)} | self._reading(response)
            for candidate, response in enumerate(responses)
        ]
        return clip | {"candidates": candidates}

    def _reading(self, response: str) -> dict[str, str | None]:
        if self.early:
            answer, think = response.partition(_ANSWER_END)[0].strip() or None, None
        else:
            completion = parse_completion(response)
            answer, think = completion.answer, completion.think
        return {"pred": answer, "think_text": think, "raw_response": response}
