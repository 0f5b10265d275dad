"""The old place of `core_hpc.controller.detach`, for pickled calls of a controller that waits in the queue. Goes with the next release."""

from core_hpc.controller.detach import ControllerSpec, run_controller

__all__ = ["ControllerSpec", "run_controller"]
