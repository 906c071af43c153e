"""Memories in the server: what of one goes before a chat, what a request has it remember, and what an answer tells.

Where there are keys, a key has in each memory the entries whose subject is its name, and no others: it recalls them
alone, what it writes is of that subject, and is compared with them alone, so that no answer tells of anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.errors import InvalidArgument, RequestError, UserError
from poise.memory import EffectGate, Memory, RecalledEntry, load_effect_gate, memory_prompt
from poise.memory.entries import EntryDraft, time_text
from poise.serve.requests import ChatCompletionRequest, ChatMessage, MemoryRequest, OpenAIRequest
from poise.serve.run_chain import SYSTEM_ROLES

if TYPE_CHECKING:
    from poise.memory.write_gate import MeasuresEffect
    from poise.model import Model
    from poise.serve.policy import Policy

__all__ = ["ServerMemories", "check_memories", "read_memories", "with_memory"]

TURN_TOKENS = 16  # of the marks around a turn
LEAST_BUDGET = 80  # tokens that an entry takes with its heading; with less nothing is looked for


@dataclass(frozen=True, slots=True)
class ServerMemories:
    """The memories of a server.

    Attributes:
        by_name: Memories by the names that requests use.
    """

    by_name: Mapping[str, Memory]

    def chosen(self, wanted: MemoryRequest) -> tuple[str, Memory]:
        """The memory that a request is about.

        Raises:
            RequestError: 400 where there is none of that name, or several and no name.
        """
        names = ", ".join(self.by_name)
        if wanted.name is None and len(self.by_name) > 1:
            raise _memory_refusal(f"This server has several memories; name one: {names}.", "unknown_memory", "name")
        name = wanted.name or next(iter(self.by_name))
        if name not in self.by_name:
            raise _memory_refusal(
                f"There is no memory {name[:100]!r} here; there is {names}.", "unknown_memory", "name"
            )
        return name, self.by_name[name]

    def use(
        self,
        body: ChatCompletionRequest,
        wanted: MemoryRequest,
        key: str | None,
        policy: Policy,
        model: Model,
        effect: MeasuresEffect | None = None,
    ) -> tuple[ChatCompletionRequest, dict[str, Any]]:
        """The chat with what is remembered of its last question, and what its answer tells of that.

        What is to be remembered is written last; a request that fails later may be sent again, since a repeat is
        counted and not kept twice.

        Raises:
            RequestError: 400 where an entry cannot be one; 503 where the memory cannot be used.
        """
        name, memory = self.chosen(wanted)
        drafts = [_draft(entry.model_dump(), number, key) for number, entry in enumerate(wanted.write)]
        try:
            recalled = _recalled(memory, body, wanted, key, policy, model)
            recalled, left_out = _read_by_guardrail(recalled, effect)
            written = [memory.write(draft, apart=key is not None, effect=effect) for draft in drafts]
        except InvalidArgument as error:
            raise RequestError(400, str(error), code="invalid_memory_request", param="poise.memory") from error
        except UserError as error:
            text = f"The memory {name} cannot be used. {error}"
            raise RequestError(503, text, code="memory_unavailable", param="poise.memory") from error
        facts: dict[str, Any] = {"name": name, "recalled": [_recalled_facts(entry) for entry in recalled]}
        if left_out:
            facts["left_out"] = left_out
        if written:
            facts["written"] = [{"id": one.id, "verdict": one.verdict, "reasons": list(one.reasons)} for one in written]
        return _with_notes(body, memory_prompt(recalled)), facts

    def close(self) -> None:
        """Let go of what is in memory."""
        for memory in self.by_name.values():
            memory.close()


def with_memory(
    memories: ServerMemories | None,
    body: OpenAIRequest,
    key: str | None,
    policy: Policy,
    model: Model,
    effect: MeasuresEffect | None = None,
) -> tuple[OpenAIRequest, dict[str, Any] | None]:
    """The request as it may go on: with what is remembered, where it asks for that.

    Args:
        memories: The server's memories.
        body: The request.
        key: Name of its key.
        policy: The key's rules.
        model: Model that answers.
        effect: What reads an entry before it is let in, beside the memory's own gate, and before it is recalled.

    Raises:
        RequestError: 400 where it asks for a memory that is not here; 503 where that cannot be used.
    """
    asked = body.poise.memory if body.poise else None
    if asked is None or asked is False:
        return body, None
    if memories is None or not isinstance(body, ChatCompletionRequest):
        text = "This server has no memory" if memories is None else "Memories are for chats"
        raise _memory_refusal(f"{text}; leave poise.memory out.", "no_memory")
    if isinstance(asked, MemoryRequest):
        wanted = asked
    else:
        wanted = MemoryRequest() if asked is True else MemoryRequest(name=asked)
    return memories.use(body, wanted, key, policy, model, effect)


def read_memories(
    folders: Iterable[Path],
    gate: Path | None,
    model: Model,
    between: Callable[[Callable[[], Any]], Any],
    *,
    reads: bool = True,
) -> ServerMemories | None:
    """The memories in folders, which are begun where there are none; ``None`` without any.

    Args:
        folders: Folders of memories; requests call them by the folders' names.
        gate: File of a gate that reads the model before an entry is let in.
        model: The model that is served.
        between: Runs work on the model while nothing else uses it.
        reads: Whether the model is run here, where a gate can read it.

    Raises:
        InvalidArgument: two folders have one name, or a gate has no memory, or no model that it can read.
        InvalidMemory: a memory is damaged.
        OtherModel: the gate was fitted on another model.
    """
    by_name = check_memories(folders, gate)
    if gate and not reads:
        raise InvalidArgument("A memory's gate reads the model on Poise's own engine alone; leave `memory_gate` out.")
    if gate:
        measure = EffectGate(load_effect_gate(gate), model)
        for memory in by_name.values():
            memory.effect = lambda text: between(lambda: measure(text))
    return ServerMemories(by_name) if by_name else None


def check_memories(folders: Iterable[Path], gate: Path | None) -> dict[str, Memory]:
    """The memories by name, before there is a model.

    Raises:
        InvalidArgument: two folders have one name, or there is a gate for no memory.
        InvalidMemory: a memory is damaged.
        InvalidSettings: the gate's file is none.
    """
    by_name: dict[str, Memory] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in by_name:
            raise InvalidArgument(
                f"Two memories are called {name!r}, after their folders {by_name[name].folder} and {folder}; rename "
                "one, so that `memory` names different ones."
            )
        by_name[name] = Memory(folder)
    if gate is not None:
        if not by_name:
            raise InvalidArgument("`memory_gate` reads what is written into memories; name one with `memory` too.")
        load_effect_gate(gate)
    return by_name


def _memory_refusal(message: str, code: str, *field: str) -> RequestError:
    return RequestError(400, message, code=code, param=".".join(("poise.memory", *field)))


def _draft(facts: Mapping[str, Any], number: int, key: str | None) -> EntryDraft:
    try:
        return replace(EntryDraft(**facts), subject=key or "")
    except InvalidArgument as error:
        raise _memory_refusal(str(error), "invalid_memory_request", "write", str(number)) from error


def _recalled(
    memory: Memory,
    body: ChatCompletionRequest,
    wanted: MemoryRequest,
    key: str | None,
    policy: Policy,
    model: Model,
) -> list[RecalledEntry]:
    """What is pulled into the prompt: for the user's last turn, within the budget and the model's window."""

    def count(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    task = next((turn.text for turn in reversed(body.messages) if turn.role == "user" and turn.text.strip()), "")
    answer = min(body.max_new_tokens or policy.default_tokens, model.window // 2)
    room = model.window - answer - sum(count(turn.text) + TURN_TOKENS for turn in body.messages)
    budget = min(wanted.budget, room)
    if not task or budget < min(LEAST_BUDGET, wanted.budget):
        return []
    return memory.recall(task[:10_000], budget, subject=key, count=count)


def _read_by_guardrail(
    recalled: list[RecalledEntry], effect: MeasuresEffect | None
) -> tuple[list[RecalledEntry], list[dict[str, Any]]]:
    """The entries that go into the prompt, and those that read as instructions; procedures of a user's are not read."""
    if effect is None:
        return recalled, []
    stay, left_out = [], []
    for entry in recalled:
        is_procedure = entry.kind == "procedural" and entry.entry.trust == "user"
        reasons = () if is_procedure else effect(entry.text).reasons
        if reasons:
            left_out.append({"id": entry.id, "reasons": list(reasons)})
        else:
            stay.append(entry)
    return stay, left_out


def _with_notes(body: ChatCompletionRequest, notes: str) -> ChatCompletionRequest:
    """The chat with notes at the end of its system turn, which is put there where it has none."""
    if not notes:
        return body
    messages = list(body.messages)
    if messages[0].role in SYSTEM_ROLES:
        messages[0] = messages[0].model_copy(update={"content": f"{messages[0].text}\n\n{notes}".strip()})
    else:
        messages.insert(0, ChatMessage(role="system", content=notes))
    return body.model_copy(update={"messages": messages})


def _recalled_facts(entry: RecalledEntry) -> dict[str, Any]:
    facts = {name: getattr(entry, name) for name in ("id", "kind", "text", "why", "tokens")}
    return {**facts, "trust": entry.entry.trust, "source": entry.entry.source, "at": time_text(entry.entry.at)}
