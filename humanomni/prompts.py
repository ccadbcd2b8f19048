"""The one place where prompts are written: supervised fine-tuning, GRPO and inference all ask in the same words.

The authors' three programs differ from one another in tags, newlines and gate text; a model trained here meets at
inference the prompt that it was trained with. For their checkpoints, each of the three is a named style.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

VIDEO_TOKEN, AUDIO_TOKEN, IMAGE_TOKEN = "<video>", "<audio>", "<image>"

EMOTION_QUESTION = (
    "As an emotional recognition expert; throughout the video, which emotion conveyed by the characters is the most "
    "obvious to you? Output the thinking process in <think> </think> and final emotion in <answer> </answer> tags."
)

# Start and end marks are plain text to the tokenizer, as in the published checkpoints.
_WRAPPED = {
    "video": f"<vi_start>{VIDEO_TOKEN}<vi_end>",
    "audio": f"<au_start>{AUDIO_TOKEN}<au_end>",
    "image": f"<im_start>{IMAGE_TOKEN}<im_end>",
}

# What `--modal` names, in the order in which the media stand in the prompt.
MODALITIES: dict[str, tuple[str, ...]] = {
    "video_audio": ("video", "audio"),
    "video": ("video",),
    "audio": ("audio",),
    "image": ("image",),
    "text": (),
}

_TAGS = re.compile(r"<(?:video|audio|image|(?:vi|au|im)_(?:start|end))>\s*")


def strip_media_tags(text: str) -> str:
    """The question alone: data sets write the media tags before it, some inference inputs do not."""
    while (stripped := _TAGS.sub("", text)) != text:  # again, for a tag may stand in the middle of another
        text = stripped
    return text.strip()


@dataclass(frozen=True)
class PromptStyle:
    """How a question and its media become the user's turn and the gate's text.

    Attributes:
        gate: the gate's text of (question as it was given, user's turn).
        before: what stands before the media.
        extra_newlines: newlines between media and question, beyond the one, by the number of media.
    """

    gate: Callable[[str, str], str]
    before: str = ""
    extra_newlines: Callable[[int], int] = lambda media: 0


def _as_given(question: str, turn: str) -> str:
    return question


def _without_tags(question: str, turn: str) -> str:
    return strip_media_tags(question)


def _turn_in_one_line(question: str, turn: str) -> str:
    return re.sub(f"{IMAGE_TOKEN}|{VIDEO_TOKEN}|\n", "", turn)


# `native` is what is trained here. The authors' SFT moves the tags of its data to the front one by one, and each
# leaves its newline behind; the gate reads the whole turn, of which they forget to take <audio> out. Their GRPO renders
# the clip a second time, by Qwen2-VL's template. Their inference gives the gate the tags that the data holds (and
# doubles them in the prompt, which no style does here).
PROMPT_STYLES = {
    "native": PromptStyle(gate=_without_tags),
    "authors_sft": PromptStyle(gate=_turn_in_one_line, extra_newlines=lambda media: 2 * max(media - 1, 0)),
    "authors_grpo": PromptStyle(gate=_without_tags, before="<|vision_start|><|video_pad|><|vision_end|>"),
    "authors_inference": PromptStyle(gate=_as_given),
}


def user_content(question: str, modality: str = "video_audio", style: str = "native") -> str:
    """What the user says: the wrapped placeholders of the modality, then the question.

    Tags already in the question are not doubled.

    Raises:
        ValueError: for an unknown modality or style.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}; known are {', '.join(MODALITIES)}")
    require_style(style)
    media = [_WRAPPED[kind] + "\n" for kind in MODALITIES[modality]]
    newlines = "\n" * PROMPT_STYLES[style].extra_newlines(len(media))
    return PROMPT_STYLES[style].before + "".join(media) + newlines + strip_media_tags(question)


def gate_text(question: str, modality: str = "video_audio", style: str = "native") -> str:
    """What the gate's BERT reads of a question; raises as :func:`user_content`."""
    turn = user_content(question, modality, style)
    return PROMPT_STYLES[style].gate(question, turn)


def modality_of(prompt: str) -> str:
    """The modality whose placeholders a prompt holds.

    Raises:
        ValueError: when they are those of none, as an image with sound.
    """
    held = tuple(kind for kind in _WRAPPED if f"<{kind}>" in prompt)
    for modality, media in MODALITIES.items():
        if held == media:
            return modality
    raise ValueError(f"the prompt {prompt[:120]!r} shows {' and '.join(held)}; known are {', '.join(MODALITIES)}")


def require_style(style: str) -> None:
    """Checks the name of a style.

    Raises:
        ValueError: when it is no key of :data:`PROMPT_STYLES`.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt_style is {style!r}; known are {', '.join(PROMPT_STYLES)}")


@dataclass(frozen=True)
class Turn:
    """A question about a clip, or about the part of it between two seconds.

    Attributes:
        question: as the data gives it.
        video: the clip's path; None where the modality is text.
    """

    question: str
    video: str | None = None
    modality: str = "video_audio"
    start: float | None = None
    end: float | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """One message whose media parts carry the clip: what the GRPO data set holds."""
        span = {"start": self.start, "end": self.end}
        media = [{"type": kind, kind: self.video, **span} for kind in MODALITIES[self.modality]]
        return [{"role": "user", "content": [*media, {"type": "text", "text": self.question}]}]

    @classmethod
    def of(cls, conversation: Sequence[dict[str, Any]]) -> Self:
        """The way back of :meth:`conversation`."""
        parts = conversation[-1]["content"]
        question = next(part["text"] for part in parts if part["type"] == "text")
        media = [part for part in parts if part["type"] != "text"]
        if not media:
            return cls(question, modality="text")
        first = media[0]
        modality = "_".join(part["type"] for part in media)
        return cls(question, first[first["type"]], modality, first["start"], first["end"])
