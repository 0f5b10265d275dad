"""One whole iteration: the launcher, compared with a plain loop over prompts and completions.

    python -m tests.benchmarks.reference_loop --out FILE [--size small] [--dtype bfloat16]

The iteration has 32 problems of the quickstart and two models with 2 + 1 completions per problem
(`even_budget`: every model samples again). The launcher runs a new sweep. Its time is measured with
the start of its processes and without (from the accounting of time, without start, imports and
loading).

The loop is a simple implementation of the method, written for this comparison. It is one process
with both models and all cores. It samples one prompt at a time with `generate` of transformers, and
computes hints, rewards and advantages problem by problem with the functions of this package. It
computes old and reference log-probabilities, and then gradients, of one completion at a time, with
peft and AdamW. Its time is also measured with and without loading. Held-out problems are not
counted. The two ways alternate; the medians of the ratios are reported.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core_hpc.answers.extract import extract_answer
from core_hpc.answers.verifier import verify
from core_hpc.config.update import UpdateSection
from core_hpc.engines import worker_environment
from core_hpc.phases.context import Stopwatch, Warm
from core_hpc.protocol.advantages import advantages
from core_hpc.protocol.distance import operation_signature
from core_hpc.protocol.hints import make_hint
from core_hpc.protocol.rewards import ProblemGroup, score_problem
from core_hpc.protocol.teacher import choose_teacher
from core_hpc.runs.contents import problems_of_part
from core_hpc.runs.folder import Run, open_run
from core_hpc.store import shards
from core_hpc.store.paths import TaskKey
from core_hpc.store.schema import COLD, CORRECT, RESCUE, ROLLOUTS
from tests.benchmarks.measure import conclude, in_process, print_table
from tests.benchmarks.real_run import MODELS, account, arguments, cold_task, launched, sampled_length, settings

SIZES = {"small": (4, 1), "usual": (32, 1)}
"""Problems, rounds."""
SAMPLES = {"cold": 2, "rescue": 1}


@dataclass
class Sampled:
    """A completion that the loop has sampled."""

    model: str
    phase: str
    index: int
    prompt: tuple[int, ...]
    ids: list[int]
    text: str
    answer: str | None
    correct: bool
    hint_given: bool = False
    advantage: float = 0.0


# --- the update ----------------------------------------------------------------------------------


def log_probs(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> Tensor:
    """Return the log-probability of each token of a completion, [tokens]."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(list(completion))[:, None])[:, 0]


def grpo_loss(current: Tensor, old: Tensor, reference: Tensor, advantage: float, options: UpdateSection) -> Tensor:
    """Eq. 21 for one completion: the mean of -min(r A, clip(r) A) + beta k3 over its tokens."""
    assert options.clip_low is not None
    assert options.clip_high is not None
    ratio = (current - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantage)
    k3 = (reference - current).exp() - (reference - current) - 1
    return (options.kl_weight * k3 - gain).mean()


# --- the loop ------------------------------------------------------------------------------------


