"""The published models' sizes, built without memory, for what hangs on them."""

import functools

import torch
from transformers import BertConfig, Qwen2Config, SiglipVisionConfig, WhisperConfig

from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration

_TEXT = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}
# SigLIP's last layer is never read, so it is not built.
_VISION = {
    "0.5B": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 11, "num_attention_heads": 12}
    | {"image_size": 224, "patch_size": 16},
    "7B": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
    | {"image_size": 384, "patch_size": 14},
}
_AUDIO = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}


@functools.cache
def real_model(size: str) -> HumanOmniForConditionalGeneration:
    """HumanOmni-0.5B or -7B on the meta device: shapes without weights."""
    config = HumanOmniConfig(
        text_config=Qwen2Config(**_TEXT[size]),
        vision_config=SiglipVisionConfig(**_VISION[size]),
        audio_config=WhisperConfig(**_AUDIO, num_mel_bins=128, max_source_positions=1500),
        bert_config=BertConfig(),
        projector_type={"0.5B": "all_in_one_small", "7B": "all_in_one"}[size],
        tie_word_embeddings=_TEXT[size]["tie_word_embeddings"],
    )
    with torch.device("meta"):
        return HumanOmniForConditionalGeneration(config)
