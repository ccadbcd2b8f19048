"""python -m fgce, as a user runs it."""

import csv
import gzip
import json
import re
from pathlib import Path

import pytest
from server_process import StartServer, server_process

from fgce.cli import main
from fgce.client import score
from fgce.config import load_config
from fgce.rubric import DEFAULT_RUBRIC
from fgce.schema import ScoreItem

TAGGED = "<think>She is angry.</think><answer>anger</answer>"
RECORDS = [
    {"id": "a", "think_text": "Her loud voice suggests anger. She is angry.", "pred": "anger"},
    {"id": "b", "think_text": "她很难过。", "pred": "sadness"},
]


def test_score_writes_results_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n")
    assert main(["score", str(source), "--output", str(target)]) == 0
    first, second = [json.loads(line) for line in target.read_text().splitlines()]
    assert (first["id"], first["status"], second["status"]) == ("a", "ok", "missing")
    summary = json.loads(capsys.readouterr().out)
    assert summary["explanations"] == 2
    assert summary["missing"] == {"unsupported_language": 1}
    assert summary["s_coh"] == first["score"]
    assert summary["functions"]["conclusion"] == {"sentences": 1, "score": 5}
    assert set(summary["modalities"]) == {"audio", "contextual"}
    assert json.loads((tmp_path / "out.jsonl.summary.json").read_text()) == summary


def test_score_reads_csv_with_other_column_names_through_a_server(tmp_path: Path, server_url: str):
    source, target = tmp_path / "in.csv", tmp_path / "out.jsonl"
    with source.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ["text", "label"])
        writer.writeheader()
        writer.writerow({"text": "She smiles.", "label": "happy"})
    arguments = ["score", str(source), "--output", str(target), "--url", server_url]
    assert main([*arguments, "--explanation", "text", "--emotion", "label"]) == 0
    assert json.loads(target.read_text())["score"] == 5


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("array", [False, True])
def test_score_reads_what_inference_reads(tmp_path: Path, array: bool, zipped: bool):
    text = json.dumps(RECORDS, indent=1) if array else "\r\n\r\n".join(json.dumps(record) for record in RECORDS)
    source, target = tmp_path / "in.json", tmp_path / "out.jsonl"
    content = b"\xef\xbb\xbf" + text.encode()
    source.write_bytes(gzip.compress(content) if zipped else content)
    assert main(["score", str(source), "--output", str(target)]) == 0
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == ["a", "b"]


def test_a_damaged_archive_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps(RECORDS[0]).encode())[:-12])
    assert main(["score", str(source), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert re.search(r"in.jsonl.gz: cannot be read: .*end-of-stream", caplog.text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": 1}', r"in.jsonl:1: no explanation and emotion among the columns \['id'\]"),
        ('{"id": 1, "think_text": "x", "pred": "y"}\n' * 2, r"in.jsonl:2: id '1' is also on line 1"),
        ("", "in.jsonl: no records"),
        ("{", "in.jsonl:1: not JSON"),
        ("[]", "in.jsonl: no records"),
        ("3", "in.jsonl:1: expected a JSON object, found int"),
        ('[{"id": 1}, 3]', "in.jsonl:2: expected a JSON object, found int"),
        ("[1, ", "in.jsonl:1: not JSON"),
        (json.dumps({"answer": TAGGED, "truth": TAGGED}), r"in.jsonl:1: the columns \['answer', 'truth'\] all hold"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, said: str):
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    assert main(["score", str(source), "--output", str(tmp_path / "out")]) == 2
    assert re.search(said, caplog.text)


def test_bad_settings_are_named(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text("prot: 8000\n")
    assert main(["serve", "--config", str(config)]) == 2
    assert f"{config}: prot=8000" in caplog.text
    assert main(["serve", "--set", "judge={backend"]) == 2
    assert "override 'judge={backend': the value is not YAML" in caplog.text
    assert main(["serve", "--set", "judge.backend=magic"]) == 2
    assert "'magic' found using 'backend' does not match any of the expected tags: 'lexicon'" in caplog.text


def test_every_shipped_configuration_is_valid(repo: Path):
    paths = sorted((repo / "configs/fgce").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        load_config(path)


@pytest.mark.parametrize(
    ("record", "score"),
    [
        ({"video": "v.mp4", "gt": "anger", "pred": "anger", "think_text": "She is angry.", "raw_response": "..."}, 5),
        ({"output": "<think>She is angry.</think>\n<answer>happy</answer>"}, 1),
        (
            {
                "prompt": "Reason in <think> </think>, answer in <answer> </answer> tags.",
                "output": "<think>She is angry.</think><answer>happy</answer>",
            },
            1,
        ),
        ({"explanation": "She is angry.", "predicted_emotion": "angry"}, 5),
        ({"reasoning": "She is angry.", "prediction": "angry"}, 5),
        ({"rationale": "She is angry.", "emotion": "happy"}, 1),
    ],
)
def test_outputs_of_known_programs_are_recognised(tmp_path: Path, record: dict, score: int):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(record))
    assert main(["score", str(source), "--output", str(target)]) == 0
    assert json.loads(target.read_text())["score"] == score


def test_score_resumes_where_it_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [{"id": str(i), "think_text": f"She is angry, {i}.", "pred": "anger"} for i in range(10)]
    records[4]["pred"] = None  # a failed inference
    source.write_text("\n".join(json.dumps(record) for record in records))
    arguments = ["score", str(source), "--output", str(target), "--batch", "2"]
    assert main(arguments) == 0
    straight, summary = target.read_text(), json.loads(capsys.readouterr().out)
    assert summary["missing"] == {"no_input": 1}
    lines = straight.splitlines(keepends=True)
    dead = json.loads(lines[1]) | {"status": "missing", "reason": "unreachable", "score": None, "sentences": []}
    target.write_text(lines[0] + json.dumps(dead) + "\n" + lines[2] + lines[3][:20])
    assert main(arguments) == 0
    assert target.read_text() == straight
    assert json.loads(capsys.readouterr().out) == summary


@pytest.mark.parametrize("changed", [{"think_text": "She is calm."}, {"pred": "happiness"}, {"pred": None}])
def test_score_judges_a_new_prediction_of_the_same_clip_anew(
    tmp_path: Path, changed: dict, capsys: pytest.CaptureFixture[str]
):
    records = [{"think_text": f"She is angry, {i}.", "pred": "anger"} for i in range(3)]  # ids are line numbers
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    arguments = ["score", str(source), "--output", str(target)]
    source.write_text("\n".join(map(json.dumps, records)))
    assert main(arguments) == 0
    before = target.read_text().splitlines()
    records[1] |= changed
    source.write_text("\n".join(map(json.dumps, records)))
    assert main(arguments) == 0
    after = target.read_text().splitlines()
    assert (after[0], after[2]) == (before[0], before[2])
    assert json.loads(before[1])["score"] == 5
    assert json.loads(after[1])["score"] != 5


def test_score_asks_again_for_a_sentence_that_the_judge_owes(tmp_path: Path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"id": "a", "think_text": "Her voice is loud. She is angry.", "pred": "anger"}))
    assert main(["score", str(source), "--output", str(target)]) == 0
    whole = target.read_text()
    half = json.loads(whole)
    half["flags"] = ["partial", "timeout"]
    half["sentences"][0] |= {"status": "missing", "reason": "timeout", "score": None, "weight": 0}
    target.write_text(json.dumps(half) + "\n")
    assert main(["score", str(source), "--output", str(target)]) == 0
    assert target.read_text() == whole


def test_a_column_of_raw_answers_can_be_named(tmp_path: Path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"answer": TAGGED.replace("<answer>anger", "<answer>joy"), "truth": TAGGED}))
    assert main(["score", str(source), "--output", str(target), "--explanation", "answer"]) == 0
    assert json.loads(target.read_text())["score"] == 1


