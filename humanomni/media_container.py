"""Open a media container and decode what is sound in it, with one kind of error for all that can go wrong."""

import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

HEADER_SECONDS = 2.0  # of computing, not of waiting for the disk; headers of hours of film take 0.1 s

S = TypeVar("S", VideoStream, AudioStream)


class MediaError(Exception):
    """A media file cannot be read; the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error can be sent back by a worker process
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open `path` for reading; errors of FFmpeg inside the block leave it as `MediaError`."""
    began = time.thread_time()
    try:
        # An absolute name, so that a colon in it is not taken for a protocol.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            if time.thread_time() - began > HEADER_SECONDS:
                raise MediaError(path, "damaged: its header lists more samples than the file can hold")
            yield container
    except av.FFmpegError as error:
        raise MediaError(path, f"damaged, or not a media file ({error.strerror})") from error


def video_stream(container: InputContainer) -> VideoStream | None:
    """The main video stream; the cover picture of a song is none.

    Raises:
        MediaError: no decoder exists for it.
    """
    stream = _main_stream(container, container.streams.video)
    return None if stream is None or stream.disposition & Disposition.attached_pic else stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The main audio stream.

    Raises:
        MediaError: no decoder exists for it.
    """
    return _main_stream(container, container.streams.audio)


def _main_stream(container: InputContainer, streams: tuple[S, ...]) -> S | None:
    if not streams:
        return None
    kind = streams[0].type
    try:
        best = container.streams.best(kind)
    except IndexError:  # a damaged transport stream, in which streams turn up later
        best = streams[0]
    main = next((stream for stream in streams if stream is best), streams[0])
    if main.codec_context is None:
        raise MediaError(container.name, f"no decoder for its {kind} track; is it damaged?")
    return main


def packets(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
    """Packets of one stream that hold data, up to the end or to where the file is cut off."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # an empty packet (AVI: "repeat the frame") would end the decoding
                yield packet
    except (av.InvalidDataError, IndexError):  # the second: streams that turn up later, as above
        return


@overload
def decoded(
    container: InputContainer,
    stream: VideoStream,
    wanted: Container[int] | None = None,
    decoder: VideoCodecContext | None = None,
) -> Iterator[av.VideoFrame]: ...
@overload
def decoded(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]: ...
def decoded(
    container: InputContainer, stream: Any, wanted: Container[int] | None = None, decoder: Any = None
) -> Iterator[Any]:
    """Frames of one stream from where the container stands; packets that cannot be decoded are passed over.

    Args:
        wanted: time stamps; frames that are not among them and from which no other is made may be left out.
        decoder: another one than the stream's own.
    """
    decoder = decoder or stream.codec_context
    for packet in packets(container, stream):
        if wanted is not None:
            decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            yield from decoder.decode(packet)
        except av.InvalidDataError:
            continue
    yield from decoder.decode(None)