@dataclass
class Reference:
    """The whole iteration, in one process."""

    run: Run
    warm: Warm
    models: dict[str, Any] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    random: Random = field(default_factory=lambda: Random(0))

    def iteration(self) -> dict[str, Any]:
        """Run the iteration. Return the seconds by purpose, and how much was sampled."""
        torch.manual_seed(self.run.config.seed)
        self.tasks = {m: cold_task(self.run, m, self.warm) for m in MODELS}
        self.builders = {m: task.prompt_builder(task.model) for m, task in self.tasks.items()}
        self._load()
        self.stopwatch.lap("load")
        problems = problems_of_part(self.run, self.tasks[MODELS[0]].key)
        groups = [self._problem(problem) for problem in problems.to_dicts()]
        for model in MODELS:
            self._update(model, [[s for s in group if s.model == model] for group in groups])
        sampled = [s for group in groups for s in group]
        return {
            "seconds": self.stopwatch.seconds,
            "num_completions": len(sampled),
            "num_tokens": sum(len(s.ids) for s in sampled),
            "share_correct": float(np.mean([s.correct for s in sampled])),
        }

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM

        for model, task in self.tasks.items():
            spec = task.engine_spec()
            self.models[model] = AutoModelForCausalLM.from_pretrained(
                spec.model_folder, dtype=getattr(torch, spec.dtype)
            ).eval()
            self.models[model].requires_grad_(False)
        self.warm.embed(self.run.config.reward.distance.embedder, ["warm"])

    def _problem(self, problem: dict[str, Any]) -> list[Sampled]:
        """Sample, make hints, sample again, and compute advantages for one problem."""
        protocol = self.run.config.protocol
        group: list[Sampled] = []
        for model in MODELS:
            group += self._sample(model, COLD, problem, None, protocol.cold_samples)
        self.stopwatch.lap("generate")
        hints = {model: self._hint(problem, group, model) for model in MODELS}
        self.stopwatch.lap("score")
        for model, hint in hints.items():
            shown = hint if self.random.random() < protocol.hint_probability else None
            group += self._sample(model, RESCUE, problem, shown, protocol.rescue_samples)
        self.stopwatch.lap("generate")
        rewards = self._score(problem, group).total
        for sampled, advantage in zip(
            group, advantages(rewards, scale=self.run.config.update.advantage_scale), strict=True
        ):
            sampled.advantage = float(advantage)
        self.stopwatch.lap("score")
        return group

    @torch.inference_mode()
    def _sample(self, model: str, phase: str, problem: dict[str, Any], hint: str | None, count: int) -> list[Sampled]:
        task, builder = self.tasks[model], self.builders[model]
        sampling, stops = self.run.config.sampling_of(task.model, COLD), task.stop_strings(task.model)
        prompt = builder.build(problem["question"], hint)
        tokenizer, ids = builder.tokenizer, torch.tensor([prompt])
        out = self.models[model].generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=count,
            stop_strings=list(stops) or None,
            tokenizer=tokenizer,
            pad_token_id=tokenizer.pad_token_id,
        )
        found = []
        for index, row in enumerate(out[:, len(prompt) :].tolist()):
            kept = row[: sampled_length(row, tokenizer)]
            text = builder.completion_text(kept, stops)
            answer = extract_answer(text, problem["answer_kind"])
            correct = verify(answer, problem["gold"], problem["answer_kind"]) == CORRECT
            found.append(Sampled(model, phase, index, prompt, kept, text, answer, correct, hint is not None))
        return found

    def _score(self, problem: dict[str, Any], group: Sequence[Sampled]) -> Any:
        reward, texts = self.run.config.reward, [s.text for s in group]
        solved = {s.model for s in group if s.phase == COLD and s.correct}
        return score_problem(
            ProblemGroup(
                models=np.array([s.model for s in group]),
                phases=np.array([s.phase for s in group]),
                correct=np.array([s.correct for s in group]),
                answers=[s.answer for s in group],
                gold=problem["gold"],
                hint_given=np.array([s.hint_given for s in group]),
                cold_failed=np.array([s.model not in solved for s in group]),
                signatures=[operation_signature(t) for t in texts],
                texts=texts,
                embeddings=self.warm.embed(reward.distance.embedder, texts),
            ),
            reward,
            0,
        )

    def _hint(self, problem: dict[str, Any], cold: Sequence[Sampled], student: str) -> str | None:
        """Return the hint for a student if it failed the problem and a peer solved it."""
        if any(s.correct for s in cold if s.model == student):
            return None
        index = choose_teacher(
            MODELS,
            models=[s.model for s in cold],
            sample_indices=[s.index for s in cold],
            correct=[s.correct for s in cold],
            scores=self._score(problem, cold).total,
            student=student,
        )
        if index is None:
            return None
        tokenizer = self.builders[student].tokenizer
        return make_hint(
            cold[index].text,
            problem["gold"],
            problem["answer_kind"],
            tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            detokenize=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            max_tokens=self.run.config.protocol.hint_tokens,
        )

    def _update(self, name: str, groups: list[list[Sampled]]) -> None:
        """Run all optimizer steps of one model."""
        from peft import LoraConfig, get_peft_model

        section, options = self.run.config.model(name), self.run.config.update
        temperature = self.run.config.sampling_of(section, COLD).temperature
        assert section.lora is not None
        lora = LoraConfig(
            r=section.lora.rank,
            lora_alpha=section.lora.alpha,
            target_modules=section.lora.targets,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(self.models[name], lora).eval()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=options.learning_rate, betas=options.adam_betas, weight_decay=options.weight_decay
        )
        self.stopwatch.lap("load")
        old: dict[int, Tensor] = {}
        reference: dict[int, Tensor] = {}
        with torch.no_grad():
            for s in (s for group in groups for s in group):
                old[id(s)] = log_probs(model, s.prompt, s.ids, temperature)
                with model.disable_adapter():
                    reference[id(s)] = log_probs(model, s.prompt, s.ids, temperature)
        self.stopwatch.lap("log-probabilities")
        for start in range(0, len(groups), options.problems_per_step):
            batch = [s for group in groups[start : start + options.problems_per_step] for s in group]
            for s in batch:
                current = log_probs(model, s.prompt, s.ids, temperature)
                loss = grpo_loss(current, old[id(s)], reference[id(s)], s.advantage, options)
                (loss * (options.rescue_weight if s.phase == RESCUE else 1.0) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        self.stopwatch.lap("train")


# --- comparison ----------------------------------------------------------------------------------


def ours(folder: Path, values: Sequence[str]) -> dict[str, Any]:
    """Run the launcher on a new sweep and measure it."""
    run, command_s = launched(folder, values)
    (row,) = account(run)
    keys = [TaskKey(1, phase, name, 0) for name in MODELS for phase in (COLD, RESCUE)]
    rows = shards.read_tasks(run, keys, ROLLOUTS, columns=["num_completion_tokens", "correct"])
    return {
        "run": str(run),
        "command_s": command_s,
        "iteration_s": row["own_s"],
        "warm_s": row["warm_s"],
        "waited": row["waited"],
        "share_generate": row["generate_s"] / row["warm_s"],
        "num_completions": rows.height,
        "num_tokens": int(rows["num_completion_tokens"].sum()),
        "share_correct": rows["correct"].mean(),
    }


def reference(run: str) -> dict[str, Any]:
    """Run the loop in a new process and measure it."""
    threads = len(os.sched_getaffinity(0))
    began = time.perf_counter()
    found = in_process("reference_loop", "--run", run, environment=worker_environment("transformers", threads))
    seconds = found["seconds"]
    warm_s = sum(seconds.values()) - seconds["load"]
    return {
        **found,
        "command_s": time.perf_counter() - began,
        "warm_s": warm_s,
        "share_generate": seconds["generate"] / warm_s,
    }


def benchmark(folder: Path, size: str, dtype: str, rounds: int | None) -> dict[str, Any]:
    """Run both ways alternately."""
    problems, usual_rounds = SIZES[size]
    values = settings(problems=problems, dtype=dtype, **SAMPLES)
    turns = []
    for number in range(rounds or usual_rounds):
        mine = ours(folder / str(number), values)
        turns.append({"ours": mine, "reference": reference(mine["run"])})
        assert mine["num_completions"] == turns[-1]["reference"]["num_completions"]
    # The ways sample different completions, so the ratio of tokens is reported as well.
    compared = ("command_s", "warm_s", "num_tokens")
    ratios = {name: statistics.median(t["reference"][name] / t["ours"][name] for t in turns) for name in compared}
    return {"size": size, "dtype": dtype, "problems": problems, "turns": turns, "reference / ours": ratios}


def show(figures: dict[str, Any]) -> None:
    """Print a report."""
    for turn in figures["turns"]:
        rows = {}
        for way, t in turn.items():
            seconds = f"{t['command_s']:7.1f} s, without starting {t['warm_s']:7.1f} s"
            sampled = f"{t['num_completions']} completions, {t['num_tokens']} tokens, {t['share_correct']:.0%} correct"
            rows[way] = f"{seconds}, of which generation {t['share_generate']:.0%}; {sampled}"
        print_table(f"one iteration of {figures['problems']} problems, {figures['dtype']}", rows)
        for way, spent in (("ours", turn["ours"]["waited"]), ("reference", turn["reference"]["seconds"])):
            print(f"  {way}: " + ", ".join(f"{item} {seconds:.1f} s" for item, seconds in spent.items()))
    print_table("reference / ours", {name: f"{value:.2f}" for name, value in figures["reference / ours"].items()})


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, SIZES, "dtype", "rounds", "run").parse_args(given)
    if options.run:
        threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        print(json.dumps(Reference(open_run(Path(options.run)), Warm(threads=threads)).iteration()))
        return
    conclude(lambda folder: benchmark(folder, options.size, options.dtype, options.rounds), show, options.out)


if __name__ == "__main__":
    main()
