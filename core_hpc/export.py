"""The command `core-hpc export`, also `python -m core_hpc.export`: take a trained model out of a run.

In: a run folder, the name of a model of its team, and an iteration. Out: a new folder with an
adapter, or with a whole model, as PEFT, transformers and vLLM load it, with the tokenizer, the
sampling settings and a model card. The card has the data, the configuration and the results with
their intervals. The run folder is only read, and an export that fails leaves no folder behind.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.common.packages import require_own_analysis
from core_hpc.common.terminal import PlainConsole, show_error
from core_hpc.config.yaml_text import dump_yaml

require_own_analysis()  # the card has figures of `analysis`

import yaml
from analysis.counts.counts import iterations_of
from analysis.counts.load import load_run
from analysis.metrics.passk import PASS, default_ks, pass_at_k_table
from core_hpc.config.evaluation import SamplingSection
from core_hpc.config.identity import scientific_fields
from core_hpc.config.model import ModelSection
from core_hpc.models.adapters import published_iterations
from core_hpc.models.loading import GENERATION_CONFIG, load_model, save_model
from core_hpc.phases.context import TaskContext, Warm
from core_hpc.runs.folder import Run, list_runs, open_run
from core_hpc.store import output_folder
from core_hpc.store.paths import EARLIER_OPTIMIZER_STATE, TaskKey
from core_hpc.store.schema import EVALUATE

PROG = "python -m core_hpc.export"
CARD = "README.md"
OWN_FILES = ("trainer_state.json", "steps.parquet", EARLIER_OPTIMIZER_STATE)
"""Files of a published update that only this project reads."""
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE = re.compile(r"^license:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Export:
    """What is exported, and in which form."""

    run: Run
    model: ModelSection
    iteration: int
    merge: bool

    @property
    def context(self) -> TaskContext:
        """Access to the files of the model after the iteration."""
        return TaskContext(run=self.run, key=TaskKey(self.iteration, EVALUATE, self.model.name), warm=Warm())

    @property
    def is_adapter(self) -> bool:
        """Whether the folder will hold an adapter, not a whole model."""
        return self.model.tuning != "full" and not self.merge

    @cached_property
    def base_name(self) -> str:
        """What PEFT loads the base weights from: a hub name, or a folder of this machine."""
        if _HUB_NAME.fullmatch(self.model.model) and not Path(self.model.model).is_dir() and not self.model.warmup:
            return self.model.model
        return str(self.context.base_folder(self.model).absolute())


def choose(path: Path, *, model: str | None, iteration: int | None, merge: bool) -> Export:
    """Find what to export.

    Args:
        path: a run folder, or a sweep folder with a single run.
        model: name of a team member; None: the only one.
        iteration: None: the last one of which the update is published.

    Raises:
        InputError: something of it does not exist; the message names what there is.
    """
    runs = list_runs(path)
    if len(runs) > 1:
        folders = ", ".join(run.name for run in runs)
        raise InputError(f"{path}: has {len(runs)} runs; name one of their folders: {folders}")
    run = open_run(runs[0])
    names = [m.name for m in run.config.team]
    if model is None and len(names) > 1:
        raise InputError(f"{runs[0]}: has {len(names)} models; add --model with one of {', '.join(names)}")
    if model is not None and model not in names:
        raise InputError(f"--model {model}: the run has {', '.join(names)}")
    section = run.config.model(model or names[0])
    published = published_iterations(run.root, section.name)
    if not published:
        raise InputError(f"{runs[0]}: no update of {section.name} is published yet; there is nothing to export")
    if iteration is not None and iteration not in published:
        raise InputError(
            f"--iteration {iteration}: no such update of {section.name} is published; there are {_ranges(published)}"
        )
    return Export(run, section, published[-1] if iteration is None else iteration, merge)


def _ranges(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


# --- the folder ------------------------------------------------------------------------------------


def write(export: Export, out: Path) -> None:
    """Write the folder.

    Raises:
        InputError: `out` exists and is not empty, or cannot be written.
    """
    out = out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists already and is not empty; choose another folder, or remove it")
    output_folder.require_writable(out.parent, min_free_gb=0, advice=output_folder.ANOTHER_OUT)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary, "export")
        folder.mkdir()
        _write_weights(export, folder)
        _write_settings(export, folder)
        (folder / CARD).write_text(card(export), encoding="utf-8")
        if out.exists():
            out.rmdir()
        folder.rename(out)


def _write_weights(export: Export, folder: Path) -> None:
    context, update = export.context, export.context.update_folder(export.iteration)
    assert update is not None
    if export.model.tuning != "full" and export.merge:
        _write_merged(export, update, folder)
    else:
        for path in update.iterdir():
            if path.is_file() and path.name not in OWN_FILES:
                shutil.copyfile(path, folder / path.name)
    if export.is_adapter:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": export.base_name}
        if export.base_name == export.model.model:
            config |= {"revision": export.run.facts[export.model.name].commit or export.model.revision}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    context.tokenizer(export.model).save_pretrained(folder)


def _write_merged(export: Export, update: Path, folder: Path) -> None:
    """Add the adapter to the base weights, in the dtype in which these are stored."""
    from peft import PeftModel

    source = export.context.base_folder(export.model)
    base = load_model(
        source,
        context_tokens=export.run.facts[export.model.name].context_tokens,
        trust_remote_code=export.model.trust_remote_code,
        use_safetensors=None if export.model.allow_pickle else True,
        dtype="auto",
    )
    save_model(PeftModel.from_pretrained(base, update).merge_and_unload(), folder, source=source)


def _write_settings(export: Export, folder: Path) -> None:
    path = folder / GENERATION_CONFIG
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(generation_settings(known, _sampling(export)), indent=2), encoding="utf-8")


def generation_settings(known: Mapping[str, Any], sampling: SamplingSection) -> dict[str, Any]:
    """The sampling settings of the evaluation, as transformers and vLLM read them.

    All are written, because the defaults of both differ (`top_k` is 50 in transformers). After a
    greedy evaluation `top_k` is 1: vLLM ignores `do_sample`, and transformers neither samples with a
    temperature of 0 nor saves one without sampling.

    Args:
        known: the settings of the base model. Only its special tokens are kept, because the
            evaluation used nothing else.
        sampling: of the evaluation.
    """
    greedy = sampling.temperature == 0
    return {name: known[name] for name in SPECIAL_TOKENS if name in known} | {
        "do_sample": True,
        "temperature": 1.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "top_k": 1 if greedy else 0,
        "max_new_tokens": sampling.max_new_tokens,
    }


def _sampling(export: Export) -> SamplingSection:
    return export.run.config.sampling_of(export.model, EVALUATE)


# --- the card --------------------------------------------------------------------------------------


def card(export: Export) -> str:
    """The model card: what the model is, how it was trained, what it reaches, how to load it."""
    run, model = export.run, export.model
    kind = "Adapter (PEFT)" if export.is_adapter else "Model"
    licence = _licence(export)
    head = {
        "base_model": model.model,
        "library_name": "peft" if export.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["core_hpc", "reinforcement-learning", "reasoning"],
        **({"license": licence} if licence else {}),
    }
    team = ", ".join(f"{m.name} ({m.model})" for m in run.config.team)
    fields = dump_yaml(scientific_fields(run.config), sort_keys=False, allow_unicode=True)
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# {model.name} after {export.iteration} iterations of {run.config.name}",
            "",
            f"{kind} of the run `{run.run_id}`, trained by core_hpc with the team {team}.",
            f"The licence of the base model applies: {licence or 'see the page of the base model'}.",
            "",
            "## Results",
            "",
            *_results(export),
            "",
            "## Load it",
            "",
            "```python",
            _loading(export),
            "```",
            "",
            "Questions were asked with this instruction after them:",
            "",
            *(f"> {line}" for line in (run.config.problems.instruction or "(none)").splitlines()),
            "",
            "## Configuration",
            "",
            "```yaml",
            fields.strip(),
            "```",
            "",
        ]
    )


def _licence(export: Export) -> str | None:
    """The licence in the card of the base model, if its folder has one."""
    path = export.context.resolved(export.model).folder / CARD
    found = _LICENCE.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return found.group(1) if found else None


def _results(export: Export) -> list[str]:
    """Pass@k on the held-out problems, before training and after the iteration, with 95 % intervals."""
    data = load_run(export.run.root, answers=False)
    evaluated = set(iterations_of(data.counts, models=data.models))
    wanted = [i for i in (0, export.iteration) if i in evaluated]
    lines = [] if export.iteration in evaluated else [f"Iteration {export.iteration} was not evaluated."]
    if not wanted:
        return lines
    table = pass_at_k_table(data.counts, ks=default_ks(data.num_samples), models=data.models).filter(
        pl.col("measure") == PASS, pl.col("model") == export.model.name, pl.col("iteration").is_in(wanted)
    )
    sampling, num_problems = _sampling(export), min(table["num_problems"])
    source = export.run.config.problems.evaluation
    lines += [
        f"Held-out problems: `{source.source}`, {num_problems} of them, "
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}. Intervals: 95 %, over problems.",
        "",
        "| updates | measure | percent | interval |",
        "|---|---|---|---|",
    ]
    for row in table.sort("iteration", "k").iter_rows(named=True):
        values = (100 * row[name] for name in ("estimate", "low", "high"))
        estimate, low, high = (f"{value:.1f}" for value in values)
        lines.append(f"| {row['iteration']} | Pass@{row['k']} | {estimate} | {low} to {high} |")
    return lines


def _loading(export: Export) -> str:
    if not export.is_adapter:
        text = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n\n'
            "# or: vllm serve FOLDER"
        )
        greedy = "\n# Both are greedy, as in the evaluation. To sample, set top_k to 0."
        return text if _sampling(export).temperature else text + greedy
    assert export.model.lora is not None
    return (
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoTokenizer\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n\n'
        f"# or: vllm serve {export.base_name} --enable-lora --max-lora-rank {export.model.lora.rank} "
        "--lora-modules trained=FOLDER"
    )


# --- the command -----------------------------------------------------------------------------------


def push(folder: Path, name: str) -> str:
    """Upload the folder to the hub, into a private repository; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as e:
        raise InputError(
            f"--push {name}: the hub could not be reached or refused ({e}). The export is complete in {folder}; log in "
            f"with `hf auth login`, or upload it from a machine with network: hf upload {name} {folder}"
        ) from e


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(prog=prog, description="Write a trained model of a run into a folder of its own.")
    parser.add_argument("run", type=Path, help="the run's folder, or the folder of a sweep with one run")
    parser.add_argument("--model", metavar="NAME", help="member of the team; not needed if there is only one")
    parser.add_argument("--iteration", type=int, metavar="I", help="default: the last published update")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    parser.add_argument("--merge", action="store_true", help="add the adapter to the base weights: a whole model")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload it to a private repository of the hub")
    return parser


def main(arguments: Sequence[str], *, prog: str = PROG) -> int:
    """Run the command and return its exit status."""
    options = build_parser(prog).parse_args(arguments)
    console = PlainConsole(highlight=False)
    try:
        if options.push and not _HUB_NAME.fullmatch(options.push):
            raise InputError(f"--push {options.push}: must be OWNER/NAME")
        export = choose(options.run, model=options.model, iteration=options.iteration, merge=options.merge)
        write(export, options.out)
        what = "adapter" if export.is_adapter else "model"
        text = f"{options.out}: {what} {export.model.name} of iteration {export.iteration}"
        if export.is_adapter and export.base_name != export.model.model:
            text += f"; its base weights are in {export.base_name} (with --merge they are part of the export)"
        console.print(text, markup=False, soft_wrap=True)
        if options.push:
            console.print(push(options.out, options.push), markup=False, soft_wrap=True)
    except CoreHpcError as e:
        show_error(e)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
