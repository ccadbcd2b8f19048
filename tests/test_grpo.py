"""GRPO on clips, with real media, a real FG-CE server, and that server's death."""

import json
import logging
import re
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from server_process import server_process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from fgce.client import FgceClient
from fgce.schema import JudgeInfo, MethodInfo, RubricInfo, ScoreResponse
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.training.clips import ClipLoader
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.grpo import GRPOArguments, load_prompts, run_grpo
from humanomni.training.grpo_trainer import HumanOmniGRPOTrainer
from humanomni.training.judge_watch import JudgeUnavailableError, JudgeWatch, require_same_judge
from humanomni.training.rewards import make_rewards
from humanomni.training.run import ConfigurationError

CUES = "The mouth corners are raised in a smile. The pitch is high. Overall, the person is {label}."


def arguments(output: Path, model: Path, world: Path, **more: Any) -> GRPOArguments:
    settings = {
        "output_dir": str(output),
        "model_path": str(model),
        "train_data": str(world / "grpo_train.jsonl"),
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "beta": 0.04,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "fgce_deadline": 3.0,
    }
    return GRPOArguments(**(settings | more))


def make_trainer(trainer_class: type[HumanOmniGRPOTrainer], args: GRPOArguments, **more: Any) -> HumanOmniGRPOTrainer:
    processor = HumanOmniProcessor.from_pretrained(args.model_path)
    model = HumanOmniForConditionalGeneration.from_pretrained(args.model_path)
    model.set_trainable(args.trainable_parts)
    return trainer_class(
        model=model,
        args=args,
        reward_funcs=make_rewards(args.rewards, FgceClient(args.fgce_url, deadline=args.fgce_deadline)),
        train_dataset=load_prompts(
            read_mixture(parse_sources("train_data", args.train_data), None, args.seed), args.modality
        ),
        processing_class=processor,
        clips=ClipLoader(processor, args.modality),
        judge_watch=JudgeWatch(args.judge_window, args.judge_max_missing),
        **more,
    )


class ExchangedMedia(HumanOmniGRPOTrainer):
    """Scores every batch again with the clips' frames, or their sound, exchanged among one another."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.changes: dict[tuple[str, str], list[float]] = defaultdict(list)
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        scored = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        media = self._media[self._mode]
        for name in [key for key in media if not key.startswith("gate")]:
            kept = media[name]
            media[name] = kept.roll(1, dims=0)
            with torch.no_grad():
                exchanged = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
            media[name] = kept
            who = "reference" if model is self.ref_model else "policy"
            self.changes[who, name.split("_")[0]].append((exchanged[0] - scored[0]).abs().max().item())
        return scored


def test_log_probs_of_policy_and_reference_hang_on_video_and_audio(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path
) -> None:
    trainer = make_trainer(ExchangedMedia, arguments(tmp_path, tiny_model_dir, toy_world_dir))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert set(trainer.changes) == {(who, what) for who in ("policy", "reference") for what in ("vision", "audio")}
    assert all(change > 1e-6 for changes in trainer.changes.values() for change in changes), trainer.changes
    towers = [name for name, p in trainer.model.named_parameters() if "_tower" in name]
    assert all(torch.equal(before[name], trainer.model.get_parameter(name)) for name in towers)


def test_towers_run_once_a_clip_change_nothing(tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path) -> None:
    """Frozen towers' states in place of frames and mels give the same log-probs."""
    trainer = make_trainer(HumanOmniGRPOTrainer, arguments(tmp_path, tiny_model_dir, toy_world_dir))
    prompts = [row["prompt"] for row in trainer.train_dataset.select(range(2)) for _ in range(4)]
    ids, _, cached = trainer._tokenize_prompts(prompts)
    trainer.model.model.vision_tower.requires_grad_(True)
    trainer.model.model.audio_tower.requires_grad_(True)
    _, _, raw = trainer._tokenize_prompts(prompts)
    assert {"vision_features", "audio_features"} <= set(cached)
    assert {"pixel_values", "input_features"} <= set(raw)
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), len(ids[0]), dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(**batch, **cached).logits, trainer.model(**batch, **raw).logits)


