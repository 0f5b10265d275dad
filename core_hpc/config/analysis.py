"""What a sweep declares about its analysis: the primary comparison, the margin of equivalence, and skills.

Every field is operational, because nothing here changes a result of a run. The comparison is
computed by `analysis/metrics/compare.py`; whether its arms exist is checked by `runs/arms.py`.
"""

from __future__ import annotations

from pydantic import model_validator

from core_hpc.config.base import Section, operational

TEAM_MEASURES = ("team_pass", "gain_equal_k", "gain_matched_budget")
MODEL_MEASURES = ("pass", "matched_pass")
METRIC_PATTERN = r"^[a-z_]+@[1-9][0-9]*$"


class PrimarySection(Section):
    """The comparison that a study was made for. It is decided before any result is known."""

    arms: tuple[str, str] = operational(
        description="two arms: the first minus the second. An arm is the label of a run, without `seed-N`, or the "
        "name of a sweep whose runs have no other label: this one or that of a file in the same folder"
    )
    metric: str = operational(
        pattern=METRIC_PATTERN,
        description="MEASURE@K, with K completions per model. MEASURE is team_pass, gain_equal_k or "
        "gain_matched_budget (of the team), or pass or matched_pass (of one model)",
    )
    model: str | None = operational(None, description="name of the model, for pass and matched_pass; null: the team")

    @property
    def measure(self) -> str:
        """The measure without its number of completions."""
        return self.metric.partition("@")[0]

    @property
    def k(self) -> int:
        """Completions per model."""
        return int(self.metric.partition("@")[2])

    @model_validator(mode="after")
    def _has_two_arms(self) -> PrimarySection:
        if self.arms[0] == self.arms[1]:
            raise ValueError(f"arms: both are {self.arms[0]!r}; name two different arms")
        return self

    @model_validator(mode="after")
    def _has_a_model_or_the_team(self) -> PrimarySection:
        if self.measure not in TEAM_MEASURES + MODEL_MEASURES:
            known = ", ".join(TEAM_MEASURES + MODEL_MEASURES)
            raise ValueError(f"metric: unknown measure {self.measure!r}; known measures: {known}")
        if self.measure in MODEL_MEASURES and self.model is None:
            raise ValueError(f"metric: {self.metric} is of one model; add `model: NAME`, or use a measure of the team")
        if self.measure in TEAM_MEASURES and self.model is not None:
            raise ValueError(f"metric: {self.metric} is of the team; leave `model` out")
        return self

    def mistake(self, models: list[str], samples: int) -> str:
        """What is wrong with the metric for a run with these models and completions per problem; else empty."""
        if self.model is not None and self.model not in models:
            return f"model: {self.model!r} is not in the team ({', '.join(models)})"
        if self.measure != "pass" and len(models) < 2:
            return f"metric: {self.metric} needs a team of two models or more; use pass@{self.k}"
        times = len(models) if self.measure in ("matched_pass", "gain_matched_budget") else 1
        if self.k * times > samples:
            return (
                f"metric: {self.metric} needs {self.k * times} completions per problem and model, and "
                f"evaluation.samples is {samples}; lower K, or raise evaluation.samples"
            )
        return ""


class AnalysisSection(Section):
    """What is compared, and which differences do not matter."""

    primary: PrimarySection | None = operational(
        None, description="the comparison that is reported first, without a correction for several tests"
    )
    margin: float = operational(
        0.02,
        gt=0,
        lt=1,
        description="two arms are equivalent if their difference is shown to be smaller than this, a fraction; 0.02: 2 "
        "points (--margin 2)",
    )
    skills: dict[str, tuple[str, ...]] = operational(
        {},
        description="{model: [subject, ...]}: the subjects of problems that each model knows before training. With it, "
        "`analysis arms` also reports own, foreign and other problems apart",
    )

    @model_validator(mode="after")
    def _no_subject_twice(self) -> AnalysisSection:
        owners: dict[str, str] = {}
        for model, subjects in self.skills.items():
            for subject in subjects:
                if owners.setdefault(subject, model) != model or subjects.count(subject) > 1:
                    raise ValueError(f"skills: the subject {subject!r} stands twice; it belongs to one model")
        return self
