"""The official layouts in miniature: the folders, lists and traps of the real data sets around one tiny clip.

Each function fills a folder as a user would have it. Names, columns, separators and ids follow the data sets' own
documents; the people and sentences are made up.
"""

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from media_factory import write_clip

from humanomni.prompts import EMOTION_QUESTION

MAFW_ID_COLUMN = 12


class Layout:
    """A folder to fill; clips are links to one encoded file."""

    def __init__(self, root: Path, clip: Path) -> None:
        self.root, self._clip = root, clip

    def clips(self, *names: str) -> None:
        for name in names:
            os.link(self._clip, self._made(name))

    def frames(self, *folders: str) -> None:
        for folder in folders:
            self._made(f"{folder}/00001.jpg").write_bytes(b"never decoded here")

    def text(self, name: str, *lines: str, end: str = "\n", encoding: str = "utf-8") -> None:
        self._made(name).write_bytes("".join(line + end for line in lines).encode(encoding))

    def sheet(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        openpyxl = pytest.importorskip("openpyxl", reason="xlsx needs the extra of that name")
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(list(row))
        book.save(self._made(name))

    def _made(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def encode_clip(path: Path) -> Path:
    """Half a second of pictures and sound."""
    return write_clip(path, frames=12, seconds=0.5, sound_rate=16_000)


def mafw(made: Layout) -> None:
    """Two folds with and without captions; one clip missing, one empty, and what macOS leaves in archives."""
    made.clips("data/clips/00001.mp4", "data/clips/00002.mp4", "data/clips/00003.mp4", "data/clips/._00004.mp4")
    made.text("data/clips/00005.mp4")
    lists = "Train & Test Set/single/{}/set_{}/{}.txt"
    for fold, (train, test) in enumerate(
        [
            (["00001.mp4 anger", "00002.mp4 happiness", "00004.mp4 fear"], ["00003.mp4 helplessness"]),
            (
                ["00003.mp4 helplessness", "00001.mp4 anger", "00001.mp4 anger"],
                ["00002.mp4 happiness", "00005.mp4 fear"],
            ),
        ],
        start=1,
    ):
        made.text(lists.format("no_caption", fold, "train"), *train)
        made.text(lists.format("no_caption", fold, "test"), *test)
        made.text(
            lists.format("with_caption", fold, "train"), "00001.mp4  anger  一位女士皱眉。  A woman frowns,\u2028twice."
        )
        made.text(lists.format("with_caption", fold, "test"), "00003.mp4  helplessness  他叹气。  He sighs.")


def mafw_split(made: Layout) -> None:
    """The renamed copy, with captioned lists only, and clips that somebody made into .avi."""
    made.clips("clips/00001.avi", "clips/00002.avi")
    made.text("split/single/with_caption/set_3/train.txt", "00001.mp4  anger  皱眉。  A woman frowns.", end="\r\n")
    made.text("split/single/with_caption/set_3/test.txt", "00002.mp4  sadness  哭。  He weeps.", end="\r\n")


def mafw_sheet(made: Layout) -> None:
    """Labels/single-set.xlsx and no lists."""
    made.clips("data/clips/00001.mp4", "data/clips/00002.mp4")
    made.sheet("Labels/single-set.xlsx", sheet_rows(("00001.mp4", 1), ("00002.mp4", 11)))


def mafw_compound(made: Layout) -> None:
    """Compound labels as text."""
    made.clips("data/clips/00001.mp4", "data/clips/00002.mp4")
    folder = "Train & Test Set/compound/no_caption/set_1"
    made.text(f"{folder}/train.txt", "00001.mp4 sadness_surprise", "00002.mp4 anger")
    made.text(f"{folder}/test.txt", "00002.mp4 anger_disgust")


def mafw_compound_sheet(made: Layout) -> None:
    """Compound labels as ids."""
    made.clips("data/clips/00001.mp4", "data/clips/00002.mp4")
    made.sheet("Labels/multi-set.xlsx", sheet_rows(("00001.mp4", "6,7"), ("00002.mp4", "1")))


def sheet_rows(*clips: tuple[str, Any]) -> list[list[Any]]:
    header = ["clip"] + [f"annotator {i}" for i in range(1, MAFW_ID_COLUMN)] + ["label"]
    return [header] + [[name] + [0] * (MAFW_ID_COLUMN - 1) + [label] for name, label in clips]


def dfew(made: Layout) -> None:
    """Ids without padding, of videos mixed with .avi; frame folders beside them, which count only without a video."""
    made.clips("clip/1.mp4", "clip/20.avi", "clip/300.mp4")
    made.frames("Clip/clip_224x224_16f/00001", "Clip/clip_224x224_16f/16372")
    split = "EmoLabel_DataSplit/{}(single-labeled)/set_1.csv"
    made.text(split.format("train"), "video_name,label", "1,1", "20,2", "300,4", end="\r\n")
    made.text(split.format("test"), "video_name,label", "16372,7", end="\r\n")


def dfew_renamed(made: Layout) -> None:
    """The renamed copy of the lists with frame folders, padded, and nothing else."""
    made.frames("Clip/clip_224x224_16f/00001", "Clip/clip_224x224_16f/00020")
    made.text("label/single_trainset_2.csv", "video_name,label", "00001,5")
    made.text("label/single_testset_2.csv", "video_name,label", "00020,6")


def ravdess(made: Layout) -> None:
    """Full audio-video speech counts; song, video without sound, and sound without video do not."""
    made.clips(
        "Actor_01/01-01-01-01-01-01-01.mp4",
        "Actor_01/01-01-08-02-02-01-01.mp4",
        "Actor_01/02-01-08-02-02-01-01.mp4",
        "Actor_01/01-02-04-01-01-01-01.mp4",
        "Actor_06/01-01-06-01-02-02-06.mp4",
    )
    made.text("Actor_01/03-01-01-01-01-01-01.wav")


def emer_v1(made: Layout) -> None:
    """One label, several, and none."""
    made.clips("video/sample_00000047.avi", "video/sample_00000669.avi", "video/sample_00001004.avi")
    made.text(
        "dataset-v1/gt-eng.csv",
        "names,emotions,subtitles,reasons",
        'sample_00000047,angry,"How dare you, Li Mei?","In the video, she frowns.\nHer voice is loud."',
        'sample_00000669,"worried,sad",,He looks down.',
        "sample_00001004,,Oh.,She says nothing.",
    )
    made.text(
        "dataset-v1/gt-chi.csv", "names,emotions,subtitles,reasons", "sample_00000047,生气,,她皱眉。", encoding="gbk"
    )


def emer_v2(made: Layout) -> None:
    """No labels of its own; MER2023's list, with its clips, has two of three."""
    made.text(
        "EMER/dataset-v2/final-EMER-reason.csv",
        "name,chinese,english",
        "sample_00000047,她皱眉。,She frowns.",
        "sample_00000669,他低头。,He looks down.",
        "sample_00001004,她沉默。,She says nothing.",
        encoding="utf-8-sig",
    )
    made.clips(*(f"MER2023/train/sample_{number:08d}.avi" for number in (47, 669, 1004)))
    made.text(
        "MER2023/train-label.csv", "name,discrete,valence", "sample_00000047,angry,-3.5", "sample_00001004,neutral,0"
    )


def mer2023(made: Layout) -> None:
    """.avi but for test2; test3 without a valence."""
    made.clips("train/sample_00000001.avi", "test1/sample_00000002.avi", "test2/samplenew_00000003.mp4")
    made.clips("test3/samplenew3_00000004.avi")
    made.text("train-label.csv", "name,discrete,valence", "sample_00000001,worried,-1.5")
    made.text("test1-label.csv", "name,discrete,valence", "sample_00000002,happy,2.0")
    made.text("test2-label.csv", "name,discrete,valence", "samplenew_00000003,surprise,0.5")
    made.text("test3-label.csv", "name,discrete", "samplenew3_00000004,fear")


def mer2024(made: Layout) -> None:
    made.clips("video-labeled/samplenew_00000001.mp4", "video-unlabeled-with-test2noise/sample_00000002.mp4")
    made.text("label-disdim.csv", "name,discrete,valence", "samplenew_00000001,angry,-2.0")


def mer2025(made: Layout) -> None:
    """Labels and reasons in two tracks for two sets; sound lies beside the videos."""
    made.clips("video/sample_00000001.mp4", "video/sample_00000002.mp4")
    made.text("audio/sample_00000001.wav")
    made.text("subtitle_chieng.csv", "name,chinese,english", "sample_00000001,你好,Hello")
    made.text("track2_train_ovmerd.csv", "name,openset", "sample_00000001,\"['angry', 'frustrated']\"")
    made.text("track3_train_ovmerd.csv", "name,reason", "sample_00000001,She frowns.")
    made.text("track2_train_mercaptionplus.csv", "name,openset", 'sample_00000002,"[sad, worried]"')
    made.text("track3_train_mercaptionplus.csv", "name,reason", "sample_00000002,He weeps.")


def merr(made: Layout) -> None:
    made.clips("test3/samplenew3_00000001.avi", "test3/samplenew3_00000002.avi")
    made.text("MERR_coarse_grained.txt", "samplenew3_00000001 12 doubt", "samplenew3_00000002 3 boredom")
    made.text("MERR_coarse_grained.json", json.dumps({"samplenew3_00000001": {"caption": "A raised brow."}}))
    made.text("MERR_fine_grained.txt", "samplenew3_00000001 12 doubt")
    fine = {"caption": "short", "smp_reason_caption": "A raised brow and a drawn-out vowel."}
    made.text("MERR_fine_grained.json", json.dumps({"samplenew3_00000001": fine}))


def records(made: Layout) -> None:
    """An array of records with the paths of another machine, a byte order mark and CRLF."""
    made.clips("mafw/00001.mp4", "dfew/1.mp4")
    answers = {
        "/other/machine/data/mafw/00001.mp4": "<think>She frowns.</think>\n<answer>anger</answer>",
        "dfew/1.mp4": "<think>She smiles.</think>\n<answer>happy</answer>",
    }
    turns = [
        {
            "video": video,
            "conversations": [
                {"from": "human", "value": f"<video>\n<audio>\n{EMOTION_QUESTION}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for video, answer in answers.items()
    ]
    made.text("release.json", json.dumps(turns, indent=1).replace("\n", "\r\n"), encoding="utf-8-sig")
    made.text("preprocessor_config.json", "{}")


def custom_folders(made: Layout) -> None:
    made.clips("train/happy/a.mp4", "train/sad/a.mp4", "test/Angry/b.avi", "test/bored/c.mp4")


CUSTOM_ROWS = [
    ("file", "emotion", "part", "why", "key"),
    ("sub/a.mp4", "Happy", "train", "She smiles.", "k1"),
    ("b", "sorrow", "dev", "He weeps.", "k2"),
]


def custom_table(suffix: str) -> Callable[[Layout], None]:
    """The same two rows in each form."""

    def fill(made: Layout) -> None:
        made.clips("sub/a.mp4", "other/b.avi")
        name = f"labels{suffix}"
        objects = [dict(zip(CUSTOM_ROWS[0], row, strict=True)) for row in CUSTOM_ROWS[1:]]
        match suffix:
            case ".xlsx":
                made.sheet(name, CUSTOM_ROWS)
            case ".json":
                made.text(name, json.dumps(objects))
            case ".jsonl.gz":
                lines = "\n".join(json.dumps(value) for value in objects)
                (made.root / name).write_bytes(gzip.compress(lines.encode()))
            case _:
                separator = {".csv": ",", ".tsv": "\t", ".semicolon.csv": ";"}[suffix]
                made.text(name, *(separator.join(row) for row in CUSTOM_ROWS), end="\r\n", encoding="utf-8-sig")

    return fill
