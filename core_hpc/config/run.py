"""The configuration of one run: all its sections, and the rules about several of them.

In: plain data, which `runs/sweep.py` makes from a sweep file. Out: a frozen `RunConfig`. Each section
declares its fields with meaning, unit, range and default, in a module of its own. Operational fields do
not change what a run computes (resources, display, number of iterations). All others are scientific:
they make up the identity of the run (`identity.py`) and cannot change once it has started. This module
reads no files and loads no heavy package.
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from core_hpc.config.analysis import AnalysisSection
from core_hpc.config.base import NAME_PATTERN, OPERATIONAL, Section, on_one_line, operational
from core_hpc.config.checks import CHECKS
from core_hpc.config.cluster import ClusterSection
from core_hpc.config.evaluation import EvaluationSection, EvaluationSetSection, SamplingSection
from core_hpc.config.extensions import ExtensionsSection
from core_hpc.config.model import ModelSection
from core_hpc.config.problems import ProblemsSection
from core_hpc.config.protocol import ProtocolSection
from core_hpc.config.reward import RewardSection
from core_hpc.config.tracking import TrackingSection
from core_hpc.config.update import UpdateSection
from core_hpc.config.warmup import WarmupSection
from core_hpc.store.paths import TEAM
from core_hpc.store.phases import EVALUATE

SWEEP_KEYS = ("base", "grid", "runs")
"""Keys of a sweep file that are not fields of `RunConfig`."""


class RunConfig(Section):
    """The resolved configuration of one run."""

    name: str = operational(pattern=NAME_PATTERN, description="name of the sweep and of its folder in output")
    output: str = operational("outputs", description="folder of all sweeps")
    seed: int = Field(42, ge=0, lt=2**31, description="seed of everything random in the run")
    iterations: int = operational(
        ge=0, description="repetitions of cold, hint, rescue, score, update; 0: only evaluate. May be raised later"
    )
    team: list[ModelSection] = Field(min_length=1, description="the models that learn together")
    problems: ProblemsSection = Field(description="training and held-out problems")
    protocol: ProtocolSection = Field(ProtocolSection(), description="samples, teacher and hints")
    reward: RewardSection = Field(RewardSection(), description="parts of the reward")
    update: UpdateSection = Field(UpdateSection(), description="loss and optimizer")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="evaluation on held-out problems")
    analysis: AnalysisSection = Field(
        AnalysisSection(), json_schema_extra=OPERATIONAL, description="the primary comparison of the sweep"
    )
    extensions: ExtensionsSection = Field(
        ExtensionsSection(), json_schema_extra=OPERATIONAL, description="functions of your own"
    )
    tracking: TrackingSection = Field(
        TrackingSection(), json_schema_extra=OPERATIONAL, description="curves in an experiment tracker"
    )
    cluster: ClusterSection = Field(
        ClusterSection(), json_schema_extra=OPERATIONAL, description="where and how tasks run"
    )

    @field_validator("output")
    @classmethod
    def _output_on_one_line(cls, output: str) -> str:
        on_one_line(output)
        return output

    @field_validator("team")
    @classmethod
    def _distinct_names(cls, team: list[ModelSection]) -> list[ModelSection]:
        names = [m.name for m in team]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"two models have the name {', '.join(repeated)}; give each model its own name")
        if TEAM in names:
            raise ValueError(
                f"no model may have the name `{TEAM}`, which stands for all models together in files and tables"
            )
        return team

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RunConfig:
        for check in CHECKS:
            check(self)
        return self

    @property
    def num_parts(self) -> int:
        """Parts of the training problems of one iteration."""
        return -(-self.protocol.problems_per_iteration // self.protocol.problems_per_part)

    @property
    def steps_per_iteration(self) -> int:
        """Optimizer steps of one model in one iteration."""
        return -(-self.protocol.problems_per_iteration // self.update.problems_per_step)

    def model(self, name: str) -> ModelSection:
        """The team member with this name."""
        return next(m for m in self.team if m.name == name)

    def for_set(self, name: str) -> RunConfig:
        """The configuration with which a set of the evaluation is evaluated: as if it were the main one.

        Args:
            name: of a set; empty: the main one, `problems.evaluation`.
        """
        sets = {"sets": list[EvaluationSetSection]()}
        if not name:
            return self.model_copy(update={"evaluation": self.evaluation.model_copy(update=sets)})
        own = next(s for s in self.evaluation.sets if s.name == name)
        sampling = own.sampling.model_dump(exclude_none=True)
        evaluation = {"samples": own.samples or self.evaluation.samples, **sets}
        evaluation["sampling"] = self.evaluation.sampling.model_copy(update=sampling)
        instruction = self.problems.instruction if own.instruction is None else own.instruction
        team = [
            m.model_copy(update={"evaluation_sampling": m.evaluation_sampling.model_copy(update=sampling)})
            for m in self.team
        ]
        return self.model_copy(
            update={
                "evaluation": self.evaluation.model_copy(update=evaluation),
                "problems": self.problems.model_copy(update={"evaluation": own.problems, "instruction": instruction}),
                "team": team,
            }
        )

    def warmup_of(self, model: ModelSection) -> WarmupSection | None:
        """The warm-up of a model, with the seed that it has in this run."""
        section = model.warmup
        if section is None or section.seed is not None:
            return section
        return section.model_copy(update={"seed": self.seed})

    def sampling_of(self, model: ModelSection, phase: str) -> SamplingSection:
        """How a model samples in a phase: its own settings, else those of the team."""
        if phase == EVALUATE:
            team, own = self.evaluation.sampling, model.evaluation_sampling
        else:
            team, own = self.protocol.sampling, model.sampling
        return team.model_copy(update=own.model_dump(exclude_none=True))
