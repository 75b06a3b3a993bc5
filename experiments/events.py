"""TensorBoard events of a run, an option beside metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """Writes the lines of metrics.jsonl as scalars, one for each seed.

    Args:
      folder: of the event files.
      first_seed: the seed of the first value of each line.
      step: the last step that is kept; events of later steps, which an interrupted call has left, are purged.
    """

    def __init__(self, folder: Path, first_seed: int, step: int):
        from tensorboardX import SummaryWriter

        self._first_seed = first_seed
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes one line of metrics.jsonl."""
        for name, values in line.items():
            if name != "step":
                for seed, value in enumerate(values, self._first_seed):
                    self._writer.add_scalar(f"{name}/seed_{seed}", value, line["step"])

    def close(self) -> None:
        """Writes everything to disk."""
        self._writer.close()
