"""Decoding over a static cache: the library's tokens, whatever the batch, and one prefill for a prompt's samples."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationMixin, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from humanomni import decoding_step
from humanomni.decoding import Decoder
from humanomni.decoding_layers import DecodingLayers
from humanomni.modeling import HumanOmniForConditionalGeneration, HumanOmniModel
from humanomni.processing import HumanOmniProcessor
from humanomni.training.lora import add_adapter


@pytest.fixture(scope="module")
def processor(tiny_model_dir: Path) -> HumanOmniProcessor:
    return HumanOmniProcessor.from_pretrained(tiny_model_dir)


@pytest.fixture(params=["trained", "frozen"])
def model(tiny_model_dir: Path, request: pytest.FixtureRequest) -> HumanOmniForConditionalGeneration:
    """Frozen weights are laid side by side."""
    return HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir).requires_grad_(request.param == "trained")


def batch(processor: HumanOmniProcessor, questions: list[str]) -> dict[str, torch.Tensor]:
    """Prompts of unlike length with media of noise."""
    generator = torch.Generator().manual_seed(1)
    rows = len(questions)
    inputs = processor.text_inputs([processor.prompt(question) for question in questions])
    size = processor.image_processor.size["height"]
    frames = torch.randn(rows, processor.num_frames, 3, size, size, generator=generator)
    mel = processor.mel(None).expand(rows, -1, -1) + torch.randn(rows, 1, 1, generator=generator)
    return inputs | processor.gate_inputs(questions) | {"pixel_values": frames, "input_features": mel}


QUESTIONS = ["Which emotion?", "As an expert; which emotion conveyed is the most obvious to you?", "Mood?"]
GREEDY = {"do_sample": False, "max_new_tokens": 40}


def by_the_library(model: Any, inputs: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(HumanOmniForConditionalGeneration, "_sample", GenerationMixin._sample)
        torch.manual_seed(0)
        return model.generate(**inputs, **more)


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        GREEDY | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"do_sample": True, "max_new_tokens": 40, "top_k": 20, "top_p": 0.9, "temperature": 1.2},
        GREEDY | {"eos_token_id": list(range(2, 500, 5)), "min_new_tokens": 3},
        GREEDY | {"stopping_criteria": [lambda ids, _: ids[:, -1] % 3 == 0]},
        GREEDY | {"suppress_tokens": list(range(100, 700))},
    ],
    ids=["greedy", "greedy with history", "sampled", "many end tokens", "a criterion of the user's", "few words"],
)
def test_the_tokens_are_those_of_the_library(
    model: HumanOmniForConditionalGeneration,
    processor: HumanOmniProcessor,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = batch(processor, QUESTIONS)
    expected = by_the_library(model, inputs, monkeypatch, **settings)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **settings), expected)


def test_a_greedy_choice_takes_few_kernels(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a GPU some microseconds, and a step of the smaller model takes a thousand."""
    chosen: list[list[str]] = []  # of each token, from one step's logits to the next step
    kernels: list[str] | None = None

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if kernels is not None and not function.is_view:
                kernels.append(str(function))
            return function(*args, **(kwargs or {}))

    def step(decoder: Decoder, tokens: torch.Tensor, take: Any = Decoder.step) -> torch.Tensor:
        nonlocal kernels
        if kernels is not None:
            chosen.append(kernels)
        kernels = None
        logits = take(decoder, tokens)
        kernels = []
        return logits

    monkeypatch.setattr(Decoder, "step", step)
    model.generation_config.suppress_tokens = [5, 6]
    with Watch():
        model.generate(**batch(processor, QUESTIONS), **GREEDY)
    assert 0 < max(len(names) for names in chosen) <= 9, chosen[0]


def test_an_adapter_is_worn_in_decoding_as_it_is_now(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(processor, QUESTIONS)
    seen = [model.generate(**inputs, **GREEDY)]
    add_adapter(model, ["language_model"], rank=4, alpha=8, dropout=0.0, seed=0, base=Path())
    for _ in range(2):  # as training goes on
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(seen)))
        expected = by_the_library(model, inputs, monkeypatch, **GREEDY)
        seen.append(model.generate(**inputs, **GREEDY))
        assert torch.equal(seen[-1], expected)
    assert not any(torch.equal(seen[index], seen[index - 1]) for index in range(3))


