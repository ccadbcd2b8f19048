"""Tensors of a folder of weights, read one at a time: safetensors or .bin, in one file or in shards."""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from humanomni.json_files import read_object

SHARD_BYTES = 5_000_000_000

# The name of a file of weights, and that of the index of its shards.
_FORMS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)


class ConversionError(ValueError):
    """A folder that cannot be converted; the message names the folder, the key and the mend."""


class WeightFolder(Mapping[str, Tensor]):
    """The tensors of a folder by name; none stays in memory, and one file is open at a time.

    .bin files are read with ``weights_only``: nothing in them can run.

    Args:
        folder: where the files are.
        files: which of them; by default the ones that transformers would read.

    Raises:
        ConversionError: on creation, for a shard that the index names and the folder lacks, and for a file that holds
            no tensors.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.shapes: dict[str, torch.Size] = {}
        self._files: dict[str, Path] = {}
        self._open_path: Path | None = None
        self._open_file: Any = None
        for file in _weight_files(folder) if files is None else files:
            for key, shape in self._read_shapes(file):
                self.shapes[key], self._files[key] = shape, file

    def __getitem__(self, key: str) -> Tensor:
        file = self._opened(self._files[key])
        return file[key].clone() if isinstance(file, dict) else file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _read_shapes(self, file: Path) -> list[tuple[str, torch.Size]]:
        tensors = self._opened(file)
        if isinstance(tensors, dict):
            return [(key, tensor.shape) for key, tensor in tensors.items()]
        return [(key, torch.Size(tensors.get_slice(key).get_shape())) for key in tensors.keys()]  # noqa: SIM118

    def _opened(self, file: Path) -> Any:
        if file != self._open_path:
            self._open_path = self._open_file = None
            with _readable(file):
                if file.suffix == ".safetensors":
                    self._open_file = safe_open(file, framework="pt")
                else:
                    # Files of torch before 1.6 are no archives and cannot be mapped.
                    self._open_file = torch.load(
                        file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
                    )
                self._open_path = file
        return self._open_file


def require_free(output: Path, inputs: Iterable[Path | None]) -> None:
    """Refuses a folder to write that would overwrite an input, or mix its weights with others.

    Raises:
        ConversionError: it is one of the inputs, or holds weights or their index, which readers would look into first.
    """
    if output.resolve() in {path.resolve() for path in inputs if path is not None}:
        raise ConversionError(f"{output} is an input itself, which would be overwritten: choose another output")
    if there := sorted(file.name for patterns in _FORMS for pattern in patterns for file in output.glob(pattern)):
        raise ConversionError(f"{output} holds {there[0]} already: choose another output, or remove the folder")


def save_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes tensors as ``model.safetensors``, or as shards with their index, one shard in memory at a time."""
    shards: list[tuple[Path, list[str]]] = []
    waiting: dict[str, Tensor] = {}

    def write() -> None:
        path = folder / f"model-{len(shards) + 1:05d}.safetensors"
        save_file(waiting, path, metadata={"format": "pt"})
        shards.append((path, list(waiting)))
        waiting.clear()

    total = size = 0
    for key, tensor in tensors:
        if waiting and size + tensor.nbytes > shard_bytes:
            write()
            size = 0
        waiting[key] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, keys) in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConversionError: when the file is missing or is no JSON object.
    """
    return read_object(path, ConversionError)


def _weight_files(folder: Path) -> list[Path]:
    for pattern, index_name in _FORMS:
        index = folder / index_name
        if index.is_file():
            files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
            if missing := [file.name for file in files if not file.is_file()]:
                raise ConversionError(f"{folder} lacks {', '.join(missing)}, which {index.name} names: fetch it again")
            return files
        if files := sorted(folder.glob(pattern)):
            return files
    return []


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ConversionError(f"{file} holds more than tensors and is not opened: {error}") from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ConversionError(f"{file} is no file of weights, or cut short: {error}; fetch it again") from error
