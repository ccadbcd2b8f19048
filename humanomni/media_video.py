"""Frames of a video by their number, as decord gives them where it gives the right ones: by decord or by PyAV.

decord is the decoder that the published checkpoints were trained with. But it returns other frames than asked for where
B-frames meet AVI, HEVC, MPEG-4 or open groups of pictures, refuses some containers, and aborts the process when a
header states a wrong number of frames. So the packets are looked through first, which decodes nothing, and only a plain
H.264 mp4 or mov that is what its header says may go to decord.

PyAV reads the rest, and of the plain files those with B-frames, where its bytes are decord's: it leaves out the frames
that nobody asked for and no other frame is made from, nearly half of a film. With a GPU's decoder it reads all plain
files so.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from humanomni.media_container import MediaError, decoded, open_container, packets, video_stream
from humanomni.media_nvdec import by_hardware, gpu_decoder, in_memory
from humanomni.media_timeline import Timeline

try:
    import decord
except ImportError:  # it exists for x86-64 only; PyAV reads everything elsewhere
    decord = None

logger = logging.getLogger(__name__)

MAX_PIXELS = 2**26  # of one frame, twice 8K: a damaged header may ask for gigabytes
UNTIMED = {"avi", "asf"}  # containers that store when frames are decoded, not when they are shown
# Of other pictures decord and PyAV make other colours: with 10 bits up to 50 levels off, of 4:2:2 turned upright 3.
SAME_COLOURS = {"yuv420p", "yuvj420p"}
FALLBACK_FPS = 25.0  # where a container states no frame rate


@dataclass(frozen=True)
class VideoTrack:
    """What the packets of a video stream tell without being decoded.

    Attributes:
        timeline: when each of the N frames is shown.
        keys: what tells a frame apart, ascending: its time stamp, or its number where the container stores no times.
        entries: keys at which decoding can begin; empty when it can begin at the start of the file only.
        ordinary: whether decord may read the file and reads it right.
        plain: whether PyAV, too, reads it so, if its frames are progressive; such a file is H.264.
        skippable: whether some frames, as B-frames are, serve to make no other and may be left out, without a
            difference to what decord gives of progressive frames.
    """

    timeline: Timeline
    keys: list[int]
    entries: list[int]
    ordinary: bool
    plain: bool
    skippable: bool


def scan_video(container: InputContainer) -> VideoTrack | None:
    """Count and time the frames of the main video stream; None when there is no such stream.

    Raises:
        MediaError: the video stream holds no frame, or frames too large to read.
    """
    stream = video_stream(container)
    if stream is None:
        return None
    if stream.width * stream.height > MAX_PIXELS:
        raise MediaError(container.name, f"a frame of {stream.width}x{stream.height} pixels is too large to read")
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else FALLBACK_FPS
    every = [(packet.pts, packet.is_keyframe, packet.is_discard) for packet in packets(container, stream)]
    shown = [(pts, is_key) for pts, is_key, cut_off_by_edit_list in every if not cut_off_by_edit_list]
    if not shown:
        raise MediaError(container.name, "its video stream holds no frame; was the recording or copy broken off?")
    keys = sorted({pts for pts, _ in shown if pts is not None})
    if len(keys) < len(shown) or container.format.name in UNTIMED:
        return VideoTrack(Timeline.even(len(shown), fps), list(range(len(shown))), [], False, False, False)
    entries = sorted(pts for pts, is_key in shown if is_key and pts is not None)
    timeline = Timeline((np.array(keys, dtype=np.float64) - keys[0]) * float(stream.time_base or 0), fps)
    if not timeline.regular and timeline.seconds[-1] > 0:  # the stated rate is not what the time stamps say
        timeline = Timeline(timeline.seconds, (len(keys) - 1) / float(timeline.seconds[-1]))
    ordinary = (
        container.format.name.startswith("mov,mp4")
        and stream.codec_context.name == "h264"
        and stream.frames == len(every) == len(shown)
        and timeline.regular
        and not _has_open_gop(shown)
    )
    same_colours = stream.format is not None and stream.format.name in SAME_COLOURS
    plain = ordinary and same_colours and bool(entries)
    skippable = bool(entries) and stream.codec_context.has_b_frames and (plain or not ordinary)
    return VideoTrack(timeline, keys, entries, ordinary, plain, skippable)


def _has_open_gop(shown: list[tuple[int | None, bool]]) -> bool:
    """Whether a frame is shown before the key frame that it is stored after."""
    pts, is_key = (np.array(column) for column in zip(*shown, strict=True))
    return bool((pts < np.maximum.accumulate(np.where(is_key, pts, pts.min()))).any())


def read_frames(container: InputContainer, track: VideoTrack, indices: list[int], gpu: int | None = None) -> np.ndarray:
    """RGB frames uint8 [T, H, W, 3], upright, at ascending `indices` (repeats allowed).

    Decoding jumps to the key frame before each wanted frame where the container allows it, and keeps wanted frames
    only, so memory does not grow with the length of the video. Measured for 8 frames of 23 s at 720p, as a part of the
    time that decoding everything takes: 0.3 with a key frame every second, 0.9 with one every ten (x264's default).
    A frame that is damaged beyond decoding is replaced by the next one, or the last.

    Args:
        container: what `track` was scanned from; where it cannot jump, its file is opened anew.
        gpu: number of the GPU whose decoder is to read plain files.

    Raises:
        MediaError: no frame can be decoded.
    """
    path = Path(container.name)
    wanted = [track.keys[i] for i in indices]
    as_decord = track.ordinary and decord is not None
    stream = _single_threaded_stream(container)
    found = {} if gpu is None or not track.plain else _by_gpu(container, stream, track, wanted, gpu)
    if not found and (track.skippable or not as_decord):
        found = _jump(container, stream, track, wanted)
    complete = found.keys() >= set(wanted)
    # Of interlaced frames decord makes other colours than PyAV.
    if as_decord and (not complete or any(frame.interlaced_frame for frame in found.values())):
        frames = _decord_frames(path, len(track.keys), indices)
        if frames is not None:
            return frames
    if not complete:
        found = _walk(path, wanted, stamped=bool(track.entries))
    return _upright([found[key] for key in wanted])


def _decord_frames(path: Path, count: int, indices: list[int]) -> np.ndarray | None:
    """Frames [T, H, W, 3] as decord gives them, or None when it cannot."""
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1)
        if len(reader) == count:
            return reader.get_batch(indices).asnumpy()
        reason = f"it counts {len(reader)} frames, not {count}"
    except (RuntimeError, decord.DECORDError) as error:
        reason = str(error).strip().partition("\n")[0]
    logger.debug("%s: its frames are read by PyAV, not by decord: %s", path, reason)
    return None


def _single_threaded_stream(container: InputContainer) -> VideoStream:
    """The main video stream, decoded by one thread: clips are decoded side by side, which uses the cores better."""
    stream = video_stream(container)
    if stream is None:
        raise MediaError(container.name, "its video stream vanished while it was read")
    stream.thread_count = 1
    return stream


def _by_gpu(
    container: InputContainer, stream: VideoStream, track: VideoTrack, wanted: list[int], gpu: int
) -> dict[int, av.VideoFrame]:
    """All of the `wanted` frames by time stamp, or none: a core is to decode them."""
    try:
        decoder = gpu_decoder(container, stream, gpu)
        if decoder is None:
            return {}
        found = _jump(container, stream, track, wanted, decoder)
    except av.FFmpegError as error:
        logger.warning("%s: decoded by a core, because with the GPU it failed (%s)", container.name, error)
        return {}
    if found and not by_hardware(decoder):
        _warn_once(f"the GPU does not decode {stream.width}x{stream.height} pixels, or has no memory for it: cores do")
    # A GPU does not cut off what a stream says is to be cut off at the left and above.
    whole = all((frame.width, frame.height) == (stream.width, stream.height) for frame in found.values())
    return found if whole and found.keys() >= set(wanted) else {}


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _jump(
    container: InputContainer,
    stream: VideoStream,
    track: VideoTrack,
    wanted: list[int],
    decoder: VideoCodecContext | None = None,
) -> dict[int, av.VideoFrame]:
    """The `wanted` frames by time stamp, up to the first that is not where time stamps and key frames say."""
    found: dict[int, av.VideoFrame] = {}
    if not track.entries:
        return found
    frames: Iterator[av.VideoFrame] = iter(())
    position = None
    for key in sorted(set(wanted)):
        entry = track.entries[max(bisect_right(track.entries, key) - 1, 0)]
        if position is None or entry > position:
            container.seek(entry, stream=stream)
            if decoder is not None:  # the stream's own is told by the container
                decoder.flush_buffers()
            frames = decoded(container, stream, set(wanted) if track.skippable else None, decoder)
        for frame in frames:
            position = frame.pts
            if position is None or position >= key:
                break
        if position != key:
            break
        found[key] = in_memory(frame)
    return found


def _walk(path: Path, wanted: list[int], *, stamped: bool) -> dict[int, av.VideoFrame]:
    """The `wanted` frames, each the first at or after its key, or the last of all, found by decoding from the start."""
    found: dict[int, av.VideoFrame] = {}
    remaining = sorted(set(wanted), reverse=True)
    frame = None
    with open_container(path) as container:
        stream = _single_threaded_stream(container)
        for number, frame in enumerate(decoded(container, stream)):
            key = frame.pts if stamped else number
            while remaining and key is not None and key >= remaining[-1]:
                found[remaining.pop()] = frame
            if not remaining:
                return found
        if frame is None:
            raise MediaError(path, f"its video ({stream.codec_context.name}) cannot be decoded")
    return found | dict.fromkeys(remaining, frame)


def _upright(frames: list[av.VideoFrame]) -> np.ndarray:
    """RGB uint8 [T, H, W, 3], turned as the recorder's rotation tag says; frames of another size are scaled."""
    width, height = frames[0].width, frames[0].height
    stack = np.stack([frame.to_ndarray(format="rgb24", width=width, height=height) for frame in frames])
    return np.ascontiguousarray(np.rot90(stack, k=round(frames[0].rotation / 90), axes=(1, 2)))
