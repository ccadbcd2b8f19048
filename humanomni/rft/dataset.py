"""The records of the RFT stage: kept explanations with their provenance, and cold-start data beside them."""

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from humanomni.completion import parse_completion
from humanomni.prompts import AUDIO_TOKEN, VIDEO_TOKEN
from humanomni.records import Record, RecordError, read_records, resolve_video
from humanomni.rft.judging import StrictJudge, value_of
from humanomni.rft.selection import Decision
from humanomni.rft.settings import RftSettings

_COLD_BATCH = 64  # cold-start explanations that are judged at a time until enough pass


def rft_records(
    decisions: Sequence[Decision], records: Mapping[str, Record], judge: StrictJudge
) -> list[dict[str, Any]]:
    """A record a kept clip, in order, with its `provenance`: sources, scores before and after, rubric and judge."""
    return [
        _record(
            records[one.clip.id],
            "rft",
            f"<think>{one.text}</think>\n<answer>{one.clip.truth}</answer>",
            {
                "stage": "rft",
                "kind": one.outcome,
                "sources": _sources(one),
                "best_candidate": one.best.index if one.best else None,
                "s_coh_best_candidate": one.before,
                "s_coh": one.s_coh,
                "second_judge": None if one.second is None else dict(zip(("before", "after"), one.second, strict=True)),
                **judge.identity,
            },
        )
        for one in decisions
        if one.kept
    ]


def _sources(decision: Decision) -> list[dict[str, Any]]:
    """Which sentence of which candidate each sentence is; sentence None: the whole candidate."""
    if decision.outcome == "candidate" and decision.best:
        return [{"candidate": decision.best.index, "sentence": None, "temperature": decision.best.temperature}]
    temperatures = {one.index: one.temperature for one in decision.clip.candidates}
    return [
        {"candidate": one.source, "sentence": one.position, "temperature": temperatures[one.source]}
        for one in (decision.reassembly.sentences if decision.reassembly else ())
    ]


def cold_start_records(
    source: Path, wanted: int, judge: StrictJudge, settings: RftSettings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Up to `wanted` cold-start records whose explanation reaches the stage's threshold, and how many were judged.

    They are taken in an order drawn from the seed. A cold start that the judge finds incoherent would teach away what
    phase 2 has taught.

    Raises:
        RecordError: a record is no SFT target.
        JudgeFailedError: the judge left explanations without a score.
    """
    records = [record for record in read_records(source) if isinstance(record, Record)]
    random.Random(settings.seed).shuffle(records)
    taken: list[dict[str, Any]] = []
    judged = 0
    while len(taken) < wanted and judged < len(records):
        batch = records[judged : judged + _COLD_BATCH]
        judged += len(batch)
        scores = judge.score([_explained(source, record) for record in batch])
        for record, score in zip(batch, scores, strict=True):
            value = value_of(score)
            if value is not None and value >= settings.min_s_coh and len(taken) < wanted:
                provenance = {"stage": "cold_start", "s_coh": value, **judge.identity}
                taken.append(_record(record, "cold", str(record.target), provenance))
    return taken, {"wanted": wanted, "taken": len(taken), "judged": judged, "records": len(records)}


def _explained(source: Path, record: Record) -> tuple[str, str]:
    think = parse_completion(record.target or "").think
    if not think or record.label is None:
        raise RecordError(
            f"{source}: record {record.id}: the gpt turn must hold <think>...</think> and <answer>EMOTION</answer>, "
            f"not {record.target!r}; --cold_start takes the data of the SFT stage"
        )
    return think, record.label


def _record(record: Record, suffix: str, target: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """The id gets a suffix, because a clip may be in both parts of the data."""
    question = f"{VIDEO_TOKEN}\n{AUDIO_TOKEN}\n{record.question}"
    return {
        "id": f"{record.id}#{suffix}",
        "video": record.video,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": target}],
        **record.part,
        **record.extra,
        "provenance": provenance,
    }


def as_line(record: Mapping[str, Any], source: Path, data_root: Path | None, folder: Path) -> str:
    """The record as a line of a file in `folder`: its relative clip path starts there, not at the source's folder."""
    clip = record["video"]
    if not Path(clip).is_absolute():
        clip = os.path.relpath(resolve_video(clip, source, data_root), folder)
    return json.dumps({**record, "video": clip}, ensure_ascii=False) + "\n"
