"""The evaluation command: its figures, its files, and what it says when something is wrong."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_factory import dictated_judge, prediction, three_stages, write_predictions

from humanomni.evaluation.predictions import read_predictions


def evaluate(
    repo: Path, files: dict[str, Path], output: Path, *more: str, label_set: str = "toy"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, repo / "scripts" / "evaluate.py", "--output", output, "--label_set", label_set]
    stages = [f"{name}={path}" for name, path in files.items()]
    return subprocess.run([*command, "--predictions", *stages, *more], capture_output=True, text=True, check=False)


def test_three_stages_are_measured_and_a_second_run_asks_no_judge(repo: Path, tmp_path: Path) -> None:
    files = three_stages(tmp_path)
    info = tmp_path / "info.json"
    info.write_text(json.dumps({"sft": {"seconds": 12.5, "log_history": [{"step": 1, "loss": 2.0}]}}))
    output = tmp_path / "out"
    with dictated_judge() as judge:
        arguments = ("--fgce_url", judge.url, "--stage_info", str(info), "--format", "html", "md", "csv")
        first = evaluate(repo, files, output, *arguments)
        assert first.returncode == 0, first.stderr
        asked = judge.asked, judge.asked_to_name
        before = (output / "summary.json").read_bytes()
        assert evaluate(repo, files, output, *arguments).returncode == 0
        assert (judge.asked, judge.asked_to_name) == asked > (0, 0)
    assert (output / "summary.json").read_bytes() == before
    summary = json.loads(before)
    sft, grpo1, grpo2 = summary["stages"]
    assert [stage["name"] for stage in summary["stages"]] == ["sft", "grpo1", "grpo2"]
    assert summary["seed"] == 0
    # Of 28 clips one in two, three and five is wrong; in sft clip 12 has no readable answer besides.
    assert (sft["war"], grpo1["war"], grpo2["war"]) == pytest.approx((13 / 28, 19 / 28, 23 / 28))
    assert sft["uar"] == pytest.approx(13 / 28)
    assert sft["parse_rate"] == sft["format_rate"] == pytest.approx(26 / 28)
    assert sft["s_coh"] < grpo1["s_coh"] < grpo2["s_coh"]
    assert sft["s_coh_normalised"] == pytest.approx((sft["s_coh"] - 1) / 4)
    assert sft["per_class"]["anger"]["support"] == 4
    assert sft["seconds"] == 12.5
    assert "log_history" not in sft
    assert summary["fgce"]["judge"]["backend"] == "dictated"
    assert summary["fgce"]["message"] is None
    rows = list(csv.DictReader((output / "summary.csv").open()))
    assert [float(row["war"]) for row in rows] == [stage["war"] for stage in summary["stages"]]
    assert (output / "summary.md").read_text() == first.stdout
    assert "| anger | 4 | 0.500 | 0.750 | 0.750 |" in first.stdout
    assert "| sft → grpo2 | +0.357" in first.stdout
    assert rows[0]["recall: anger"] == "0.5"
    # The dictated judge reads what the answer says, so explanations agree with answers; clip 5 has no answer and clip
    # 12 no explanation.
    assert sft["epc"] == pytest.approx(26 / 28)
    assert sft["eea"] == pytest.approx(13 / 28)
    assert sft["fcr"] == sft["eea"]
    assert summary["conveyed"]["judge"]["backend"] == "dictated"


def test_without_a_server_the_evaluation_finishes_and_says_so(repo: Path, tmp_path: Path) -> None:
    files = {"sft": three_stages(tmp_path)["sft"]}
    result = evaluate(repo, files, tmp_path / "out", "--fgce_url", "http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    [stage] = summary["stages"]
    assert stage["war"] == pytest.approx(13 / 28)
    assert stage["n_missing"] == 26
    assert stage["missing_reasons"] == {"unreachable": 26}
    assert (stage["eea"], stage["fcr"], stage["epc"], stage["n_conveyed_missing"]) == (None, None, None, 27)
    assert "No FG-CE server answers" in summary["fgce"]["message"]
    assert "No FG-CE server answers" in result.stderr
    assert "No FG-CE server answers" in (tmp_path / "out" / "report.html").read_text()


def test_who_requires_a_judge_gets_the_report_and_a_failure_until_all_is_judged(repo: Path, tmp_path: Path) -> None:
    files = {"sft": three_stages(tmp_path)["sft"]}
    nobody = ("--require_judge", "--fgce_url", "http://127.0.0.1:9")
    alone = evaluate(repo, files, tmp_path / "out", *nobody)
    assert alone.returncode == 1
    assert "evaluate: --require_judge: FG-CE could not be asked" in alone.stderr
    assert "No FG-CE server answers" in (tmp_path / "out" / "report.html").read_text()
    with dictated_judge() as judge:
        judged = evaluate(repo, files, tmp_path / "out", "--require_judge", "--fgce_url", judge.url)
    assert judged.returncode == 0, judged.stderr
    assert evaluate(repo, files, tmp_path / "out", *nobody).returncode == 0  # from what the judge said before


def test_clips_that_failed_and_files_of_the_authors_release(repo: Path, tmp_path: Path) -> None:
    rows = [prediction(n, "sad", "Sad.", "She weeps. [e v 4]") for n in range(3)]
    rows[1]["gt"] = "<think>She cries.</think>\n<answer>sad</answer>"
    for row in rows:
        del row["id"]
    files = {"sft": write_predictions(tmp_path / "sft.jsonl", rows)}
    (tmp_path / "sft.errors.jsonl").write_text('{"id": "clip-009", "error": "MediaError"}\n')
    with dictated_judge() as judge:
        result = evaluate(repo, files, tmp_path / "out", "--fgce_url", judge.url, "--format", "json")
    assert result.returncode == 0, result.stderr
    [stage] = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert (stage["war"], stage["n"], stage["n_failed"]) == (1.0, 3, 1)
    assert not (tmp_path / "out" / "report.html").exists()


def test_ablations_stand_beside_the_last_stage(repo: Path, tmp_path: Path) -> None:
    files = three_stages(tmp_path)
    with dictated_judge() as judge:
        ablations = ("--ablations", f"video={files['grpo1']}", f"audio={files['grpo2']}")
        result = evaluate(repo, files, tmp_path / "out", "--fgce_url", judge.url, *ablations, "--format", "json")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ablations"]["full"] == "grpo2"
    full, video, audio = summary["ablations"]["runs"]
    assert (full["media"], full["unseen"]) == ("video_audio", 0)
    assert (video["war"], video["unseen"]) == (pytest.approx(19 / 28), 0)
    assert video["against_full"]["lost"] > 0
    # Of grpo2's four sentences only one keeps to the sound, which is all that "audio" shows.
    assert audio["unseen"] == 0.75
    assert audio["against_full"]["war"]["difference"] == 0
    assert "| video | 0.679" in result.stdout
    wrong = evaluate(repo, files, tmp_path / "out", "--ablations", f"smell={files['sft']}")
    assert "--ablations takes MEDIA=PATH" in wrong.stderr


def test_compound_labels_of_mafw(repo: Path, tmp_path: Path) -> None:
    rows = [
        prediction(1, "sadness_surprise", "surprised and sad", "x"),
        prediction(2, "sadness_surprise", "sadness", "x"),
        prediction(3, "anger", "anger", "x"),
        prediction(4, "anger_disgust_contempt", "contempt, disgust and anger", "x"),
    ]
    files = {"sft": write_predictions(tmp_path / "sft.jsonl", rows)}
    arguments = ("--fgce_url", "http://127.0.0.1:9", "--format", "html", "md")
    result = evaluate(repo, files, tmp_path / "out", *arguments, label_set="mafw_compound")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["classes"] == ["anger", "sadness_surprise", "anger_disgust_contempt"]
    [stage] = summary["stages"]
    assert (stage["war"], stage["uar"]) == (0.75, pytest.approx((1 + 0.5 + 1) / 3))
    assert stage["overlap"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert "| sadness_surprise | 2 | 0.500 |" in result.stdout
    single = evaluate(repo, files, tmp_path / "single", *arguments, label_set="mafw")
    assert single.returncode == 0, single.stderr
    assert json.loads((tmp_path / "single" / "summary.json").read_text())["stages"][0]["n_labelled"] == 1


COMPLETION = "<think>She weeps.</think>\n<answer>sad</answer>"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"video": "a.mp4", "gt": "sad", "output": COMPLETION}),
        json.dumps({"video_path": "a.mp4", "ground_truth": "<answer> sadness </answer>", "pred": COMPLETION}),
        json.dumps([{"name": "a", "label": "sad", "reasoning": "She weeps.", "prediction": "sad"}]),
        json.dumps(
            {
                "accuracy": 100.0,
                "results": [
                    {
                        "question": {"path": "a.mp4", "solution": "<answer>sad</answer>"},
                        "ground_truth": "sad",
                        "model_output": COMPLETION,
                        "extracted_answer": "sad",
                    }
                ],
            },
            indent=2,
        ),
    ],
    ids=["raw output", "completion as pred", "explanation and prediction", "R1 results object"],
)
def test_files_of_other_programs(repo: Path, tmp_path: Path, text: str) -> None:
    """The ways in which programs of the R1-Omni and ERV family write a prediction."""
    path = tmp_path / "theirs.json"
    path.write_text(text)
    [found] = read_predictions(path)
    assert (found.truth, found.predicted, found.explanation) == ("sadness", "sadness", "She weeps.")
    assert found.id in {"a", "a.mp4"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([prediction(1, "contempt", "anger", "x")], "stage sft: true emotions outside the label set: contempt (1)"),
        ([{"id": "a", "text": "hello"}], "sft.jsonl:1: a prediction holds"),
        ([prediction(1, "anger", "anger", "x")] * 2, "1 ids occur more than once, the first is 'clip-001'"),
        ([], "holds no predictions"),
    ],
    ids=["label set", "no prediction", "duplicate", "empty"],
)
def test_what_cannot_be_evaluated_is_named(repo: Path, tmp_path: Path, rows: list[dict], message: str) -> None:
    files = {"sft": write_predictions(tmp_path / "sft.jsonl", rows)}
    result = evaluate(repo, files, tmp_path / "out")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
