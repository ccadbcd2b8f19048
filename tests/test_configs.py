"""The configurations of training: every shipped file parses through the real classes, and every fault is named."""

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from real_sizes import real_model

from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.training.dry_run import copied_parameters, count_parameters, estimate_memory, wide_parameters
from humanomni.training.grpo import GRPOArguments, run_grpo
from humanomni.training.model import prepare
from humanomni.training.run import ConfigurationError, parse_arguments, read_config, save_manifest
from humanomni.training.sft import SFTArguments, run_sft

REPO = Path(__file__).parents[1]
FILES = sorted(path for size in ("toy", "0.5B", "7B") for path in (REPO / "configs" / size).glob("*.yaml"))
SUPERVISED = ("sft", "sft_lora", "rft")
REAL = [path for path in FILES if path.parent.name != "toy"]


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def content(path: Path) -> dict[str, Any]:
    return read_config(path, SFTArguments if path.stem in SUPERVISED else GRPOArguments)


def parse(path: Path, output: Path, *flags: str) -> SFTArguments | GRPOArguments:
    """Through the class of the file's stage; without DeepSpeed where that extra is not installed."""
    arguments_class = SFTArguments if path.stem in SUPERVISED else GRPOArguments
    without = [] if importlib.util.find_spec("deepspeed") else ["--deepspeed", ""]
    return parse_arguments(
        arguments_class, ["--config", str(path), "--output_dir", str(output), "--use_cpu", *without, *flags]
    )


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_shipped_file_parses(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPO)  # where the paths in the files start
    arguments = parse(path, tmp_path)
    assert {
        key: value
        for key, value in content(path).items()
        if key not in {"output_dir", "use_cpu", "deepspeed", "report_to"} and getattr(arguments, key) != value
    } == {}


@pytest.mark.parametrize("size", ["0.5B", "7B"])
def test_each_stage_starts_from_the_one_before(size: str):
    stages = [content(REPO / f"configs/{size}/{stage}.yaml") for stage in ("sft", "grpo1", "grpo2", "rft", "grpo3")]
    assert stages[0]["model_path"] == f"models/HumanOmni-{size}"
    for before, after in zip(stages, stages[1:], strict=False):
        assert after["model_path"] == before["output_dir"]


@pytest.mark.parametrize("size", ["0.5B", "7B"])
def test_the_phases_of_grpo_differ_in_nothing_but_model_rewards_and_output(size: str):
    phases = [content(REPO / f"configs/{size}/grpo{phase}.yaml") for phase in (1, 2, 3)]
    for phase in phases:
        for key in ("model_path", "rewards", "output_dir"):
            del phase[key]
    assert phases[0] == phases[1] == phases[2]


@pytest.mark.parametrize("stage", ["sft", "sft_lora", "grpo1", "grpo1_lora", "grpo2", "rft", "grpo3"])
def test_the_sizes_differ_in_nothing_but_what_their_size_asks_for(stage: str):
    small, large = (content(REPO / f"configs/{size}/{stage}.yaml") for size in ("0.5B", "7B"))
    assert {key for key in small | large if small.get(key) != large.get(key)} <= {
        *("model_path", "output_dir", "deepspeed", "max_length"),
        *("per_device_train_batch_size", "num_generations", "records_per_step", "gradient_checkpointing"),
        *(["train_data"] if stage == "rft" else []),  # each size is taught by its own candidates
    }


