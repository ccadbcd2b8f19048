"""HumanOmni's own behaviour: media are counted, batches change nothing, what is saved comes back."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.models.whisper.modeling_whisper import sinusoids

from humanomni.configuration import HumanOmniConfig
from humanomni.media import Clip
from humanomni.modeling import PARTS, HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import EMOTION_QUESTION, user_content
from humanomni.towers import encode_audio, encode_frames
from humanomni.training.dry_run import count_parameters


@pytest.fixture(scope="module")
def model(golden_checkpoint: Path) -> HumanOmniForConditionalGeneration:
    return AutoModelForCausalLM.from_pretrained(golden_checkpoint).eval()


@pytest.fixture(scope="module")
def processor(golden_checkpoint: Path) -> HumanOmniProcessor:
    return AutoProcessor.from_pretrained(golden_checkpoint)


def noise_clip(seed: int, with_audio: bool = True) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (8, 40 + seed, 60, 3), generator=generator, dtype=torch.uint8).numpy()
    waveform = 0.1 * torch.randn(16_000, generator=generator).numpy() if with_audio else None
    return Clip(frames, waveform, fps=8.0, duration=1.0)


QUESTIONS = [EMOTION_QUESTION, "What does the person feel, and why?", "Which emotion is it?"]


def test_a_row_of_a_mixed_batch_is_the_row_alone(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    modalities = ["video_audio", "video", "audio", "text", "image"]
    clips = [noise_clip(seed) for seed in range(len(modalities))]
    prompts = [processor.prompt(QUESTIONS[i % 3], modality) for i, modality in enumerate(modalities)]
    gates = [QUESTIONS[i % 3] for i in range(len(modalities))]
    batch = processor(text=prompts, clips=clips, gate_text=gates)
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
    generated = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, -8:]
    for row in range(len(modalities)):
        alone = processor(text=[prompts[row]], clips=[clips[row]], gate_text=[gates[row]])
        with torch.no_grad():
            logits = model(**alone).logits[0, -1]
        torch.testing.assert_close(together[row], logits, atol=1e-4, rtol=0)
        assert generated[row].tolist() == model.generate(**alone, max_new_tokens=8, do_sample=False)[0, -8:].tolist()


def test_tower_features_may_stand_in_for_the_media(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    prompts = [processor.prompt(question) for question in QUESTIONS]
    batch = processor(text=prompts, clips=[noise_clip(s) for s in range(3)], gate_text=QUESTIONS)
    with torch.no_grad():
        raw = model(**batch).logits
        vision = encode_frames(model.model.vision_tower, batch.pop("pixel_values"))
        audio = encode_audio(model.model.audio_tower, batch.pop("input_features"))
        encoded = model(**batch, vision_features=vision, audio_features=audio).logits
    torch.testing.assert_close(encoded, raw)


def test_an_untrained_audio_tower_has_whispers_sinusoids(model: HumanOmniForConditionalGeneration) -> None:
    """They are stored as a parameter, which nothing trains and which drawing weights may overwrite."""
    positions = model.model.audio_tower.embed_positions.weight
    torch.testing.assert_close(positions, sinusoids(*positions.shape))


@pytest.mark.parametrize("dropped", ["pixel_values", "input_features", "gate_input_ids"])
def test_media_that_do_not_arrive_are_an_error(
    dropped: str, model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    batch = processor(text=[processor.prompt(QUESTIONS[0])], clips=[noise_clip(0)], gate_text=QUESTIONS[:1])
    batch.pop(dropped)
    with pytest.raises(ValueError, match="placeholders|gate_input_ids"):
        model(**batch)


def test_a_wrong_number_of_placeholders_is_an_error(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    batch = processor(text=[processor.prompt(QUESTIONS[0])], clips=[noise_clip(0)], gate_text=QUESTIONS[:1])
    first = (batch["input_ids"][0] == model.config.video_token_id).nonzero()[0].item()
    batch["input_ids"][0, first] = 1
    with pytest.raises(ValueError, match="71.*placeholders"):
        model(**batch)


def test_no_sound_is_silence_and_sound_matters(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    prompt = [processor.prompt(QUESTIONS[0])]
    silent = processor(text=prompt, clips=[noise_clip(0, with_audio=False)], gate_text=QUESTIONS[:1])
    loud = processor(text=prompt, clips=[noise_clip(0)], gate_text=QUESTIONS[:1])
    assert torch.all(silent["input_features"] == -1.5)
    with torch.no_grad():
        assert not torch.allclose(model(**silent).logits[0, -1], model(**loud).logits[0, -1])


def test_towers_read_memory_by_rows(model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor) -> None:
    """No number hangs on it, but much of a tower's time on a GPU does."""
    by_rows = []
    layers = [*model.model.vision_tower.encoder.layers, *model.model.audio_tower.layers]
    handles = [layer.register_forward_hook(lambda *call: by_rows.append(call[2].is_contiguous())) for layer in layers]
    batch = processor(text=[processor.prompt(QUESTIONS[0])], clips=[noise_clip(0)], gate_text=QUESTIONS[:1])
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    assert by_rows == [True] * len(layers)


def test_placeholders_are_never_generated(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    assert set(processor.placeholder_ids) <= set(model.generation_config.suppress_tokens)


def test_what_is_saved_comes_back(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = AutoModelForCausalLM.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert processor_again.to_dict() == processor.to_dict()
    prompt = [processor.prompt(QUESTIONS[0])]
    assert processor_again.text_inputs(prompt)["input_ids"].equal(processor.text_inputs(prompt)["input_ids"])


def test_gradient_checkpointing_changes_no_gradient(golden_checkpoint: Path, processor: HumanOmniProcessor) -> None:
    batch = processor(text=[processor.prompt(QUESTIONS[0])], clips=[noise_clip(0)], gate_text=QUESTIONS[:1])
    gradients = []
    for checkpointing in (False, True):
        model = HumanOmniForConditionalGeneration.from_pretrained(golden_checkpoint)
        model.set_trainable(["projector", "audio_projector", "gate", "language_model"])
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_parts_train_and_freeze_by_name(golden_checkpoint: Path) -> None:
    model = HumanOmniForConditionalGeneration.from_pretrained(golden_checkpoint)
    model.set_trainable(["projector", "gate"])
    model.train()
    counts = count_parameters(model)
    assert [part for part in PARTS if counts[part][0]] == ["projector", "gate"]
    assert sum(trained + frozen for trained, frozen in counts.values()) == model.num_parameters()
    assert not model.model.bert.training, "a frozen BERT must not drop out"
    model.set_trainable(["bert"])
    assert model.model.bert.training
    assert not any(module.training for module in model.eval().modules())
    assert model.train().model.bert.training
    with pytest.raises(ValueError, match="gait"):
        model.set_trainable(["gait"])


def test_tags_in_a_question_are_not_doubled() -> None:
    question = f"<video>\n<audio>\n{EMOTION_QUESTION}"
    assert user_content(question) == user_content(EMOTION_QUESTION)
    assert user_content(question).count("<video>") == 1


def test_a_grid_that_the_projector_cannot_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="7 x 7 patches"):
        HumanOmniConfig(vision_config={"image_size": 56, "patch_size": 8}, projector_type="all_in_one_small")
