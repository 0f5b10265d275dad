"""Ranks of an update (`integration/zero2_rank.py`), and the same update in plain torch."""

from __future__ import annotations

import json
import math
import os
import random
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.cluster import free_ports
from tests.support.harness import ROOT

SCRIPT = Path(__file__).parents[1] / "integration" / "zero2_rank.py"
VOCABULARY = 128


ONE_RANK_FILES = ("test_old_log_probs.py", "test_staleness.py")
"""Test files with updates of their own. As a script, each gets a model and a folder for its `found.json`."""


def run_on_one_rank(model: Path, root: Path) -> None:
    """Run the test files in one process, the only rank of their updates. Their folders in `root` have their names."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    env = os.environ | ranks | {"MASTER_PORT": str(free_ports(1)), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", __name__, str(model), str(root)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _one_rank(model: str, root: Path) -> None:
    """The process of `run_on_one_rank`."""
    for name in ONE_RANK_FILES:
        out = root / name
        out.mkdir()
        sys.argv = [name, model, str(out)]
        runpy.run_path(str(SCRIPT.with_name(name)), run_name="__main__")


def make_rows(seed: int) -> list[dict[str, Any]]:
    """The rows of a task as plain data, of five problems."""
    rng = random.Random(seed)
    rows = []
    for p in range(5):
        # p4 has one completion, alone in the last step, so one of two ranks has nothing to do.
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(4, 9))]
        for k in range(1 if p == 4 else 3):
            # One long completion fills a rank; the others are several micro-batches of the second.
            ids = [rng.randrange(VOCABULARY) for _ in range(60 if (p, k) == (1, 2) else rng.randint(2, 8))]
            rows.append(
                {
                    "key": [p, k],
                    "problem_id": f"p{p}",
                    "prompt_token_ids": [*prompt, 7, 7] if k == 2 else prompt,
                    "completion_token_ids": ids,
                    "behaviour_logprobs": [-4.8 + rng.gauss(0, 0.3) for _ in ids],
                    "advantage": rng.gauss(0, 1),
                    "weight": 0.8 if k == 2 else 1.0,
                }
            )
    return rows


def step_order(rows: list[dict[str, Any]], seed: int) -> list[list[str]]:
    """The problems of every optimizer step, two per step."""
    problems = list(dict.fromkeys(r["problem_id"] for r in rows))
    random.Random(seed).shuffle(problems)
    return [problems[i : i + 2] for i in range(0, len(problems), 2)]


def launch(
    folder: Path,
    name: str,
    num_ranks: int,
    *checks: str,
    then: Sequence[tuple[Path, str, Sequence[str]]] = (),
    gpus: str = "",
) -> list[dict[str, Any]]:
    """Run ranks until they end; returns the JSON report of each.

    Args:
        name: of the launch; see `zero2_rank.py`.
        then: folder, name and checks of further trainers, which the same processes have next.
        gpus: value of CUDA_VISIBLE_DEVICES; no GPU by default.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": gpus,
        "PYTHONPATH": path,
    }
    command = [sys.executable, str(SCRIPT), str(folder), name, *checks]
    for other, other_name, other_checks in then:
        command += ["+", str(other), other_name, *other_checks]
    logs = [folder / f"{name}.{rank}.log" for rank in range(num_ranks)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=own, stdout=file, stderr=file))
    try:
        codes = [process.wait(timeout=300) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if codes != [0] * num_ranks:
        logs += [other / f"{own}.{rank}.log" for other, own, _ in then for rank in range(num_ranks)]
        raise AssertionError("\n".join(log.read_text()[-3000:] for log in logs if log.exists()))
    return reports(folder, name, num_ranks)


def reports(folder: Path, name: str, num_ranks: int) -> list[dict[str, Any]]:
    """The JSON report of each rank of a launch that has ended."""
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(num_ranks)]


def launch_updates(root: Path, *, full: bool) -> None:
    """All launches of `test_zero2.py` (folder `zero2`) and `test_full_tuning.py` (folder `full`).

    The same processes train first adapters and then all weights. `one`, `two`, `full_one` and
    `full_two` are warm; `one_later`, `full_later`, and with --full `two_later` only resume.
    """
    adapters, whole = root / "zero2", root / "full"
    prepare(adapters, tiny_llama())
    prepare(whole, tiny_llama(tie_word_embeddings=True))
    (whole / "model" / "chat_template.jinja").write_text("{{ messages }}")
    basic = ("both", "raw_resume", "silent_step")
    updates = ("both", "interrupted", "memory")
    launch(adapters, "one", 1, *basic, "silent_step_of_own_loss", "interrupted", then=[(whole, "full_one", updates)])
    more = ("resume:one.1:one_two.2", "interrupted", "failures", "mismatch", "adapted:one.1", "waits", "published")
    continues = () if full else ("continues:one",)
    launch(adapters, "two", 2, *basic, *more, *continues, then=[(whole, "full_two", updates)])
    later = ("resume:one.1:one_later.2", "resume:two.1:two_one.2", "continues:two", "adapted:one.1")
    full_later = ("resume:full_one.1:full_later.2", "continues:full_two")
    then = [(whole, "full_later", full_later), (whole, "half_one", updates)]
    launch(adapters, "one_later", 1, *later, then=then)
    if full:
        launch(adapters, "two_later", 2, "resume:two.1:two_later.2", "continues:one")