@pytest.mark.parametrize("size", ["0.5B", "7B"])
def test_the_authors_preset_has_the_settings_that_give_their_gradient(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of trl 0.14, as the authors' release calls it; trl 1.16 has other defaults for most of them."""
    monkeypatch.chdir(REPO)
    arguments = parse(REPO / f"configs/{size}/authors.yaml", tmp_path, "--dry_run", "--processes", "8")
    wanted = {
        "loss_type": "grpo",
        "beta": 0.04,
        "use_bias_correction_kl": False,
        "scale_rewards": "group",
        "num_iterations": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "max_completion_length": 256,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "linear",
        "gradient_accumulation_steps": 2,
        "num_generations": {"0.5B": 8, "7B": 4}[size],
        "per_device_train_batch_size": {"0.5B": 16, "7B": 4}[size],
        "trainable_parts": ["projector", "audio_projector", "gate", "bert", "language_model"],
    }
    assert {key: getattr(arguments, key) for key in wanted} == wanted


@pytest.mark.parametrize("size", ["0.5B", "7B"])
def test_the_recommended_preset_differs_from_the_authors_where_it_gives_a_reason(size: str):
    theirs, ours = (content(REPO / f"configs/{size}/{name}.yaml") for name in ("authors", "grpo1"))
    differing = {key for key in theirs | ours if theirs.get(key) != ours.get(key)} - {"output_dir"}
    assert differing <= {"trainable_parts", "top_k", "deepspeed"}
    lines = (REPO / f"configs/{size}/grpo1.yaml").read_text().splitlines()
    for key in differing:
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")]
        assert "# " in lines[place] or lines[place - 1].startswith("# ")


@pytest.mark.parametrize("path", [path for path in REAL if "# Memory a GPU on" in path.read_text()], ids=name)
@pytest.mark.parametrize(("place", "processes"), list(enumerate([1, 2, 8, 16])))
def test_the_memory_in_a_file_is_what_the_dry_run_says_and_the_step_is_the_same(
    path: Path, place: int, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(REPO)
    model = copy.deepcopy(real_model(path.parent.name))  # before DeepSpeed's configuration is there, which spreads it
    arguments = parse(path, tmp_path, "--dry_run", "--processes", str(processes))
    assert arguments.records_an_optimizer_step == content(path)["records_per_step"]
    prepare(model, tmp_path, arguments)
    counts = count_parameters(model)
    trained, frozen = (sum(column) for column in zip(*counts.values(), strict=True))
    stage = int(re.search(r"zero(\d)", content(path)["deepspeed"] or "zero0")[1])
    copied = copied_parameters(sum(counts["language_model"]), arguments) if stage == 0 else 0
    grpo = isinstance(arguments, GRPOArguments)
    memory = (
        estimate_memory(trained, frozen, processes, stage, True, grpo, wide_parameters(model), copied).total / 2**30
    )
    said = re.search(r"before activations: ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) GiB", path.read_text())
    assert said[place + 1] == f"{memory:.1f}"


@pytest.mark.parametrize("stage", ["sft", "grpo1", "sft_lora", "grpo1_lora"])
def test_fsdp_takes_the_place_of_deepspeed(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPO)
    flags = ["--deepspeed", "", "--fsdp", "full_shard", "--fsdp_config", "configs/fsdp2.json"]
    arguments = parse(REPO / f"configs/7B/{stage}.yaml", tmp_path, *flags, "--dry_run", "--processes", "8")
    assert arguments.sharding_stage == 3
    layers = arguments.fsdp_config["transformer_layer_cls_to_wrap"]
    assert set(layers) == set(HumanOmniForConditionalGeneration._no_split_modules)
    # The step does not hang on how the model is sharded.
    assert arguments.records_an_optimizer_step == content(REPO / f"configs/7B/{stage}.yaml")["records_per_step"]


def test_a_step_that_does_not_divide_among_the_processes_is_refused(tmp_path: Path):
    flags = ["--records_per_step", "10", "--dry_run", "--processes", "3", "--deepspeed", ""]
    with pytest.raises(ConfigurationError, match="records_per_step 10 makes 10 rows.*on 3 processes"):
        parse(REPO / "configs/0.5B/sft.yaml", tmp_path, *flags)


@pytest.mark.parametrize(
    ("flag", "value", "known"),
    [
        ("loss_type", "grop", "grpo, dr_grpo, dapo"),
        ("scale_rewards", "groups", "group, batch, none"),
        ("importance_sampling_level", "tokens", "token, sequence"),
        ("multi_objective_aggregation", "sum", "sum_then_normalize"),
    ],
)
def test_a_misspelt_name_of_trls_is_told_before_anything_loads(flag: str, value: str, known: str, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=f"{flag}: {value} is unknown; known are {known}"):
        parse(REPO / "configs/toy/grpo1.yaml", tmp_path, f"--{flag}", value)


def test_a_reference_that_is_renewed_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="sync_ref_model: the reference is the model that the run starts from"):
        parse(REPO / "configs/toy/grpo1.yaml", tmp_path, "--sync_ref_model", "true")


def test_a_dry_run_of_eight_processes_takes_the_batches_that_eight_take(tmp_path: Path):
    flags = ["--num_generations", "8", "--per_device_train_batch_size", "2", "--records_per_step", "2"]
    flags += ["--dry_run", "--processes", "8"]
    arguments = parse(REPO / "configs/toy/grpo1.yaml", tmp_path, *flags)
    assert (arguments.gradient_accumulation_steps, arguments.generation_batch_size) == (1, 16)


def test_a_weight_for_each_reward(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="reward_weights: 1 numbers for 2 rewards"):
        parse(REPO / "configs/toy/grpo1.yaml", tmp_path, "--reward_weights", "1.0")


@pytest.mark.parametrize("file", ["toy/sft", "0.5B/sft", "toy/grpo1", "0.5B/grpo1"])
def test_the_configuration_that_a_run_saves_starts_the_same_run_on_more_processes(file: str, tmp_path: Path):
    flags = ["--deepspeed", "", "--fsdp", "full_shard", "--fsdp_config", str(REPO / "configs/fsdp2.json")]
    path = REPO / f"configs/{file}.yaml"
    before = parse(path, tmp_path, *(flags if path.parent.name != "toy" else []))
    save_manifest(before)
    again = parse_arguments(type(before), ["--config", str(tmp_path / "config.yaml")])
    assert again.to_dict() == before.to_dict()
    if before.records_per_step:
        flags = ["--dry_run", "--processes", "2"]
        more = parse_arguments(type(before), ["--config", str(tmp_path / "config.yaml"), *flags])
        assert more.records_an_optimizer_step == before.records_per_step
        assert more.gradient_accumulation_steps == before.gradient_accumulation_steps / 2


@pytest.mark.parametrize("flags", [["--config={}"], ["--config", "{}"], ["--seed", "7", "--config={}"]])
def test_a_file_is_given_with_a_space_or_an_equals_sign(flags: list[str]):
    path = str(REPO / "configs/toy/sft.yaml")
    arguments = parse_arguments(SFTArguments, [flag.format(path) for flag in flags])
    assert arguments.output_dir == "runs/quickstart/sft"
    assert arguments.seed == (7 if "--seed" in flags else 0)


def test_a_flag_that_wants_a_file_and_gets_none_says_so():
    with pytest.raises(ConfigurationError, match="--config: expected one argument: a YAML file"):
        parse_arguments(SFTArguments, ["--seed", "7", "--config"])


def test_a_file_extends_another_and_a_circle_is_told(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("seed: 3\nbeta: 0.5\n")
    (tmp_path / "more.yaml").write_text("extends: base.yaml\nbeta: 0.1\n")
    assert content(tmp_path / "more.yaml") == {"seed": 3, "beta": 0.1}
    (tmp_path / "base.yaml").write_text("extends: more.yaml\n")
    with pytest.raises(ConfigurationError, match="circle"):
        content(tmp_path / "more.yaml")


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        (path, 3 if path.stem == "authors" else {"0.5B": 2, "7B": 3}[path.parent.name])
        for path in REAL
        if content(path)["deepspeed"]
    ],
    ids=lambda value: str(value),
)
def test_deepspeed_takes_its_files(path: Path, stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.chdir(REPO)
    arguments = parse(path, tmp_path)
    model = type("Model", (), {"config": type("Config", (), {"hidden_size": 896})})
    arguments.hf_deepspeed_config.trainer_config_finalize(arguments, model, num_training_steps=100)
    engine = DeepSpeedConfig(arguments.hf_deepspeed_config.config)
    assert (engine.zero_config.stage, engine.bfloat16_config.enabled, engine.gradient_clipping) == (stage, True, 1.0)


def test_a_flag_wins_over_the_file(tmp_path: Path):
    arguments = parse(REPO / "configs/toy/grpo2.yaml", tmp_path, "--seed", "7", "--rewards", "format", "FGCE_weighted")
    assert (arguments.seed, arguments.rewards) == (7, ["format", "FGCE_weighted"])


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("learning_rat: 1", ["unknown key learning_rat", "did you mean learning_rate?"]),
        ("env: {A: 1}", ["unknown key env"]),
        ("rewards: format", ["rewards", "'format'", "list"]),
        ("rewards: [3]", ["rewards", "[3]", "string"]),
        ("num_generations: 8.5", ["num_generations", "8.5", "integer"]),
        ("learning_rate: fast", ["learning_rate", "'fast'", "number"]),
        ("bf16: 3.5", ["bf16", "3.5", "boolean"]),
        ("- seed", ["keys and values"]),
        ("seed: [", ["no YAML", "line 1"]),
    ],
)
def test_a_fault_in_a_file_is_told_with_file_key_and_value(text: str, faults: list[str], tmp_path: Path):
    path = tmp_path / "grpo.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        parse(path, tmp_path)
    assert not [fault for fault in [str(path), *faults] if fault not in str(caught.value)]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("trainable_parts: [gate, projectr]", ["trainable_parts", "projectr", "audio_projector"]),
        ("modality: radio", ["modality", "radio", "video_audio"]),
        ("lr_scheduler_type: cosin", ["cosin", "cosine"]),
    ],
)
def test_a_misspelt_name_is_told_with_those_there_are(stage: str, text: str, faults: list[str], tmp_path: Path):
    path = tmp_path / f"{stage}.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        parse(path, tmp_path)
    assert not [fault for fault in faults if fault not in str(caught.value)]


