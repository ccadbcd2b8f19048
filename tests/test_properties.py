"""What holds for every prompt and every batch, whatever the data writes: cases are drawn by hypothesis."""

import string
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from humanomni.media import Clip
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import PLACEHOLDERS, HumanOmniProcessor
from humanomni.prompts import MODALITIES, PROMPT_STYLES, gate_text, modality_of, user_content

NEW_TOKENS = 6
MARKS = ["<vi_start>", "<vi_end>", "<au_start>", "<au_end>", "<im_start>", "<im_end>"]
TAGS = [*PLACEHOLDERS, *MARKS]
SPACES = ["", " ", "\n", "\r\n", "\t", "\n\n"]

modalities = st.sampled_from(sorted(MODALITIES))
styles = st.sampled_from(sorted(PROMPT_STYLES))
words = st.text(string.ascii_letters + "äß?。<> ", min_size=1, max_size=12)


@st.composite
def tagged(draw: st.DrawFn) -> tuple[str, str]:
    """A question with tags anywhere, in any number, and the same without; and nothing that is half a tag."""
    question = draw(words.filter(lambda text: "<" not in text and text.strip()))
    pieces = [question]
    for tag in draw(st.lists(st.sampled_from(TAGS), max_size=8)):
        pieces.insert(draw(st.sampled_from([0, len(pieces)])), tag + draw(st.sampled_from(SPACES)))
    return "".join(pieces), question.strip()


@settings(derandomize=True, deadline=None)
@given(texts=tagged(), modality=modalities, style=styles)
def test_tags_in_the_data_change_no_prompt(texts: tuple[str, str], modality: str, style: str) -> None:
    written, question = texts
    content = user_content(written, modality, style)
    assert content == user_content(question, modality, style)
    assert content.endswith(question)
    if style != "authors_inference":  # whose gate reads what the data holds
        assert gate_text(written, modality, style) == gate_text(question, modality, style)


@settings(derandomize=True, deadline=None)
@example(parts=["<vid<audio>eo>", "Why?"], modality="text", style="native")
@given(
    parts=st.lists(
        st.one_of(words, st.sampled_from(TAGS), st.sampled_from(["<vid", "eo>", "<aud", "io>"])), max_size=9
    ),
    modality=modalities,
    style=styles,
)
def test_every_medium_stands_once_and_in_its_order(parts: list[str], modality: str, style: str) -> None:
    content = user_content("".join(parts), modality, style)
    assert [content.count(token) for token in PLACEHOLDERS] == [
        int(token.strip("<>") in MODALITIES[modality]) for token in PLACEHOLDERS
    ]
    positions = [content.index(f"<{kind}>") for kind in MODALITIES[modality]]
    assert positions == sorted(positions)
    assert modality_of(content) == modality


@pytest.fixture(scope="module")
def processor(golden_checkpoint: Path) -> HumanOmniProcessor:
    return HumanOmniProcessor.from_pretrained(golden_checkpoint)


@pytest.fixture(scope="module")
def model(golden_checkpoint: Path) -> HumanOmniForConditionalGeneration:
    return HumanOmniForConditionalGeneration.from_pretrained(golden_checkpoint).eval()


@settings(derandomize=True, deadline=None)
@given(question=words, modality=modalities, style=styles, video=st.integers(1, 40), audio=st.integers(1, 40))
def test_a_placeholder_is_repeated_once_a_feature_and_nothing_else_changes(
    processor: HumanOmniProcessor, question: str, modality: str, style: str, video: int, audio: int
) -> None:
    parts = {"tokenizer": processor.tokenizer, "gate_tokenizer": processor.gate_tokenizer}
    parts |= {"image_processor": processor.image_processor, "feature_extractor": processor.feature_extractor}
    another = HumanOmniProcessor(
        **parts,
        chat_template=processor.chat_template,
        num_video_tokens=video,
        num_audio_tokens=audio,
        prompt_style=style,
    )
    prompt = another.prompt(question, modality)
    ids = another.text_inputs([prompt])["input_ids"][0].tolist()
    wanted = {"video": video, "audio": audio, "image": video}
    for token, token_id in zip(PLACEHOLDERS, another.placeholder_ids, strict=True):
        kind = token.strip("<>")
        count = wanted[kind] if kind in MODALITIES[modality] else 0
        assert ids.count(token_id) == count
        if count:
            first = ids.index(token_id)
            assert ids[first : first + count] == [token_id] * count, "a clip's placeholders stand together"
            ids[first : first + count] = [token_id]
            with pytest.raises(ValueError, match="2 times"):
                another.expand(prompt + token)
    assert ids == another.tokenizer(prompt, add_special_tokens=False)["input_ids"]


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, str, Clip]:
    """Modality, question and clip of a row: short and long questions, frames of any shape, sound or none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    size = (draw(st.integers(3, 90)), draw(st.integers(3, 90)))
    frames = torch.randint(0, 256, (8, *size, 3), generator=generator, dtype=torch.uint8).numpy()
    sound = draw(st.sampled_from([0, 1, 400, 16_000]))
    waveform = (0.1 * torch.randn(sound, generator=generator)).numpy() if sound else None
    question = " ".join(draw(st.lists(words, min_size=1, max_size=draw(st.sampled_from([1, 4, 16])))))
    return draw(modalities), question, Clip(frames, waveform, fps=8.0, duration=1.0)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(batch=st.lists(rows(), min_size=2, max_size=5), style=styles)
def test_a_row_of_any_batch_is_the_row_alone(
    model: HumanOmniForConditionalGeneration,
    processor: HumanOmniProcessor,
    batch: list[tuple[str, str, Clip]],
    style: str,
) -> None:
    processor.prompt_style = style

    @torch.no_grad()
    def run(some: list[tuple[str, str, Clip]]) -> tuple[torch.Tensor, list[list[int]]]:
        inputs = processor(
            text=[processor.prompt(question, modality) for modality, question, _ in some],
            clips=[clip for _, _, clip in some],
            gate_text=[question for _, question, _ in some],
        )
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
        return model(**inputs).logits[:, -1], ids[:, -NEW_TOKENS:].tolist()

    logits, ids = run(batch)
    for row, one in enumerate(batch):
        logits_alone, ids_alone = run([one])
        torch.testing.assert_close(logits[row], logits_alone[0], atol=1e-4, rtol=0)
        assert ids[row] == ids_alone[0]
