"""The completions of a prompt scored as one sequence: the log-probs and gradients of separate rows."""

from pathlib import Path

import pytest
import torch
from test_decoding import QUESTIONS, batch
from torch.nn import functional as F
from trl.trainer.utils import add_fused_lm_head

from humanomni.modeling import HumanOmniForConditionalGeneration, cast_ahead
from humanomni.processing import HumanOmniProcessor
from humanomni.towers import encode_audio, encode_frames
from humanomni.training.groups import pack_groups
from humanomni.training.grpo_trainer import reference_of
from humanomni.training.run import DEFAULT_PARTS

COMPLETION, GROUP = 7, 4


@pytest.fixture(scope="module")
def processor(tiny_model_dir: Path) -> HumanOmniProcessor:
    return HumanOmniProcessor.from_pretrained(tiny_model_dir)


@pytest.fixture
def model(tiny_model_dir: Path) -> HumanOmniForConditionalGeneration:
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)
    model.set_trainable(DEFAULT_PARTS)
    return model


def completed(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of GROUP completions, of unlike length, to each prompt."""
    generator = torch.Generator().manual_seed(2)
    rows = len(inputs["input_ids"]) * GROUP
    completions = torch.randint(20, 400, (rows, COMPLETION), generator=generator)
    lengths = torch.randint(1, COMPLETION + 1, (rows, 1), generator=generator)
    ids = torch.cat([inputs["input_ids"].repeat_interleave(GROUP, dim=0), completions], dim=1)
    prompt_mask = inputs["attention_mask"].repeat_interleave(GROUP, dim=0)
    return ids, torch.cat([prompt_mask, (torch.arange(COMPLETION) < lengths).long()], dim=1)


def test_packed_groups_have_the_log_probs_and_gradients_of_separate_rows(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    inputs = batch(processor, QUESTIONS)
    ids, mask = completed(inputs)
    media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    scored = mask[:, -COMPLETION:]
    weight = torch.randn(scored.shape, generator=torch.Generator().manual_seed(3)) * scored

    copies = {name: value.repeat_interleave(GROUP, dim=0) for name, value in media.items()}
    logits = model(input_ids=ids, attention_mask=mask, **copies).logits[:, -COMPLETION - 1 : -1]
    separate = F.log_softmax(logits, dim=-1).gather(2, ids[:, -COMPLETION:, None]).squeeze(2)
    (separate * weight).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    add_fused_lm_head(model)
    packed = model(**pack_groups(ids, mask, COMPLETION, GROUP), **media, fused_lm_head=True).log_probs
    together = packed[:, -GROUP * COMPLETION :].reshape(-1, COMPLETION)
    torch.testing.assert_close(together, separate * scored, atol=1e-5, rtol=1e-4)
    (together * weight).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_the_reference_shares_the_frozen_parts_and_stays_when_the_policy_moves(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    inputs = batch(processor, QUESTIONS)
    reference = reference_of(model)
    with torch.no_grad():
        before = model(**inputs).logits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
        assert torch.equal(reference(**inputs).logits, before)
        assert not torch.equal(model(**inputs).logits, before)
    own, policys = dict(reference.named_parameters()), dict(model.named_parameters())
    assert {name for name in own if own[name] is policys[name]} == {
        name for name in own if not policys[name].requires_grad
    }
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_casting_ahead_of_autocast_changes_no_figure(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    """But for the towers, which then compute in half precision throughout: they are given the same states here."""
    inputs = batch(processor, QUESTIONS)
    model.requires_grad_(False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = {
            "vision_features": encode_frames(model.model.vision_tower, inputs.pop("pixel_values")),
            "audio_features": encode_audio(model.model.audio_tower, inputs.pop("input_features")),
        }
        before = model(**inputs, **states).logits
        cast_ahead(model, torch.bfloat16)
        assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert torch.equal(model(**inputs, **states).logits, before)
