"""What a guardrail's YAML says of reasoning about answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from poise.errors import InvalidSettings
from poise.reasoning.findings import FindingKind
from poise.reasoning.policy import ReasoningPolicy, load_policy
from poise.settings import FilledText, Settings, faults_error, placed_fault

__all__ = ["SERVED", "ReasoningRule"]

SERVED = "served"


class ReasoningRule(Settings):
    """A policy of typed variables and rules that answers are checked by, and what is done about what is found.

    A model writes an answer down as statements, which may go wrong: unless ``action`` is BLOCK, findings are only
    reported, as Bedrock does.
    """

    file: FilledText | None = Field(None, description="File of the policy, beside the guardrail's.")
    policy: ReasoningPolicy | None = Field(None, description="The policy itself, in the place of a file.")
    writer: str = Field(
        SERVED,
        pattern=r"^(served|endpoint:\S+)$",
        description="Who turns an answer into statements: the served model, or endpoint:NAME (OPENAI_BASE_URL).",
    )
    translations: int = Field(2, ge=1, le=10, description="How often it does; where two differ, nothing is decided.")
    action: Literal["BLOCK", "NONE"] = Field("NONE", description="What is done about the findings named below.")
    findings: tuple[FindingKind, ...] = Field(
        ("INVALID", "IMPOSSIBLE"), min_length=1, description="Findings that the action is taken on."
    )
    without_writer: Literal["BLOCK", "PASS"] = Field(
        "BLOCK", description="What is done where action is BLOCK and the writer does not answer."
    )

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if (self.file is None) == (self.policy is None):
            raise ValueError("needs a policy, once; give its file, or the policy itself as `policy`")
        if self.action == "NONE" and self.without_writer == "BLOCK" and "without_writer" in self.model_fields_set:
            raise placed_fault(
                "is BLOCK, and action is NONE, so that nothing is blocked; take one out", "without_writer"
            )
        return self

    def read_beside(self, guardrail: Path) -> ReasoningRule:
        """The rule with its policy read from the file that it names.

        Raises:
            InvalidSettings: no policy there; each mistake with its line and field.
        """
        if self.file is None:
            return self
        if not (file := guardrail.parent / self.file).is_file():
            fault = f"is {self.file!r}, and there is no file {file}; give its path from the guardrail's file"
            raise faults_error([(("reasoning", "file"), fault)], InvalidSettings)
        settings = {name: getattr(self, name) for name in self.model_fields_set - {"file"}}
        return ReasoningRule(policy=load_policy(file), **settings)
