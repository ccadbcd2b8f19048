"""The one place where prompts are written: supervised fine-tuning, GRPO and inference all ask in the same words.

The authors' three programs differ from one another in tags, newlines and gate text; a model trained here meets at
inference the prompt that it was trained with.
"""

import re
from typing import Any

VIDEO_TOKEN, AUDIO_TOKEN, IMAGE_TOKEN = "<video>", "<audio>", "<image>"

EMOTION_QUESTION = (
    "As an emotional recognition expert; throughout the video, which emotion conveyed by the characters is the most "
    "obvious to you? Output the thinking process in <think> </think> and final emotion in <answer> </answer> tags."
)

# Start and end marks are plain text to the tokenizer, as in the published checkpoints.
_WRAPPED = {
    "video": f"<vi_start>{VIDEO_TOKEN}<vi_end>\n",
    "audio": f"<au_start>{AUDIO_TOKEN}<au_end>\n",
    "image": f"<im_start>{IMAGE_TOKEN}<im_end>\n",
}

# What `--modal` names, in the order in which the media stand in the prompt.
MODALITIES: dict[str, tuple[str, ...]] = {
    "video_audio": ("video", "audio"),
    "video": ("video",),
    "audio": ("audio",),
    "image": ("image",),
    "text": (),
}

_TAGS = re.compile(r"<(?:video|audio|image)>\s*")


def strip_media_tags(text: str) -> str:
    """The question alone: data sets write the media tags before it, some inference inputs do not."""
    return _TAGS.sub("", text).strip()


def user_content(question: str, modality: str = "video_audio") -> str:
    """What the user says: the wrapped placeholders of the modality, then the question.

    Tags already in the question are not doubled.

    Raises:
        ValueError: for an unknown modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}; known are {', '.join(MODALITIES)}")
    return "".join(_WRAPPED[kind] for kind in MODALITIES[modality]) + strip_media_tags(question)


def conversation(question: str, video: str | None = None, modality: str = "video_audio") -> list[dict[str, Any]]:
    """A one-turn conversation whose media parts carry the clip's path: what the GRPO data set holds."""
    media = [{"type": kind, kind: video} for kind in MODALITIES[modality]]
    return [{"role": "user", "content": [*media, {"type": "text", "text": strip_media_tags(question)}]}]
