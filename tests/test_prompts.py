"""The prompts' styles: ours, and the authors' three as their golden data shows them."""

import json
from pathlib import Path

import pytest

from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import EMOTION_QUESTION, MODALITIES, PROMPT_STYLES, Turn, gate_text, modality_of, user_content

STYLES = sorted(PROMPT_STYLES)
MEDIA = "<vi_start><video><vi_end>\n<au_start><audio><au_end>\n"


@pytest.mark.parametrize(
    ("style", "content", "gate"),
    [
        ("native", f"{MEDIA}Why?", "Why?"),
        ("authors_inference", f"{MEDIA}Why?", "Why?"),
        ("authors_sft", f"{MEDIA}\n\nWhy?", "<vi_start><vi_end><au_start><audio><au_end>Why?"),
        ("authors_grpo", f"<|vision_start|><|video_pad|><|vision_end|>{MEDIA}Why?", "Why?"),
    ],
)
def test_styles(style: str, content: str, gate: str) -> None:
    assert user_content("Why?", style=style) == content
    assert user_content("<video>\n<audio>\nWhy?", style=style) == content
    assert gate_text("Why?", style=style) == gate
    tagged = gate_text("<video>\nWhy?", style=style)
    assert tagged == ("<video>\nWhy?" if style == "authors_inference" else gate)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_conversation_gives_its_turn_back(modality: str) -> None:
    span = (None, None, None) if modality == "text" else ("clips/a.mp4", 1.5, None)
    turn = Turn("<video>\nWhy?", span[0], modality, *span[1:])
    assert Turn.of(turn.conversation()) == turn
    assert modality_of(user_content(turn.question, modality)) == modality


def test_an_image_with_sound_is_no_modality() -> None:
    with pytest.raises(ValueError, match="shows audio and image"):
        modality_of("<image>\n<audio>\nWhy?")


def test_a_folder_remembers_its_style(golden_checkpoint: Path, tmp_path: Path) -> None:
    processor = HumanOmniProcessor.from_pretrained(golden_checkpoint)
    assert processor.prompt_style == "native"
    processor.prompt_style = "authors_grpo"
    processor.save_pretrained(tmp_path)
    again = HumanOmniProcessor.from_pretrained(tmp_path)
    assert "<|video_pad|>" in again.prompt(EMOTION_QUESTION)


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="'polite'.*authors_sft"):
        user_content("Why?", style="polite")


def test_the_authors_own_prompts(golden_checkpoint: Path, shared_dir: Path) -> None:
    folder = shared_dir / "golden/golden/small-A"
    processor = HumanOmniProcessor.from_pretrained(golden_checkpoint)
    grpo = json.loads((folder / "grpo.json").read_text())
    processor.prompt_style = "authors_grpo"
    assert processor.prompt(EMOTION_QUESTION) == grpo["prompt"]
    assert gate_text(EMOTION_QUESTION, style="authors_grpo") == grpo["bert_text"]
    sft = json.loads((folder / "sft.json").read_text())
    for record, sample in zip(sft["records"], sft["samples"], strict=True):
        assert gate_text(record["conversations"][0]["value"], style="authors_sft") == sample["bert_text"]
    for case in json.loads((folder / "clip_01.json").read_text())["cases"].values():
        # Their inference gives the gate what the data holds, tags included.
        assert gate_text(case["instruct"], style="authors_inference") == case["bert_text"]
