"""One clip, one command: the answer, the explanation, and what the judge makes of each sentence."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from media_factory import counter_frame, write_clip
from PIL import Image
from server_process import server_process

from fgce.client import score
from fgce.schema import ScoreItem
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor

EXPLANATION = "The brows are lowered. The voice is loud. The lowered brows and the loud voice show anger."
RESPONSE = f"<think>{EXPLANATION}</think>\n<answer>angry</answer>"

Predict = Callable[..., str]


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model, whose generation_config.json makes it say RESPONSE to everything."""
    output = tmp_path_factory.mktemp("eloquent") / "model"
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)
    processor = HumanOmniProcessor.from_pretrained(tiny_model_dir)
    ids = processor.tokenizer(RESPONSE + processor.tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    # What follows the part that has been said is wanted more than to begin.
    model.generation_config.sequence_bias = [[ids[:end], 50.0 if end == 1 else 100.0] for end in range(1, len(ids) + 1)]
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return output


@pytest.fixture
def predict(model_dir: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Predict:
    """Runs the script in this process and gives what it printed."""

    def run(clip: Path, *flags: object, model: Path = model_dir) -> str:
        monkeypatch.setattr(sys, "argv", ["predict.py", str(clip), "--model", str(model), *map(str, flags)])
        runpy.run_path(str(repo / "scripts/predict.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_clip_is_answered_explained_and_judged(model_dir: Path, toy_world_dir: Path, repo: Path) -> None:
    clip = next((toy_world_dir / "clips").glob("test_*.mp4"))
    with server_process("--config", str(repo / "configs/fgce/lexicon.yaml")) as (url, _):
        command = [sys.executable, repo / "scripts/predict.py", clip, "--model", model_dir, "--fgce", url]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        [expected] = score([ScoreItem(id="x", explanation=EXPLANATION, predicted_emotion="anger")], url).results
    lines = run.stdout.splitlines()
    assert lines[:2] == ["answer: angry", f"explanation: {EXPLANATION}"]
    assert lines[2] == f"S_coh: {expected.score:.2f} of 1 to 5 (unweighted {expected.unweighted:.2f})"
    assert lines[3:-1] == [f"  [{s.function}, {s.modality}, {s.score}] {s.text}" for s in expected.sentences]
    assert len(expected.sentences) == 3
    assert re.fullmatch(r"judged by lexicon english, rubric \S+", lines[-1])


@pytest.mark.parametrize(
    "name", ["film.mp4", "silent.mp4", "picture.png", "sound.wav", "frames"], ids=lambda name: Path(name).stem
)
def test_a_clip_may_be_of_any_kind(name: str, predict: Predict, tmp_path: Path) -> None:
    clip = tmp_path / name
    if clip.suffix == ".mp4":
        write_clip(clip, frames=20, sound=None if "silent" in name else "aac")
    elif clip.suffix == ".wav":
        write_clip(clip, codec=None, sound="pcm_s16le")
    elif clip.suffix == ".png":
        Image.fromarray(counter_frame(3)).save(clip)
    else:
        clip.mkdir()
        for number in range(3):
            Image.fromarray(counter_frame(number)).save(clip / f"{number}.png")
    said = f"answer: angry\nexplanation: {EXPLANATION}\n"
    assert predict(clip) == said + "The clip has no sound: the model heard silence.\n" * (
        name in ("silent.mp4", "frames")
    )


def test_a_part_of_a_clip_and_a_question_of_ones_own(predict: Predict, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "x.mp4")
    out = predict(clip, "--start", 0.5, "--end", 1, "--question", "Why?", "--modality", "video")
    assert out.startswith("answer: angry\n")
    with pytest.raises(SystemExit, match="no frame between second 5 and 6: it lasts 2"):
        predict(clip, "--start", 5, "--end", 6)


def test_a_judge_that_is_not_there_takes_nothing_from_the_answer(predict: Predict, tmp_path: Path) -> None:
    out = predict(write_clip(tmp_path / "x.mp4"), "--fgce", "http://127.0.0.1:9")
    assert f"explanation: {EXPLANATION}\nS_coh: missing (unreachable: " in out


def test_a_response_without_the_form_is_shown_as_it_is(predict: Predict, tmp_path: Path) -> None:
    out = predict(write_clip(tmp_path / "x.mp4"), "--max_new_tokens", 5)
    assert "answer: None\nexplanation: None\n" in out
    assert "not of the form that was asked for: '<think>" in out


def test_what_cannot_be_asked_is_said_at_once(predict: Predict, tmp_path: Path) -> None:
    legacy = tmp_path / "R1-Omni-0.5B"
    legacy.mkdir()
    (legacy / "config.json").write_text('{"model_type": "HumanOmni_qwen2"}')
    clip = write_clip(tmp_path / "x.mp4")
    note = tmp_path / "note.mp4"
    note.write_text("no clip")
    for path, model, message in (
        (tmp_path / "absent.mp4", None, "absent.mp4: no such file or folder"),
        (note, None, "note.mp4: damaged, or not a media file"),
        (clip, legacy, r"scripts/convert_checkpoint\.py --legacy"),
        (clip, tmp_path / "nowhere", "nowhere is no folder"),
    ):
        with pytest.raises(SystemExit, match=f"predict: .*{message}"):
            predict(path, **({} if model is None else {"model": model}))
    with pytest.raises(SystemExit, match="holds no pictures"):
        predict(write_clip(tmp_path / "x.wav", codec=None, sound="pcm_s16le"), "--modality", "video")
