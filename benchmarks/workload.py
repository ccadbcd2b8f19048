"""What the benchmarks run: HumanOmni at its published sizes with seeded random weights, on clips made here.

Nothing is downloaded. Prompts hold as many tokens as those that the authors' code was measured with; random weights
cost what trained ones cost.
"""

import json
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertTokenizer, Qwen2Config, Qwen2Tokenizer, set_seed

from humanomni import published_towers
from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import EMOTION_QUESTION, MODALITIES, user_content

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SEED = 0
CLIP_SECONDS, CLIP_FPS, CLIP_SIZE = (2, 4, 10), 24, (720, 1280)
DISTINCT_CLIPS = 9
PAN = 400  # pixels that a clip's camera moves over


@dataclass(frozen=True)
class Size:
    """A published size of HumanOmni.

    Attributes:
        text: Qwen2's configuration.
        vision: SigLIP's name.
        projector: a key of :data:`humanomni.configuration.PROJECTOR_TYPES`.
    """

    text: dict[str, Any]
    vision: str
    projector: str

    def config(self) -> HumanOmniConfig:
        """The model's configuration; published towers, of SigLIP one layer less than it has."""
        vision = published_towers._VISION[self.vision].to_dict()
        vision["num_hidden_layers"] -= 1
        return HumanOmniConfig(
            text_config=Qwen2Config(**self.text, rope_parameters={"rope_type": "default", "rope_theta": 1e6}).to_dict(),
            vision_config=vision,
            audio_config=published_towers._AUDIO["whisper-large-v3"].to_dict(),
            bert_config=published_towers._BERT["bert-base-uncased"].to_dict(),
            projector_type=self.projector,
            tie_word_embeddings=self.text["tie_word_embeddings"],
        )


SIZES = {
    "0.5B": Size(
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        vision="siglip-base-patch16-224",
        projector="all_in_one_small",
    ),
    "7B": Size(
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
        vision="siglip-so400m-patch14-384",
        projector="all_in_one",
    ),
}


def make_processor(config: HumanOmniConfig) -> HumanOmniProcessor:
    """The published towers' processors with tokenizers that know the words of the prompt."""
    texts = [user_content(EMOTION_QUESTION), " a e i o u", *(chr(code) for code in range(32, 127))]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts * 4, 1000, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = "<|im_end|>", "<|endoftext|>", CHAT_TEMPLATE
    gate_tokenizer = BertTokenizer(model_max_length=512).train_new_from_iterator(texts, 512, show_progress=False)
    return HumanOmniProcessor.for_config(
        config,
        image_processor=published_towers.image_processor(None, config.vision_config),
        feature_extractor=published_towers.feature_extractor(None, config.audio_config),
        tokenizer=tokenizer,
        gate_tokenizer=gate_tokenizer,
    )


def make_model(config: HumanOmniConfig, device: str, dtype: torch.dtype) -> HumanOmniForConditionalGeneration:
    """The seeded model, drawn where it is to run."""
    set_seed(SEED)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = HumanOmniForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    return model


def save_model(
    config: HumanOmniConfig, processor: HumanOmniProcessor, folder: Path, weights: dict[str, Tensor] | None = None
) -> Path:
    """A model folder that lacks all other weights, so that from_pretrained draws them where they are to be."""
    config.architectures = [HumanOmniForConditionalGeneration.__name__]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_file(weights or {}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def question_of(processor: HumanOmniProcessor, text_tokens: int, modality: str = "video_audio") -> str:
    """A question whose prompt has ``text_tokens`` tokens besides its media's."""
    media = sum(
        {"video": processor.num_video_tokens, "image": processor.num_video_tokens, "audio": processor.num_audio_tokens}[
            kind
        ]
        for kind in MODALITIES[modality]
    )

    def length(question: str) -> int:
        ids = processor.tokenizer(processor.expand(processor.prompt(question, modality)), add_special_tokens=False)
        return len(ids["input_ids"]) - media

    question = EMOTION_QUESTION
    while length(question) < text_tokens:
        question += " a"
    if length(question) != text_tokens:
        raise ValueError(f"no question makes {text_tokens} tokens, the nearest has {length(question)}")
    return question


def make_clips(folder: Path, count: int) -> list[Path]:
    """Clips like those of the paper's demo page: 720p H.264 with B-frames and one key frame, AAC sound.

    Like those they last 2, 4 and 10 s, have about 1.1 Mbit/s and cost a core 1.6 to 2.3 ms a frame to decode whole. A
    few are encoded and the others copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.mp4" for number in range(count)]
    with ThreadPoolExecutor(DISTINCT_CLIPS) as pool:
        list(pool.map(_encode_clip, paths[:DISTINCT_CLIPS], range(DISTINCT_CLIPS)))
    for number, path in enumerate(paths[DISTINCT_CLIPS:]):
        shutil.copy(paths[number % DISTINCT_CLIPS], path)
    return paths


def _encode_clip(path: Path, seed: int) -> None:
    seconds = CLIP_SECONDS[seed % len(CLIP_SECONDS)]
    draw = np.random.default_rng(seed)
    height, width = CLIP_SIZE
    picture = _picture(draw)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=CLIP_FPS)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=48_000, layout="mono")
        for number in range(seconds * CLIP_FPS):
            # The camera pans, and there is grain: without it a codec would copy the picture.
            angle = 2 * number / CLIP_FPS
            x, y = (int(PAN / 2 * (1 + math.sin(phase))) for phase in (angle, 0.7 * angle))
            shown = picture[y : y + height, x : x + width] + draw.normal(0, 2.5, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(shown, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, CLIP_FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = draw.uniform(-0.3, 0.3, seconds * 48_000).astype(np.float32)
        for begin in range(0, len(wave), 1024):
            sound = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, begin, Fraction(1, 48_000)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def _picture(draw: np.random.Generator) -> np.ndarray:
    """Coarse and fine texture, larger than a frame."""
    height, width = (side + PAN for side in CLIP_SIZE)
    scales = {160: 1.0, 40: 0.5, 10: 0.3, 4: 0.3}  # pixels of a patch, and its weight
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for patch, weight in scales.items():
        coarse = draw.integers(0, 255, (height // patch, width // patch, 3), dtype=np.uint8)
        picture += weight * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return picture / sum(scales.values())


def write_records(path: Path, clips: Sequence[Path], question: str, target: str) -> Path:
    """A JSONL of one record for each of ``clips``, which may repeat."""
    rows = [
        {
            "id": f"{number}-{clip.stem}",
            "video": str(clip),
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": target}],
        }
        for number, clip in enumerate(clips)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
