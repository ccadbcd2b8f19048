"""H.264 by NVDEC, the decoder that a GPU has beside its multiprocessors: to the bit the frames that a core decodes.

Setting one up takes 0.1 s of a core, as long as a core takes to decode a clip of a few seconds. So every thread keeps
its decoders for clips that are encoded alike, as those of a data set mostly are. What a GPU
shows of a damaged stream may differ: a core makes up for what is missing in a way of its own, which no GPU promises.
"""

import ctypes
import logging
import threading
from functools import lru_cache

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from humanomni.media_container import packets

logger = logging.getLogger(__name__)

_LIBRARY = "libnvcuvid.so.1"  # a part of NVIDIA's driver
_DECODERS = 4  # of a thread; each holds memory of the GPU


def why_not(device: str) -> str | None:
    """What a device lacks to decode clips, in words; None when nothing."""
    if not device.startswith("cuda"):
        return f"clips cannot be decoded by {device}, only by an NVIDIA GPU"
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as error:
        return (
            f"the GPU's decoder cannot be used ({error}); a container sees it where NVIDIA_DRIVER_CAPABILITIES holds "
            "video or is all"
        )
    return None


def usable(gpu: int) -> bool:
    """Whether this process can use a GPU, which one that was forked from a user of CUDA cannot; says why not."""
    try:
        av.CodecContext.create("h264", "r", hwaccel=_device(gpu))
    except av.FFmpegError as error:
        logger.warning("clips are decoded by cores, because GPU %d cannot be used: %s", gpu, error)
        return False
    return True


def gpu_decoder(container: InputContainer, stream: VideoStream, gpu: int) -> VideoCodecContext | None:
    """A decoder for the H.264 of `stream`, whose frames are in the memory of GPU number `gpu` (see :func:`in_memory`).

    None where the frames would not be those of a core: what the container says of its pictures (a rotation) reaches
    its own decoder alone, and of interlaced frames decord makes other colours. So a core decodes the first.

    Raises:
        av.FFmpegError: CUDA cannot be used.
    """
    container.seek(stream.start_time or 0, stream=stream)
    first = next(packets(container, stream), None)
    shown = [*stream.decode(first), *stream.decode(None)] if first else []
    if not shown or shown[0].rotation or shown[0].interlaced_frame:
        return None
    return _this_thread.decoder(stream.codec_context.extradata, gpu)


def by_hardware(decoder: VideoCodecContext) -> bool:
    """Whether what a decoder has decoded was decoded by the GPU; FFmpeg has a core do what a GPU cannot."""
    return decoder.pix_fmt == "cuda"


def in_memory(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame with its planes as a core's decoder lays them out, which decides the colours that are made of them."""
    return frame.reformat(format="yuv420p") if frame.format.name == "cuda" else frame


def _new_decoder(parameters: bytes, gpu: int) -> VideoCodecContext:
    """
    Args:
        parameters: the stream's sets of sequence and picture parameters (ISO/IEC 14496-15, 5.3.3.1): what, besides
            packets, a decoder goes by. Other ones could ask for more memory than a decoder has taken.
    """
    decoder = av.CodecContext.create("h264", "r", hwaccel=_device(gpu))
    decoder.extradata = parameters
    decoder.thread_count = 1
    return decoder


def _device(gpu: int) -> HWAccel:
    """A GPU that keeps what it decodes, so that the frames that nobody asked for are not copied."""
    return HWAccel("cuda", device=str(gpu), is_hw_owned=True)


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.decoder = lru_cache(_DECODERS)(_new_decoder)


_this_thread = _ThisThread()
