"""Writing files so that they are never seen half-written."""

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Writes a file in one step: it is there with all of the content, or as it was."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def is_partial(path: Path) -> bool:
    """Whether this is what an interrupted write has left."""
    return path.name.endswith(".partial")