def tiny_llama(**changes: Any) -> Any:
    """A random Llama model of two layers, the same in every call; `changes` are fields of its configuration."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **heads, **changes}))


def prepare(folder: Path, model: Any) -> list[list[str]]:
    """Write model, rows and inputs of the launches; returns the problems of every step."""
    model.save_pretrained(folder / "model")
    for number in (1, 2):
        (folder / f"rows{number}.json").write_text(json.dumps(make_rows(number)))
    seed, order = seed_and_order()
    (folder / "inputs.json").write_text(json.dumps({"shuffle_seed": seed, "second_step_problem": order[1][0]}))
    return order


def seed_and_order() -> tuple[int, list[list[str]]]:
    """The seed with which p4 is alone in the last step, and the problems of every step."""
    seed = next(s for s in range(100) if step_order(make_rows(1), s)[-1] == ["p4"])
    return seed, step_order(make_rows(1), seed)


def weights(folder: Path, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / name)
    return found


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference of two sets of tensors with the same names."""
    assert left.keys() == right.keys()
    return max(float((left[n].double() - right[n].double()).abs().max()) for n in left)


def log_probs(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a row's completion tokens, from one forward pass with full logits."""
    prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float() / 0.7
    return logits.log_softmax(-1)[torch.arange(len(completion)), completion]


def plain_updates(
    model: Any, reference: Callable[[dict[str, Any]], torch.Tensor], order: list[list[str]]
) -> Iterator[list[dict[str, float]]]:
    """Run the two tasks on the trainable parameters of `model`, one row at a time.

    Parameters with fewer than 32 bits are cast from float32 masters, which get the gradients and
    belong to the optimizer.

    Yields:
        The metrics of the steps of a task, after the task.
    """
    computing = [p for p in model.parameters() if p.requires_grad]
    masters = [p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float()) for p in computing]
    optimizer = torch.optim.AdamW(masters, lr=1.0, weight_decay=0.1)
    done = 0
    for number in (1, 2):
        rows = make_rows(number)
        with torch.no_grad():
            old, before = [log_probs(model, r) for r in rows], [reference(r) for r in rows]
        metrics = []
        for problems in order:
            mine = [i for i, r in enumerate(rows) if r["problem_id"] in problems]
            optimizer.zero_grad()
            total = 0.0
            for i in mine:
                current, advantage = log_probs(model, rows[i]), rows[i]["advantage"]
                ratio = (current - old[i]).exp()
                importance = (old[i] - torch.tensor(rows[i]["behaviour_logprobs"])).exp().clamp(max=2.0)
                surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * importance
                k3 = (before[i] - current).exp() - (before[i] - current) - 1
                loss = rows[i]["weight"] * (0.1 * k3 - surrogate).mean() / len(mine)
                loss.backward()
                total += loss.item()
                for parameter, master in zip(computing, masters, strict=True):
                    if parameter is not master:
                        master.grad = parameter.grad.float() + (0 if master.grad is None else master.grad)
                        parameter.grad = None
            norm = torch.nn.utils.clip_grad_norm_(masters, 0.05)
            share = (done + 1) / 3 if done < 3 else 0.5 * (1 + math.cos(math.pi * (done - 3) / 5))
            optimizer.param_groups[0]["lr"] = 3e-3 * share
            optimizer.step()
            with torch.no_grad():
                for parameter, master in zip(computing, masters, strict=True):
                    parameter.copy_(master)
            done += 1
            metrics.append({"loss": total, "grad_norm": norm.item(), "learning_rate": 3e-3 * share})
        yield metrics


def plain_adapters(
    folder: Path, order: list[list[str]], *, start: dict[str, torch.Tensor] | None = None
) -> list[tuple[dict[str, torch.Tensor], list[dict[str, float]]]]:
    """The adapters after both tasks, with the metrics of their steps.

    They are computed without DeepSpeed, micro-batches, or any code of core_hpc.

    Args:
        folder: has the model.
        order: the problems of every step.
        start: the weights of an adapter with which the first task begins; None: a fresh one.
    """
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(11)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    if start is not None:
        peft.set_peft_model_state_dict(model, start)

    def reference(row: dict[str, Any]) -> torch.Tensor:
        with model.disable_adapter():
            return log_probs(model, row)

    results = []
    for metrics in plain_updates(model, reference, order):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        results.append(({n.replace(".default", ""): p.detach().clone() for n, p in trained.items()}, metrics))
    return results


if __name__ == "__main__":
    _one_rank(sys.argv[1], Path(sys.argv[2]))
