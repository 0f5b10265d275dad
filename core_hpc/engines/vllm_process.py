"""What core_hpc changes in the processes of a vLLM engine on several GPUs.

vLLM starts one process per GPU and imports the module of `Extension` in each of them, before it
loads the model. The import itself makes the changes, because vLLM offers no call at this time.
Nothing else imports this module.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from core_hpc.common.stop_signals import STOP_SIGNALS

PR_SET_PDEATHSIG = 1
"""Number of an operation of prctl(2): the signal that a process gets when its parent has ended."""


class Extension:
    """vLLM adds this base class to its class of workers."""

    def replaces_functions(self) -> bool:
        """Whether this process uses the functions of `vllm_cpu`."""
        from core_hpc.engines import vllm_cpu

        return vllm_cpu.is_installed()

    def unlink_shared_memory(self) -> None:
        """Remove the names of the memory that the processes of an engine on a CPU share.

        vLLM never removes them, and a machine would lose 8 MB with every engine. The memory itself
        stays until the processes end.
        """
        for path in Path("/dev/shm").glob(f"{os.environ['VLLM_DIST_IDENT']}-*"):
            path.unlink(missing_ok=True)


def _prepare() -> None:
    """Change this process as described above."""
    from vllm.platforms import current_platform

    from core_hpc.engines import vllm_compiled, vllm_cpu

    # A batch system sends its signals to all processes of a job. The worker that started this
    # process ignores them, because its parent handles them.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The worker may be killed. vLLM looks for that only between two requests, and until then
    # the memory of the GPU would be occupied.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    vllm_compiled.share_compiled_code()
    if current_platform.is_cpu():
        vllm_cpu.install()


_prepare()
