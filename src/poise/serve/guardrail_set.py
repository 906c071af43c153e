"""All guardrails of a server, by name and version, and which of them guards a request."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poise.errors import InvalidArgument, RequestError
from poise.guardrail import checker_of
from poise.guardrail.automated_reasoning import AnswerReasoner
from poise.guardrail.encoder_reader import EncoderReader
from poise.guardrail.injection_reading import result_detector
from poise.guardrail.versions import GuardrailSource, guardrail_files, guardrail_sources
from poise.model import Model
from poise.serve.guarding import ServerGuard
from poise.serve.policy import Policies, Policy
from poise.settings import SettingFault, faults_error
from poise.settings.other_names import Place

__all__ = ["GuardrailSet", "check_guardrail_rules", "read_guardrails"]

log = logging.getLogger("poise.serve")
NOT_FOUND = "guardrail_not_found"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailSet:
    """Guardrails that were read together.

    Attributes:
        guards: All of them, by name and version.
        first: The one that was named first; guards what no policy names another for.
        sums: Hash of what each one's files say.
    """

    guards: Mapping[tuple[str, str], ServerGuard] = field(default_factory=dict)
    first: ServerGuard | None = None
    sums: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """Name and version of each."""
        return ["/".join(key) for key in self.guards]

    @property
    def notes(self) -> list[str]:
        """What the server's user should know of what they do not see."""
        return list(dict.fromkeys(note for guard in self.guards.values() for note in guard.notes))

    @property
    def encode(self) -> bool:
        """Whether the sentence encoder reads for any of them, which takes longer than words do."""
        return any(guard.encoder for guard in self.guards.values())

    def find(self, name: str) -> ServerGuard | None:
        """The guardrail called ``NAME/VERSION``, or the last number of ``NAME``, else its draft."""
        name, _, version = name.partition("/")
        if version:
            return self.guards.get((name, version))
        versions = [number for other, number in self.guards if other == name]
        last = max(versions, key=lambda number: int(number) if number.isdigit() else 0, default="")
        return self.guards.get((name, last))

    def numbered(self, name: str, version: str) -> ServerGuard:
        """The guardrail of this name and version.

        Raises:
            RequestError: there is none; says which there are.
        """
        if guard := self.guards.get((name, version)):
            return guard
        if not self.guards:
            raise RequestError(
                404, "There is no guardrail here; start the server with one as `guardrail`.", code=NOT_FOUND
            )
        shown = f"{name[:100]!r}, version {version[:20]!r}"
        here = "; ".join(f"{name!r}, version {version!r}" for name, version in self.guards)
        raise RequestError(404, f"There is no guardrail {shown}, here; there is {here}.", code=NOT_FOUND)

    def choose(self, policy: Policy, requested: str | None) -> ServerGuard | None:
        """What guards a request: what it asks for where it may, else what its key's rules name, else the first.

        Raises:
            RequestError: 403 where requests may not choose, 404 where there is no such guardrail.
        """
        ruled = self.ruled(policy)
        if requested is None or (ruled and requested in (ruled.name, ruled.name.partition("/")[0])):
            return ruled
        if not policy.may_choose_guardrail:
            text = "This key may not choose its guardrail; `may_choose_guardrail` in the server's policy lets it."
            raise RequestError(403, text, code="guardrail_forbidden", param="poise.guardrail")
        if guard := self.find(requested):
            return guard
        text = f"There is no guardrail {requested[:100]!r} here; there is: {', '.join(self.names) or 'none'}."
        raise RequestError(404, text, code=NOT_FOUND, param="poise.guardrail")

    def ruled(self, policy: Policy) -> ServerGuard | None:
        """What guards a key's requests where they do not choose."""
        if policy.guardrail is None:
            return self.first
        return self.find(policy.guardrail) if policy.guardrail else None