def test_a_decoder_serves_smaller_batches_and_shorter_prompts(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    inputs = batch(processor, QUESTIONS)
    together = model.generate(**inputs, **GREEDY)
    [decoder] = model._idle_decoders
    for row, question in enumerate(QUESTIONS):
        alone = processor.text_inputs([processor.prompt(question)]) | processor.gate_inputs([question])
        alone |= {name: inputs[name][row : row + 1] for name in ("pixel_values", "input_features")}
        response = model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(response, together[row, inputs["input_ids"].shape[1] :][: len(response)])
    assert model._idle_decoders == [decoder]


def test_samples_of_a_prompt_share_its_prefill_and_are_those_of_copies(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(processor, QUESTIONS)
    sampled = {"do_sample": True, "max_new_tokens": 12, "top_k": 50}
    torch.manual_seed(0)
    copies = model.generate(**{name: value.repeat_interleave(4, dim=0) for name, value in inputs.items()}, **sampled)
    embedded = []
    embed = HumanOmniModel.embed
    monkeypatch.setattr(HumanOmniModel, "embed", lambda *a, **k: embedded.append(len(a[1])) or embed(*a, **k))
    torch.manual_seed(0)
    shared = model.generate(**inputs, **sampled, num_return_sequences=4)
    assert embedded == [3]
    assert torch.equal(shared, copies)


def test_weights_that_zero3_has_gathered_are_decoded_with_and_its_shards_are_not(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathered weights are elsewhere each time, so that nothing may be kept of them."""
    inputs = batch(processor, QUESTIONS)
    expected = model.generate(**inputs, **GREEDY)
    model.lm_head.weight.ds_id = 0
    monkeypatch.setattr(GenerationMixin, "_sample", lambda *_, **__: "the library's loop")
    assert torch.equal(model.generate(**inputs, **GREEDY, synced_gpus=True), expected)
    assert model._decoding_layers is None
    model.lm_head.weight.data = torch.empty(0)
    assert model.generate(**inputs, **GREEDY, synced_gpus=True) == "the library's loop"


def test_decoding_in_half_precision_follows_the_float32_weights(
    model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    """Under autocast a copy of the weights decodes; it must not be the copy of an earlier step."""
    inputs = batch(processor, QUESTIONS)
    settings = GREEDY | {"max_new_tokens": 6}
    with torch.autocast("cpu", torch.bfloat16):
        before = model.generate(**inputs, **settings)
        with torch.no_grad():
            model.lm_head.weight.copy_(torch.roll(model.lm_head.weight, 7, dims=0))
        after = model.generate(**inputs, **settings)
    assert not torch.equal(before, after)


def test_a_copy_in_half_precision_is_the_model_in_half_precision_at_far_positions_too(
    model: HumanOmniForConditionalGeneration, tiny_model_dir: Path
) -> None:
    """Rotary frequencies must not be rounded with the weights: a thousand positions on they would be a radian off."""
    half = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    embeds = torch.randn(1, 1200, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    logits = [
        Decoder(DecodingLayers(each.model.language_model, each.lm_head, torch.bfloat16), 1, 1200).prefill(
            embeds, torch.ones(1, 1200, dtype=torch.long), 1
        )
        for each in (model.requires_grad_(False), half.requires_grad_(False))
    ]
    assert torch.equal(*logits)


def test_weights_laid_side_by_side_are_still_the_models(
    tiny_model_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    frozen = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir).requires_grad_(False)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    inputs = batch(processor, QUESTIONS)
    with torch.inference_mode():
        response = frozen.generate(**inputs, **GREEDY)
    attention = frozen.model.language_model.layers[0].self_attn
    storages = {linear.weight.untyped_storage().data_ptr() for linear in (attention.q_proj, attention.v_proj)}
    assert len(storages) == 1, "no copy beside the model's own weights"
    frozen.save_pretrained(tmp_path / "saved")
    again = HumanOmniForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    assert torch.equal(again.generate(**inputs, **GREEDY), response)

    frozen.requires_grad_(True)(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert attention.k_proj.weight.grad is not None


@torch.no_grad()
def test_one_compiled_layer_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a compiled part takes seconds, and there are dozens of layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_hidden_layers=6, **sizes)).eval().requires_grad_(False)
    layers = DecodingLayers(model.model, model.lm_head, torch.float32)
    tokens, mask = torch.randint(64, (3, 12)), torch.ones(3, 8, dtype=torch.long)

    def logits() -> torch.Tensor:
        decoder = Decoder(layers, rows=3, positions=12)
        decoder.prefill(model.model.embed_tokens(tokens[:, :8]), mask, copies=1)
        return torch.stack([decoder.step(step).clone() for step in tokens[:, 8:].T])

    expected = logits()
    compiler = CompileCounterWithBackend("aot_eager")
    for part in ("_through_layer", "_to_logits"):
        compiled = torch.compile(getattr(decoding_step, part), fullgraph=True, dynamic=False, backend=compiler)
        monkeypatch.setattr(decoding_step, part, compiled)
    torch.testing.assert_close(logits(), expected)
    assert compiler.frame_count == 2


@torch.no_grad()
@pytest.mark.parametrize("trained", [True, False])
def test_a_step_by_kernels_is_a_step(trained: bool) -> None:
    """With what the kernels compute done by torch; of trained weights, query, key and value are products of their own.

    The kernels themselves: test_decoding_kernels.py.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_hidden_layers=3, **sizes)).eval().requires_grad_(trained)
    layers = DecodingLayers(model.model, model.lm_head, torch.float32)
    tokens, mask = torch.randint(64, (3, 12)), torch.ones(3, 8, dtype=torch.long)
    mask[0, :5] = 0

    def logits() -> torch.Tensor:
        decoder = Decoder(layers, rows=3, positions=12)
        decoder.prefill(model.model.embed_tokens(tokens[:, :8]), mask, copies=1)
        return torch.stack([decoder.step(step).clone() for step in tokens[:, 8:].T])

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        halves = zip(x.chunk(2, dim=1), weight.chunk(2, dim=1), strict=True)
        return torch.stack([part @ of_weight.T for part, of_weight in halves])

    def multiply_gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ weight.T).chunk(2, dim=1)
        return F.silu(gate) * up

    def add_normed(hidden: torch.Tensor, product: Any, bias: Any, gain: torch.Tensor, eps: float) -> Any:
        assert bias is None
        added = hidden if product is None else hidden + product.sum(dim=0)
        return added, F.rms_norm(added, gain.shape, gain, eps)

    def attend(projected: torch.Tensor, bias: Any, cos: torch.Tensor, sin: torch.Tensor, *rest: Any) -> torch.Tensor:
        keys, values, slot, may_look, scale = rest
        heads = (projected.sum(dim=0) + (0 if bias is None else bias)).view(3, 8, 1, 8)
        query, key, values[:, :, slot] = heads.split([4, 2, 2], dim=1)
        query, keys[:, :, slot] = apply_rotary_pos_emb(query, key, cos[:, None], sin[:, None])
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=may_look, scale=scale, enable_gqa=True)
        return attended.flatten(1)

    expected = logits()
    kernels = mock.Mock(can_step=lambda rows, _: rows == 3, can_multiply=lambda weight: weight.shape[0] >= 32)
    for function in (multiply, multiply_gated, add_normed, attend):
        setattr(kernels, function.__name__, mock.Mock(wraps=function))
    layers.kernels = kernels
    torch.testing.assert_close(logits(), expected)
    steps, depth, gated = 4, 3, 0 if trained else 1
    products = 2 if trained else 3  # of a layer: output, down, and all of attention's where they are one
    assert kernels.multiply_gated.call_count == gated * depth * steps
    assert kernels.multiply.call_count == (products * depth + 1) * steps
    assert kernels.attend.call_count == depth * steps
