"""The rubric file: what is accepted, how errors read, and what the hash depends on."""

from pathlib import Path

import pytest
import yaml

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
    ("old", "new", "said"),
    [
        (
            "weight: 2\n    definition: States",
            "weight: -2\n    definition: States",
            "greater than or equal to 0",
        ),
        ("    weight: 0\n", "    weight: 1\n", "'others' alone must weigh 0"),
        ("  audio-visual:\n", "  audio-and-visual:\n", "audio-and-visual"),
        ("      5: A decisive, direct cue for the predicted emotion.\n", "", "missing [5]"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, old: str, new: str, said: str):
    text = DEFAULT_RUBRIC.read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(RubricError, match=rf"(?s){path}:\d+: ") as raised:
        load_rubric(path)
    assert said in str(raised.value)


def test_the_line_is_that_of_the_wrong_value(tmp_path: Path):
    data = yaml.safe_load(DEFAULT_RUBRIC.read_text())
    data["modalities"]["visual"]["weight"] = "heavy"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    line = 1 + next(i for i, text in enumerate(path.read_text().splitlines()) if "heavy" in text)
    with pytest.raises(RubricError, match=f"mine.yaml:{line}: modalities.visual.weight"):
        load_rubric(path)


def test_a_missing_file_and_broken_yaml_are_said_so(tmp_path: Path):
    with pytest.raises(RubricError, match="cannot be read"):
        load_rubric(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RubricError, match="not YAML"):
        load_rubric(tmp_path / "broken.yaml")
