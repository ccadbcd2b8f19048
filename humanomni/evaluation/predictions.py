"""A stage's prediction file: one JSON object a clip, as batch inference writes it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from humanomni.completion import label_of, parse_completion
from humanomni.labels import normalise_label
from humanomni.records import Line, RecordError, read_jsonl


@dataclass(frozen=True)
class Prediction:
    """What the model said about one clip.

    Attributes:
        id: names the clip in every stage's file; its path where the file has no ids.
        video: the clip's path as the file gives it.
        truth: the canonical true emotion; None where the file has none that can be read.
        predicted: the canonical predicted emotion; None when unparseable.
        answer: the predicted emotion in the model's own words; "" without an answer.
        explanation: the think text; "" without one.
        response: the raw response; None where the file does not keep it.
    """

    id: str
    video: str
    truth: str | None
    predicted: str | None
    answer: str
    explanation: str
    response: str | None

    @property
    def correct(self) -> bool:
        return self.predicted is not None and self.predicted == self.truth

    @property
    def well_formed(self) -> bool | None:
        """The raw response matches the format; None where there is none to look at."""
        return None if self.response is None else parse_completion(self.response).well_formed

    @classmethod
    def from_json(cls, line: Line) -> Self:
        """Reads `{"id", "video", "gt", "pred", "think_text", "raw_response"}`.

        The authors' release writes no "id". Where "pred" or "think_text" is absent, the raw response is read.

        Raises:
            RecordError: no "video", neither "pred" nor "raw_response", or a value that is no text.
        """
        value = line.value
        if "video" not in value or not {"pred", "raw_response"} & value.keys():
            raise RecordError(
                f'{line.where}: a prediction holds "video", "gt", "pred", "think_text" and "raw_response"; '
                f"this line holds {', '.join(value) or 'nothing'}"
            )
        texts = {key: _text(line, key) for key in ("video", "gt", "pred", "think_text", "raw_response")}
        raw = texts["raw_response"]
        parsed = parse_completion(raw or "")
        answer = texts["pred"] if "pred" in value else parsed.answer
        explanation = texts["think_text"] if "think_text" in value else parsed.think
        return cls(
            id=str(value.get("id", texts["video"])),
            video=texts["video"] or "",
            truth=None if texts["gt"] is None else label_of(texts["gt"]),
            predicted=None if answer is None else normalise_label(answer),
            answer=(answer or "").strip(),
            explanation=(explanation or "").strip(),
            response=raw,
        )


def _text(line: Line, key: str) -> str | None:
    text: Any = line.value.get(key)
    if text is not None and not isinstance(text, str):
        raise RecordError(f'{line.where}: "{key}" must be text or null, not {text!r}')
    return text


def read_predictions(path: Path) -> list[Prediction]:
    """Reads one stage's file.

    Raises:
        RecordError: a bad line, an id given twice, or an empty file.
    """
    predictions = [Prediction.from_json(line) for line in read_jsonl(path) if isinstance(line, Line)]
    if not predictions:
        raise RecordError(f"{path}: holds no predictions")
    repeated = [identity for identity, count in Counter(p.id for p in predictions).items() if count > 1]
    if repeated:
        raise RecordError(
            f"{path}: {len(repeated)} ids occur more than once, the first is {repeated[0]!r}; "
            "keep one prediction a clip"
        )
    return predictions


def check_truths(name: str, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Refuses a label set that the data does not fit.

    Raises:
        ValueError: true emotions outside `classes`, or no true emotion at all.
    """
    strangers = Counter(p.truth for p in predictions if p.truth is not None and p.truth not in classes)
    if strangers:
        listed = ", ".join(f"{truth} ({count})" for truth, count in strangers.most_common())
        raise ValueError(f"stage {name}: true emotions outside the label set: {listed}; choose another --label_set")
    if all(p.truth is None for p in predictions):
        raise ValueError(f'stage {name}: no prediction has a "gt" that names an emotion, so nothing can be measured')


def count_failed(path: Path) -> int:
    """Clips that inference gave up on, from `NAME.errors.jsonl` beside `NAME.jsonl`."""
    errors = path.with_suffix(".errors.jsonl")
    return sum(1 for _ in read_jsonl(errors, "skip")) if errors.is_file() else 0
