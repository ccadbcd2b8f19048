"""python -m fgce, as a user runs it."""

import csv
import json
import re
from pathlib import Path

import pytest

from fgce.cli import main

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


def test_score_reads_csv_with_other_column_names_through_a_server(tmp_path: Path, server_url: str):
    source, target = tmp_path / "in.csv", tmp_path / "out.jsonl"
    with source.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ["text", "label"])
        writer.writeheader()
        writer.writerow({"text": "She smiles.", "label": "happy"})
    arguments = ["score", str(source), "--output", str(target), "--url", server_url]
    assert main([*arguments, "--explanation", "text", "--emotion", "label"]) == 0
    assert json.loads(target.read_text())["score"] == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": 1}', r"in.jsonl:1: no text in 'think_text'; columns here are \['id'\]"),
        ("{", "in.jsonl:1: not JSON"),
        ("[]", "in.jsonl:1: expected a JSON object"),
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
    assert main(["serve", "--set", "judge.backend=magic"]) == 2
    assert "'magic' found using 'backend' does not match any of the expected tags: 'lexicon'" in caplog.text
