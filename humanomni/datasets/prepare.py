"""From a data set's lists and clips to the JSON lines that training and inference read, with an account of both."""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from humanomni.datasets.check import ClipCheck, check_clips, write_table
from humanomni.datasets.mer import UNLABELLED
from humanomni.datasets.source import Dataset, DatasetError, Options, Sample, Source
from humanomni.labels import normalise_label
from humanomni.prompts import AUDIO_TOKEN, EMOTION_QUESTION, VIDEO_TOKEN, strip_media_tags
from humanomni.records import write_whole

logger = logging.getLogger(__name__)

Task = Literal["sft", "grpo", "infer"]
Spelling = Literal["own", "canonical"]


@dataclass(frozen=True)
class Request:
    """What to prepare.

    Attributes:
        name: the key of the data set; begins every record's id.
        dataset: what it names.
        source: its folder.
        output: the folder to write to; a fold has a folder of its own in it.
        task: what the gpt turn holds: explanation and label, or the label.
        fold: one of the data set's; None for all of them.
        spelling: the data set's own label words, or the same nouns for all data sets.
        check_workers: processes that decode every clip; 0 for none.
    """

    name: str
    dataset: Dataset
    source: Source
    output: Path
    task: Task = "grpo"
    fold: int | None = None
    spelling: Spelling = "own"
    check_workers: int = 0
    options: Options = field(default_factory=Options)


@dataclass
class Split:
    """A split's records, as written, and the samples that gave none, with the reason."""

    listed: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[Sample, str]] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)
    _records_of: Counter[str] = field(default_factory=Counter)

    def add(self, record: dict[str, Any]) -> str | None:
        """Takes a record in, under a number ("a#2") where its id is taken; else returns why it is not written.

        A clip may be asked about more than once, in parts or with several questions.
        """
        if not _is_utf8(json.dumps(record, ensure_ascii=False)):
            return "not UTF-8: the name of the clip or of its folder; rename it"
        said = json.dumps([record.get(key) for key in ("id", "start", "end", "conversations")])
        if said in self._said:
            return "listed twice"
        self._said.add(said)
        identity = record["id"]
        while record["id"] in self._records_of:
            self._records_of[identity] += 1
            record["id"] = f"{identity}#{self._records_of[identity]}"
        self._records_of[record["id"]] = 1
        self.records.append(record)
        return None


def _is_utf8(text: str) -> bool:
    """Whether text can be written; Python stands surrogates for the odd bytes of a file's name."""
    return _printable(text) == text


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def prepare(request: Request) -> list[str]:
    """Writes, for each fold, ``{task}_{split}.jsonl``, ``{task}_left_out.csv`` and ``{task}_counts.json``.

    The same folder and request give the same bytes.

    Returns:
        The differences from the official counts, and what else a user should know, a line each.

    Raises:
        DatasetError: the layout is not there, a list cannot be read, or nothing would be written.
        RecordError: a JSON line of a list cannot be read.
        OSError: the output cannot be written.
    """
    samples = _samples(request)
    names = dict.fromkeys(sample.name for sample in samples if sample.problem is None)
    clips = {name: request.source.clip(name, request.dataset.folders_count) for name in names}
    checks: Mapping[Path, ClipCheck] = {}
    if request.check_workers:
        found = sorted({clip for clip in clips.values() if clip is not None and _is_utf8(str(clip))})
        checks = check_clips(found, request.output, request.check_workers)
        write_table(request.output / "clips.csv", checks)
    folds = {
        fold: _splits(request, list(of_fold), clips, checks)
        for fold, of_fold in groupby(samples, key=lambda sample: sample.fold)
    }
    if not any(split.records for splits in folds.values() for split in splits.values()):
        raise DatasetError(_nothing_left(request, folds.values()))
    remarks = []
    for fold, splits in folds.items():
        of_fold = _remarks(request, fold, splits)
        _write(request, fold, splits, of_fold)
        remarks += [f"fold {fold}: {remark}" if fold else remark for remark in of_fold]
    return remarks


