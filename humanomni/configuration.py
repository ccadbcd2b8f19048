"""HumanOmni's configuration: four transformers sub-configurations and what joins them."""

from typing import Any

from transformers import (
    AutoConfig,
    BertConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
    WhisperConfig,
)

# projector_type -> (RegBlocks a stage, padding of the strided 2x2x2 convolution over time, height, width).
# The names are those of the published config.json files (the 0.5B uses the small one, the 7B the other).
PROJECTOR_TYPES = {"all_in_one_small": (2, (1, 0, 0)), "all_in_one": (4, (1, 1, 1))}


class HumanOmniConfig(PreTrainedConfig):
    """Configuration of :class:`humanomni.modeling.HumanOmniForConditionalGeneration`.

    Args:
        text_config: the Qwen2 language model of width D.
        vision_config: SigLIP's vision tower of width V, without its last encoder layer, post-norm and pooling head:
            HumanOmni reads the last but one layer, so the others are not built.
        audio_config: Whisper; only its encoder (width A) is built.
        bert_config: the BERT that reads the gate text.
        projector_type: a key of :data:`PROJECTOR_TYPES`.
        gate_hidden_size: width of the gate's hidden layer; published checkpoints have 3584 at every size.
        num_frames: frames T sampled from a clip.
        audio_pool: Whisper frames averaged into one audio token (30 s: 1500 frames, 500 tokens).
        video_token_id, audio_token_id: placeholders that the processor repeats once a feature.
        image_token_id: the placeholder of a still image; TRL reads this name too.

    Raises:
        ValueError: for an unknown projector type, and for a patch grid whose branches would give different token
            counts (an even grid with ``all_in_one``, an odd one with ``all_in_one_small``).
    """

    model_type = "humanomni"
    sub_configs = {
        "text_config": Qwen2Config,
        "vision_config": SiglipVisionConfig,
        "audio_config": WhisperConfig,
        "bert_config": BertConfig,
    }
    # TRL looks for remote code under this name in the configuration of a model it loads again as the reference.
    auto_map = {}  # type: ignore[var-annotated] # an annotation would make it a field

    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    bert_config: Any = None
    projector_type: str = "all_in_one_small"
    gate_hidden_size: int = 3584
    num_frames: int = 8
    audio_pool: int = 3
    video_token_id: int | None = None
    audio_token_id: int | None = None
    image_token_id: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if not isinstance(value, config_class):
                setattr(self, name, config_class(**(value or {})))
        self.vision_config.vision_use_head = False
        if self.projector_type not in PROJECTOR_TYPES:
            raise ValueError(f"projector_type is {self.projector_type!r}; known are {', '.join(PROJECTOR_TYPES)}")
        if self.token_grid_size != -(-self.patch_grid_size // 2):
            raise ValueError(
                f"projector_type {self.projector_type!r} does not fit a grid of {self.patch_grid_size} x "
                f"{self.patch_grid_size} patches (image_size {self.vision_config.image_size}, patch_size "
                f"{self.vision_config.patch_size}): all_in_one_small needs an even grid, all_in_one an odd one"
            )
        super().__post_init__(**kwargs)

    @property
    def patch_grid_size(self) -> int:
        """P: vision patches along one side of a frame."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def token_grid_size(self) -> int:
        """P': tokens along one side of a frame, after the projector's strided convolution."""
        _, (_, padding, _) = PROJECTOR_TYPES[self.projector_type]
        return (self.patch_grid_size + 2 * padding - 2) // 2 + 1

    @property
    def num_video_tokens(self) -> int:
        """Tokens of one clip, T * P' * P' (392 for the 0.5B, 1568 for the 7B)."""
        return self.num_frames * self.token_grid_size**2

    @property
    def num_audio_tokens(self) -> int:
        """Tokens of one sound track, silence included (500 for 30 seconds)."""
        return self.audio_config.max_source_positions // self.audio_pool


AutoConfig.register("humanomni", HumanOmniConfig)
