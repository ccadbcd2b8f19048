"""The rubric file: what is accepted, how errors read, and what the hash depends on."""

from pathlib import Path

import pytest

from fgce.rubric import DEFAULT_RUBRIC, RubricError, load_rubric


def test_weights_are_the_papers():
    rubric = load_rubric()
    assert {name: label.weight for name, label in rubric.functions.items()} == {
        "information extraction": 1,
        "information analysis": 1,
        "conclusion": 2,
        "others": 0,
    }
    assert [rubric.modalities[name].weight for name in ("audio", "visual", "contextual")] == [1, 1, 1]
    assert rubric.modalities["audio-visual"].weight == 2
    assert rubric.weight("conclusion", "audio-visual-contextual") == 6


def test_hash_follows_the_content_and_not_the_layout(tmp_path: Path):
    text = DEFAULT_RUBRIC.read_text()
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text("# a comment\n" + text)
    other.write_text(text.replace("A weak or indirect hint", "A weak hint"))
    assert load_rubric(same).info == load_rubric().info
    assert load_rubric(other).info.sha256 != load_rubric().info.sha256


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        (
            "  conclusion:\n    weight: 2\n",
            "  conclusion:\n    weight: -2\n",
            "    weight: -2",
            "greater than or equal to 0",
        ),
        (
            "  visual:\n    weight: 1\n",
            "  visual:\n    weight: heavy\n",
            "    weight: heavy",
            "modalities.visual.weight",
        ),
        ("    weight: 0\n", "    weight: 1\n", "functions:", "['others'] must weigh 0"),
        ("  audio:\n    weight: 1\n", "  audio:\n    weight: 0\n", "modalities:", "found ['audio']"),
        ("  audio-visual:\n", "  audio-and-visual:\n", "  audio-and-visual:", "audio-and-visual"),
        (
            "      5: A decisive, direct cue for the predicted emotion.\n",
            "",
            "    information extraction:",
            "missing [5]",
        ),
        ("  binary:\n", "  yes or no:\n", "  yes or no:", "Extra inputs"),
        ("$criteria", "criteria", "  rate: |", "the prompt must fill in $answer, $criteria"),
        ("guard: >-", "gard: >-", "  gard: >-", "Extra inputs"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, old: str, new: str, line: str, said: str):
    text = DEFAULT_RUBRIC.read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RubricError) as raised:
        load_rubric(path)
    lines = path.read_text().splitlines()
    named = [problem for problem in str(raised.value).splitlines() if said in problem]
    assert [lines[int(problem.removeprefix(f"{path}:").split(":")[0]) - 1] for problem in named] == [line]


def test_a_missing_file_and_broken_yaml_are_said_so(tmp_path: Path):
    with pytest.raises(RubricError, match="cannot be read"):
        load_rubric(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RubricError, match="not YAML.*(?s:.*)line 1"):
        load_rubric(tmp_path / "broken.yaml")
    (tmp_path / "latin.yaml").write_bytes("version: \xe4".encode("latin-1"))
    with pytest.raises(RubricError, match="latin.yaml: not YAML"):
        load_rubric(tmp_path / "latin.yaml")
