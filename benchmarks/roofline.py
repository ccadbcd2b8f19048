"""The least time that a GPU could take for a benchmark's work: operations counted, bytes counted, no overlap lost.

Counts of one clip and its prompt (multiply and add are two operations):

    tower      2 * weights * tokens + 4 * layers * tokens^2 * width       SigLIP a frame; Whisper 1500 tokens a clip
    projector  2 * weights * positions, weights a convolution's or a linear's, positions its outputs
    language   2 * weights * tokens + 2 * layers * tokens^2 * width       causal: half of the attention's square
    head       2 * width * vocabulary * (tokens whose logits are needed)

Work, as a sum of phases, each max(operations / peak FLOP/s, bytes / bandwidth):

    inference batch  towers, projector and prefill of every prompt; then a step a token, which reads the language
                     model's weights and head once (2 bytes each) and every row's keys and values so far
    GRPO step        towers once a clip; one prefill a prompt; the steps as above; reference (1 forward) and policy
                     (training, below) over prompt + G completions; AdamW: reads and writes 28 bytes a trained float32
                     weight (14 a bfloat16 one)
    SFT step         towers (1 forward); training of language model, projector and head; AdamW as above
    training         as many operations as 2 forwards, for outputs and for inputs' gradients; 1 more for weights'
                     gradients, which frozen weights under LoRA have none of; 1 more with gradient checkpointing

The peaks are measured, not read from a data sheet (see Ceilings): the figures are floors, not forecasts.
"""

from dataclasses import dataclass

from measure import Ceilings
from torch import nn

from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration


@dataclass(frozen=True)
class Roofline:
    """Floors, in seconds, of the benchmarks' work with one model on one GPU."""

    config: HumanOmniConfig
    model: HumanOmniForConditionalGeneration
    ceilings: Ceilings
    text_tokens: int

    @property
    def prompt(self) -> int:
        """Tokens of a prompt with its media."""
        return self.config.num_video_tokens + self.config.num_audio_tokens + self.text_tokens

    def towers(self) -> float:
        """Operations of both towers on one clip."""
        vision, audio = self.config.vision_config, self.config.audio_config
        patches, frames = self.config.patch_grid_size**2, audio.max_source_positions
        sight = _tower(self.model.model.vision_tower, vision.num_hidden_layers, patches, vision.hidden_size)
        return self.config.num_frames * sight + _tower(
            self.model.model.audio_tower, audio.encoder_layers, frames, audio.d_model
        )

    def projector(self) -> float:
        """Operations of the three branches on one clip: stage 1 and the face on patches, the rest on tokens."""
        total = 0.0
        tokens, patches = self.config.num_video_tokens, self.config.num_frames * self.config.patch_grid_size**2
        for name, module in self.model.model.projector.named_modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear) and ".se." not in name:
                total += 2 * module.weight.numel() * (patches if ".stage1." in name or "face" in name else tokens)
        return total

    def language(self, tokens: int, context: int | None = None) -> float:
        """Operations of the layers on ``tokens``, each of which looks at half of ``context`` (all of the tokens)."""
        text = self.config.text_config
        weights = sum(p.numel() for p in self.model.model.language_model.layers.parameters())
        width = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)
        return 2.0 * weights * tokens + 2.0 * text.num_hidden_layers * tokens * (context or tokens) * width

    def head(self, tokens: int) -> float:
        """Operations of the vocabulary head."""
        return 2.0 * self.model.lm_head.weight.numel() * tokens

    def decoding(self, rows: int, new_tokens: int) -> float:
        """Seconds of the steps: weights once a step, keys and values of every row."""
        text = self.config.text_config
        layers = sum(p.numel() for p in self.model.model.language_model.layers.parameters())
        head_width = text.hidden_size // text.num_attention_heads
        cached = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width
        steps = new_tokens - 1
        read = steps * (layers + self.model.lm_head.weight.numel()) + rows * cached * steps * (
            self.prompt + new_tokens / 2
        )
        return 2 * read / self.ceilings.bandwidth

    def inference(self, rows: int, new_tokens: int) -> float:
        """Seconds of one batch of responses."""
        operations = rows * (self.towers() + self.projector() + self.language(self.prompt) + self.head(1))
        return operations / self.ceilings.flops + self.decoding(rows, new_tokens)

    def grpo(self, prompts: int, completions: int, new_tokens: int, checkpointing: bool) -> float:
        """Seconds of one optimizer step."""
        scored = completions * new_tokens
        prefill = self.projector() + self.language(self.prompt)
        reference = self.projector() + self.language(self.prompt + scored, self.prompt + new_tokens) + self.head(scored)
        policy = self.training(self.prompt + scored, scored, checkpointing, context=self.prompt + new_tokens)
        operations = prompts * (self.towers() + prefill + reference + policy)
        decoding = self.decoding(prompts * completions, new_tokens)
        return operations / self.ceilings.flops + decoding + self.optimizer()

    def sft(self, rows: int, target_tokens: int, checkpointing: bool, encoded: bool) -> float:
        """Seconds of one optimizer step; on encoded clips the towers do not run."""
        towers = 0.0 if encoded else self.towers()
        operations = rows * (towers + self.training(self.prompt, target_tokens, checkpointing))
        return operations / self.ceilings.flops + self.optimizer()

    def training(self, tokens: int, targets: int, checkpointing: bool, context: int | None = None) -> float:
        """Operations of forward and backward over one sequence, its targets' logits among them."""
        model = self.model.model
        parts = {
            model.projector: self.projector(),
            model.language_model.layers: self.language(tokens, context),
            self.model.lm_head: self.head(targets),
        }
        return sum(forward * (2 + _trains_weights(part) + checkpointing) for part, forward in parts.items())

    def optimizer(self) -> float:
        """Seconds of AdamW: weight, both moments read and written, the gradient read."""
        moved = sum(7 * p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return moved / self.ceilings.bandwidth


def _tower(module: nn.Module, layers: int, tokens: int, width: int) -> float:
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    return 2.0 * weights * tokens + 4.0 * layers * tokens**2 * width


def _trains_weights(module: nn.Module) -> bool:
    return any(p.requires_grad for name, p in module.named_parameters() if ".lora_" not in name)
