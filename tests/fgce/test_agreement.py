"""Agreement figures against values worked out by another library or by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from fgce.agreement import agreement, cohens_kappa, spearman, weighted_kappa
from fgce.cli import main
from fgce.schema import ExplanationScore, SentenceScore
from fgce.score_file import InputError

RANDOM = np.random.default_rng(3)
ONE = RANDOM.integers(1, 6, size=200)
OTHER = np.clip(ONE + RANDOM.integers(-1, 2, size=200), 1, 5)


def test_kappas_are_those_of_scikit_learn():
    assert cohens_kappa(ONE, OTHER, [1, 2, 3, 4, 5]) == pytest.approx(cohen_kappa_score(ONE, OTHER))
    assert weighted_kappa(ONE, OTHER, 1, 5) == pytest.approx(cohen_kappa_score(ONE, OTHER, weights="quadratic"))


def test_spearman_of_known_ranks():
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 30, 40])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9486832980505138)
    assert spearman(np.array([2, 2, 2]), np.array([1, 2, 3])) is None


def write(path: Path, scores: np.ndarray, functions: list[str]) -> Path:
    results = [
        ExplanationScore(
            id=str(number),
            status="ok",
            sentences=[
                SentenceScore.model_validate(
                    {"text": "x", "status": "ok", "function": function, "modality": "visual", "score": int(score)}
                )
                for function, score in zip(functions, scores[number * 4 : number * 4 + 4], strict=True)
            ],
        )
        for number in range(len(scores) // 4)
    ]
    path.write_text("".join(result.model_dump_json() + "\n" for result in results))
    return path


FUNCTIONS = ["information extraction", "information extraction", "information analysis", "conclusion"]


def test_two_scorings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = write(tmp_path / "one.jsonl", ONE, FUNCTIONS)
    other = write(tmp_path / "other.jsonl", OTHER, FUNCTIONS)
    assert main(["agreement", str(one), str(other)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["sentences"] == {"shared": 200, "only_in_first": 0, "only_in_second": 0}
    assert figures["function_kappa"]["value"] == 1
    assert figures["modality_kappa"]["value"] is None  # one label only: chance agrees as well
    kappa = figures["score_weighted_kappa"]
    assert kappa["value"] == pytest.approx(cohen_kappa_score(ONE, OTHER, weights="quadratic"))
    assert kappa["low"] < kappa["value"] < kappa["high"]
    assert kappa["high"] - kappa["low"] < 0.2


def test_a_scoring_and_people(tmp_path: Path):
    scores = write(tmp_path / "scores.jsonl", ONE[:8], FUNCTIONS)
    people = tmp_path / "people.csv"
    rows = [f"{i // 4},{i % 4},{FUNCTIONS[i % 4]},visual,{ONE[i]}" for i in range(8)]
    rows[3] = "0,3,,,"  # not labelled
    people.write_text("id,sentence,function,modality,score\n" + "\n".join(rows))
    figures = agreement(scores, people)
    assert figures["score_weighted_kappa"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 7}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,sentence,function,modality,score\n1,0,summary,visual,3\n", "people.csv:2: 'summary'"),
        ("id,sentence\n1,0\n", "the column 'function' is missing"),
        ("id,sentence,function,modality,score\n1,0,conclusion,visual,7\n", "people.csv:2: the score 7 is on no scale"),
        ("id,sentence,function,modality,score\n1,,conclusion,visual,3\n", "people.csv:2: invalid literal"),
        ("id,function,modality,score,sentence\n1,conclusion,visual,3\n", "people.csv:2: int"),
        ("id,sentence,function,modality,score\n1,0,conclusion,visual,0\n", "scores of different scales"),
        ("id,sentence,function,modality,score\n99,0,conclusion,visual,3\n", "no sentence in common"),
    ],
)
def test_unusable_labels_are_named(tmp_path: Path, text: str, said: str):
    scores = write(tmp_path / "scores.jsonl", ONE[:8], FUNCTIONS)
    people = tmp_path / "people.csv"
    people.write_text(text)
    with pytest.raises(InputError, match=said):
        agreement(scores, people)
