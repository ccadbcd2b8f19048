"""EEA, FCR and EPC: what an explanation conveys against truth and prediction."""

from pathlib import Path

import pytest
from evaluation_factory import dictated_judge

from fgce.client import FgceClient
from fgce.emotion import ConveyedEmotion
from fgce.schema import MissingReason
from humanomni.evaluation.conveyed import EmotionNamer, consistency
from humanomni.evaluation.predictions import Prediction

CLASSES = ("anger", "sadness", "neutral")


def prediction(truth: str | None, predicted: str | None, explanation: str = "x") -> Prediction:
    return Prediction(explanation, "a.mp4", truth, predicted, predicted or "", explanation, None)


def conveys(emotion: str | None) -> ConveyedEmotion:
    return ConveyedEmotion(id="", status="ok", emotion=emotion)


def test_shares_are_of_truth_of_both_and_of_the_prediction() -> None:
    predictions = [
        prediction("anger", "anger"),
        prediction("anger", "sadness"),
        prediction("sadness", "sadness"),
        prediction("sadness", None),
        prediction(None, "anger"),
    ]
    said = [conveys("anger"), conveys("anger"), conveys("anger"), conveys(None), conveys("anger")]
    figures = consistency(predictions, said, seed=0)
    assert figures["eea"] == 2 / 4
    assert figures["fcr"] == 1 / 4
    assert figures["epc"] == 2 / 5  # an answer and an explanation that both say nothing do not agree
    assert figures["intervals"]["eea"][0] < 0.5 < figures["intervals"]["eea"][1]


def test_a_missing_judgement_is_in_no_denominator_and_never_neutral() -> None:
    predictions = [prediction("neutral", "neutral"), prediction("anger", "anger")]
    lost = ConveyedEmotion.missing("", MissingReason.TIMEOUT)
    figures = consistency(predictions, [lost, conveys("anger")], seed=0)
    assert (figures["eea"], figures["fcr"], figures["epc"], figures["n_conveyed_missing"]) == (1.0, 1.0, 1.0, 1)


def test_the_judge_is_asked_once_an_explanation_and_silence_conveys_nothing(tmp_path: Path) -> None:
    predictions = [
        prediction("anger", "anger", "He shows anger."),
        prediction("sadness", "anger", "He shows anger."),
        prediction("anger", "anger", ""),
        prediction("anger", "anger", "Who knows? [fails]"),
    ]
    with dictated_judge() as judge:

        def named(classes: tuple[str, ...] = CLASSES) -> list[tuple[str, str | None]]:
            namer = EmotionNamer(FgceClient(judge.url), classes, tmp_path / "emotions.jsonl")
            return [(answer.status, answer.emotion) for answer in namer.name(predictions, "sft")]

        assert named() == [("ok", "anger"), ("ok", "anger"), ("ok", None), ("missing", None)]
        assert judge.asked_to_name == 2
        named()
        assert judge.asked_to_name == 3  # only what was missing
        named(("joy", "anger"))
        assert judge.asked_to_name == 5  # other choices are another question


@pytest.mark.parametrize("silent", [0, 2])
def test_without_a_judge_there_is_no_figure(silent: int) -> None:
    predictions = [prediction("anger", "anger"), *[prediction("anger", "anger", "")] * silent]
    lost = ConveyedEmotion.missing("", MissingReason.UNREACHABLE)
    figures = consistency(predictions, [lost, *[conveys(None)] * silent], seed=0)
    assert (figures["eea"], figures["fcr"], figures["epc"]) == (None, None, None)
