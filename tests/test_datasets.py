"""Every official layout, prepared as a user would, gives the JSON lines that lie in tests/data/datasets.

The golden files were read line by line against spec and layout when they were made; run the script with the flags of
`CASES` on a layout of tests/dataset_layouts.py, and put ROOT in place of its folder, to make another.
"""

import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dataset_layouts as layouts
import pytest
from dataset_layouts import Layout
from media_factory import write_clip

from humanomni.datasets import DATASETS
from humanomni.records import Record, read_records

REPO = Path(__file__).parents[1]
SCRIPT = REPO / "scripts" / "prepare_data.py"
GOLDEN = REPO / "tests" / "data" / "datasets"
COLUMNS = "--video_column file --label_column emotion --split_column part --explanation_column why --id_column key"
TABLES = (".csv", ".tsv", ".semicolon.csv", ".xlsx", ".json", ".jsonl.gz")

# Case, layout and flags; ROOT is the layout's folder.
CASES: dict[str, tuple[Callable[[Layout], None], str]] = {
    "mafw": (layouts.mafw, "mafw"),
    "mafw-sft": (layouts.mafw, "mafw --task sft --fold 1"),
    "mafw-sft-chinese": (layouts.mafw, "mafw --task sft --fold 1 --language chinese"),
    "mafw-split": (layouts.mafw_split, "mafw --task sft"),
    "mafw-sheet": (layouts.mafw_sheet, "mafw"),
    "mafw-compound": (layouts.mafw_compound, "mafw_compound --task infer"),
    "mafw-compound-grpo": (layouts.mafw_compound, "mafw_compound --task grpo"),
    "mafw-compound-sheet": (layouts.mafw_compound_sheet, "mafw_compound --task infer"),
    "dfew": (layouts.dfew, "dfew"),
    "dfew-canonical": (layouts.dfew, "dfew --spelling canonical --task infer"),
    "dfew-renamed": (layouts.dfew_renamed, "dfew --fold 2"),
    "ravdess": (layouts.ravdess, "ravdess --fold 2 --task infer"),
    "ravdess-actors": (layouts.ravdess, "ravdess --test_actors 6"),
    "emer-v1": (layouts.emer_v1, "emer_v1 --task sft"),
    "emer-v1-chinese": (layouts.emer_v1, "emer_v1 --task sft --language chinese"),
    "emer-v2": (layouts.emer_v2, "emer --root ROOT/EMER --clips ROOT/MER2023 --task sft"),
    "emer-v2-infer": (layouts.emer_v2, "emer --root ROOT/EMER --clips ROOT/MER2023/train --task infer"),
    "mer2023": (layouts.mer2023, "mer2023"),
    "mer2024": (layouts.mer2024, "mer2024"),
    "mer2024-infer": (layouts.mer2024, "mer2024 --task infer"),
    "mer2025": (layouts.mer2025, "mer2025 --task sft"),
    "merr": (layouts.merr, "merr --task sft"),
    "records": (layouts.records, "records --task sft"),
    "records-grpo": (layouts.records, "records --task grpo"),
    "custom-folders": (layouts.custom_folders, "custom"),
    **{
        f"custom{suffix}": (layouts.custom_table(suffix), f"custom --table labels{suffix} {COLUMNS} --task sft")
        for suffix in TABLES
    },
}


