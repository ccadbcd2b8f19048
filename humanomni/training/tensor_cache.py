"""Tensors made of clips, kept on disk."""

import hashlib
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from humanomni.media import MediaError

logger = logging.getLogger(__name__)


class TensorCache:
    """A folder of safetensors files, one a clip or part of one, that ranks and workers share.

    An entry is named by the file's path, size and time and by the settings, so that neither a changed clip nor a
    changed model meets a stale entry.

    Args:
        folder: made where it is missing.
        settings: names all else that the tensors depend on.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self._settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)

    def holds(self, path: Path, start: float | None, end: float | None) -> bool:
        """Whether there is a whole entry of a clip, or of its part between two seconds.

        Raises:
            MediaError: when the clip's file is missing.
        """
        try:
            with safe_open(self._entry(path, start, end), framework="pt"):  # which compares the file's length too
                return True
        except (FileNotFoundError, SafetensorError):
            return False

    def read(self, path: Path, start: float | None, end: float | None) -> dict[str, Tensor] | None:
        """The tensors of a clip, or None where there are none; a damaged entry, as a full disk leaves it, is none.

        Raises:
            MediaError: when the clip's file is missing.
        """
        entry = self._entry(path, start, end)
        try:
            return load_file(entry)
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            logger.warning("%s is damaged (%s) and is made again", entry, error)
            return None

    def write(self, path: Path, start: float | None, end: float | None, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors, through a temporary name, so that nobody ever reads half an entry.

        Raises:
            OSError: when the disk takes no more; no part of the entry stays.
            MediaError: when the clip's file is missing.
        """
        entry = self._entry(path, start, end)
        temporary = entry.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            save_file(dict(tensors), temporary)
            temporary.replace(entry)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise OSError(str(error)) from error

    def _entry(self, path: Path, start: float | None, end: float | None) -> Path:
        try:
            status = path.stat()
        except OSError as error:
            raise MediaError(path, error.strerror or "cannot be read") from error
        part = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{start}\n{end}"
        name = hashlib.sha256(f"{part}\n{self._settings}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.safetensors"