class RightAnswers(HumanOmniGRPOTrainer):
    """Rollouts that hold the pattern and, in every other row, the right answer, so that the judge has work."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.solutions = [row["solution"] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        ids = []
        for row, label in enumerate(self.solutions):
            answer = label if row % 2 else "contempt"
            text = f"<think>{CUES.format(label=label)}</think>\n<answer>{answer}</answer>"
            ids.append([*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id])
        return ids, None


class StopServer(TrainerCallback):
    """Kills the judge after the first optimizer step."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.process.kill()
            self.process.wait(timeout=10)


def test_a_judge_that_dies_is_counted_missing_and_never_low(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server_process("--set", "judge.backend=lexicon") as (url, process):
        args = arguments(
            tmp_path,
            tiny_model_dir,
            toy_world_dir,
            rewards=["format", "accuracy", "fgce_weighted"],
            fgce_url=url,
        )
        trainer = make_trainer(RightAnswers, args, callbacks=[StopServer(process)])
        with caplog.at_level(logging.WARNING, logger="fgce.client"):
            trainer.train()
    alive, dead = [log for log in trainer.state.log_history if "reward" in log]
    assert alive["fgce_weighted/missing"] == 0
    assert alive["rewards/fgce_weighted/mean"] > 0
    assert dead["fgce_weighted/missing"] == 4, "each right answer of the step has a missing judgement"
    # What is left is format and accuracy, for right and wrong alike: 1 + 1 and 1 + 0.
    assert dead["reward"] == pytest.approx(1.5)
    assert "explanations are missing" in caplog.text


def coherence_run(output: Path, model: Path, world: Path, url: str, **more: Any) -> GRPOArguments:
    settings = {"rewards": ["accuracy", "fgce_weighted"], "fgce_url": url, "save_strategy": "steps", "save_steps": 1}
    return arguments(output, model, world, **(settings | {"sample_steps": 1, "canary_steps": 1} | more))


@pytest.mark.parametrize("window", [1, 20], ids=["amid the run", "in the last steps, fewer than the window"])
def test_too_many_missing_judgements_stop_the_run_with_a_checkpoint(
    window: int, tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = (tmp_path, tiny_model_dir, toy_world_dir)
    settings: dict[str, Any] = {"judge_window": window, "max_steps": 3}
    with server_process("--set", "judge.backend=lexicon") as (url, process):

        def doomed(callbacks: list[TrainerCallback], **more: Any) -> RightAnswers:
            return RightAnswers(callbacks=[*callbacks, StopServer(process)], **more)

        monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", doomed)
        missing, last = ("4 of 4", 2) if window == 1 else ("8 of 12", 3)
        with pytest.raises(JudgeUnavailableError, match=f"{missing} explanations"):
            run_grpo(coherence_run(*world, url, **settings))
    assert (tmp_path / f"checkpoint-{last}/model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists(), "an unfinished stage must not look finished"

    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", RightAnswers)
    with server_process("--set", "judge.backend=lexicon") as (url, _):
        if last == 3:
            with pytest.raises(JudgeUnavailableError, match="8 of 12 .* remove the checkpoints of these steps"):
                run_grpo(coherence_run(*world, url, **settings))
            settings["judge_max_missing"] = 1
        run_grpo(coherence_run(*world, url, **settings))
    assert (tmp_path / "model.safetensors").is_file()


def test_a_run_that_needs_a_judge_does_not_begin_without_one(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path
) -> None:
    with pytest.raises(JudgeUnavailableError, match=r"none answers: http://127\.0\.0\.1:9.* name it in fgce_url"):
        run_grpo(coherence_run(tmp_path / "run", tiny_model_dir, toy_world_dir, "http://127.0.0.1:9"))
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_run_keeps_its_judge_in_mind_and_its_completions_for_people(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log, the sample of completions, and a resumed run that meets another rubric."""
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", RightAnswers)
    world = (tmp_path / "run", tiny_model_dir, toy_world_dir)
    with server_process("--set", "judge.backend=lexicon") as (url, _):
        run_grpo(coherence_run(*world, url, max_steps=1, report_to="tensorboard"))
    state = json.loads((tmp_path / "run/checkpoint-1/trainer_state.json").read_text())
    assert len(state["stateful_callbacks"]["JudgeWatch"]["attributes"]["identity"]["rubric"]["sha256"]) == 64
    (log,) = [entry for entry in state["log_history"] if "reward" in entry]
    assert (log["judge/servers_ready"], log["judge/canaries_drifted"]) == (1, 0)
    assert {"rewards/accuracy/mean", "rewards/fgce_weighted/mean", "fgce_weighted/trimodal_share"} <= set(log)
    assert log["rewards/seconds"] > 0
    assert log["fgce_weighted/seconds"] > log["fgce_weighted/seconds_waited"]

    samples = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    right = next(sample for sample in samples if sample["rewards"]["accuracy"] == 1)
    assert right["sentences"][0]["text"] == "The mouth corners are raised in a smile."
    assert right["sentences"][0]["score"] in range(1, 6)
    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.out.*")).parent)).Reload()
    (text,) = events.Tensors("completions/text_summary")
    assert b"The mouth corners" in text.tensor_proto.string_val[0]

    rubric = (repo / "fgce/rubric.yaml").read_text()
    (tmp_path / "other.yaml").write_text(re.sub(r"version: .*", 'version: "other"', rubric, count=1))
    with server_process("--set", "judge.backend=lexicon", "--set", f"rubric={tmp_path / 'other.yaml'}") as (url, _):
        with pytest.raises(ConfigurationError, match="was trained with .* --allow_another_judge"):
            run_grpo(coherence_run(*world, url, max_steps=2))
        run_grpo(coherence_run(*world, url, max_steps=2, allow_another_judge=True))
    assert (tmp_path / "run/model.safetensors").is_file()


class JudgeFirst(RightAnswers):
    """Does not let the reference score before the judge has been asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.asked = threading.Event()
        self.in_time: list[bool] = []
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if model is self.ref_model:
            self.in_time.append(self.asked.wait(timeout=10))
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


def test_the_judge_reads_while_the_reference_scores(tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path) -> None:
    args = coherence_run(tmp_path, tiny_model_dir, toy_world_dir, "http://127.0.0.1:9", max_steps=1, save_strategy="no")
    trainer = make_trainer(JudgeFirst, args)
    (reward,) = trainer._coherence_rewards
    score = reward.client.score_sync
    reward.client.score_sync = lambda items: (trainer.asked.set(), score(items))[1]
    trainer.train()
    assert trainer.in_time == [True]


def answer_of(sha: str, protocol: str = "json") -> ScoreResponse:
    """An answer under a rubric of that hash, asked for in that way."""
    return ScoreResponse(
        rubric=RubricInfo(version="1", sha256=sha),
        judge=JudgeInfo(backend="b", model="m", revision="1"),
        method=MethodInfo(decoding=protocol, splitter="sentencex"),
        results=[],
    )


SILENT = ScoreResponse(rubric=None, judge=None, results=[])


@pytest.mark.parametrize("other", [("bb", "json"), ("aa", "fast")])
def test_a_judge_that_changes_amid_a_run_stops_it(other: tuple[str, str]) -> None:
    watch = JudgeWatch(20, 0.5)
    for response in (answer_of("aa"), SILENT, answer_of("aa")):
        watch.see(response)
        assert watch.message is None
    watch.see(answer_of(*other))
    assert all(f"'{part}'" in watch.message for part in ("aa", "json", *other))


def test_a_judge_that_may_change_amid_a_run_is_the_next_checkpoints(caplog: pytest.LogCaptureFixture) -> None:
    watch = JudgeWatch(20, 0.5, allow_another=True)
    for response in (answer_of("aa"), SILENT, answer_of("bb"), answer_of("bb")):
        watch.see(response)
        assert watch.message is None
    (warning,) = caplog.messages
    assert "going on with another judge" in warning
    assert watch.state()["attributes"]["identity"] == answer_of("bb").identity


def test_a_silent_judge_at_a_restart_leaves_its_place_to_no_other(tmp_path: Path) -> None:
    first = JudgeWatch(20, 0.5)
    first.see(answer_of("aa"))
    TrainerState(stateful_callbacks={"JudgeWatch": first.state()}).save_to_json(str(tmp_path / "trainer_state.json"))
    kept = require_same_judge(tmp_path, SILENT.identity, allow=False)
    restarted = JudgeWatch(20, 0.5, kept)
    restarted.see(answer_of("bb"))
    assert "changed during the run" in restarted.message
    assert restarted.state() == first.state(), "the next checkpoint still names the judge that the run began with"


def test_a_clip_that_cannot_be_read_moves_nothing(tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    (world / "broken.mp4").write_bytes(b"no film")
    first = json.loads((toy_world_dir / "grpo_train.jsonl").read_text().splitlines()[0])
    whole = {**first, "video": str(toy_world_dir / first["video"])}
    records = [whole, {**first, "id": "broken", "video": "broken.mp4"}]
    (world / "grpo_train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    trainer = make_trainer(RightAnswers, arguments(tmp_path / "run", tiny_model_dir, world, max_steps=1))
    seen = {}

    def keep(inputs: Any, **_: Any) -> Any:
        seen.update(inputs)
        return HumanOmniGRPOTrainer._compute_loss(trainer, trainer.model_wrapped, inputs)

    trainer._compute_loss = lambda model, inputs: keep(inputs)
    trainer.train()
    by_clip = [seen["advantages"][seen["clip_index"] == clip].abs().max().item() for clip in (0, 1)]
    assert sorted(value > 0 for value in by_clip) == [False, True]


@pytest.mark.parametrize("dry_run", [False, True])
def test_fewer_prompts_than_a_generation_takes_are_refused(
    dry_run: bool, tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path
) -> None:
    """TRL leaves incomplete generations out, and the model would be saved as it was."""
    lines = (toy_world_dir / "grpo_train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "grpo_train.jsonl").write_text("".join(lines[:3]))
    rows = {"per_device_train_batch_size": 4 if dry_run else 16, "records_per_step": 4, "data_root": str(toy_world_dir)}
    more = {"dry_run": True, "processes": 4} if dry_run else {}
    args = arguments(tmp_path / "run", tiny_model_dir, tmp_path, **rows, **more)
    with pytest.raises(ConfigurationError, match="3 prompts are fewer than the 4 .* lower records_per_step"):
        run_grpo(args)
    assert not (tmp_path / "run").exists()


def test_prompts_come_in_the_files_order_where_they_are_not_shuffled(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path
) -> None:
    seen = []

    class Order(HumanOmniGRPOTrainer):
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            seen.extend(dict.fromkeys(row["id"] for row in inputs))
            return super()._generate_and_score_completions(inputs)

    args = arguments(tmp_path, tiny_model_dir, toy_world_dir, shuffle_dataset=False)
    trainer = make_trainer(Order, args)
    trainer.train()
    assert seen == trainer.train_dataset["id"][:4]


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "run"
    with server_process("--set", "judge.backend=lexicon") as (url, _):
        urls = f"{url},http://127.0.0.1:9"
        run_grpo(
            arguments(output, tiny_model_dir, toy_world_dir, dry_run=True, rewards=["fgce_weighted"], fgce_url=urls)
        )
    said = capsys.readouterr().err
    assert "optimizer steps    2" in said
    assert "GiB a GPU (weights" in said
    assert f"FG-CE at {url}   ready, canaries as at first" in said
    assert "FG-CE at http://127.0.0.1:9   does not answer /readyz" in said
    assert "vision_tower           0.00 M trained" in said
    assert not output.exists()
