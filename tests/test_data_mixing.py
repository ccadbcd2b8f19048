"""Several files of training data: how much of each is taken, the same on every rank and after every restart."""

import json
from pathlib import Path

import pytest

from humanomni.records import RecordError
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.grpo import GRPOArguments
from humanomni.training.run import ConfigurationError, parse_arguments


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Ten records a, twenty records b, in folders of their own."""
    paths = {}
    for name, count in (("a", 10), ("b", 20)):
        paths[name] = tmp_path / name / f"{name}.jsonl"
        paths[name].parent.mkdir()
        turns = [{"from": "human", "value": "Which emotion?"}, {"from": "gpt", "value": "anger"}]
        lines = [{"id": f"{name}{i}", "video": f"{i}.mp4", "conversations": turns} for i in range(count)]
        paths[name].write_text("\n".join(map(json.dumps, lines)))
    return paths


def taken(*entries: str, seed: int = 0) -> list[str]:
    return [record.id for record in read_mixture(parse_sources("train_data", entries), None, seed)]


def test_one_file_is_taken_whole_and_clips_lie_beside_their_own_file(files: dict[str, Path]) -> None:
    records = read_mixture(parse_sources("train_data", [str(files["a"]), str(files["b"])]), None, 0)
    assert [record.id for record in records] == [f"a{i}" for i in range(10)] + [f"b{i}" for i in range(20)]
    assert records[0].video == str(files["a"].parent / "0.mp4")
    assert records[-1].video == str(files["b"].parent / "19.mp4")
    assert taken(str(files["a"])) == [f"a{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("rule", "count"),
    [("first:3", 3), ("first:25%", 5), ("random:4", 4), ("random:20%", 4), ("weight:2", 40), ("weight:0.5", 10),
     ("weight:1.25", 25), ("first:100", 20), ("random:100%", 20)],
)  # fmt: skip
def test_a_rule_takes_as_many_as_it_says(rule: str, count: int, files: dict[str, Path]) -> None:
    identities = taken(f"{files['b']}@{rule}")
    assert len(identities) == count
    if rule.startswith("first"):
        assert identities == [f"b{i}" for i in range(count)]
    if rule.startswith("random"):
        assert len(set(identities)) == count
    if rule.startswith("weight"):
        times = [identities.count(f"b{i}") for i in range(20)]
        assert max(times) - min(times) == (0 if count % 20 == 0 else 1)


def test_draws_hang_on_the_seed_and_not_on_the_other_files(files: dict[str, Path]) -> None:
    drawn = taken(f"{files['b']}@random:5")
    assert taken(str(files["a"]), f"{files['b']}@random:5")[10:] == drawn
    assert taken(f"{files['b']}@random:5", seed=1) != drawn
    assert drawn == sorted(drawn, key=lambda identity: int(identity[1:]))


@pytest.mark.parametrize(
    "rule", ["last:5", "first:0", "first:x", "random:120%", "first:1.5", "weight:50%", "weight:inf", "first:"]
)
def test_a_rule_that_is_none_is_told_with_its_key(rule: str, files: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match=f"train_data: .*a.jsonl@{rule}"):
        parse_sources("train_data", [f"{files['a']}@{rule}"])


def test_a_missing_file_a_bad_line_and_an_empty_share_are_told(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="train_data: .*c.jsonl does not exist"):
        parse_sources("train_data", [str(files["a"]), str(files["a"].with_name("c.jsonl")) + "@first:5"])
    with pytest.raises(ConfigurationError, match="no record is left of 10"):
        taken(f"{files['a']}@random:1%")
    with files["a"].open("a") as stream:
        stream.write("\n{torn")
    with pytest.raises(RecordError, match=r"a\.jsonl:11: not JSON"):
        taken(str(files["a"]))


def test_a_configuration_and_the_command_line_name_several_files(tmp_path: Path) -> None:
    config = tmp_path / "stage.yaml"
    config.write_text(f"train_data: [a.jsonl, b.jsonl@random:20%]\noutput_dir: {tmp_path}\nuse_cpu: true\n")
    assert parse_arguments(GRPOArguments, ["--config", str(config)]).train_data == ["a.jsonl", "b.jsonl@random:20%"]
    flags = ["--config", str(config), "--train_data", "c.jsonl", "d.jsonl@first:5"]
    assert parse_arguments(GRPOArguments, flags).train_data == ["c.jsonl", "d.jsonl@first:5"]
