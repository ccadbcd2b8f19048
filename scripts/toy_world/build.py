"""Puts a planned world on disk: clips, records, manifest. It can be interrupted and run again at any time."""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from humanomni.prompts import AUDIO_TOKEN, EMOTION_QUESTION, VIDEO_TOKEN
from toy_world.face import draw_clip
from toy_world.text import explanation
from toy_world.video import write_mp4
from toy_world.voice import syllable_rate, synthesise
from toy_world.world import Actor, Clip, World, WorldError, WorldSpec, plan_world

_MANIFEST = "world.json"

logger = logging.getLogger(__name__)


def build_world(spec: WorldSpec, output: Path) -> int:
    """Makes the world in `output`, keeping the clips that a former run with the same spec and code finished.

    Returns: the number of clips rendered now.
    Raises:
        WorldError: the folder holds a `world.json` of something else.
    """
    world = plan_world(spec)
    (output / "clips").mkdir(parents=True, exist_ok=True)
    manifest = _manifest(world)
    _drop_other_world(output, manifest["fingerprint"])
    _write(output / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    missing = [clip for clip in world.clips if not (output / clip.file).exists()]
    if missing:
        logger.info("rendering %d of %d clips into %s", len(missing), len(world.clips), output / "clips")
        _render_all(missing, world, output)
    _write_records(world, output)
    return len(missing)


def _render_all(clips: list[Clip], world: World, output: Path) -> None:
    actors = [world.actors[clip.actor] for clip in clips]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=_obey_parent) as pool:
        try:
            done = pool.map(partial(render_clip, output=output), clips, actors, chunksize=4)
            for _ in tqdm(done, total=len(clips), desc="toy clips", unit="clip"):
                pass
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def render_clip(clip: Clip, actor: Actor, output: Path) -> None:
    """Draws, synthesises and encodes one clip; the file appears under its name only when it is whole."""
    heard = 0.0 if clip.audio is None else syllable_rate(clip.audio, clip.audio_intensity)
    frames = draw_clip(clip.visual, clip.visual_intensity, actor, clip.num_frames, heard, clip.rng("face"))
    waveform = None
    if clip.audio is not None:
        waveform = synthesise(clip.audio, clip.audio_intensity, actor, clip.duration, clip.rng("voice"))
    path = output / clip.file
    part = path.with_suffix(".part")
    write_mp4(part, frames, actor.fps, waveform, actor.sample_rate)
    part.replace(path)


def _obey_parent() -> None:
    """Run in a worker: Ctrl-C is the parent's to handle, and a killed parent must not leave it waiting."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _manifest(world: World) -> dict:
    """The truth about every clip, and a fingerprint of what decides the files: the spec and the code."""
    code = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        code.update(source.read_bytes())
    spec = asdict(world.spec)
    code.update(json.dumps(spec, sort_keys=True).encode())
    return {
        "fingerprint": code.hexdigest(),
        "spec": spec,
        "actors": {actor.id: asdict(actor) for actor in world.actors.values()},
        "clips": [{**asdict(clip), "file": clip.file} for clip in world.clips],
    }


def _drop_other_world(output: Path, fingerprint: str) -> None:
    """Removes the clips of another world, whose names are the same. Other files are left alone."""
    path = output / _MANIFEST
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        files = [] if old["fingerprint"] == fingerprint else [clip["file"] for clip in old["clips"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WorldError(f"{path} is not a manifest of this script ({error!r}): choose another --output") from error
    if files:
        logger.info("%s holds another world (flags or code differ): making it anew", output)
    for file in files:
        (output / file).unlink(missing_ok=True)


def _write_records(world: World, output: Path) -> None:
    explained = {clip.id: _explained(clip, world.actors[clip.actor]) for clip in world.clips}
    for split in ("train", "val"):
        clips = world.of_split(split)
        _write_jsonl(output / f"sft_{split}.jsonl", (_record(clip, explained[clip.id]) for clip in clips))
    for name, split in (("grpo_train", "train"), ("val", "val"), ("test", "test")):
        _write_jsonl(output / f"{name}.jsonl", (_record(clip, clip.emotion) for clip in world.of_split(split)))


def _explained(clip: Clip, actor: Actor) -> str:
    return f"<think>{explanation(clip, actor)}</think>\n<answer>{clip.emotion}</answer>"


def _record(clip: Clip, target: str) -> dict:
    question = f"{VIDEO_TOKEN}\n{AUDIO_TOKEN}\n{EMOTION_QUESTION}"
    return {
        "id": clip.id,
        "video": clip.file,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": target}],
        "dataset": "toy",
        "split": clip.split,
    }


def _write_jsonl(path: Path, records: Iterable[dict]) -> None:
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
