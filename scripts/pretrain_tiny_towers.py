"""Pre-trains the tiny model's towers on the cues of the toy world, as SigLIP and Whisper come pre-trained to HumanOmni.

    python scripts/pretrain_tiny_towers.py --model models/tiny --world data/toy --output models/tiny-pretrained

Each tower learns to name its own cues (the mouth's shape, the pitch, ...) from mean-pooled states through linear heads,
which are thrown away. From here on the towers are frozen, as in the authors' recipe.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import set_seed

from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.towers import encode_audio, encode_frames
from humanomni.training.clips import ClipLoader, batch_media

logger = logging.getLogger("pretrain_tiny_towers")


class CueHeads(nn.Module):
    """One linear classifier a cue over a tower's pooled states."""

    def __init__(self, width: int, clips: list[dict], modality: str) -> None:
        super().__init__()
        cues = [clip[modality] for clip in clips if clip[modality]]
        self.values = {cue: sorted({one[cue] for one in cues}) for cue in cues[0]}
        self.modality = modality
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({cue: nn.Linear(width, len(values)) for cue, values in self.values.items()})

    def forward(self, pooled_BD: Tensor, clips: list[dict]) -> tuple[Tensor, float]:
        """Mean cross-entropy over the cues, and the share named right; a clip without sound has no audio cue."""
        rows = [row for row, clip in enumerate(clips) if clip[self.modality]]
        hidden = self.norm(pooled_BD[rows])
        losses, right = [], []
        for cue, values in self.values.items():
            target = torch.tensor([values.index(clips[row][self.modality][cue]) for row in rows])
            logits = self.heads[cue](hidden)
            losses.append(F.cross_entropy(logits, target))
            right.append((logits.argmax(-1) == target).float().mean().item())
        return torch.stack(losses).mean(), sum(right) / len(right)


def batches(size: int, batch_size: int) -> Iterator[list[int]]:
    """A shuffled pass over ``size`` items; what does not fill a batch is left for the next pass."""
    for rows in torch.randperm(size).split(batch_size):
        if len(rows) == batch_size:
            yield rows.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of make_tiny_model.py")
    parser.add_argument("--world", type=Path, required=True, help="folder of make_toy_data.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clip_cache", type=Path, help="folder for decoded clips, shared with training")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(args.seed)

    processor = HumanOmniProcessor.from_pretrained(args.model)
    model = HumanOmniForConditionalGeneration.from_pretrained(args.model)
    loader = ClipLoader(processor, "video_audio", args.clip_cache)
    world = json.loads((args.world / "world.json").read_text(encoding="utf-8"))
    clips = [clip for clip in world["clips"] if clip["split"] == "train"]
    loaded = [loader.load(args.world / clip["file"]) for clip in tqdm(clips, desc="decoding", unit="clip")]

    core = model.model
    heads = nn.ModuleDict(
        {
            "visual": CueHeads(model.config.vision_config.hidden_size, clips, "visual"),
            "audio": CueHeads(model.config.audio_config.d_model, clips, "audio"),
        }
    )
    core.vision_tower.train()
    core.audio_tower.train()
    parameters = [*core.vision_tower.parameters(), *core.audio_tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=args.learning_rate)
    steps = args.epochs * (len(clips) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, max(steps, 2))
    progress = tqdm(total=steps, desc="towers", unit="step")
    for _ in range(args.epochs):
        for rows in batches(len(clips), args.batch_size):
            chosen = [clips[row] for row in rows]
            media = batch_media([loaded[row] for row in rows], ["video_audio"] * len(rows), processor)
            visual_loss, visual_right = heads["visual"](
                encode_frames(core.vision_tower, media["pixel_values"]).mean((1, 2)), chosen
            )
            audio_loss, audio_right = heads["audio"](
                encode_audio(core.audio_tower, media["input_features"]).mean(1), chosen
            )
            (visual_loss + audio_loss).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.update()
            progress.set_postfix(visual=f"{visual_right:.2f}", audio=f"{audio_right:.2f}")
    progress.close()
    logger.info("cues named right in the last batch: visual %.2f, audio %.2f", visual_right, audio_right)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()
