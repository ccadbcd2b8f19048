"""How a model is loaded: adapters, precision, attention and quantisation, and what is said when it cannot be."""

import argparse
import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from humanomni import loading
from humanomni.loading import LoadError, LoadOptions, add_load_arguments, load_model, load_processor
from humanomni.modeling import HumanOmniForConditionalGeneration

IDS = torch.tensor([[5, 9, 33, 77, 120, 6]])
LANGUAGE_MODEL = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|down_proj)"


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def adapted(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A LoRA adapter on the tiny model, as peft saves it, and the logits of the model that wears it."""
    output = tmp_path_factory.mktemp("adapter") / "lora"
    base = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE_MODEL, modules_to_save=["gate"])
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        if "modules_to_save" in name:
            parameter.data += 1
    model.save_pretrained(output)
    return output, logits_of(model.eval())


def test_an_adapter_is_merged_into_its_base(adapted: tuple[Path, torch.Tensor], tiny_model_dir: Path) -> None:
    folder, expected = adapted
    base = load_model(LoadOptions(tiny_model_dir))
    assert not torch.allclose(logits_of(base), expected, atol=1e-2)
    for options in (LoadOptions(folder), LoadOptions(tiny_model_dir, adapter=folder)):
        merged = load_model(options)
        torch.testing.assert_close(logits_of(merged), expected, atol=1e-5, rtol=0)
        assert merged.state_dict().keys() == base.state_dict().keys()
        assert torch.equal(merged.model.gate[0].bias, base.model.gate[0].bias + 1)
        assert load_processor(options).placeholder_ids == load_processor(LoadOptions(tiny_model_dir)).placeholder_ids


def test_a_merged_model_is_saved_as_any_other(adapted: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    load_model(LoadOptions(adapted[0])).save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(load_model(LoadOptions(tmp_path))), adapted[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_precision_and_attention_are_what_was_asked_for(dtype: str, attention: str, tiny_model_dir: Path) -> None:
    model = load_model(LoadOptions(tiny_model_dir, dtype=dtype, attention=attention))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    core = model.model
    parts = (core.language_model, core.vision_tower, core.audio_tower, core.bert)
    assert {part.config._attn_implementation for part in parts} == {attention}
    expected = logits_of(load_model(LoadOptions(tiny_model_dir)))
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5 if dtype == "float32" else 0.1, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [("auto", "cuda:1", "bfloat16"), ("auto", "cpu", "auto"), ("float32", "cuda", "float32")],
)
def test_a_gpu_computes_in_bfloat16_unless_told_otherwise(
    dtype: str, device: str, expected: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training on one GPU saves float32."""
    asked: dict[str, Any] = {}

    def note(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    monkeypatch.setattr(loading, "_require_device", lambda _: None)
    monkeypatch.setattr(HumanOmniForConditionalGeneration, "from_pretrained", note)
    with pytest.raises(LoadError, match="enough"):
        load_model(LoadOptions(tiny_model_dir, dtype=dtype), device)
    assert (asked["dtype"], asked["device_map"]) == (expected, device)


@pytest.mark.parametrize(("bits", "likeness"), [("8bit", 0.99), ("4bit", 0.9)])
def test_the_language_model_alone_is_quantised(
    bits: str, likeness: float, adapted: tuple[Path, torch.Tensor], tiny_model_dir: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[quantize]'")
    expected = logits_of(load_model(LoadOptions(tiny_model_dir)))
    model = load_model(LoadOptions(tiny_model_dir, dtype="bfloat16", quantize=bits))
    small = [name for name, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")]
    layers = model.config.text_config.num_hidden_layers
    assert len(small) == 7 * layers
    assert all(name.startswith("model.language_model.layers.") for name in small)
    assert torch.nn.functional.cosine_similarity(logits_of(model), expected, dim=-1).min() > likeness
    wearing = load_model(LoadOptions(adapted[0], dtype="bfloat16", quantize=bits))
    assert torch.nn.functional.cosine_similarity(logits_of(wearing), adapted[1], dim=-1).min() > likeness


def test_what_is_not_installed_is_named_with_the_mend(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"bitsandbytes: pip install -e '\.\[quantize\]'"):
        LoadOptions(tiny_model_dir, quantize="4bit").resolved()
    flash = LoadOptions(tiny_model_dir, attention="flash_attention_2")
    with pytest.raises(LoadError, match="needs flash-attn"):
        flash.resolved()
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(LoadError, match="needs --dtype bfloat16 or float16, not auto"):
        flash.resolved()


def test_a_folder_that_is_no_model_is_named_with_the_mend(
    adapted: tuple[Path, torch.Tensor], tiny_model_dir: Path, tmp_path: Path
) -> None:
    empty, published, moved, prompt, damaged = (
        tmp_path / name for name in ("empty", "R1-Omni", "moved", "prompt", "damaged")
    )
    for folder in (empty, published, moved, prompt, damaged):
        folder.mkdir()
    (published / "config.json").write_text('{"model_type": "HumanOmni_qwen2"}')
    (moved / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/gone"}')
    (prompt / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    (damaged / "config.json").write_text("{")
    for options, message in (
        (LoadOptions(tmp_path / "nowhere"), "nowhere is no folder"),
        (LoadOptions(empty), "empty holds no config.json"),
        (LoadOptions(damaged), "damaged/config.json is no JSON"),
        (LoadOptions(published), f"scripts/convert_checkpoint.py --legacy {published} --output DIR"),
        (LoadOptions(moved), f"LoRA adapter on '/gone', which is no folder here.*--adapter {moved}"),
        (LoadOptions(tiny_model_dir, adapter=prompt), "prompt holds another adapter than LoRA"),
        (LoadOptions(tiny_model_dir, adapter=empty), "empty/adapter_config.json does not exist"),
    ):
        with pytest.raises(LoadError, match=message):
            options.resolved()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_a_device_that_is_not_there_is_an_error(device: str, tiny_model_dir: Path) -> None:
    with pytest.raises(LoadError, match=f"--device {device} cannot be used: .*; leave --device out"):
        load_model(LoadOptions(tiny_model_dir), device)


def copy_of(folder: Path, output: Path) -> dict[str, torch.Tensor]:
    """Copies a folder's small files and returns the tensors of its one file of weights."""
    output.mkdir()
    for file in folder.glob("*.json"):
        (output / file.name).write_bytes(file.read_bytes())
    return load_file(next(folder.glob("*model.safetensors")))


def test_weights_that_do_not_fit_are_an_error_and_never_made_up(
    adapted: tuple[Path, torch.Tensor], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tensors = copy_of(tiny_model_dir, tmp_path / "model")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_model(LoadOptions(tmp_path / "model"))
    tensors.pop("model.gate.0.bias")
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"lacks 1 tensors, the first is model\.gate\.0\.bias"):
        load_model(LoadOptions(tmp_path / "model"))
    (tmp_path / "model/model.safetensors").write_bytes(b"cut short")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_model(LoadOptions(tmp_path / "model"))

    tensors = copy_of(adapted[0], tmp_path / "lora")
    name = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, name: torch.ones(3, 3)}, tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(LoadError, match=r"(?s)lora does not fit .*size mismatch"):
        load_model(LoadOptions(tmp_path / "lora"))
    tensors.pop(name)
    save_file(tensors, tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(LoadError, match="lora does not fit .*missing adapter keys"):
        load_model(LoadOptions(tmp_path / "lora"))


def test_loading_warns_of_nothing(tiny_model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_model(LoadOptions(tiny_model_dir))
    assert not caplog.records


def test_the_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_load_arguments(parser)
    assert LoadOptions.of(parser.parse_args([]), tmp_path) == LoadOptions(tmp_path)
    flags = "--adapter lora --dtype float16 --attention eager --quantize 4bit"
    expected = LoadOptions(tmp_path, Path("lora"), "float16", "eager", "4bit")
    assert LoadOptions.of(parser.parse_args(flags.split()), tmp_path) == expected


def test_batch_inference_with_an_adapter_is_a_job_of_its_own(
    adapted: tuple[Path, torch.Tensor],
    tiny_model_dir: Path,
    repo: Path,
    toy_world_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text((toy_world_dir / "test.jsonl").read_text().splitlines()[0] + "\n")

    def run(*model: object) -> None:
        flags = ["--input_jsonl", source, "--data_root", toy_world_dir, "--output_dir", tmp_path / "out"]
        flags += ["--max_new_tokens", "8", "--device", "cpu", *model]
        monkeypatch.setattr(sys, "argv", ["inference_batch.py", *map(str, flags)])
        runpy.run_path(str(repo / "inference_batch.py"), run_name="__main__")

    run("--model_path", tiny_model_dir)
    run("--model_path", tiny_model_dir, "--adapter", adapted[0])
    plain, merged = (json.loads((tmp_path / "out" / name).read_text()) for name in ("in.jsonl.old", "in.jsonl"))
    assert plain["raw_response"] != merged["raw_response"]
    run("--model_path", adapted[0])
    assert json.loads((tmp_path / "out/in.jsonl.old").read_text()) == plain, "the same job: nothing was left to do"
    with pytest.raises(SystemExit, match=f"inference_batch: {toy_world_dir} holds no config.json"):
        run("--model_path", toy_world_dir)
