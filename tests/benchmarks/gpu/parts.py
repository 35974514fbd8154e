"""Which parts there are, the most telling first, and what each may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from gpu import closeness, device, finetuning, step, traces
from gpu.setting import Figures, NotMeasured, Setting

NO_GPU = "no GPU"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is measured.

    Attributes:
        name: Of it.
        seconds: It may take; what it has measured by then is kept.
        measure: Yields figures by name, as it has them.
        needs_gpu: Whether it says nothing at toy size on a CPU.
    """

    name: str
    seconds: float
    measure: Callable[[Setting], Iterator[Figures]]
    needs_gpu: bool = False

    def figures(self, setting: Setting) -> Iterator[Figures]:
        """What it measures.

        Raises:
            NotMeasured: It cannot be measured here.
        """
        if self.needs_gpu and setting.device.type != "cuda":
            raise NotMeasured(NO_GPU)
        return self.measure(setting)


PARTS = (
    Part("device", 20, device.facts),
    Part("backends", 30, closeness.backends),
    Part("devices", 45, closeness.devices, needs_gpu=True),
    Part("step_160", 75, partial(step.ours, size="160")),
    Part("nnssl_160", 60, partial(step.nnssl, size="160")),
    Part("dense_160", 45, partial(step.dense, size="160")),
    Part("kernels", 45, traces.kernels, needs_gpu=True),
    Part("waits", 30, traces.waits, needs_gpu=True),
    Part("geometry", 30, traces.geometry),
    Part("run_step", 45, step.of_a_run),
    Part("finetuning", 60, finetuning.step),
    Part("prediction", 60, finetuning.prediction),
    Part("triton", 75, closeness.kernels, needs_gpu=True),
    Part("step_96", 30, partial(step.ours, size="96")),
    Part("dense_96", 30, partial(step.dense, size="96")),
    Part("nnssl_96", 30, partial(step.nnssl, size="96")),
    Part("batch_finder", 60, step.largest_batch, needs_gpu=True),
)
