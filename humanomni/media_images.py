"""Clips that are pictures: a folder of frames, or a single image."""

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from humanomni.media_container import MediaError

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
FOLDER_FPS = 3.0  # the authors' nominal rate for a folder of frames


def list_images(path: Path) -> list[Path]:
    """The image itself, or a folder's images in the order of the numbers in their names; empty for other files.

    The authors' release sorts the names as text, which puts frame 10 before frame 2.
    """
    if not path.is_dir():
        return [path] if path.suffix.lower() in IMAGE_SUFFIXES else []
    entries = (item for item in path.iterdir() if not item.name.startswith("."))  # macOS leaves "._000.jpg"
    images = [item for item in entries if item.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise MediaError(path, f"a folder without images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(images, key=lambda item: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", item.name)])


def read_images(paths: list[Path]) -> np.ndarray:
    """RGB uint8 [T, H, W, 3], upright, of images of one size.

    Raises:
        MediaError: an image cannot be decoded, or differs in size from the first.
    """
    frames: list[np.ndarray] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                frames.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
            raise MediaError(path, f"not an image that can be decoded ({error})") from error
        if frames[-1].shape != frames[0].shape:
            sizes = [f"{frame.shape[1]}x{frame.shape[0]}" for frame in (frames[-1], frames[0])]
            raise MediaError(path, f"{sizes[0]} pixels, but {paths[0].name} has {sizes[1]}; a clip needs one size")
    return np.stack(frames)
