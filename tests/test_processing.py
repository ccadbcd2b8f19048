"""What the processor makes of a clip: the part, the media and the gate text that a modality asks for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from media_factory import read_counters, write_clip

from humanomni.media import MediaError
from humanomni.processing import PLACEHOLDERS, HumanOmniProcessor
from humanomni.prompts import MODALITIES
from humanomni.training.clips import ClipLoader


@pytest.fixture(scope="module")
def processor(golden_checkpoint: Path) -> HumanOmniProcessor:
    return HumanOmniProcessor.from_pretrained(golden_checkpoint)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "x.mp4")


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_prompt_holds_a_placeholder_a_feature_and_no_other(modality: str, processor: HumanOmniProcessor) -> None:
    ids = processor.text_inputs([processor.prompt("<video>\n<audio>\nWhy?", modality)])["input_ids"]
    counts = [int((ids == token).sum()) for token in processor.placeholder_ids]
    tokens = (processor.num_video_tokens, processor.num_audio_tokens, processor.num_video_tokens)
    names = [token.strip("<>") for token in PLACEHOLDERS]
    assert counts == [n * (name in MODALITIES[modality]) for name, n in zip(names, tokens, strict=True)]


def test_a_clip_gives_what_its_modality_asks_for(processor: HumanOmniProcessor, clip: Path) -> None:
    shown = {modality: processor.load_clip(clip, modality) for modality in MODALITIES if modality != "text"}
    assert {name: (c.frames is not None, c.has_audio) for name, c in shown.items()} == {
        "video_audio": (True, True),
        "video": (True, False),
        "audio": (False, True),
        "image": (True, False),
    }
    assert len(set(read_counters(shown["video"].frames))) == processor.num_frames
    assert read_counters(shown["image"].frames) == [25] * processor.num_frames, "the middle one of 50"


def test_a_part_of_a_clip(processor: HumanOmniProcessor, clip: Path, tmp_path: Path) -> None:
    part = processor.load_clip(clip, start=1.0, end=1.6)
    counters = read_counters(part.frames)
    assert min(counters) >= 24
    assert max(counters) <= 40
    assert len(part.waveform) == 0.6 * 16_000
    loader = ClipLoader(processor, "video_audio", cache=tmp_path)
    spans = [(), (1.0, 1.6), (1.0, None), (1.0, 1.6)]
    first, second, _, again = [loader.load(clip, *span) for span in spans]
    assert len(list(tmp_path.iterdir())) == 3
    assert torch.equal(again.pixels, second.pixels)
    assert torch.equal(second.mel, processor.mel(part.waveform))
    assert not torch.equal(first.pixels, second.pixels)


def test_pictures_that_are_not_there_are_an_error_and_sound_that_is_not_there_is_silence(
    processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    sound = write_clip(tmp_path / "x.wav", codec=None, sound="pcm_s16le")
    with pytest.raises(MediaError, match=r"x\.wav: holds no pictures; of sound alone the modality is audio"):
        processor.load_clip(sound)
    silent = write_clip(tmp_path / "x.mp4", sound=None)
    assert not processor.load_clip(silent, "audio").has_audio
    assert np.all(ClipLoader(processor, "audio").load(silent).mel.numpy() == -1.5)


def test_each_rows_gate_reads_the_text_of_its_own_modality(golden_checkpoint: Path, clip: Path) -> None:
    processor = HumanOmniProcessor.from_pretrained(golden_checkpoint, prompt_style="authors_sft")
    modalities = ["video_audio", "video", "text"]
    prompts = [processor.prompt("Why?", modality) for modality in modalities]
    clips = [processor.load_clip(clip), processor.load_clip(clip, "video"), None]
    batch = processor(text=prompts, clips=clips, gate_text=["Why?"] * 3)
    alone = [processor.gate_inputs(["Why?"], modality)["gate_input_ids"][0] for modality in modalities]
    assert len({tuple(row.tolist()) for row in alone}) == 3
    for row, expected in zip(batch["gate_input_ids"], alone, strict=True):
        assert row[: len(expected)].equal(expected)
