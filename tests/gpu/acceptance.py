"""The cases of `acceptance.sh`: each is one process with a time limit, and one entry in a JSON file.

    python -m tests.gpu.acceptance --out FILE [--minutes 9] [--device cpu --size tiny]

The models have random weights in the shapes of `tests/benchmarks/gpu_update.py`. A case runs alone
in its process, so that its peak of memory is its own and a failure does not end the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
GPU_TESTS = "tests/integration/test_gpu.py"
BIG, SMALL = {"usual": "Qwen3-4B", "tiny": "tiny"}, {"usual": "Qwen2.5-0.5B", "tiny": "tiny"}
TOKENS_PER_UPDATE = {"usual": 65536, "tiny": 1024}
PUBLISHED_TOKENS_PER_S = 6230
"""Published by others: 4B, LoRA of rank 16, 16,384 tokens, one H100."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case; `kind` names its function in `FUNCTIONS`."""

    name: str
    kind: str = "lora"
    length: int = 2048
    compile_layers: bool = False
    checkpointing: bool | None = None
    limit_s: int = 120
    """Seconds after which the case is ended. It begins only if as many are left."""


def cases(size: str) -> list[Case]:
    """All cases, the most important ones first."""
    long, *others = (16384, 4096, 2048, 512) if size == "usual" else (128, 64)
    return [
        Case(name="tests", kind="tests", limit_s=150),
        Case(name=f"lora-4b-{long}", length=long, compile_layers=True, limit_s=180),
        *(Case(name=f"lora-4b-{n}", length=n, compile_layers=True) for n in others),
        Case(name=f"lora-4b-{long}-plain", length=long),
        Case(name="full-0.5b", kind="full", limit_s=60),
        Case(name="two-processes", kind="two_processes", limit_s=100),
        Case(name="qlora-0.5b", kind="qlora", limit_s=60),
        Case(name="lora-4b-2048-checkpointing", length=min(2048, long), checkpointing=True, limit_s=60),
        Case(name="lora-4b-2048-plain", length=min(2048, long), limit_s=60),
    ]


def skipped(case: Case, *, seconds_left: float, device: str) -> str | None:
    """Why a case is not run; None: it is run."""
    if seconds_left < case.limit_s:
        return f"{seconds_left:.0f} s were left, and it may take {case.limit_s} s"
    if case.kind == "qlora" and (find_spec("bitsandbytes") is None or device == "cpu"):
        return "bitsandbytes is not installed" if device != "cpu" else "4-bit weights need a GPU"
    if case.kind == "tests" and device == "cpu":
        return "these tests need a GPU"
    return None


# --- what a case does, in its own process ----------------------------------------------------------


def _timed(trainer: Any, shape: dict[str, int], *, length: int, size: str, device: str) -> dict[str, Any]:
    """Two updates: the first one compiles and warms up, the second one counts."""
    import torch

    from tests.benchmarks import gpu_update

    rows = gpu_update.make_rows(length, max(TOKENS_PER_UPDATE[size], 4 * length), shape["vocab_size"])
    with TemporaryDirectory() as folder:
        first = gpu_update.update(trainer, rows[: gpu_update.SAMPLES], Path(folder, "warm"), torch.device(device))
        found = gpu_update.update(trainer, rows, Path(folder, "out"), torch.device(device))
    return {
        **found,
        "compile_s": first["compile_s"],
        "compiled": trainer.policy.is_compiled,
        "train_tokens_per_s": found["num_tokens"] / found["train_s"],
        "tokens_per_s": found["num_tokens"] / found["seconds"],
    }


def lora(case: Case, *, size: str, device: str) -> dict[str, Any]:
    """An adapter on frozen bfloat16 weights."""
    import torch

    from tests.benchmarks import gpu_update

    shape = gpu_update.SHAPES[size][BIG[size]]
    trainer, parameters = gpu_update.make_trainer(
        shape, torch.device(device), compile_layers=case.compile_layers, checkpointing=case.checkpointing
    )
    return {"parameters": parameters, **_timed(trainer, shape, length=case.length, size=size, device=device)}