def read_guardrails(
    paths: Path | Sequence[Path] | None, model: Model | None = None, *, before: GuardrailSet | None = None
) -> GuardrailSet:
    """The guardrails in files, and in folders of ``NAME/VERSION``. With a model, detectors of another one are refused.

    Args:
        paths: Files and folders.
        model: Model that is served.
        before: What was read earlier: files that are as they were are not read anew, and numbers stay what they were.

    Raises:
        InvalidSettings: no guardrail, or one twice; names file, line and field.
        MissingExtra: it needs packages that are not installed.
        InvalidArgument: it has topics or content, and was not fitted; or a number was changed.
        OtherModel: it was fitted on another model.
    """
    before = before or GuardrailSet()
    paths = [paths] if isinstance(paths, Path) else list(paths or ())
    guards: dict[tuple[str, str], ServerGuard] = {}
    sums: dict[tuple[str, str], str] = {}
    for source in guardrail_sources(paths):
        key, sums[source.key] = source.key, _sum(source)
        if sums[key] == before.sums.get(key):
            guards[key] = before.guards[key]
            continue
        if key in before.sums and key[1] != "DRAFT":
            raise InvalidArgument(
                f"{source.path} has changed, and {'/'.join(key)} is a number, which stays what it was; put the old "
                "file back, and publish the new one with `poise guardrail publish`."
            )
        guards[key] = _server_guard(source, model)
    return GuardrailSet(guards=guards, first=_first_guard(paths, guards), sums=sums)


def _sum(source: GuardrailSource) -> str:
    """Hash of a guardrail's file, and of the policy that it may name another file for."""
    rule = source.guardrail.reasoning
    policy = rule.policy.model_dump_json() if rule and rule.policy else ""
    return hashlib.sha256(source.path.read_bytes() + policy.encode()).hexdigest()


def _server_guard(source: GuardrailSource, model: Model | None) -> ServerGuard:
    if source.fitted and model is not None:
        source.fitted.check_model(model)
    if source.guardrail.needs_fit and not source.fitted:
        raise InvalidArgument(
            f"{source.path} has topics or content, which detectors find; fit it with `poise guardrail fit`, and serve "
            "the file that this writes."
        )
    reasoner = AnswerReasoner(rule) if (rule := source.guardrail.reasoning) else None
    encoder = EncoderReader(source.fitted) if source.fitted and source.fitted.encoder_detectors else None
    if encoder and model is not None:
        encoder.warm_up()
    return ServerGuard(checker_of(source.guardrail), source.fitted, reasoner, encoder)


def _first_guard(paths: Sequence[Path], guards: Mapping[tuple[str, str], ServerGuard]) -> ServerGuard | None:
    """Of the first file or folder its guardrail, in the last version; ``None`` where a folder has several."""
    if not paths:
        return None
    if not paths[0].is_dir():
        return next(iter(guards.values()))
    names = {file.parent.name for file in guardrail_files(paths[0])}
    return GuardrailSet(guards=guards).find(names.pop()) if len(names) == 1 else None


def check_guardrail_rules(policies: Policies, guardrails: GuardrailSet, keys: Iterable[str]) -> None:
    """Refuse rules that name a guardrail which is not there, and guardrails of which nobody has said who is guarded.

    Raises:
        InvalidArgument: names field and guardrail.
    """
    faults = dict.fromkeys(_faults(policies, guardrails, keys))
    if faults:
        raise faults_error(faults)


def _faults(policies: Policies, guardrails: GuardrailSet, keys: Iterable[str]) -> Iterator[SettingFault]:
    for key in (None, *keys):
        place: Place = ("keys", key) if key in policies.keys else ("default",)
        rules = policies.of(key)
        if rules.guardrail and not guardrails.find(rules.guardrail):
            known = ", ".join(guardrails.names)
            fault = f"is {rules.guardrail!r}, which is not here; " + (
                f"there is: {known}" if known else "there is none"
            )
            yield (*place, "guardrail"), f"{fault}; start the server with it as `guardrail`"
        acts = rules.runs and rules.runs.tool_results != "note"
        if acts and not ((guard := guardrails.ruled(rules)) and result_detector(guard.fitted)):
            fault = "acts on tools' results, and no guardrail here reads them; serve one with INDIRECT_ATTACK"
            yield (*place, "runs", "tool_results"), f"{fault} that `poise guardrail fit` has fitted"
        if rules.guardrail is None and guardrails.guards and guardrails.first is None:
            choice = ", ".join(sorted({name for name, _ in guardrails.guards}))
            yield place, f"names no `guardrail`, and the folder has several ({choice}); name one, or say false for none"