def _samples(request: Request) -> list[Sample]:
    """Sorted by fold; within one, in the order of the lists."""
    samples = list(request.dataset.read(request.source, request.options))
    if request.task != "infer":
        samples = [sample for sample in samples if sample.split != UNLABELLED]
    folds = sorted({sample.fold for sample in samples if sample.fold is not None})
    if request.fold is not None:
        samples = [sample for sample in samples if sample.fold == request.fold]
        if not samples:
            there = f"the folds {', '.join(map(str, folds))}" if folds else "no folds"
            raise DatasetError(f"--fold {request.fold}: {request.dataset.title} in {request.source.root} has {there}")
    return sorted(samples, key=lambda sample: sample.fold or 0)


def _splits(
    request: Request, samples: list[Sample], clips: Mapping[str, Path | None], checks: Mapping[Path, ClipCheck]
) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    shared = _shared({sample.name: clips.get(sample.name) for sample in samples})
    for sample in samples:
        split = splits.setdefault(sample.split, Split())
        split.listed += 1
        clip = clips.get(sample.name)
        problem = sample.problem or shared.get(sample.name) or _problem(request, sample, clip, checks)
        if problem or clip is None:
            split.left_out.append((sample, problem or ""))
            continue
        label = _spelled(request, sample.label)
        record = _record(request, sample, clip, label, checks.get(clip))
        if problem := split.add(record):
            split.left_out.append((sample, problem))
        elif label is not None:
            split.labels[label] += 1
    return splits


def _shared(clips: Mapping[str, Path | None]) -> dict[str, str]:
    """Names, each with the reason, for which a clip was found that another name of the lists also stands for.

    A name that is the clip's own is right; "1" is not where only 01.mp4 is there and the lists have "01" too.
    """
    names: dict[Path, list[str]] = {}
    for name, clip in clips.items():
        if clip is not None:
            names.setdefault(clip, []).append(name)
    return {
        name: f"no clip of its own: {clip} may be that of {next(other for other in of_clip if other != name)}"
        for clip, of_clip in names.items()
        for name in of_clip
        if len(of_clip) > 1 and not _is_called(clip, name)
    }


def _is_called(clip: Path, name: str) -> bool:
    ending = "/" + name.replace("\\", "/").removeprefix("./").strip("/")
    return any(path.as_posix().endswith(ending) for path in (clip, clip.with_suffix("")))


def _identity(request: Request, sample: Sample) -> str:
    return str(sample.extra["id"]) if "id" in sample.extra else f"{request.name}-{_unsuffixed(sample)}"


def _unsuffixed(sample: Sample) -> str:
    """The name without its suffix; the folders stay only where they tell clips apart (custom data)."""
    folders = sample.name.replace("\\", "/").rpartition("/")[0].strip("/")
    return f"{folders}/{sample.stem}" if folders else sample.stem


def _problem(request: Request, sample: Sample, clip: Path | None, checks: Mapping[Path, ClipCheck]) -> str | None:
    """Why a sample gives no record; None when it does."""
    if clip is None:
        return f"no such clip: no video, sound or folder of frames under {request.source.clip_root} is called so"
    if not clip.exists():
        return f"broken link: {clip} leads to {clip.readlink()}"
    if clip.is_file() and clip.stat().st_size == 0:
        return f"empty file: {clip}"
    if clip in checks and checks[clip].error:
        return f"unreadable: {checks[clip].error}"
    if sample.label is None:
        return None if request.task == "infer" else "no label"
    emotion = normalise_label(sample.label)
    if request.dataset.classes and emotion not in request.dataset.classes:
        return f"unknown label: {sample.label!r} is none of {', '.join(request.dataset.classes.values())}"
    if request.task == "grpo" and emotion is None:
        return f"not one emotion: {sample.label!r}; GRPO's reward needs one"
    if request.task == "sft" and not sample.explanation:
        return "no explanation: SFT learns one"
    return None


def _spelled(request: Request, label: str | None) -> str | None:
    emotion = None if label is None else normalise_label(label)
    if emotion is None:
        return label
    return emotion if request.spelling == "canonical" else request.dataset.classes.get(emotion, label)


