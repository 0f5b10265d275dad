"""The old name of `core_hpc.controller.detach`, for pickled calls of controllers in the queue.

The next release removes it.
"""

from core_hpc.controller.detach import ControllerSpec, run_controller

__all__ = ["ControllerSpec", "run_controller"]
