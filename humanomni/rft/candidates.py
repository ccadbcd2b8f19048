"""Candidates on disk, as scripts/sample_candidates.py writes them, and how varied and how right they are."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from humanomni.completion import is_correct, label_of, parse_completion
from humanomni.records import Line, RecordError, read_jsonl

_WORD = re.compile(r"\w+")
_LONGEST_N_GRAM = 3


@dataclass(frozen=True)
class Candidate:
    """One sampled response.

    Attributes:
        index: its number among the clip's candidates, from 0.
        temperature: it was drawn at.
        response: the raw text.
        explanation: its think text; "" without one.
        well_formed: the response has the format.
        correct: it has the format's pattern and the true emotion.
    """

    index: int
    temperature: float
    response: str
    explanation: str
    well_formed: bool
    correct: bool


@dataclass(frozen=True)
class SampledClip:
    """A clip's candidates; `truth` is the canonical emotion, None for a label that names no single one."""

    id: str
    truth: str | None
    candidates: tuple[Candidate, ...]

    @classmethod
    def from_json(cls, line: Line) -> Self:
        """Reads `{"id", "gt", "candidates": [{"temperature", "raw_response", ...}]}`.

        Raises:
            RecordError: the line is no output of sample_candidates.py.
        """
        try:
            truth, sampled = line.value["gt"], line.value["candidates"]
            texts = [(float(one["temperature"]), str(one["raw_response"])) for one in sampled]
            identity = str(line.value["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f'{line.where}: no candidates ({error!r}); expected {{"id", "gt", "candidates": [{{"temperature", '
                '"raw_response"}]}, which scripts/sample_candidates.py writes'
            ) from error
        candidates = tuple(_candidate(index, *text, truth or "") for index, text in enumerate(texts))
        return cls(identity, label_of(truth or ""), candidates)


def _candidate(index: int, temperature: float, response: str, truth: str) -> Candidate:
    parsed = parse_completion(response)
    return Candidate(index, temperature, response, parsed.think or "", parsed.well_formed, is_correct(response, truth))


def read_candidates(path: Path) -> list[SampledClip]:
    """All clips of a candidates file, in its order.

    Raises:
        RecordError: a line is no output of sample_candidates.py, or there is none.
        OSError: the file cannot be read.
    """
    clips = [SampledClip.from_json(line) for line in read_jsonl(path) if isinstance(line, Line)]
    if not clips:
        raise RecordError(f"{path}: holds no candidates; run scripts/sample_candidates.py")
    return clips


def candidates_summary(clips: Sequence[SampledClip]) -> dict[str, Any]:
    """How right and how varied the candidates are, over all and by temperature."""
    temperatures = sorted({one.temperature for clip in clips for one in clip.candidates})
    return {
        "clips": len(clips),
        "clips_with_a_right_candidate": sum(any(one.correct for one in clip.candidates) for clip in clips),
        **_figures([clip.candidates for clip in clips]),
        "by_temperature": {
            f"{temperature:g}": _figures(
                [[one for one in clip.candidates if one.temperature == temperature] for clip in clips]
            )
            for temperature in temperatures
        },
    }


def _figures(groups: Sequence[Sequence[Candidate]]) -> dict[str, Any]:
    everyone = [one for group in groups for one in group]
    texts = [[one.explanation for one in group] for group in groups]
    return {
        "candidates": len(everyone),
        "well_formed": fmean(one.well_formed for one in everyone),
        "correct": fmean(one.correct for one in everyone),
        "distinct_texts": fmean(len(set(group)) / len(group) for group in texts),
        **{f"distinct_{n}": fmean(distinct_n(group, n) for group in texts) for n in range(1, _LONGEST_N_GRAM + 1)},
    }


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams of the texts (Li et al., NAACL 2016), in [0, 1]; 0 without any."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = _WORD.findall(text.lower())
        grams.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(grams) / grams.total() if grams else 0.0


def summary_path(candidates: Path) -> Path:
    """Where the summary of a candidates file lies."""
    return candidates.with_suffix(".summary.json")


def summary_text(clips: Sequence[SampledClip]) -> str:
    """The summary as it lies there."""
    return json.dumps(candidates_summary(clips), indent=1) + "\n"