def _from_folder(case: Case, *, size: str, device: str, four_bit: bool) -> dict[str, Any]:
    """A trainer that loads a folder, as a run does: all weights, or an adapter on 4-bit weights."""
    import torch

    from core_hpc.config.model import LoraSection
    from core_hpc.training.task import TrainerSettings
    from core_hpc.training.trainer import Trainer
    from tests.benchmarks import gpu_update

    shape = gpu_update.SHAPES[size][SMALL[size]]
    with TemporaryDirectory() as folder:
        base = gpu_update.make_base(shape, torch.device(device))
        base.save_pretrained(folder)
        parameters = base.num_parameters()
        del base
        trainer = Trainer(
            TrainerSettings(
                model_folder=Path(folder),
                model_name="acceptance",
                lora=LoraSection() if four_bit else None,
                dtype="bfloat16",
                four_bit=four_bit,
            )
        )
        length = min(case.length, 2048 if size == "usual" else 64)
        return {"parameters": parameters, **_timed(trainer, shape, length=length, size=size, device=device)}


def full(case: Case, *, size: str, device: str) -> dict[str, Any]:
    """`tuning: full`."""
    return _from_folder(case, size=size, device=device, four_bit=False)


def qlora(case: Case, *, size: str, device: str) -> dict[str, Any]:
    """`tuning: qlora`."""
    return _from_folder(case, size=size, device=device, four_bit=True)


def two_processes(case: Case, *, size: str, device: str) -> dict[str, Any]:
    """The same updates in one process, and in two at the same time on the same GPU."""
    alone = _children([f"{case.name}/child"], size, device)
    both = _children([f"{case.name}/child"] * 2, size, device)
    one, two = (sum(c["train_tokens_per_s"] for c in found) for found in (alone, both))
    return {"alone_tokens_per_s": one, "together_tokens_per_s": two, "ratio": two / one, "children": both}


def child(case: Case, *, size: str, device: str) -> dict[str, Any]:
    """One of the processes of `two_processes`: an adapter on the small model."""
    import torch

    from tests.benchmarks import gpu_update

    shape = gpu_update.SHAPES[size][SMALL[size]]
    trainer, _ = gpu_update.make_trainer(shape, torch.device(device), compile_layers=False)
    return _timed(trainer, shape, length=min(case.length, 128 if size == "tiny" else 2048), size=size, device=device)


def _children(names: Sequence[str], size: str, device: str) -> list[dict[str, Any]]:
    processes = [_start(name, size, device) for name in names]
    return [_result(*process.communicate(), process.returncode) for process in processes]


FUNCTIONS = {f.__name__: f for f in (lora, full, qlora, two_processes, child)}


# --- the process of all cases ----------------------------------------------------------------------


def _start(name: str, size: str, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.gpu.acceptance", "--case", name, "--size", size, "--device", device]
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", GPU_TESTS]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | hidden, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _result(stdout: str, stderr: str, status: int) -> dict[str, Any]:
    """The last line of the output, which is JSON; or the end of the error."""
    if status:
        raise RuntimeError((stdout + stderr)[-3000:])
    last = stdout.strip().splitlines()[-1]
    found: dict[str, Any] = json.loads(last) if last.startswith("{") else {"summary": last}
    return found


def run_case(case: Case, *, size: str, device: str) -> dict[str, Any]:
    """Run one case in a process with a time limit; returns its entry."""
    began = time.monotonic()
    process = _start(case.name, size, device)
    try:
        found = {"status": "passed", **_result(*process.communicate(timeout=case.limit_s), process.returncode)}
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        found = {"status": "failed", "error": f"ended after {case.limit_s} s"}
    except RuntimeError as e:
        found = {"status": "failed", "error": str(e)}
    return {"case": case.name, "wall_s": round(time.monotonic() - began, 1), **found}


def main(given: Sequence[str] | None = None) -> int:
    """Run all cases, or in a process of its own one case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(BIG), default="usual")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.case:
        name, _, part = options.case.partition("/")
        case = next(c for c in cases(options.size) if c.name == name)
        ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(ranks)
        print(json.dumps(FUNCTIONS[part or case.kind](case, size=options.size, device=options.device)))
        return 0
    if options.out is None:
        parser.error("--out is missing")
    end, entries = time.monotonic() + 60 * options.minutes, list[dict[str, Any]]()
    for case in cases(options.size):
        reason = skipped(case, seconds_left=end - time.monotonic(), device=options.device)
        if reason:
            entries.append({"case": case.name, "status": "skipped", "reason": reason})
        else:
            entries.append(run_case(case, size=options.size, device=options.device))
        print(json.dumps(entries[-1]), flush=True)
        report = {"device": options.device, "published_tokens_per_s": PUBLISHED_TOKENS_PER_S, "cases": entries}
        options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return int(any(e["status"] == "failed" for e in entries))


if __name__ == "__main__":
    sys.exit(main())