def _record(request: Request, sample: Sample, clip: Path, label: str | None, check: ClipCheck | None) -> dict[str, Any]:
    target = label
    if request.task == "sft":
        target = f"<think>{' '.join((sample.explanation or '').split())}</think>\n<answer>{label}</answer>"
    turns = [
        {
            "from": "human",
            "value": f"{VIDEO_TOKEN}\n{AUDIO_TOKEN}\n{strip_media_tags(sample.question or EMOTION_QUESTION)}",
        }
    ]
    if target is not None:
        turns.append({"from": "gpt", "value": target})
    record: dict[str, Any] = {
        "id": _identity(request, sample),
        "video": str(clip),
        "conversations": turns,
        "dataset": request.name,
    }
    if sample.fold is not None:
        record["fold"] = sample.fold
    record["split"] = sample.split
    if sample.origin:
        record["provenance"] = sample.origin
    if check is not None:
        record["has_audio"] = check.has_audio
    return record | {key: value for key, value in sample.extra.items() if key != "id"}


def _nothing_left(request: Request, folds: Iterable[Mapping[str, Split]]) -> str:
    reasons = Counter(
        reason for splits in folds for split in splits.values() for _, reason in split.left_out
    ).most_common(3)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons) or "its lists are empty"
    mend = ""
    if any("no explanation" in reason for reason, _ in reasons):
        mend = "; prepare it with --task grpo or infer"
    elif any("no such clip" in reason for reason, _ in reasons):
        mend = "; name the folder of the clips with --clips"
    return f"no record of {request.dataset.title} can be written: {listed}{mend}"


def _remarks(request: Request, fold: int | None, splits: Mapping[str, Split]) -> list[str]:
    """How the counts differ from the official ones, and clips that are in two splits."""
    remarks = []
    for name, split in splits.items():
        official = _official(request, fold, name)
        if official is not None and split.listed != official:
            remarks.append(f"{name}: the lists hold {split.listed} samples, officially {official}")
        if split.left_out:
            kinds = Counter(reason.partition(":")[0] for _, reason in split.left_out)
            listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
            remarks.append(f"{name}: {len(split.left_out)} of {split.listed} samples are left out: {listed}")
        classes = request.dataset.official_classes.get((fold, name), {})
        given = {label: split.labels[_spelled(request, label) or label] for label in classes}
        if differing := [
            f"{label} {given[label]} of {count}" for label, count in classes.items() if given[label] != count
        ]:
            remarks.append(f"{name}: records a label differ from the official counts: {', '.join(differing)}")
    if {"train", "test"} <= splits.keys():
        both = set.intersection(*({record["id"] for record in splits[name].records} for name in ("train", "test")))
        if both:
            remarks.append(f"{len(both)} clips are in train and in test, the first is {min(both)}")
    return remarks


def _official(request: Request, fold: int | None, split: str) -> int | None:
    return None if request.options.test_actors else request.dataset.official.get((fold, split))


def _write(request: Request, fold: int | None, splits: Mapping[str, Split], remarks: list[str]) -> None:
    folder = request.output if fold is None else request.output / f"fold{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        if not split.records:
            continue
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in split.records)
        write_whole(folder / f"{request.task}_{name}.jsonl", lines)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["split", "name", "reason", "list"])
    writer.writerows(
        [name, sample.name, reason, sample.origin]
        for name, split in splits.items()
        for sample, reason in split.left_out
    )
    write_whole(folder / f"{request.task}_left_out.csv", [_printable(table.getvalue())])
    counts = {
        name: {
            "listed": split.listed,
            "official": _official(request, fold, name),
            "written": len(split.records),
            "labels": dict(split.labels.most_common()),
        }
        for name, split in splits.items()
    }
    account = {"dataset": request.dataset.title, "root": str(request.source.root), "splits": counts}
    text = json.dumps(account | {"remarks": remarks}, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / f"{request.task}_counts.json", [_printable(text)])
