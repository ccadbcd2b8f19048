"""Completions, checked against what the authors' reward functions return (tests/data/rewards.json)."""

import json
from pathlib import Path

import pytest

from humanomni.completion import is_correct, label_of, parse_completion
from humanomni.labels import normalise_label

REWARDS = json.loads((Path(__file__).parent / "data" / "rewards.json").read_text())
CASES = {case["name"]: case for case in REWARDS["cases"]}

# Where this project decides otherwise, with its own value: punctuation is ignored, `worry` and `fearful` are
# spellings, and an answer that names no emotion is never right.
ACCURACY_DIFFERS = {
    "trailing_period": True,
    "worry_not_in_map": True,
    "fearful_not_in_map": True,
    "solution_int": False,
}


@pytest.mark.parametrize("name", CASES)
def test_accuracy_and_format_agree_with_the_authors(name: str) -> None:
    case = CASES[name]
    correct = ACCURACY_DIFFERS.get(name, case["accuracy"] == 1.0)
    assert is_correct(case["completion"], str(case["solution"])) is correct
    assert parse_completion(case["completion"]).well_formed is (case["format"] == 1.0)


def test_every_spelling_of_the_authors_means_the_same_here() -> None:
    for spelling, emotion in REWARDS["tables"]["synonym_map"].items():
        assert normalise_label(spelling) == emotion


def test_parts_are_stripped() -> None:
    completion = parse_completion("<think>\n She smiles. \n</think>\n<answer> happy </answer>")
    assert (completion.think, completion.answer, completion.well_formed) == ("She smiles.", "happy", True)


def test_parts_of_a_malformed_completion_are_still_read() -> None:
    upper = parse_completion("<THINK>a</THINK><ANSWER>sad</ANSWER>")
    assert (upper.think, upper.answer, upper.holds_pattern) == ("a", "sad", False)
    unclosed = parse_completion("<think>a <answer>sad</answer>")
    assert (unclosed.think, unclosed.answer, unclosed.holds_pattern) == (None, "sad", False)
    assert parse_completion("sad").answer is None


def test_the_answer_after_the_explanation_counts() -> None:
    text = "<answer>happy</answer> <think>She weeps.</think><answer>sad</answer>"
    assert parse_completion(text).answer == "sad"
    assert is_correct(text, "sadness")


@pytest.mark.parametrize(
    "truth", ["sad", "<answer> sad </answer>", "<think>She is not happy.</think>\n<answer>sad</answer>"]
)
def test_a_truth_may_be_a_label_or_a_whole_target(truth: str) -> None:
    assert label_of(truth) == "sadness"
