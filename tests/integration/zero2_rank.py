"""One rank of `test_zero2.py` and `test_full_tuning.py`: runs checks and writes a JSON report.

    RANK=.. WORLD_SIZE=.. LOCAL_RANK=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python zero2_rank.py FOLDER NAME [CHECK ...] [+ FOLDER NAME [CHECK ...]]

A CHECK is the name of a method of `Checks`, with arguments after colons. After a plus sign follow
FOLDER, NAME and checks of another trainer, which the same process has next, because the imports of
a process cost more than the checks. A NAME that begins with
`full_` trains every weight in float32, one that begins with `half_` every weight in bfloat16, and
any other NAME trains an adapter in float32, over base weights that are divided among the ranks if
it begins with `sharded_`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor

from core_hpc import phases
from core_hpc.common.errors import MismatchError, NonFiniteError, StoppedError, StoreError
from core_hpc.config.extensions import LossFunction
from core_hpc.config.model import LoraSection
from core_hpc.config.update import UpdateSection
from core_hpc.extensions.sources import Source, remember
from core_hpc.phases.checkpoint import CheckpointStore
from core_hpc.phases.context import Stopwatch
from core_hpc.store import manifests
from core_hpc.store.paths import OPTIMIZER_STATE, RunPaths, TaskKey
from core_hpc.training import passes, trainer
from core_hpc.training.batching import Row, plan_steps, step_rows
from core_hpc.training.interruption import Checkpoint, Interruption
from core_hpc.training.micro_batch import collate
from core_hpc.training.policy import Dtype
from core_hpc.training.task import TrainerSettings, UpdateResult, UpdateTask
from core_hpc.training.trainer import Trainer
from core_hpc.training.zero2 import Zero2, any_true

SETTINGS = UpdateSection(
    learning_rate=3e-3,
    max_grad_norm=0.05,
    problems_per_step=2,
    kl_weight=0.1,
    micro_batch_tokens=40,
    warmup_share=0.3,
    weight_decay=0.1,
)
LORA = LoraSection(rank=4, alpha=8)
TEMPERATURE = 0.7
TOTAL_STEPS = 8
passes.PASS_STEPS = 2  # a task has three steps, so its passes before training have two groups
LORA_SEED = 11
KEY = TaskKey(2, "update", "tiny")
IDENTITY = {"run_id": "tiny", "rows": "mine"}


DTYPES: dict[str, Dtype] = {"full": "float32", "half": "bfloat16"}
"""Dtype of the weights that a launch trains, by the beginning of its name."""


def read_rows(path: Path) -> list[Row]:
    return [Row(**{**row, "key": tuple(row["key"])}) for row in json.loads(path.read_text())]


class Checks:
    """The checks. Each returns plain data for the report."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.progress: list[tuple[int, int]] = []
        kind = name.partition("_")[0]
        self.trainer = Trainer(
            TrainerSettings(
                model_folder=folder / "model",
                model_name="org/tiny",
                lora=None if kind in DTYPES else LORA,
                dtype=DTYPES.get(kind, "float32"),
                shard_base=kind == "sharded",
                gradient_checkpointing=True if name == "sharded_again" else None,
            )
        )
        self.inputs = json.loads((folder / "inputs.json").read_text())

    def update(
        self,
        number: int,
        previous: str | None,
        out: str,
        rows: list[Row] | None = None,
        settings: UpdateSection = SETTINGS,
        **more: Any,
    ) -> UpdateResult:
        return self.trainer.update(
            UpdateTask(
                rows=rows or read_rows(self.folder / f"rows{number}.json"),
                settings=settings,
                temperature=TEMPERATURE,
                max_new_tokens=64,
                total_steps=TOTAL_STEPS,
                shuffle_seed=self.inputs["shuffle_seed"],
                lora_seed=LORA_SEED,
                previous=self.folder / previous if previous else None,
                on_progress=lambda done, total: self.progress.append((done, total)),
                **more,
            ),
            self.folder / out,
        )

    def base_hash(self) -> str:
        digest = hashlib.sha256()
        for name, p in sorted(self.trainer.policy.base.named_parameters()):
            if "lora_" not in name:
                whole = p.full_tensor() if isinstance(p, DTensor) else p
                digest.update(name.replace(".base_layer", "").encode() + whole.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def base_numbers(self) -> dict[str, int]:
        """How many numbers of the base weights this rank holds between two tasks, and how many there are."""
        base = [p for n, p in self.trainer.policy.base.named_parameters() if "lora_" not in n]
        held = {id(p): p.to_local() if isinstance(p, DTensor) else p for p in base}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in held.values()}
        return {"held": sum(storages.values()), "all": sum(p.numel() for p in base)}

    def both(self) -> dict[str, Any]:
        """Two tasks in one warm process: metrics of the steps, and log-probabilities after them."""
        before = self.base_hash()
        results = [self.update(1, None, f"{self.name}.1"), self.update(2, f"{self.name}.1", f"{self.name}.2")]
        rows = read_rows(self.folder / "rows2.json")
        (plan,) = plan_steps(rows[:2], problems_per_step=9, seed=0, num_ranks=1, max_tokens=999, layout="tree")
        batch = collate(rows, plan.micro_batches[0][0].rows, "tree").to(self.trainer.device)
        logp, _ = self.trainer.policy.log_probs(batch, temperature=TEMPERATURE)
        plans = plan_steps(
            read_rows(self.folder / "rows1.json"),
            problems_per_step=2,
            seed=self.inputs["shuffle_seed"],
            num_ranks=self.trainer.num_ranks,
            max_tokens=SETTINGS.micro_batch_tokens,
            layout="tree",
        )
        return {
            "steps": [r.steps.to_dicts() for r in results],
            "steps_done": [r.steps_done for r in results],
            "timings": [vars(r.timings) for r in results],
            "base_unchanged": before == self.base_hash(),
            "progress": list(self.progress),
            "logp": {str(i): logp[batch.row_M == n].tolist() for n, i in enumerate(batch.rows)},
            "micro_batches": [[len(rank) for rank in p.micro_batches] for p in plans],
        }

    def silent_step(self) -> list[dict[str, Any]]:
        """A token mean without KL.

        The rows of the second step have no advantage, so no rank computes them.
        """
        rows = read_rows(self.folder / "rows1.json")
        silent = step_rows(rows, problems_per_step=2, seed=self.inputs["shuffle_seed"])[1][0]
        rows = [replace(r, advantage=0.0) if r.problem_id in silent else r for r in rows]
        settings = UpdateSection(loss="dapo", learning_rate=3e-3, problems_per_step=2, micro_batch_tokens=40)
        return self.update(1, None, f"{self.name}.silent", rows, settings).steps.to_dicts()

    def silent_step_of_own_loss(self) -> list[dict[str, Any]]:
        """The same with a gain of the user that is not 0 without an advantage."""
        gain = "def gain(ratio, advantage, log_prob, rescue):\n    return ratio * advantage - 0.1 * log_prob\n"
        source = Source("gain.py", gain)
        remember([source])
        own = LossFunction(function=source.reference("gain"), options={})
        rows = [replace(r, advantage=0.0) for r in read_rows(self.folder / "rows1.json")]
        settings = UpdateSection(loss="dapo", loss_function=own, problems_per_step=2, micro_batch_tokens=40)
        return self.update(1, None, f"{self.name}.own", rows, settings).steps.to_dicts()

    def resume(self, previous: str, out: str) -> None:
        """The second task from a published folder."""
        self.update(2, previous, out)

    def adapted(self, adapter: str) -> dict[str, Any]:
        """The first task, which begins with an adapter that another update has published."""
        done = self.update(1, None, f"{self.name}.adapted", adapter=self.folder / adapter)
        return {"steps": done.steps.to_dicts(), "steps_done": done.steps_done}

    def raw_resume(self) -> dict[str, float]:
        """Five steps against three steps, a resume and two steps.

        Returns:
            The largest difference of weights and of moments.
        """
        rank = self.trainer.rank

        # Rank 0 has no gradient of the last parameter, like an expert that saw no token.
        def losses(p: dict[str, torch.nn.Parameter], step: int) -> list[torch.Tensor]:
            return [((v - step - rank) ** 2).mean() + (v**3).sum() * 0.1 for v in p.values()][: 2 + rank]

        def fresh(values: dict[str, torch.Tensor] | None = None) -> dict[str, torch.nn.Parameter]:
            g = torch.Generator().manual_seed(0)
            drawn = {f"p{i}": torch.randn(5, 3 + i, generator=g) for i in range(3)}
            return {n: torch.nn.Parameter((values or drawn)[n].clone()) for n in drawn}

        parameters = fresh()
        zero = Zero2(parameters, SETTINGS)
        for step in range(5):
            zero.backward(losses(parameters, step))
            zero.apply(0.01 * (step + 1))
            if step == 2:
                saved = zero.state(3)
        whole = zero.state(5)
        zero.close()
        parameters = fresh(saved.parts["weight"])
        zero = Zero2(parameters, SETTINGS, saved)
        for step in (3, 4):
            zero.backward(losses(parameters, step))
            zero.apply(0.01 * (step + 1))
        resumed = zero.state(5)
        zero.close()
        return {
            part: max(float((whole.parts[part][n] - resumed.parts[part][n]).abs().max()) for n in whole.parts[part])
            for part in whole.parts
        }

    def attempt(
        self,
        root: Path,
        out: str,
        *,
        previous: str = "",
        stop_at: int = -1,
        interval_s: float = 0.0,
        rows: str = "mine",
    ) -> dict[str, Any]:
        """Run the second task again, from its newest checkpoint below `root`.

        Args:
            stop_at: optimizer steps after which the last rank is asked to stop; -1: never.
            interval_s: seconds between checkpoints.
            rows: identity of the rows, which a checkpoint must have to be used.
        """
        checkpoints = CheckpointStore(RunPaths(root), KEY, {**IDENTITY, "rows": rows})
        resume = checkpoints.find(self.trainer)
        boundary = itertools.count(resume.steps.height if resume else 0)
        is_last = self.trainer.rank == self.trainer.num_ranks - 1
        interruption = Interruption(
            should_stop=lambda: next(boundary) == stop_at and is_last, interval_s=interval_s, save=checkpoints.save
        )
        seen: dict[str, Any] = {"from": resume.steps.height if resume else 0, "steps": [], "stopped": ""}
        self.progress = []
        try:
            done = self.update(2, previous or f"{self.name}.1", out, interruption=interruption, resume=resume)
            seen["steps"] = done.steps.to_dicts()
        except StoppedError as error:
            seen["stopped"] = str(error)
        seen["progress"] = self.progress
        seen["written"] = (self.folder / out).exists()
        seen["stored"] = sorted(p.name for p in manifests.list_manifests(RunPaths(root).checkpoint_folder(KEY)))
        return seen

    def interrupted(self) -> dict[str, Any]:
        """Attempts of one task, one after the other, with the same checkpoints."""
        root, name = self.folder / f"{self.name}.run", self.name
        folder = RunPaths(root).checkpoint_folder(KEY)
        seen: dict[str, Any] = {
            "at_start": self.attempt(root, f"{name}.none", stop_at=0),
            "stopped": self.attempt(root, f"{name}.none", stop_at=1),
            "again": self.attempt(root, f"{name}.none", stop_at=1),
            "resumed": self.attempt(root, f"{name}.resumed", interval_s=1e-9),
        }
        if self.trainer.rank == 0:
            shutil.copytree(root, self.folder / f"{name}.foreign")
            (newest,) = folder.glob(f"*-step0002.*/{OPTIMIZER_STATE}")
            content = bytearray(newest.read_bytes())
            content[-1] ^= 255
            newest.write_bytes(bytes(content))
        seen["damaged"] = self.attempt(root, f"{name}.damaged")
        seen["foreign"] = self.attempt(self.folder / f"{name}.foreign", f"{name}.fresh", rows="others")
        # The other ranks look into an empty folder, as if their node did not see what rank 0 sees.
        manifests.VISIBILITY_DELAYS_S = (0.01,) * 4
        elsewhere = root if self.trainer.rank == 0 else self.folder / "elsewhere"
        try:
            CheckpointStore(RunPaths(elsewhere), KEY, IDENTITY).find(self.trainer)
            seen["unseen"] = ""
        except StoreError as error:
            seen["unseen"] = str(error)
        return seen

    def continues(self, other: str) -> dict[str, Any]:
        """The second task of another launch, from the checkpoint of its interrupted attempt."""
        root = self.folder / f"{other}.run"
        return self.attempt(root, f"{other}.by_{self.name}", previous=f"{other}.1")

    def memory(self) -> list[dict[str, int]]:
        """Bytes of gradients and moments: as planned before the first step, and the most during a micro-batch.

        The first of two tasks has a fresh optimizer, the second the moments of the first.
        """
        made: list[Zero2] = []
        found: list[dict[str, int]] = []

        def make(*arguments: Any) -> Zero2:
            made.append(Zero2(*arguments))
            return made[-1]

        def held() -> int:
            state = made[-1].optimizer.optimizer.state.values()
            moments = sum(t.nbytes for own in state for name, t in own.items() if name != "step")
            return moments + sum(p.grad.nbytes for p in made[-1].parameters.values() if p.grad is not None)

        def make_room(num_tokens: int, num_keys: int, *, reserved: int) -> None:
            found.append({"planned": held() + reserved, "held": 0})

        def log_probs(*arguments: Any, **options: Any) -> Any:
            if made:  # the passes before training are over
                found[-1]["held"] = max(found[-1]["held"], held())
            return policy_log_probs(*arguments, **options)

        policy_log_probs = self.trainer.policy.log_probs
        with (
            patch.object(trainer, "Zero2", make),
            patch.object(self.trainer.memory, "make_room", make_room),
            patch.object(self.trainer.policy, "log_probs", log_probs),
        ):
            one_row = SETTINGS.model_copy(update={"micro_batch_tokens": 1})
            self.update(1, None, f"{self.name}.memory1", settings=one_row)
            made.clear()
            self.update(2, f"{self.name}.memory1", f"{self.name}.memory2", settings=one_row)
        return found

    def waits(self) -> dict[str, Any]:
        """An update in which rank 0 takes long to store its positions.

        Returns:
            The seconds that a rank waits for another one at most, when this rank ended a step, when rank 0
            had stored a position, and when this rank began to compute micro-batches.
        """
        ended: list[float] = []
        stored: list[float] = []
        computed: list[float] = []

        def should_stop() -> bool:
            ended.append(time.monotonic())
            return False

        def save(checkpoint: Checkpoint) -> bool:
            time.sleep(0.5)
            stored.append(time.monotonic())
            return True

        def log_probs(*arguments: Any, **options: Any) -> Any:
            computed.append(time.monotonic())
            return policy_log_probs(*arguments, **options)

        policy_log_probs = self.trainer.policy.log_probs
        with patch.object(self.trainer.policy, "log_probs", log_probs):
            interruption = Interruption(should_stop=should_stop, interval_s=1e-9, save=save)
            self.update(1, None, f"{self.name}.waits", interruption=interruption)
        group = torch.distributed.group.WORLD._get_backend(self.trainer.device)
        limit_s = group.options._timeout.total_seconds()
        return {"limit_s": limit_s, "ended": ended[1:], "stored": stored, "computed": computed}

    def published(self) -> list[list[int]]:
        """For each rank that alone sees an update as published, the ranks that begin it, as known to all ranks."""
        began = []
        for seeing in range(self.trainer.num_ranks):
            paths = RunPaths(self.folder / f"{self.name}.seen_by_{seeing}.{self.trainer.rank}")
            if self.trainer.rank == seeing:
                manifests.make_folder(paths.task_folder(KEY))
                paths.task_manifest(KEY).touch()
            config = SimpleNamespace(
                problems=SimpleNamespace(answer_kinds={}), extensions=SimpleNamespace(time_limit_s=1.0)
            )
            context: Any = SimpleNamespace(
                key=KEY, paths=paths, run=SimpleNamespace(config=config), stopwatch=Stopwatch()
            )
            steps: list[Any] = []
            with patch.object(phases, "_step", lambda phase, steps=steps: steps.append):
                phases.run_task(context)
            flags = [bool(steps) and rank == self.trainer.rank for rank in range(self.trainer.num_ranks)]
            began.append([rank for rank, flag in enumerate(any_true(flags, self.trainer.device)) if flag])
        return began

    def failures(self) -> dict[str, Any]:
        """Reports on tasks with non-finite losses and gradients; a good task follows."""
        found: dict[str, Any] = {}
        for label, value in (("nan", float("nan")), ("overflow", 1e30)):
            rows = read_rows(self.folder / "rows1.json")
            index = next(i for i, r in enumerate(rows) if r.problem_id == self.inputs["second_step_problem"])
            rows[index] = replace(rows[index], advantage=value)
            found[label] = self.fails(rows, f"{self.name}.{label}")
        weight = next(self.trainer.policy.base.parameters()).data
        kept = weight.clone()
        weight.fill_(float("inf"))
        found["inf"] = self.fails(read_rows(self.folder / "rows1.json"), f"{self.name}.inf")
        weight.copy_(kept)
        found["unwritable"] = ""
        try:
            self.update(1, None, "inputs.json/below_a_file")
        except (StoreError, OSError) as error:
            found["unwritable"] = type(error).__name__
        self.update(1, None, f"{self.name}.again")
        return found

    def mismatch(self) -> dict[str, str]:
        """Messages of updates whose engine sampled with the right or with another model; empty: it passed."""
        import transformers
        from peft import PeftModel

        from tests.support.ranks import log_probs

        base = transformers.AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32).eval()
        found: dict[str, str] = {}

        def attempt(label: str, number: int, rows: list[Row], previous: str | None, limit: float) -> None:
            found[label] = ""
            try:
                self.update(number, previous, f"{self.name}.{label}", rows, max_mismatch=limit)
            except MismatchError as error:
                found[label] = str(error)
            assert found[label] == "" or not (self.folder / f"{self.name}.{label}").exists()

        def sampled_by(model: Any, number: int) -> list[Row]:
            with torch.no_grad():
                return [
                    replace(row, behaviour_logprobs=log_probs(model, vars(row)).tolist())
                    for row in read_rows(self.folder / f"rows{number}.json")
                ]

        right = sampled_by(base, 1)
        attempt("right", 1, right, None, 0.01)
        worst = self.inputs["second_step_problem"]
        shifted = [
            replace(r, behaviour_logprobs=[v - 0.5 for v in r.behaviour_logprobs or ()]) if r.problem_id == worst else r
            for r in right
        ]
        attempt("shifted", 1, shifted, None, 0.1)
        adapter = f"{self.name}.right"
        adapted = PeftModel.from_pretrained(base, str(self.folder / adapter)).eval()
        attempt("with_adapter", 2, sampled_by(adapted, 2), adapter, 0.01)
        with adapted.disable_adapter():
            ignored = sampled_by(adapted, 2)
        attempt("adapter_ignored", 2, ignored, adapter, 100.0)
        return found

    def fails(self, rows: list[Row], out: str) -> dict[str, Any]:
        try:
            self.update(1, None, out, rows)
        except NonFiniteError as error:
            return {"message": str(error), "written": (self.folder / out).exists()}
        return {"message": "", "written": True}


def run_checks(folder: Path, name: str, names: list[str]) -> None:
    """The checks of one trainer, with a log and a report of their own."""
    own = f"{name}.{os.environ['RANK']}"
    with (folder / f"{own}.log").open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    start = time.perf_counter()
    checks = Checks(folder, name)
    seen: dict[str, Any] = {"start_s": time.perf_counter() - start}
    for check in names:
        method, *arguments = check.split(":")
        seen[method] = getattr(checks, method)(*arguments)
    checks.trainer.close()
    (folder / f"{own}.json").write_text(json.dumps(seen))


def main() -> None:
    torch.set_num_threads(1)
    for is_plus, words in itertools.groupby(sys.argv[1:], "+".__eq__):
        if not is_plus:
            folder, name, *checks = words
            run_checks(Path(folder), name, checks)


if __name__ == "__main__":
    main()
