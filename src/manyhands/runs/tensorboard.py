"""Logs a run for TensorBoard: the same scalars and pictures as in the report."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from manyhands.errors import RecipeError

if TYPE_CHECKING:
    from manyhands.runs.round import Round
    from manyhands.runs.run_folder import RunFolder


class TensorBoardLogger:
    """Writes each round into ``tensorboard/`` of a run folder.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RecipeError("TensorBoard is not installed: pip install 'manyhands[tensorboard]'") from None
        self._open = SummaryWriter

    @cached_property
    def _writer(self) -> Any:
        """The writer, opened with the first round, when the folder is this run's; repeated rounds are overwritten."""
        return self._open(str(self.folder.path / "tensorboard"), purge_step=self.folder.kept)

    def show(self, closed_round: Round) -> None:
        """Log the losses, bytes, work and figures of a round, and its picture where there is one."""
        step = closed_round.number + 1
        scalars = {
            "loss/mean": closed_round.loss,
            **{f"loss/{silo}": loss for silo, loss in closed_round.losses.items()},
            "bytes/up": closed_round.bytes_up,
            "bytes/down": closed_round.bytes_down,
            "flops/silos": sum(closed_round.flops.values()),
            "flops/server": closed_round.server_flops,
            "images a second": closed_round.images_seen / closed_round.seconds if closed_round.seconds else 0.0,
            **{f"metrics/{name}": value for name, value in closed_round.metrics.items()},
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        picture = self.folder.round_picture(step)
        if picture.exists():
            self._picture("samples", picture, step)

    def close(self) -> None:
        """Log the figures of the end and the partition; nothing where no round was logged."""
        if "_writer" not in vars(self):
            return
        ended = (self.folder.path / "report.json").exists()
        report: dict[str, Any] = self.folder.report if ended else {"metrics": {}, "rounds": 0}
        for name, value in report["metrics"].items():
            if value is not None:
                self._writer.add_scalar(f"metrics/{name}", value, report["rounds"])
        for name in ("samples", "partition"):
            path = self.folder.figures / f"{name}.png"
            if path.exists():
                self._picture(f"{name} at the end" if name == "samples" else name, path, report["rounds"])
        self._writer.close()

    def _picture(self, name: str, path: Any, step: int) -> None:
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
