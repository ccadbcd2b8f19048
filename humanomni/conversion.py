"""Published (legacy) HumanOmni checkpoints to the native format, and back.

A legacy folder holds the language model, BERT, gate, projectors and often the towers under the authors' names, and a
config.json that points at tower folders by path. The native folder is self-contained. Its ``legacy/`` folder keeps what
only the authors' code reads (their configuration and tokenizer files, the tensors that the model has no use for, and
the name that every tensor had), so that the way back is exact.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    GenerationConfig,
    Qwen2Config,
    SiglipVisionConfig,
    WhisperConfig,
)

from humanomni import published_towers
from humanomni.configuration import HumanOmniConfig
from humanomni.legacy_keys import AUDIO_PREFIX, BERT_PREFIX, VISION_PREFIX, native_key, tower_key
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.weight_files import ConversionError, WeightFolder, read_json, require_free, save_shards

logger = logging.getLogger(__name__)

LEGACY_FOLDER = "legacy"
_KEYS_FILE = "keys.json"
_TENSORS_FILE = "legacy_only.safetensors"
_HEAD, _EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"

# What a legacy folder holds beside weights: small files, and nothing that could be code.
_SMALL_FILES = ("*.json", "*.txt", "*.jinja")


@dataclass
class ConversionReport:
    """What became of every tensor.

    Attributes:
        converted: native names by legacy key.
        dropped: reasons by legacy key.
        from_folders: native names of the tensors for which an encoder's own folder was read.
    """

    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    from_folders: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, keys: Iterable[str], vision_layers: int, origin: object) -> "ConversionReport":
        """Sorts legacy keys.

        Args:
            vision_layers: SigLIP layers that the native tower keeps.
            origin: where the keys stand, for the message.

        Raises:
            ConversionError: for a key that no HumanOmni checkpoint has, and for two names of one tensor.
        """
        report = cls()
        for key in keys:
            name, reason = native_key(key, vision_layers)
            if name is not None:
                report.converted[key] = name
            elif reason is not None:
                report.dropped[key] = reason
            else:
                raise ConversionError(f"{origin}: {key} is no key of a HumanOmni checkpoint")
        if len(set(report.converted.values())) < len(report.converted):
            raise ConversionError(f"{origin} holds a tensor under two names (gamma and weight, beta and bias)")
        return report


def native_config(
    legacy: dict[str, Any],
    vision: SiglipVisionConfig,
    audio: WhisperConfig,
    bert: BertConfig,
    gate_hidden_size: int = 3584,
) -> HumanOmniConfig:
    """The native configuration of a legacy config.json and its three encoders' own (whole) configurations.

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
    if "mm_projector_type" not in legacy:
        raise ConversionError("config.json has no mm_projector_type: it is not that of a HumanOmni checkpoint")
    text_fields = {
        k: v for k, v in legacy.items() if not k.startswith("mm_") and k not in ("model_type", "architectures")
    }
    text = Qwen2Config(**text_fields)
    return HumanOmniConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        bert_config=bert,
        gate_hidden_size=gate_hidden_size,
        projector_type=legacy["mm_projector_type"],
        num_frames=legacy.get("num_frames", 8),
        tie_word_embeddings=text.tie_word_embeddings,
    )


