"""Clips decoded ahead of the model, by processes of their own.

Threads alone would not do: decoding is thousands of short calls into FFmpeg, after each of which a thread waits for
Python's lock. Sixteen of them in the model's process gave 8 clips a second, sixteen processes 26. Two in a process of
their own do as much as two processes, so fewer processes than cores decode several clips each (docs/performance.md).
Half of a clip's cost is the decoder of its pictures, of which GPUs have their own.
"""

import ctypes
import logging
import multiprocessing.context
import multiprocessing.process
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from threading import Thread

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from humanomni.media import MediaError
from humanomni.media_nvdec import usable
from humanomni.records import Record
from humanomni.training.clips import ClipLoader, TrainingClip

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True)
class Item:
    """A record of the input.

    Attributes:
        line: its line number.
        clip: its file; the record's start and end say which part.
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


def decode_ahead(
    items: Sequence[Item], clips: ClipLoader, num_workers: int | None, ahead: int, gpu: int | None = None
) -> Iterator[TrainingClip | Failure]:
    """The clip of each item, in order, or why there is none.

    Args:
        clips: decodes them.
        num_workers: processes, at most one a core; None is one a core, 0 decodes in this process when the clip is asked
            for. Together they keep the machine's cores busy, which its ranks share.
        ahead: about how many clips wait decoded.
        gpu: number of the GPU whose decoder the processes use; None leaves all to the cores.
    """
    cores = max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    num_workers = cores if num_workers is None else min(num_workers, cores)
    loader = DataLoader(
        _Clips(items, clips, cores // max(num_workers, 1), gpu),
        batch_size=None,
        num_workers=num_workers,
        # Through a pipe: the shared memory that tensors would take is 64 MB in many a container.
        collate_fn=pickle.dumps,
        prefetch_factor=max(2, -(-ahead // num_workers)) if num_workers else None,
        # Its thread takes clips out of the pipe while the model runs; bytes are not pinned.
        pin_memory=bool(num_workers) and torch.cuda.is_available(),
        worker_init_fn=_end_with_parent,
        # CUDA cannot be used by what is forked from its user.
        multiprocessing_context=None if not num_workers else "fork" if gpu is None else _fork_server(),
    )
    return map(pickle.loads, loader)


def start_fork_server() -> None:
    """Begins to start the process from which workers with a GPU are forked.

    That takes as long as importing torch does; meanwhile a model can be loaded.
    """
    _fork_server()
    forkserver.ensure_running()


def _fork_server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Clips(IterableDataset):
    """Of each worker every so manieth clip, which the loader puts in order again."""

    def __init__(self, items: Sequence[Item], clips: ClipLoader, threads: int, gpu: int | None) -> None:
        self._items, self._clips, self._threads, self._gpu = items, clips, threads, gpu

    def __iter__(self) -> Iterator[TrainingClip | Failure]:
        worker = get_worker_info()
        if self._gpu is not None and (worker is None or not usable(self._gpu)):
            self._gpu = None
        if worker is None:
            yield from map(self._decode, self._items)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: deque[Future[TrainingClip | Failure]] = deque()
            for item in self._items[worker.id :: worker.num_workers]:
                waiting.append(pool.submit(self._decode, item))
                if len(waiting) > self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _decode(self, item: Item) -> TrainingClip | Failure:
        """A file system under load fails now and then: a clip is given up after the second failure."""
        part = item.record.start, item.record.end
        try:
            try:
                return self._clips.load(item.clip, *part, self._gpu)
            except (MediaError, OSError) as error:
                logger.debug("%s is read once more: %s", item.clip, error)
                return self._clips.load(item.clip, *part)
        except (MediaError, OSError, ValueError, RuntimeError, MemoryError) as error:
            return Failure.of(error)


def _end_with_parent(worker: int) -> None:
    """A worker inherits the locks on the output: it must not outlive a process that is killed."""
    process = multiprocessing.parent_process()
    if process is None or process.pid == os.getppid():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:  # the parent is the fork server, which lives as long as its children
        Thread(target=_end_after, args=(process,), daemon=True).start()


def _end_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os.kill(os.getpid(), signal.SIGKILL)