GUIDES = "".join((REPO / name).read_text() for name in ("README.md", "docs/data.md"))
COMMANDS = sorted(set(re.findall(r"^python scripts/prepare_data\.py (.+)$", GUIDES, re.MULTILINE)))
# The folders under /data of those commands.
FOLDERS: dict[str, Callable[[Layout], None]] = {
    "MAFW": layouts.mafw,
    "MAFW_compound": layouts.mafw_compound,
    "DFEW": layouts.dfew,
    "RAVDESS": layouts.ravdess,
    "EMER_v1": layouts.emer_v1,
    "MER2023": layouts.mer2023,
    "MER2024": layouts.mer2024,
    "MER2025": layouts.mer2025,
    "MERR": layouts.merr,
    "release": layouts.records,
    "mine": layouts.custom_folders,
    "table": layouts.custom_table(".csv"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.encode_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def prepared(root: Path, flags: str, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The script's run; flags of the case go before root and output."""
    words = [word.replace("ROOT", str(root)) for word in flags.split()]
    defaults = {"--root": str(root), "--output": str(output)}
    filled = [word for pair in defaults.items() if pair[0] not in words for word in pair]
    return subprocess.run([sys.executable, SCRIPT, *words, *filled, *more], capture_output=True, text=True, timeout=120)


def contents(folder: Path, root: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text().replace(str(root), "ROOT") for path in files}


@pytest.mark.parametrize("case", CASES)
def test_a_layout_gives_its_golden_records(case: str, clip: Path, root: Path, tmp_path: Path) -> None:
    fill, flags = CASES[case]
    fill(Layout(root, clip))
    run = prepared(root, flags, tmp_path / "out")
    assert run.returncode == 0, run.stderr
    golden = GOLDEN / ("custom" if flags.startswith("custom --table") else case)
    given = contents(tmp_path / "out", root)
    if golden.name == "custom":
        name = flags.split()[2]
        given = {file: text.replace(name, "labels.csv") for file, text in given.items()}
    assert given == contents(golden, root)
    for path in (tmp_path / "out").rglob("*.jsonl"):
        assert all(isinstance(record, Record) and Path(record.video).exists() for record in read_records(path))


def test_the_guides_have_an_example_of_every_data_set() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(DATASETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_of_the_guides_works(command: str, clip: Path, root: Path, tmp_path: Path) -> None:
    folder = re.findall(r"--root /data/(\w+)", command)[0]
    if folder == "EMER":
        layouts.emer_v2(Layout(root, clip))
    else:
        FOLDERS[folder](Layout(root / folder, clip))
    words = command.replace("/data/", f"{root}/").split()
    (work := tmp_path / "work").mkdir()
    run = subprocess.run([sys.executable, SCRIPT, *words], cwd=work, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    written = list((work / words[words.index("--output") + 1]).rglob("*.jsonl"))
    assert any(path.name.startswith(("sft_", "grpo_", "infer_")) for path in written)


def test_a_second_run_gives_the_same_bytes_also_with_the_output_inside_the_root(clip: Path, root: Path) -> None:
    layouts.records(Layout(root, clip))
    runs = []
    for _ in range(2):
        run = prepared(root, "records --task sft", root / "prepared")
        assert run.returncode == 0, run.stderr
        runs.append(contents(root / "prepared", root))
    assert runs[0] == runs[1]


def lists_of_official_sizes(made: Layout) -> None:
    """DFEW's first fold with as many clips of each class as it officially has."""
    made.clips(*(f"clip/{number}.mp4" for number in range(1, 11698)))
    labels = [i for i, count in enumerate((489, 379, 534, 435, 294, 29, 181), start=1) for _ in range(count)]
    lists = {"test": [f"{number},{label}" for number, label in enumerate(labels, start=1)]}
    lists["train"] = [f"{number},{1 + number % 7}" for number in range(2342, 11698)]
    for split, rows in lists.items():
        made.text(f"EmoLabel_DataSplit/{split}(single-labeled)/set_1.csv", "video_name,label", *rows)


def test_official_counts_are_confirmed_and_differences_are_named(clip: Path, root: Path, tmp_path: Path) -> None:
    lists_of_official_sizes(Layout(root, clip))
    run = prepared(root, "dfew", tmp_path / "out")
    counts = json.loads((tmp_path / "out/fold1/grpo_counts.json").read_text())
    assert counts["remarks"] == [], run.stderr
    assert counts["splits"]["train"] | {"labels": 0} == {"listed": 9356, "official": 9356, "written": 9356, "labels": 0}

    test_list = root / "EmoLabel_DataSplit/test(single-labeled)/set_1.csv"
    test_list.write_text(test_list.read_text().replace("\n2341,7", "").replace("\n2340,7", "\n2340,6"))
    (root / "clip/5000.mp4").unlink()
    log = prepared(root, "dfew", tmp_path / "out").stderr
    assert "fold 1: test: the lists hold 2340 samples, officially 2341" in log
    assert "disgust 30 of 29, fear 179 of 181" in log
    assert "fold 1: train: 1 of 9356 samples are left out: no such clip (1)" in log
    left_out = list(csv.DictReader((tmp_path / "out/fold1/grpo_left_out.csv").open()))
    assert [(row["split"], row["name"]) for row in left_out] == [("train", "5000")]


@pytest.mark.parametrize(
    ("fill", "flags", "message"),
    [
        (layouts.dfew, "mafw", "holds no MAFW: looked in it and all its folders for single/no_caption/set_1/train.txt"),
        (layouts.dfew, "mafw", "set_1/train.txt or Labels/single-set.xlsx; it holds"),
        (layouts.dfew, "dfew --fold 3", "--fold 3: DFEW in ROOT has the folds 1"),
        (layouts.mer2023, "mer2023 --fold 1", "MER2023 in ROOT has no folds"),
        (layouts.dfew, "dfew --task sft", "prepare it with --task grpo or infer"),
        (layouts.dfew, "dfew --clips ROOT/EmoLabel_DataSplit", "name the folder of the clips with --clips"),
        (layouts.dfew, "dfew --output ROOT", "is also --output; write to a folder in it"),
        (layouts.dfew, "dfew --root ROOT/nowhere", "--root ROOT/nowhere: no such folder"),
        (layouts.ravdess, "ravdess --test_actors 7", "--test_actors 7: no clip of theirs"),
        (layouts.custom_table(".csv"), "custom --table labels.csv", "no column video, label; its columns are file,"),
        (layouts.custom_table(".csv"), "custom --table other.csv", "--table other.csv: no such file"),
        (layouts.emer_v2, "emer_v1", "holds no EMER version 1: looked in it and all its folders for gt-eng.csv"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_with_the_mend(
    fill: Callable[[Layout], None], flags: str, message: str, clip: Path, root: Path, tmp_path: Path
) -> None:
    fill(Layout(root, clip))
    run = prepared(root, flags, tmp_path / "out")
    assert run.returncode == 1
    assert message.replace("ROOT", str(root)) in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.glob("out/**/*.jsonl"))


def test_a_row_without_a_clip_is_named_as_the_sheet_numbers_it(clip: Path, root: Path, tmp_path: Path) -> None:
    Layout(root, clip).text("labels.csv", "video,label", "a.mp4,anger", "", ",", ",fear")
    assert "row 5 has no video" in prepared(root, "custom --table labels.csv", tmp_path / "out").stderr


def test_a_sheet_that_is_none_is_named(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="xlsx needs the extra of that name")
    (root / "single-set.xlsx").write_text("name,label")
    run = prepared(root, "mafw", tmp_path / "out")
    assert run.returncode == 1
    assert f"{root}/single-set.xlsx: not an xlsx file" in run.stderr


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("label/single_testset_1.csv", ["video_name,label", "1,8"], "row 2: label must be 1 to 7, not '8'"),
        ("label/single_testset_1.csv", ["name,label", "1,8"], "no column video_name; its columns are name, label"),
        ("split/single/set_1/train.txt", ["00001.mp4"], ":1: '00001.mp4' has no label"),
        ("MERR_fine_grained.txt", ["sample_1 doubt"], ":1: 'sample_1 doubt' is not '<name> <frame> <label>'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    name: str, lines: list[str], message: str, clip: Path, root: Path, tmp_path: Path
) -> None:
    Layout(root, clip).text(name, *lines)
    dataset = {"label": "dfew", "split": "mafw"}.get(name.partition("/")[0], "merr")
    run = prepared(root, dataset, tmp_path / "out")
    assert run.returncode == 1
    assert str(root / name) in run.stderr
    assert message in run.stderr


def test_two_clips_of_one_name_are_never_guessed_between(clip: Path, root: Path, tmp_path: Path) -> None:
    made = Layout(root, clip)
    layouts.dfew(made)
    made.clips("MAFW/clips/00001.mp4")
    run = prepared(root, "dfew", tmp_path / "out")
    assert run.returncode == 1
    assert "name the folder of the right clips with --clips" in run.stderr
    assert prepared(root, "dfew --clips ROOT/clip", tmp_path / "out").returncode == 0


def test_a_table_in_a_western_encoding_is_no_chinese(clip: Path, root: Path, tmp_path: Path) -> None:
    made = Layout(root, clip)
    made.clips("a.mp4")
    made.text("labels.csv", "video,label,why", "a.mp4,anger,She’s angry.", encoding="cp1252")
    run = prepared(root, "custom --table labels.csv --explanation_column why --task sft", tmp_path / "out")
    assert run.returncode == 1
    assert f"{root}/labels.csv: not UTF-8 at byte 31; save it as UTF-8 (in Excel: Save As, CSV UTF-8)" in run.stderr


def test_a_table_may_be_gzipped(clip: Path, root: Path, tmp_path: Path) -> None:
    Layout(root, clip).clips("a.mp4")
    (root / "labels.csv.gz").write_bytes(gzip.compress(b"video,label\na.mp4,anger\n"))
    run = prepared(root, "custom --table labels.csv.gz", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert labels_by_clip(tmp_path / "out", root) == [("a.mp4", "anger")]


def test_a_short_row_and_an_odd_file_name_are_left_out(clip: Path, root: Path, tmp_path: Path) -> None:
    layouts.mer2023(Layout(root, clip))
    with (root / "train-label.csv").open("a") as table:
        table.write("sample_00000009")
    run = prepared(root, "mer2023", tmp_path / "mer")
    assert run.returncode == 0, run.stderr
    assert 'train,sample_00000009,"no such clip' in (tmp_path / "mer/grpo_left_out.csv").read_text()

    (mine := tmp_path / "mine").mkdir()
    Layout(mine, clip).clips("happy/a.mp4", os.fsdecode(b"happy/caf\xe9.mp4"))
    run = prepared(mine, "custom --check", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert r"all,happy/caf\udce9.mp4,not UTF-8" in (tmp_path / "out/grpo_left_out.csv").read_text()
    assert labels_by_clip(tmp_path / "out", mine) == [("happy/a.mp4", "happy")]


@pytest.mark.parametrize("command", ["prepare_data.py custom --root . --check", "dataset_stats.py records.jsonl"])
@pytest.mark.parametrize("workers", ["0", "-1"])
def test_a_number_of_workers_that_is_none_is_named(command: str, workers: str, tmp_path: Path) -> None:
    script, *words = command.split()
    line = [sys.executable, REPO / "scripts" / script, *words, "--output", "out", "--workers", workers]
    run = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert f"argument --workers: {workers} is less than 1" in run.stderr


def test_a_table_names_sound_images_and_other_files(clip: Path, root: Path, tmp_path: Path) -> None:
    made = Layout(root, clip)
    made.clips("s1.wav", "sub/s2.WAV", "sub/v.ts", "i1.jpg", "sub/i2.jpg")
    names = ["s1.wav", "s2.wav", "v.ts", "i1.jpg", "sub/i2.jpg"]
    made.text("labels.csv", "video,label", *(f"{name},fear" for name in names))
    run = prepared(root, "custom --table labels.csv", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    found = [name for name, _ in labels_by_clip(tmp_path / "out", root)]
    assert found == ["s1.wav", "sub/s2.WAV", "sub/v.ts", "i1.jpg", "sub/i2.jpg"]


def test_folders_of_labels_give_videos_and_sound_and_list_the_rest(clip: Path, root: Path, tmp_path: Path) -> None:
    made = Layout(root, clip)
    made.clips("fear/v1.mp4", "fear/v1.wav", "fear/i1.jpg", "fear/v2.ts")
    write_clip(root / "fear/s1.wav", codec=None, sound="pcm_s16le")
    (root / "fear/gone.mp4").symlink_to("nowhere.mp4")
    run = prepared(root, "custom --check", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert [name for name, _ in labels_by_clip(tmp_path / "out", root)] == ["fear/s1.wav", "fear/v1.mp4"]
    left_out = list(csv.DictReader((tmp_path / "out/grpo_left_out.csv").open()))
    assert {row["name"]: row["reason"].partition(":")[0] for row in left_out} == {
        "fear/gone.mp4": "broken link",
        "fear/v1.wav": "sound of a video",
        "fear/v2.ts": "no clip by its suffix",
        "fear": "pictures",
    }
    table = {Path(row["clip"]).name: row["problems"] for row in csv.DictReader((tmp_path / "out/clips.csv").open())}
    assert table["s1.wav"] == "no pictures"


def record_line(video: str, question: str, **more: object) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "anger"}]
    return json.dumps({"video": video, "conversations": turns} | more)


def test_parts_of_a_clip_and_questions_about_it_are_records_of_their_own(
    clip: Path, root: Path, tmp_path: Path
) -> None:
    made = Layout(root, clip)
    made.clips("a.mp4")
    parts = [record_line("a.mp4", "Who?", start=start, end=start + 0.1) for start in (0, 0.1, 0.2)]
    made.text("mine.jsonl", *parts, record_line("a.mp4", "What?"), record_line("a.mp4", "Why?"), parts[1])
    made.text("dataset_info.json", *json.dumps({"splits": {"train": {}}, "files": [1]}, indent=1).split("\n"))
    made.text("other.jsonl", '{"metric": 1}', '{"metric": 2}')
    run = prepared(root, "records", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert f"{root}/dataset_info.json holds no records and is passed over" in run.stderr
    records = list(read_records(tmp_path / "out/grpo_mine.jsonl"))
    assert [record.id for record in records] == ["records-a", *(f"records-a#{copy}" for copy in range(2, 6))]  # type: ignore[union-attr]
    assert [row["reason"] for row in csv.DictReader((tmp_path / "out/grpo_left_out.csv").open())] == ["listed twice"]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("line", ['{"video": "a.mp4"', "{}"])
def test_a_file_of_records_with_something_else_in_it_is_named(
    place: int, line: str, clip: Path, root: Path, tmp_path: Path
) -> None:
    made = Layout(root, clip)
    made.clips("a.mp4")
    lines = [record_line("a.mp4", "Who?"), record_line("a.mp4", "Why?")]
    made.text("mine.jsonl", *lines[:place], line, *lines[place:])
    run = prepared(root, "records", tmp_path / "out")
    assert run.returncode == 1
    assert f"{root}/mine.jsonl:{place + 1}: " in run.stderr


def labels_by_clip(output: Path, base: Path, split: str = "all") -> list[tuple[str, str]]:
    """Clip from `base` and target of each record."""
    records = read_records(output / f"grpo_{split}.jsonl")
    return [(Path(record.video).relative_to(base).as_posix(), record.target or "") for record in records]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("clips", "names", "paired", "reason"),
    [
        (["spk2/1.mp4"], ["spk1/1.mp4", "spk2/1.mp4"], {"spk2/1.mp4": "spk2/1.mp4"}, "no such clip"),
        (["1.mp4", "spk2/1.mp4"], ["spk1/1.mp4", "spk2/1.mp4"], {"spk2/1.mp4": "spk2/1.mp4"}, "no such clip"),
        (["s/1.mp4", "s/01.mp4"], ["1.mp4", "01"], {"1.mp4": "s/1.mp4", "01": "s/01.mp4"}, None),
        (["s/a.mp4", "s/A.mp4"], ["a", "A.mp4"], {"a": "s/a.mp4", "A.mp4": "s/A.mp4"}, None),
        (["c.mp4", "backup/c.mp4"], ["c.mp4"], {"c.mp4": "c.mp4"}, None),
        (["s/a.mp4", "s/a.avi"], ["a.avi"], {"a.avi": "s/a.avi"}, None),
        (["s/01.mp4"], ["1.mp4", "01.mp4"], {"01.mp4": "s/01.mp4"}, "no clip of its own"),
        (["data/a.mp4"], ["data/a.mp4", "old/data/a.mp4"], {"data/a.mp4": "data/a.mp4"}, "no clip of its own"),
        (["data/a.mp4"], ["/gone/mine/data/a.mp4"], {"/gone/mine/data/a.mp4": "data/a.mp4"}, None),
        (["data/a.avi"], ["data/a"], {"data/a": "data/a.avi"}, None),
    ],
)  # fmt: skip
def test_a_label_goes_with_the_clip_it_was_given_for(
    clips: list[str], names: list[str], paired: dict[str, str], reason: str | None,
    clip: Path, root: Path, tmp_path: Path,
) -> None:  # fmt: skip
    made = Layout(root, clip)
    made.clips(*clips)
    labels = dict(zip(names, ("anger", "fear"), strict=False))
    made.text("labels.csv", "video,label", *(f"{name},{label}" for name, label in labels.items()))
    run = prepared(root, "custom --table labels.csv", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert labels_by_clip(tmp_path / "out", root) == [(file, labels[name]) for name, file in paired.items()]
    left_out = list(csv.DictReader((tmp_path / "out/grpo_left_out.csv").open()))
    assert [row["name"] for row in left_out] == [name for name in names if name not in paired]
    assert all(row["reason"].startswith(reason or "never") for row in left_out)


def test_check_makes_a_table_marks_silent_clips_and_leaves_unreadable_ones_out(
    clip: Path, root: Path, tmp_path: Path
) -> None:
    layouts.mafw(Layout(root, clip))
    clips = root / "data/clips"
    (clips / "00002.mp4").unlink()
    write_clip(clips / "00002.mp4", frames=12, sound=None)
    (clips / "00003.mp4").unlink()
    (clips / "00003.mp4").write_bytes(clip.read_bytes()[:900])
    run = prepared(root, "mafw --task infer --fold 1", tmp_path / "out", "--check", "--workers", "2")
    assert run.returncode == 0, run.stderr
    table = {Path(row["clip"]).name: row for row in csv.DictReader((tmp_path / "out/clips.csv").open())}
    assert list(table) == ["00001.mp4", "00002.mp4", "00003.mp4"]
    first = table["00001.mp4"]
    assert (first["frames"], first["fps"], first["width"], first["height"], first["audio"]) == (
        "12",
        "25.0",
        "64",
        "48",
        "yes",
    )
    assert float(first["seconds"]) == pytest.approx(0.48)
    assert -40 < float(first["loudness_dbfs"]) < -3
    assert first["problems"] == "shorter than 0.5 s"
    assert (table["00002.mp4"]["audio"], table["00002.mp4"]["problems"]) == ("no", "shorter than 0.5 s; no sound")
    assert table["00003.mp4"]["problems"].startswith("unreadable: ")

    train = [json.loads(line) for line in (tmp_path / "out/fold1/infer_train.jsonl").read_text().splitlines()]
    assert [record["has_audio"] for record in train] == [True, False]
    assert not (tmp_path / "out/fold1/infer_test.jsonl").exists()
    assert "unreadable: " in (tmp_path / "out/fold1/infer_left_out.csv").read_text()


def test_a_mended_clip_is_back_and_statistics_leave_the_table_of_the_check(
    clip: Path, root: Path, tmp_path: Path
) -> None:
    Layout(root, clip).clips("happy/whole.mp4")
    broken = root / "happy/broken.mp4"
    broken.write_bytes(clip.read_bytes()[:900].ljust(clip.stat().st_size))
    assert "(1)" in prepared(root, "custom", tmp_path / "out", "--check").stderr
    table = (tmp_path / "out/clips.csv").read_text()
    assert "unreadable" in table
    script = REPO / "scripts" / "dataset_stats.py"
    command = [sys.executable, script, tmp_path / "out/grpo_all.jsonl", "--output", tmp_path / "out"]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "out/clips.csv").read_text() == table
    assert "whole.mp4" in (tmp_path / "out/stats_clips.csv").read_text()

    times = broken.stat().st_atime_ns, broken.stat().st_mtime_ns
    broken.write_bytes(clip.read_bytes())
    os.utime(broken, ns=times)  # as a frame folder's, whose size and time stay
    log = prepared(root, "custom", tmp_path / "out", "--check").stderr
    assert "1 clips to decode, 1 are known from before" in log
    assert len((tmp_path / "out/grpo_all.jsonl").read_text().splitlines()) == 2


def test_an_interrupted_check_goes_on_and_only_changed_clips_are_decoded_again(
    clip: Path, root: Path, tmp_path: Path
) -> None:
    made = Layout(root, clip)
    made.clips(*(f"happy/{number}.mp4" for number in range(400)))
    command = [
        sys.executable,
        SCRIPT,
        "custom",
        "--root",
        root,
        "--output",
        tmp_path / "out",
        "--check",
        "--workers",
        "2",
    ]
    journal = tmp_path / "out/clip_checks.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    done = journal.read_bytes().count(b"\n")
    assert done < 400
    log = prepared(root, "custom", tmp_path / "out", "--check").stderr
    assert f"{400 - done} clips to decode, {done} are known from before" in log
    table = (tmp_path / "out/clips.csv").read_bytes()
    os.utime(root / "happy/7.mp4", ns=(1, 1))  # all clips are links to one file, so all have changed
    log = prepared(root, "custom", tmp_path / "out", "--check").stderr
    assert "400 clips to decode, 0 are known" in log
    assert (tmp_path / "out/clips.csv").read_bytes() == table


def test_statistics_count_classes_durations_and_sound(toy_world_dir: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    lines = (toy_world_dir / "sft_train.jsonl").read_text().splitlines()
    extra = json.loads(lines[0]) | {"id": "gone", "video": "clips/gone.mp4"}
    (part := tmp_path / "part.jsonl").write_text(json.dumps(json.loads(lines[0]) | {"start": 0.25, "end": 0.75}))
    compound = json.loads(lines[1]) | {"id": "compound"}
    compound["conversations"] = [compound["conversations"][0], {"from": "gpt", "value": "sadness_surprise"}]
    records.write_text("\n".join([*lines, json.dumps(extra), json.dumps(compound), "{torn"]))
    script = REPO / "scripts" / "dataset_stats.py"
    test = toy_world_dir / "test.jsonl"
    command = [sys.executable, script, records, test, part, "--output", tmp_path / "out", "--data_root", toy_world_dir]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    figures = json.loads((tmp_path / "out/stats.json").read_text())
    world = {clip["id"]: clip for clip in json.loads((toy_world_dir / "world.json").read_text())["clips"]}
    train = [clip for clip in world.values() if clip["split"] == "train"]
    assert figures["records"]["records"] == 30
    assert figures["records"]["bad_lines"] == 1
    assert figures["records"]["unreadable"] == 1
    assert figures["records"]["labels"]["compound"] == 1
    assert sum(figures["records"]["labels"].values()) == 30
    heard = [json.loads(lines[1])["id"], *(clip["id"] for clip in train)]
    assert figures["records"]["with_sound"] == sum(world[identity]["audio"] is not None for identity in heard)
    longest = max(clip["duration"] for clip in train)
    assert figures["records"]["seconds"]["100%"] == pytest.approx(longest, abs=0.15)
    assert figures["records"]["words_of_explanation"]["50%"] > 5
    assert figures["test"]["records"] == 14
    assert figures["part"]["seconds"]["50%"] == 0.5
    assert (tmp_path / "out/stats.png").stat().st_size > 10_000
    assert "unreadable" in run.stdout
