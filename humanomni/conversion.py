"""Published (legacy) HumanOmni checkpoints to the native format.

A legacy folder holds the language model, towers, BERT, gate and projectors under the authors' names, and a config.json
that points at tower folders by path. The native folder is self-contained.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    GenerationConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor

logger = logging.getLogger(__name__)

# Legacy key patterns and their native names, the first match counting.
_CONVERTED = [
    (r"model\.(embed_tokens|layers|norm)\.(.+)", r"model.language_model.\1.\2"),
    (r"lm_head\.(.+)", r"lm_head.\1"),
    (
        r"model\.vision_tower\.vision_tower\.vision_model\.(embeddings|encoder)\.(.+)",
        r"model.vision_tower.\1.\2",
    ),
    (r"model\.audio_tower\.audio_tower\.encoder\.(.+)", r"model.audio_tower.\1"),
    (r"model\.audio_projector\.(.+)", r"model.audio_projector.\1"),
    (r"model\.bert_model\.(embeddings|encoder)\.(.+)", r"model.bert.\1.\2"),
    (r"model\.bert_gate\.(.+)", r"model.gate.\1"),
    (r"model\.mm_projector\.mlp_2xgelu_face\.(.+)", r"model.projector.face.mlp.\1"),
    (r"model\.mm_projector\.readout_(video|body)\.(.+)", r"model.projector.\1.readout.\2"),
    (r"model\.mm_projector\.sampler_(video|body)\.0\.(.+)", r"model.projector.\1.sampler.\2"),
]
_REG_BLOCK = re.compile(r"model\.mm_projector\.s([12])_(video|body)\.b(\d+)\.(.+)")
_VISION_LAYER = re.compile(r"model\.vision_tower\.vision_tower\.vision_model\.encoder\.layers\.(\d+)\.")

# Keys that the model never reads, with the reason that is reported.
_DROPPED = [
    (
        r"model\.vision_tower\.vision_tower\.vision_model\.(head|post_layernorm)\..+",
        "SigLIP's pooling head is not read",
    ),
    (
        r"model\.audio_tower\.audio_tower\.(projector|classifier)\..+",
        "Whisper's classification head is not read",
    ),
    (r"model\.bert_model\.pooler\..+", "the gate reads BERT's CLS state, not its pooler"),
]


class ConversionError(ValueError):
    """A legacy folder that cannot be converted; the message names the folder, the key and the mend."""


@dataclass
class ConversionReport:
    """What became of every tensor: native names by legacy key, and reasons by dropped key."""

    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def native_key(key: str, vision_layers: int) -> tuple[str | None, str | None]:
    """Native name of a legacy key, or the reason for which it is dropped.

    Args:
        key: the legacy name.
        vision_layers: SigLIP layers that the native tower keeps.

    Returns:
        (native name, None), (None, reason), or (None, None) for a key of no known form.
    """
    if (layer := _VISION_LAYER.match(key)) and int(layer[1]) >= vision_layers:
        return None, "HumanOmni reads SigLIP's last but one layer"
    for pattern, reason in _DROPPED:
        if re.fullmatch(pattern, key):
            return None, reason
    if block := _REG_BLOCK.fullmatch(key):
        stage, branch, number, leaf = block.groups()
        leaf = leaf.replace("downsample.", "shortcut.").replace(".bn.", ".norm.")
        return f"model.projector.{branch}.stage{stage}.{int(number) - 1}.{leaf}", None
    for pattern, name in _CONVERTED:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key), None
    return None, None


def native_config(
    legacy: dict[str, Any], vision: SiglipVisionConfig, audio: WhisperConfig, bert: BertConfig
) -> HumanOmniConfig:
    """The native configuration of a legacy config.json and its three encoders' own configurations.

    Raises:
        ConversionError: when config.json asks for something that no published checkpoint has.
    """
    for key, expected in (
        ("mm_vision_select_layer", -2),
        ("mm_vision_select_feature", "patch"),
        ("mm_use_x_start_end", True),
    ):
        if legacy.get(key, expected) != expected:
            raise ConversionError(f"config.json has {key} = {legacy[key]!r}; only {expected!r} is known")
    vision = SiglipVisionConfig(**{**vision.to_dict(), "num_hidden_layers": vision.num_hidden_layers - 1})
    text_fields = {
        k: v for k, v in legacy.items() if not k.startswith("mm_") and k not in ("model_type", "architectures")
    }
    text = Qwen2Config(**text_fields)
    return HumanOmniConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        bert_config=bert,
        projector_type=legacy["mm_projector_type"],
        num_frames=legacy.get("num_frames", 8),
        tie_word_embeddings=text.tie_word_embeddings,
    )


def convert(
    legacy: Path,
    output: Path,
    vision_tower: Path,
    audio_tower: Path,
    bert: Path,
    dtype: torch.dtype | None = None,
) -> ConversionReport:
    """Converts a legacy folder into a self-contained native one.

    Args:
        legacy: folder with config.json, tokenizer and safetensors weights.
        vision_tower, audio_tower: the published SigLIP and Whisper folders that config.json names by path.
        bert: the BERT folder, for the gate's configuration and tokenizer.
        dtype: of the written weights; None keeps the checkpoint's.

    Raises:
        ConversionError: for a missing file, an unknown key, a missing or a misshapen tensor.
    """
    fields = _read_json(legacy / "config.json")
    config = native_config(
        fields,
        SiglipVisionConfig.from_pretrained(vision_tower),
        WhisperConfig.from_pretrained(audio_tower),
        BertConfig.from_pretrained(bert),
    )
    processor = HumanOmniProcessor.for_config(
        config,
        tokenizer=AutoTokenizer.from_pretrained(legacy),
        gate_tokenizer=AutoTokenizer.from_pretrained(bert),
        image_processor=SiglipImageProcessorPil.from_pretrained(vision_tower),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(audio_tower),
    )
    with torch.device("meta"):
        model = HumanOmniForConditionalGeneration(config)
    report = ConversionReport()
    state = dict(_converted_tensors(legacy, config, report))
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.language_model.embed_tokens.weight"])
    _check_complete(model.state_dict(), state, legacy)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    if dtype is not None:
        model.to(dtype)  # type: ignore[arg-type] # transformers' decorator hides the signature
    generation = legacy / "generation_config.json"
    if generation.is_file():
        model.generation_config = GenerationConfig.from_pretrained(legacy)
    model.generation_config.suppress_tokens = processor.placeholder_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(output)
    processor.save_pretrained(output)
    logger.info("converted %d tensors of %s into %s", len(report.converted), legacy, output)
    for reason in sorted(set(report.dropped.values())):
        count = sum(r == reason for r in report.dropped.values())
        logger.info("left out %d tensors: %s", count, reason)
    return report


def _converted_tensors(legacy: Path, config: HumanOmniConfig, report: ConversionReport) -> Iterator[tuple[str, Tensor]]:
    files = sorted(legacy.glob("*.safetensors"))
    if not files:
        raise ConversionError(f"{legacy} holds no .safetensors file")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                name, reason = native_key(key, config.vision_config.num_hidden_layers)
                if name is not None:
                    report.converted[key] = name
                    yield name, tensors.get_tensor(key)
                elif reason is not None:
                    report.dropped[key] = reason
                else:
                    raise ConversionError(f"{file}: {key} is no key of a HumanOmni checkpoint")


def _check_complete(wanted: dict[str, Tensor], found: dict[str, Tensor], legacy: Path) -> None:
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} has no place in the model" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(found[name].shape)} where the configuration makes {tuple(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    if problems:
        listed = "\n  ".join(sorted(problems)[:20])
        raise ConversionError(f"{legacy}: {len(problems)} tensors do not fit:\n  {listed}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path} does not exist; --legacy is a folder with a config.json") from None