def test_a_misspelt_reward_is_told_with_those_there_are(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="rewards: acuracy is unknown; known are accuracy, format, fgce"):
        parse(REPO / "configs/toy/grpo1.yaml", tmp_path, "--rewards", "format", "acuracy")


def test_an_unknown_flag_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="--sed"):
        parse(REPO / "configs/toy/sft.yaml", tmp_path, "--sed", "7")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no.yaml"):
        parse(tmp_path / "no.yaml", tmp_path)


def test_deepspeed_without_its_extra_tells_how_to_get_it(tmp_path: Path):
    if importlib.util.find_spec("deepspeed"):
        pytest.skip("the extra deepspeed is installed")
    with pytest.raises(ConfigurationError, match=r"pip install -e '\.\[deepspeed\]'"):
        parse(REPO / "configs/7B/sft.yaml", tmp_path, "--deepspeed", "configs/deepspeed/zero3.json")


@pytest.mark.parametrize("stage", ["sft", "grpo1"])
@pytest.mark.parametrize("key", ["model_path", "train_data", "data_root"])
def test_a_path_that_is_not_there_is_told_with_its_key(stage: str, key: str, tmp_path: Path):
    paths = {"model_path": str(tmp_path), "train_data": str(tmp_path), key: str(tmp_path / "missing")}
    flags = [flag for pair in paths.items() for flag in (f"--{pair[0]}", pair[1])]
    arguments = parse(REPO / f"configs/toy/{stage}.yaml", tmp_path, *flags)
    run = run_sft if isinstance(arguments, SFTArguments) else run_grpo
    with pytest.raises(ConfigurationError, match=f"{key}: .*missing does not exist"):
        run(arguments)


@pytest.mark.parametrize("key", ["model_path", "train_data"])
def test_a_path_that_is_not_set_is_asked_for(key: str, tmp_path: Path):
    arguments = parse(REPO / "configs/toy/sft.yaml", tmp_path, "--model_path", str(tmp_path), f"--{key}", "")
    with pytest.raises(ConfigurationError, match=f"{key} is not set; give it in the YAML file or as --{key}"):
        run_sft(arguments)