def test_a_csv_without_an_emotion_has_nothing_to_judge_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("id,explanation,emotion\na,She is angry.,anger\nb,She is angry.,\n")
    assert main(["score", str(source), "--output", str(target)]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == {"no_input": 1}


def test_scores_of_two_rubrics_do_not_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(RECORDS[0]))
    assert main(["score", str(source), "--output", str(target)]) == 0
    source.write_text("\n".join(json.dumps(record) for record in RECORDS))
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(DEFAULT_RUBRIC.read_text().replace("weak or indirect", "weak"))
    assert main(["score", str(source), "--output", str(target), "--set", f"rubric={rubric}"]) == 2
    assert "holds scores of another rubric or judge" in caplog.text


def test_scores_of_two_splitters_do_not_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(RECORDS[0]))
    assert main(["score", str(source), "--output", str(target)]) == 0
    source.write_text("\n".join(json.dumps(record) for record in RECORDS))
    assert main(["score", str(source), "--output", str(target), "--set", "splitter=punkt"]) == 2
    assert "one asked by another protocol or splitter" in caplog.text


def test_rubric_shows_hash_and_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["rubric", "--prompts", "fast"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["functions"]["conclusion"] == 2
    assert "E = information extraction" in shown["prompts"]["step 1"][0]["content"]
    broken = tmp_path / "mine.yaml"
    broken.write_text(DEFAULT_RUBRIC.read_text().replace("$criteria", "criteria"))
    assert main(["rubric", str(broken)]) == 2


def test_replay_recomputes_a_run_and_shows_what_was_tampered_with(
    tmp_path: Path, start_server: StartServer, capsys: pytest.CaptureFixture[str]
):
    log = tmp_path / "audit.jsonl"
    url = start_server("--set", f"audit={log}")
    items = [ScoreItem(id=r["id"], explanation=r["think_text"], predicted_emotion=r["pred"]) for r in RECORDS]
    score(items, url)
    assert main(["replay", str(log)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "explanations": 2,
        "scored_by_another_rubric": 0,
        "differences": [],
    }
    first, second = [json.loads(line) for line in log.read_text().splitlines()]
    first["result"]["normalised"] = 0.99
    log.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    assert main(["replay", str(log)]) == 1
    (difference,) = json.loads(capsys.readouterr().out)["differences"]
    assert (difference["line"], difference["field"], difference["recorded"]) == (1, "normalised", 0.99)
    log.write_text("{}\n")
    assert main(["replay", str(log)]) == 2


def test_replay_does_without_a_line_that_a_killed_server_left_torn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    log = tmp_path / "audit.jsonl"
    items = [ScoreItem(id="a", explanation="She is angry. 她很难过。", predicted_emotion="anger")]
    for _ in range(2):
        with server_process("--set", f"audit={log}") as (url, process):
            score(items, url)
            score(items, url)
            process.kill()
        whole = log.read_bytes()
        log.write_bytes(whole[: whole.rindex("她".encode()) + 1])
    assert main(["replay", str(log)]) == 0
    assert json.loads(capsys.readouterr().out)["explanations"] == 2
    assert caplog.text.count("a torn line") == 2


def test_structured_logs_hold_each_request(repo: Path):
    arguments = ["--log-level", "DEBUG", "--log-json"]
    with server_process(options=arguments) as (url, process):
        score([ScoreItem(id="a", explanation="She is angry.", predicted_emotion="anger")], url)
        process.terminate()
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    (scored,) = [line for line in lines if line["message"] == "scored"]
    assert (scored["items"], scored["sentences"], scored["missing"], scored["level"]) == (1, 1, 0, "DEBUG")
