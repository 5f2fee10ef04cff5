"""Finds weights: always within one of the models folders, whatever the path or a link leads to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import BadModelFile
from . import gguf_parts, hf_folder

SUFFIX = ".gguf"
MAX_DEPTH = 3
"""Levels of folders that are searched (``publisher/model/file``)."""
MAX_FILES = 1000
MAX_ENTRIES = 20_000
"""Directory entries that a search reads: a models folder may be a whole home folder."""


def resolve(path: str, models_dirs: Sequence[Path], hint: str | None = None, named_by: str = "model_path") -> Path:
    """Return the file, or the folder of Hugging Face, at ``path``, absolute and with its links resolved.

    A relative path is looked up in each of ``models_dirs``, in order. Files outside of them are never opened. Of a
    model in several files ``path`` is the first; that the others are there is for `gguf_header.read` to check.
    ``named_by`` is the parameter that has the path, for messages.

    Raises BadModelFile if there is no such file (the message has ``hint``, a command that fetches it), if it is outside
    of the folders or a link leads out of them, and if it is not a regular file or unreadable.
    """
    if not path or "\0" in path or not _is_unicode(path):
        raise BadModelFile(f"{path!r} is not a valid path of a model file")
    roots = [_real(folder) for folder in models_dirs]
    outside: Path | None = None
    for candidate in [folder / path for folder in models_dirs]:
        target = _real(candidate)
        if not any(target.is_relative_to(root) for root in roots):
            outside = target
        elif _exists(target):
            place = settled(candidate)
            for file in _files_of(place):
                if not any(_real(file).is_relative_to(root) for root in roots):
                    raise BadModelFile(f"{file} is a link that leads out of the models folders: copy the file there")
            _check_readable(target, candidate)
            return place
    folders = ", ".join(str(folder) for folder in models_dirs) or "none is set"
    if outside is not None:
        raise BadModelFile(
            f"{named_by} {path} is outside of the models folders ({folders}), at {outside}: "
            "move the file into one of them, or add its folder to models_dirs"
        )
    step = f"fetch it with: {hint}" if hint else f"add it, or correct {named_by}"
    where = "" if Path(path).is_absolute() else f"; looked in {folders}"
    raise BadModelFile(f"there is no model file {path}{where}: {step}")


def settled(path: Path) -> Path:
    """Return a path with its links resolved; the first of several files keeps its name, by which the others are found.

    In the cache of the hub's client each file is a link to one without a name. Raises BadModelFile.
    """
    real = _real(path)
    return real if len(gguf_parts.paths_of(path)) == 1 else _real(path.parent) / path.name


def scan(models_dirs: Sequence[Path]) -> list[Path]:
    """Return the GGUF files and the folders of Hugging Face in the models folders: absolute, each once, in order.

    Folders that can't be read count as empty. Hidden folders and files, links to folders, links that lead out, names
    that are not Unicode, and all parts but the first of a model in several files are left out.
    """
    roots = [_real(folder) for folder in models_dirs]
    files: dict[Path, None] = {}
    budget = [MAX_ENTRIES]
    for root in roots:
        for path in _walk(root, MAX_DEPTH, budget):
            if (path.is_file() or path.is_dir()) and any(path.resolve().is_relative_to(other) for other in roots):
                files[settled(path)] = None
            if len(files) >= MAX_FILES:
                return list(files)
    return list(files)


def _walk(folder: Path, depth: int, budget: list[int]) -> Iterator[Path]:
    folders = []
    for entry in _entries(folder):
        budget[0] -= 1
        if budget[0] < 0:
            return
        if entry.name.startswith(".") or not _is_unicode(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            if hf_folder.holds_model(Path(entry.path)):
                yield Path(entry.path)
            else:
                folders.append(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIX) and not gguf_parts.is_later(entry.name):
            yield Path(entry.path)
    if depth > 1:
        for below in folders:
            yield from _walk(below, depth - 1, budget)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _files_of(path: Path) -> Iterator[Path]:
    """Yield the files below a folder of Hugging Face, and the later parts of a GGUF file that are there."""
    if path.is_file():
        yield from (part for part in gguf_parts.paths_of(path)[1:] if part.exists())
    elif path.is_dir() and hf_folder.holds_model(path):
        for entry in _entries(path):
            if entry.is_dir(follow_symlinks=False):
                yield from (Path(below.path) for below in _entries(Path(entry.path)))
            yield Path(entry.path)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13.
        raise BadModelFile(f"{path} can't be followed: {error}") from error


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BadModelFile(f"{path} can't be accessed: {error.strerror}") from error
    return True


def _check_readable(path: Path, named: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        if hf_folder.holds_model(path):
            return
        raise BadModelFile(f"{named} is a folder: model_path must name a file in it, or a folder with a config.json")
    if not stat.S_ISREG(mode):  # Opening a pipe would block.
        raise BadModelFile(f"{named} is not a regular file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadModelFile(f"{named} can't be read by this process: {error.strerror}; check its permissions") from error
