"""TensorBoard and Weights & Biases, each behind its extra and imported only when asked for."""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.train import Run


class Tracker(ABC):
    """Sends the metrics of every iteration somewhere. Only process 0 sends.

    Args:
        folder: the run folder.
        config: the resolved configuration, as plain data.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config

    def start(self, run: Run) -> None:
        """Opens the connection and sends the evaluation before tuning."""
        if run.reduce.rank == 0:
            self.open()
            if run.done == 0:  # the evaluation comes before the trackers
                baseline = run.callback_state.get("baseline", {})
                self.send({f"eval/{k}": v for k, v in baseline.items()}, 0)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Sends the metrics."""
        if run.reduce.rank == 0:
            self.send(metrics, run.done)

    def end(self, run: Run) -> None:
        """Closes the connection."""
        if run.reduce.rank == 0:
            self.close()

    @abstractmethod
    def open(self) -> None:
        """Opens the connection."""

    @abstractmethod
    def send(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Sends numbers."""

    @abstractmethod
    def picture(self, name: str, png: bytes, iteration: int) -> None:
        """Sends a picture. Process 0 alone calls it."""

    @abstractmethod
    def close(self) -> None:
        """Closes the connection."""


class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``."""

    def open(self) -> None:
        """Starts an event file. Raises GirsanovError if TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise GirsanovError(
                "tracking with TensorBoard needs the package tensorboard: pip install 'girsanov[tracking]'"
            ) from None
        self.writer = SummaryWriter(str(self.folder.path / "tensorboard"))

    def send(self, metrics: Mapping[str, float], iteration: int) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, iteration)

    def picture(self, name: str, png: bytes, iteration: int) -> None:
        """One image."""
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self.writer.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Closes the event file."""
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases in the project "girsanov"; WANDB_MODE=offline keeps it on this machine."""

    def open(self) -> None:
        """Starts the run. Raises GirsanovError if wandb is not installed."""
        try:
            import wandb
        except ImportError:
            raise GirsanovError(
                "tracking with Weights & Biases needs the package wandb: pip install 'girsanov[tracking]'"
            ) from None
        self.run = wandb.init(
            project="girsanov",
            name=self.folder.path.name,
            dir=str(self.folder.path),
            config=dict(self.config),
            id=self.folder.facts.get("id"),
            resume="allow",
        )

    def send(self, metrics: Mapping[str, float], iteration: int) -> None:
        """One step."""
        self.run.log(dict(metrics), step=iteration)

    def picture(self, name: str, png: bytes, iteration: int) -> None:
        """One image."""
        import wandb
        from PIL import Image

        self.run.log({name: wandb.Image(Image.open(io.BytesIO(png)))}, step=iteration)

    def close(self) -> None:
        """Finishes the run."""
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Every tracker by name."""
