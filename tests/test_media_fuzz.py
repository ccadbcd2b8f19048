"""Damaged media never hang or end the process: each file gives a clip or a `MediaError`.

Runs 200 cases; `MEDIA_FUZZ_CASES=2000 pytest tests/test_media_fuzz.py` runs more. A failing file is kept in the
test's temporary folder.
"""

import logging
import multiprocessing
import os
import random
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from media_factory import counter_frame, write_clip
from PIL import Image

from humanomni.media import MediaError, load_clip

CASES = int(os.environ.get("MEDIA_FUZZ_CASES", "200"))
HANG_SECONDS = 10
MEMORY_MIB = 4000  # what FFmpeg itself reserves for a header that lists 67 million samples; else 350
SEEDS = {
    "h264.mp4": {},
    "many_keys.mp4": {"codec_options": {"g": "10"}, "options": {"movflags": "faststart"}},
    "fragmented.mp4": {"options": {"movflags": "frag_keyframe+delay_moov"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "x.mkv": {"sound": "flac"},
    "x.webm": {"codec": "libvpx", "sound": "libopus"},
    "x.avi": {"codec": "mpeg4", "sound": "libmp3lame"},
    "x.ts": {},
    "x.gif": {"codec": "gif", "pixels": "rgb8", "sound": None},
    "x.wav": {"codec": None, "sound": "pcm_s16le"},
}
BOXES = [b"moov", b"stts", b"stsz", b"stco", b"stsc", b"ctts", b"elst", b"mdhd", b"tkhd", b"stsd", b"avcC", b"esds"]
EXTREMES = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"]


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Flip bytes, cut off, drop, repeat or overwrite a stretch, or put extreme numbers into an mp4's tables."""
    data = bytearray(content)
    at = chance.randrange(len(data))
    stretch = slice(at, at + chance.randint(1, 500))
    match chance.randrange(6):
        case 0:
            for _ in range(chance.randint(1, 30)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case 1:
            del data[at:]
        case 2:
            del data[stretch]
        case 3:
            data[at:at] = data[stretch]
        case 4:
            data[stretch] = chance.randbytes(len(data[stretch]))
        case 5:
            for _ in range(chance.randint(1, 6)):
                place = max(content.find(chance.choice(BOXES)), 0) + chance.randrange(40)
                data[place : place + 4] = chance.choice([*EXTREMES, chance.randbytes(4)])
    return bytes(data)


def load_all(orders: Connection) -> None:
    """Load each file named on `orders` and answer with what came of it and the peak memory in MiB."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # FFmpeg's complaints
    while True:
        try:
            load_clip(orders.recv())
            outcome = "clip"
        except MediaError:
            outcome = "MediaError"
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - what the test looks for
            outcome = repr(error)
        orders.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


@pytest.mark.timeout(60 + CASES)
def test_damaged_files_give_a_clip_or_a_typed_error(tmp_path: Path) -> None:
    originals = {name: write_clip(tmp_path / name, **options).read_bytes() for name, options in SEEDS.items()}
    for name in ("x.png", "x.jpg"):
        Image.fromarray(counter_frame(77)).save(tmp_path / name)
        originals[name] = (tmp_path / name).read_bytes()
    spawn = multiprocessing.get_context("spawn")
    orders, worker_end = spawn.Pipe()
    worker = spawn.Process(target=load_all, args=(worker_end,), daemon=True)
    worker.start()
    worker_end.close()
    outcomes: dict[str, int] = {}
    try:
        for case in range(CASES):
            chance = random.Random(case)
            name = chance.choice(list(originals))
            damaged = tmp_path / f"case_{case}_{name}"
            damaged.write_bytes(mutate(originals[name], chance))
            orders.send(damaged)
            assert orders.poll(HANG_SECONDS + (case == 0) * 50), f"{damaged} hangs"  # the first waits for the imports
            try:
                outcome, memory = orders.recv()
            except EOFError:
                pytest.fail(f"{damaged} ends the process (exit code {worker.exitcode})")
            assert outcome in {"clip", "MediaError"}, f"{damaged}: {outcome}"
            assert memory < MEMORY_MIB, f"{damaged} takes {memory:.0f} MiB"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            damaged.unlink()
    finally:
        worker.kill()
    logging.getLogger(__name__).info("%d damaged files: %s; at most %.0f MiB", CASES, outcomes, memory)
    assert set(outcomes) == {"clip", "MediaError"}