def convert(
    legacy: Path,
    output: Path,
    vision_tower: Path | None = None,
    audio_tower: Path | None = None,
    bert: Path | None = None,
    dtype: torch.dtype | None = None,
    prompt_style: str = "native",
    frame_fit: str = "pad",
) -> ConversionReport:
    """Converts a legacy folder into a self-contained native one.

    Args:
        legacy: folder with config.json, tokenizer and weights.
        vision_tower, audio_tower, bert: published folders. Without one, the encoder has to be a published one, which
            its tensors' shapes tell. Where a tower's folder and the checkpoint both hold its weights and differ, the
            folder's count, as in the authors' release; BERT's are the checkpoint's, if it has them.
        dtype: of the written weights; None keeps the checkpoint's.
        prompt_style, frame_fit: what the native folder's processor remembers; see :class:`HumanOmniProcessor`.

    Raises:
        ConversionError: for a missing file, an unknown key, a missing or a misshapen tensor, and for an output that is
            an input or holds weights.
    """
    require_free(output, (legacy, vision_tower, audio_tower, bert))
    checkpoint = WeightFolder(legacy)
    if not checkpoint:
        raise ConversionError(f"{legacy} holds no model*.safetensors and no pytorch_model*.bin")
    config, processor = _native_parts(legacy, checkpoint, vision_tower, audio_tower, bert)
    processor.prompt_style, processor.frame_fit = prompt_style, frame_fit
    report = ConversionReport.of(checkpoint, config.vision_config.num_hidden_layers, legacy)
    with torch.device("meta"):
        model = HumanOmniForConditionalGeneration(config)
    state = {name: checkpoint[key] for key, name in report.converted.items()}
    for folder, prefix in ((vision_tower, VISION_PREFIX), (audio_tower, AUDIO_PREFIX), (bert, BERT_PREFIX)):
        if folder is not None:
            layers = config.vision_config.num_hidden_layers
            report.from_folders |= _merge_tower(state, WeightFolder(folder), prefix, layers)
    if config.tie_word_embeddings:
        embeddings = state.get(_EMBEDDINGS)
        if embeddings is not None and not torch.equal(state.setdefault(_HEAD, embeddings), embeddings):
            raise ConversionError(f"{legacy}: config.json ties the embeddings to lm_head, but the two tensors differ")
    check_complete({name: tensor.shape for name, tensor in state.items()}, model, legacy)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    del state
    if dtype is not None:
        model.to(dtype)  # type: ignore[arg-type] # transformers' decorator hides the signature
    if (legacy / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(legacy)
    model.generation_config.suppress_tokens = processor.placeholder_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(output)
    processor.save_pretrained(output)
    _keep_legacy_parts(legacy, output / LEGACY_FOLDER, checkpoint, report, config.tie_word_embeddings)
    logger.info("converted %d tensors of %s into %s", len(report.converted), legacy, output)
    for reason in sorted(set(report.dropped.values())):
        keys = [key for key, why in report.dropped.items() if why == reason]
        logger.info("left out %d tensors: %s (%s)", len(keys), reason, ", ".join(keys))
    return report


def verify(native: Path, legacy: Path, report: ConversionReport) -> int:
    """Loads a converted folder as a user would and compares it, tensor by tensor, with the legacy one.

    Returns:
        the number of tensors compared: all that did not come from an encoder's own folder.

    Raises:
        ConversionError: when loading leaves a tensor out or makes one up, and when values differ.
    """
    loaded: Any = HumanOmniForConditionalGeneration.from_pretrained(native, dtype="auto", output_loading_info=True)
    model, info = loaded
    if problems := {name: sorted(keys) for name, keys in info.items() if keys}:
        raise ConversionError(f"{native}: loading it reports {problems}")
    state, checkpoint = model.state_dict(), WeightFolder(legacy)
    compared = {key: name for key, name in report.converted.items() if name not in report.from_folders}
    for key, name in compared.items():
        if not torch.equal(state[name], checkpoint[key].to(state[name].dtype)):
            raise ConversionError(f"{native}: {name} has other values than {key} of {legacy}")
    return len(compared)


def to_legacy(native: Path, output: Path, base: Path | None = None) -> int:
    """Writes a native folder as the authors' code reads it: the way back of :func:`convert`.

    Args:
        base: the native folder that was converted, when ``native`` was trained from it and has no ``legacy/`` itself.

    Returns:
        the number of tensors written.

    Raises:
        ConversionError: when neither folder has a ``legacy/``, or a tensor is missing, and for an output that is an
            input or holds weights.
    """
    parts = (base or native) / LEGACY_FOLDER
    require_free(output, (native, base, parts))
    if not parts.is_dir():
        raise ConversionError(
            f"{parts} does not exist: name as --base the native folder that training started from, "
            "which convert_checkpoint.py made of a legacy one"
        )
    weights = WeightFolder(native)
    keys = read_json(parts / _KEYS_FILE)
    if missing := sorted(set(keys.values()) - set(weights)):
        raise ConversionError(f"{native} lacks {len(missing)} tensors, the first is {missing[0]}")
    kept = WeightFolder(parts, [parts / _TENSORS_FILE])
    output.mkdir(parents=True, exist_ok=True)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, name in keys.items():
            yield key, weights[name]
        yield from kept.items()

    save_shards(tensors(), output)
    for file in parts.iterdir():
        if file.name not in (_KEYS_FILE, _TENSORS_FILE):
            shutil.copy2(file, output)
    return len(keys) + len(kept)


def check_complete(shapes: Mapping[str, torch.Size], model: HumanOmniForConditionalGeneration, origin: object) -> None:
    """Compares native names and shapes with the model's.

    Raises:
        ConversionError: for a tensor that is missing, has no place or is of another shape; names up to 20.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted.keys() - shapes.keys()]
    problems += [f"{name} has no place in the model" for name in shapes.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(shapes[name])} where the configuration makes {tuple(wanted[name])}"
        for name in wanted.keys() & shapes.keys()
        if shapes[name] != wanted[name]
    ]
    if problems:
        listed = "\n  ".join(sorted(problems)[:20])
        raise ConversionError(
            f"{origin}: {len(problems)} tensors do not fit (towers that a checkpoint lacks are given as "
            f"--vision_tower, --audio_tower, --bert):\n  {listed}"
        )


def _native_parts(
    legacy: Path, checkpoint: WeightFolder, vision_tower: Path | None, audio_tower: Path | None, bert: Path | None
) -> tuple[HumanOmniConfig, HumanOmniProcessor]:
    shapes = checkpoint.shapes
    vision = published_towers.vision_config(vision_tower, shapes)
    audio = published_towers.audio_config(audio_tower, shapes)
    bert_config = published_towers.bert_config(bert, shapes)
    gate_bias = shapes.get("model.bert_gate.0.bias")
    if gate_bias is None:
        raise ConversionError(f"{legacy} has no model.bert_gate.0.bias: it is no HumanOmni checkpoint with a gate")
    config = native_config(read_json(legacy / "config.json"), vision, audio, bert_config, gate_bias[0])
    processor = HumanOmniProcessor.for_config(
        config,
        tokenizer=_tokenizer(legacy),
        gate_tokenizer=published_towers.gate_tokenizer(bert, legacy, bert_config),
        image_processor=published_towers.image_processor(vision_tower, vision),
        feature_extractor=published_towers.feature_extractor(audio_tower, audio),
    )
    return config, processor


def _tokenizer(legacy: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(legacy, config=Qwen2Config())
    template = legacy / "chat_template.json"
    if tokenizer.chat_template is None and template.is_file():  # where the authors' GRPO leaves it
        tokenizer.chat_template = read_json(template)["chat_template"]
    if tokenizer.chat_template is None:
        raise ConversionError(f"{legacy}: its tokenizer_config.json has no chat_template")
    return tokenizer


def _merge_tower(state: dict[str, Tensor], folder: WeightFolder, prefix: str, vision_layers: int) -> set[str]:
    """Puts an encoder's own weights into ``state``: all for a tower, for BERT those that the checkpoint lacks."""
    added, differing = set(), set()
    for key in folder:
        legacy = tower_key(key, prefix)
        name = native_key(legacy, vision_layers)[0] if legacy else None
        if name is None:
            continue
        if name not in state:
            state[name] = folder[key]
            added.add(name)
        elif prefix != BERT_PREFIX:
            # Compared in the checkpoint's dtype, in which the authors' code would use the folder's weights too.
            tensor = folder[key].to(state[name].dtype)
            if not torch.equal(tensor, state[name]):
                state[name] = tensor
                differing.add(name)
    if differing:
        logger.warning(
            "%d tensors of %s differ from the checkpoint's %s*: the folder's are used, as in the authors' release",
            len(differing),
            folder.folder,
            prefix,
        )
    if added:
        logger.info("%d tensors that the checkpoint lacks come from %s", len(added), folder.folder)
    return added | differing


def _keep_legacy_parts(
    legacy: Path, parts: Path, checkpoint: WeightFolder, report: ConversionReport, tied: bool
) -> None:
    parts.mkdir(parents=True, exist_ok=True)
    for pattern in _SMALL_FILES:
        for file in legacy.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copy2(file, parts)
    # A tied head is no tensor of its own in the native file.
    keys = {key: _EMBEDDINGS if tied and name == _HEAD else name for key, name in report.converted.items()}
    (parts / _KEYS_FILE).write_text(json.dumps(keys, indent=1), encoding="utf-8")
    save_file({key: checkpoint[key] for key in report.dropped}, parts / _TENSORS_FILE, metadata={"format": "pt"})
