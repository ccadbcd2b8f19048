"""The encoders of the published HumanOmni checkpoints: recognised by their tensors' shapes, or read from a folder.

A checkpoint's config.json names its towers by paths of the machine that it was trained on; these are not looked at.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from humanomni.legacy_keys import AUDIO_PREFIX, BERT_PREFIX, VISION_PREFIX
from humanomni.weight_files import ConversionError

Shapes = Mapping[str, torch.Size]

_VISION = {
    "siglip-base-patch16-224": SiglipVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    ),
    "siglip-so400m-patch14-384": SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
}
_AUDIO = {
    "whisper-large-v3": WhisperConfig(
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_layers=32,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
        num_mel_bins=128,
        max_source_positions=1500,
        vocab_size=51866,
    )
}
_BERT = {"bert-base-uncased": BertConfig()}


def vision_config(folder: Path | None, shapes: Shapes) -> SiglipVisionConfig:
    """SigLIP's whole vision tower, from its folder or by the checkpoint's shapes.

    Raises:
        ConversionError: without a folder, when the tensors are absent or of no published tower.
    """
    return _config(folder, SiglipVisionConfig, _VISION, _vision_shapes, shapes, VISION_PREFIX, "--vision_tower")


def audio_config(folder: Path | None, shapes: Shapes) -> WhisperConfig:
    """Whisper; raises as :func:`vision_config`."""
    return _config(folder, WhisperConfig, _AUDIO, _audio_shapes, shapes, AUDIO_PREFIX, "--audio_tower")


def bert_config(folder: Path | None, shapes: Shapes) -> BertConfig:
    """The gate's BERT; raises as :func:`vision_config`."""
    return _config(folder, BertConfig, _BERT, _bert_shapes, shapes, BERT_PREFIX, "--bert")


def image_processor(folder: Path | None, config: SiglipVisionConfig) -> SiglipImageProcessorPil:
    """The folder's image processor, or that of both published towers: bicubic, mean and deviation 0.5."""
    if folder is not None:
        return SiglipImageProcessorPil.from_pretrained(_existing(folder, "--vision_tower"))
    size = {"height": config.image_size, "width": config.image_size}
    return SiglipImageProcessorPil(size=size, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def feature_extractor(folder: Path | None, config: WhisperConfig) -> WhisperFeatureExtractor:
    """The folder's feature extractor, or whisper-large-v3's."""
    if folder is not None:
        return WhisperFeatureExtractor.from_pretrained(_existing(folder, "--audio_tower"))
    return WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def gate_tokenizer(folder: Path | None, legacy: Path, config: BertConfig) -> Any:
    """BERT's tokenizer: from its folder, or from a vocab.txt in the checkpoint's own.

    Raises:
        ConversionError: when there is none, or one of more words than the checkpoint's BERT knows.
    """
    if folder is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    elif (legacy / "vocab.txt").is_file():
        tokenizer = BertTokenizer.from_pretrained(legacy, model_max_length=config.max_position_embeddings)
    else:
        raise ConversionError(
            f"the gate's tokenizer is not in {legacy}: give the folder of bert-base-uncased as --bert "
            "(its vocab.txt and tokenizer_config.json suffice), or put its vocab.txt beside the weights"
        )
    if len(tokenizer) > config.vocab_size:
        raise ConversionError(
            f"{folder or legacy} has a tokenizer of {len(tokenizer)} words, the checkpoint's BERT knows "
            f"{config.vocab_size}: --bert is another BERT than the one it was trained with"
        )
    return tokenizer


def _config(
    folder: Path | None,
    config_class: type,
    published: Mapping[str, Any],
    described: Callable[[Any], dict[str, tuple[int, ...]]],
    shapes: Shapes,
    prefix: str,
    flag: str,
) -> Any:
    if folder is not None and (_existing(folder, flag) / "config.json").is_file():
        return config_class.from_pretrained(folder)  # type: ignore[attr-defined] # a transformers configuration
    for config in published.values():
        expected = described(config)
        if all(shapes.get(prefix + key) == shape for key, shape in expected.items()):
            return type(config)(**config.to_dict())
    there = {
        key: tuple(shapes[prefix + key]) for key in described(next(iter(published.values()))) if prefix + key in shapes
    }
    raise ConversionError(
        f"the checkpoint's {prefix}* tensors are those of no published encoder ({', '.join(published)}): "
        f"{there or 'it has none'}. Give the encoder's folder as {flag}"
    )


def _vision_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    width, last = config.hidden_size, config.num_hidden_layers - 1
    return {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, config.patch_size, config.patch_size),
        "vision_model.embeddings.position_embedding.weight": ((config.image_size // config.patch_size) ** 2, width),
        f"vision_model.encoder.layers.{last}.mlp.fc1.weight": (config.intermediate_size, width),
    }


def _audio_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    return {
        "encoder.conv1.weight": (config.d_model, config.num_mel_bins, 3),
        "encoder.embed_positions.weight": (config.max_source_positions, config.d_model),
        f"encoder.layers.{config.encoder_layers - 1}.fc1.weight": (config.encoder_ffn_dim, config.d_model),
    }


def _bert_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    last = config.num_hidden_layers - 1
    return {
        "embeddings.word_embeddings.weight": (config.vocab_size, config.hidden_size),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, config.hidden_size),
        f"encoder.layer.{last}.intermediate.dense.weight": (config.intermediate_size, config.hidden_size),
    }


def _existing(folder: Path, flag: str) -> Path:
    if not folder.is_dir():
        raise ConversionError(f"{flag}: {folder} is no folder")
    return folder
