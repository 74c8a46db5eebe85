"""Writing files so that a failure leaves what was there before."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rankscope.errors import OutputError, os_reason

__all__ = [
    "check_empty",
    "is_folder",
    "replacing",
    "write_adapter",
    "write_json",
    "write_tensors",
]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Missing parent folders are made. If the block raises, the temporary file is removed and
    `path` keeps its old content; a failing disk is reported as an `OutputError`.

    Examples
    --------
    >>> with replacing("/tmp/doctest-out/note.txt") as temporary:
    ...     _ = temporary.write_text("done")
    >>> Path("/tmp/doctest-out/note.txt").read_text()
    'done'
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the file from others
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        raise OutputError(
            "cannot write the output",
            where=str(target),
            expected="a writable folder with enough free space",
            got=reason,
            fix="free some space or choose another path; nothing was left half-written",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write `content` as indented JSON, atomically; NaN is refused, as JSON has none."""
    with replacing(path) as temporary:
        temporary.write_text(_json(content))


def _json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors as one safetensors file, atomically.

    The header records ``format: pt`` so that other libraries know the dtype conventions.
    """
    with replacing(path) as temporary:
        _save(temporary, tensors, metadata)


def _save(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {"format": "pt", **(metadata or {})})


def write_adapter(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
) -> None:
    """Write a PEFT adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Parameters
    ----------
    folder : path
        Made if it is missing.
    tensors : mapping
        PEFT's own keys, ``base_model.model.<module>.lora_A.weight`` (r, in) and
        ``….lora_B.weight`` (out, r).
    config : mapping
        At least ``r``, ``lora_alpha`` and ``target_modules``; ``peft_type`` is set to LORA.
    """
    config_path, weights_path = (
        Path(folder) / name for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    # Nested, so that neither file takes its place unless both could be written.
    with replacing(config_path) as new_config, replacing(weights_path) as new_weights:
        new_config.write_text(_json({"peft_type": "LORA", **config}))
        _save(new_weights, tensors)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether an output means a folder: it has no suffix but perhaps a number.

    Examples
    --------
    >>> is_folder("runs/small"), is_folder("runs/energy-0.95"), is_folder("runs/table.csv")
    (True, True, False)
    """
    suffix = Path(path).suffix.removeprefix(".")
    return not suffix or suffix.isdigit()


def check_empty(folder: str | os.PathLike[str]) -> None:
    """Raise an `OutputError` where a folder to be made holds something already, or is a file."""
    target = Path(folder)
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held or (target.exists() and not target.is_dir()):
        raise OutputError(
            "the place for the adapter is taken",
            where=str(target),
            expected="a new or empty folder",
            got=", ".join(held[:3]) + (" …" if len(held) > 3 else "") if held else "a file",
            fix="choose another folder, or remove this one",
        )
