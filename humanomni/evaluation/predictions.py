"""A stage's prediction file, whoever wrote it: batch inference here, the authors' release, R1-Omni, ERV.

Those programs differ in names, and the published ones leave the names to whoever calls the model. So a field is found
by any of the names under which it is met, the first that a line has; a completion is read for what is not named apart.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from humanomni.completion import label_of, parse_completion
from humanomni.labels import normalise_label
from humanomni.records import Line, RecordError, read_jsonl

LabelReader = Callable[[str], str | None]

# By field: the names, ours first.
_NAMES = {
    "id": ("id", "sample_id", "names", "name"),
    "video": ("video", "video_path", "path", "video_id"),
    "gt": ("gt", "ground_truth", "groundtruth", "solution", "label"),
    "pred": ("pred", "predicted_emotion", "prediction", "extracted_answer"),
    "think_text": ("think_text", "explanation", "reasoning", "rationale", "think"),
    "raw_response": ("raw_response", "model_output", "output", "response", "completion"),
}
_WRAPPERS = ("results", "predictions")  # keys of an object around the list of predictions


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
        start, end: the part of the clip that was shown, in seconds; None for its beginning and end.
    """

    id: str
    video: str
    truth: str | None
    predicted: str | None
    answer: str
    explanation: str
    response: str | None
    start: float | None = None
    end: float | None = None

    @property
    def correct(self) -> bool:
        return self.predicted is not None and self.predicted == self.truth

    @property
    def well_formed(self) -> bool | None:
        """The raw response matches the format; None where there is none to look at."""
        return None if self.response is None else parse_completion(self.response).well_formed

    @classmethod
    def from_json(cls, line: Line, read_label: LabelReader = normalise_label) -> Self:
        """Reads `{"id", "video", "gt", "pred", "think_text", "raw_response"}`, or what stands for these elsewhere.

        Where "pred" or "think_text" is absent, the raw response is read. Where "pred" itself is a whole completion, it
        is the raw response.

        Args:
            line: the line.
            read_label: how an answer and a truth become an emotion.

        Raises:
            RecordError: neither "id" nor "video", neither "pred" nor "raw_response", or a value that is no text.
        """
        texts = _texts(line)
        if not {"id", "video"} & texts.keys() or not {"pred", "raw_response"} & texts.keys():
            raise RecordError(
                f'{line.where}: a prediction holds "video", "gt", "pred", "think_text" and "raw_response"; '
                f"this line holds {', '.join(line.value) or 'nothing'}"
            )
        raw = texts.get("raw_response")
        if raw is None and parse_completion(texts.get("pred") or "").holds_pattern:
            raw = texts.pop("pred")
        parsed = parse_completion(raw or "")
        answer = texts.get("pred", parsed.answer)
        explanation = texts.get("think_text", parsed.think)
        truth = texts.get("gt")
        return cls(
            id=texts.get("id") or texts.get("video") or "",
            video=texts.get("video") or "",
            truth=None if truth is None else label_of(truth, read_label),
            predicted=None if answer is None else read_label(answer),
            answer=(answer or "").strip(),
            explanation=(explanation or "").strip(),
            response=raw,
            **_part(line),
        )


def _part(line: Line) -> dict[str, float]:
    part = {name: line.value.get(name) for name in ("start", "end")}
    # Other programs may mean something else by these names.
    return {name: second for name, second in part.items() if isinstance(second, int | float)}


def _texts(line: Line) -> dict[str, str | None]:
    """The fields that the line has, by our names; a record that the line repeats as "question" is read too."""
    question = line.value.get("question")
    value = (question if isinstance(question, dict) else {}) | line.value
    texts: dict[str, str | None] = {}
    for field, names in _NAMES.items():
        present = [name for name in names if name in value]
        if not present:
            continue
        text: Any = value[present[0]]
        if field == "id" and isinstance(text, int):
            text = str(text)
        if text is not None and not isinstance(text, str):
            raise RecordError(f'{line.where}: "{present[0]}" must be text or null, not {text!r}')
        texts[field] = text
    return texts


def read_predictions(path: Path, read_label: LabelReader = normalise_label) -> list[Prediction]:
    """Reads one stage's file: JSON lines, a JSON array, or an object around one ("results").

    Raises:
        RecordError: a bad line, an id given twice, or an empty file.
    """
    predictions = [Prediction.from_json(line, read_label) for line in _lines(path)]
    if not predictions:
        raise RecordError(f"{path}: holds no predictions")
    repeated = [identity for identity, count in Counter(p.id for p in predictions).items() if count > 1]
    if repeated:
        raise RecordError(
            f"{path}: {len(repeated)} ids occur more than once, the first is {repeated[0]!r}; "
            "keep one prediction a clip"
        )
    return predictions


def _lines(path: Path) -> Iterator[Line]:
    """The file's lines; the entries of the list inside where the whole file is one object around it."""
    try:
        whole = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError):
        whole = None  # JSON lines, or gzipped
    wrapped = [whole[key] for key in _WRAPPERS if isinstance(whole, dict) and isinstance(whole.get(key), list)]
    if not wrapped:
        yield from (line for line in read_jsonl(path) if isinstance(line, Line))
        return
    for number, entry in enumerate(wrapped[0], start=1):
        if not isinstance(entry, dict):
            raise RecordError(f"{path}:{number}: a JSON object is expected, not {type(entry).__name__}")
        yield Line(path, number, entry)


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
