"""The requests that the server takes, in OpenAI's schema. Any other field is an error that names it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from poise.model.rendering import Thinking
from poise.serve.policy import UnsupportedRule
from poise.serve.tool_requests import (
    FunctionTool,
    JSONObjectFormat,
    JSONSchemaFormat,
    TextFormat,
    ToolCallMessage,
    ToolChoice,
)
from poise.settings import placed_fault
from poise.steer.request_field import PoiseField, RequestName, RequestText, StrictRequest

__all__ = [
    "QUALIFIERS",
    "ChatCompletionRequest",
    "ChatMessage",
    "CompletionRequest",
    "KnowledgeRequest",
    "PartQualifier",
    "ServedPoiseField",
    "StreamOptions",
]


def _shape_of_prompt(prompt: Any) -> str:
    """Which of its shapes a prompt is, by its first item, so that the others are not tried on a long one."""
    if not isinstance(prompt, list):
        return "as text"
    first = prompt[0] if prompt else 0
    return "as texts" if isinstance(first, str) else "as lists of tokens" if isinstance(first, list) else "as tokens"


StopString = Annotated[RequestText, Field(min_length=1, max_length=200)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Nothing = list[Any]
OnlyZero = Annotated[float, Field(ge=0, le=0, description="Not supported; may only be 0.")]


PartQualifier = Literal["grounding_source", "query"]
QUALIFIERS = (
    "What the part is to a guardrail that scores answers over sources, in Bedrock's words; it is checked anyway."
)


class TextPart(StrictRequest):
    """A part of a message."""

    type: Literal["text"]
    text: RequestText
    qualifiers: list[PartQualifier] = Field(default=[], max_length=2, description=QUALIFIERS)


class ChatMessage(StrictRequest):
    """A turn. ``developer`` is OpenAI's newer name for ``system``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: RequestText | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, description="Only an assistant's turn with calls may be without."
    )
    name: RequestText | None = Field(None, max_length=200, description="Who speaks; templates do not show it.")
    refusal: Literal[""] | None = None
    tool_calls: list[ToolCallMessage] = Field(
        default=[], max_length=128, description="Calls that an assistant's turn makes."
    )
    tool_call_id: RequestText | None = Field(None, max_length=200, description="The call that a tool's turn answers.")
    annotations: Nothing = Field(default=[], max_length=0)
    reasoning_content: RequestText | None = Field(
        None, description="The thought of an assistant's earlier turn, which the template shows or drops."
    )

    @property
    def text(self) -> str:
        """All of its parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    def marked(self, qualifier: PartQualifier) -> list[str]:
        """Its parts that are marked so."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.text for part in parts if qualifier in part.qualifiers]

    @property
    def unmarked(self) -> str:
        """All of its parts that are not marked as a source."""
        parts = self.content if isinstance(self.content, list) else []
        return "".join(p.text for p in parts if "grounding_source" not in p.qualifiers) if parts else self.text

    @model_validator(mode="after")
    def _fields_of_its_role(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise placed_fault("is missing; only an assistant's turn with tool_calls may be without", "content")
        if self.tool_calls and self.role != "assistant":
            raise placed_fault(f"are of a turn of the {self.role}; only the assistant's may have them", "tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise placed_fault("is missing" if self.role == "tool" else "is for a tool's turn alone", "tool_call_id")
        return self


class StreamOptions(StrictRequest):
    """Of a streamed answer."""

    include_usage: bool = Field(False, description="One more chunk at the end, with the usage and without choices.")
    include_obfuscation: bool = Field(False, description="Accepted without effect: nothing is padded here.")


class TemplateSwitches(StrictRequest):
    """Of the chat template's switches those for thinking, under vLLM's name for them."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: ReasoningEffort | None = None


class KnowledgeRequest(StrictRequest):
    """How a chat is answered from the server's documents."""

    top: int = Field(6, ge=1, le=50, description="Most passages.")
    mode: Literal["hybrid", "dense", "sparse"] = Field("hybrid", description="How they are looked for.")
    follow_up: Literal["last", "join", "rewrite"] = Field(
        "join",
        description="What is looked for: the last question; with the one before where it has few words; or as the "
        "model rewrites it with the one before, for which other answers wait.",
    )
    paths: list[RequestName] = Field(default=[], max_length=16, description="Patterns of files, such as `docs/*.md`.")
    unsupported: UnsupportedRule = Field(
        "leave",
        description="What is done about sentences that the documents do not support: leave, mark or remove them, or "
        "refuse the answer. All but `leave` hold the answer back until it has been checked.",
    )
    least: float = Field(0.5, ge=0, le=1, description="Lowest score of a supported sentence.")
    by_model: bool = Field(
        False, description="Whether the model reads each answer with and without its passages, to score it by both."
    )


class MemoryWriteRequest(StrictRequest):
    """An entry that a memory is to take, if its gate lets it in."""

    text: RequestText = Field(min_length=1, max_length=20_000)
    kind: Literal["episodic", "semantic"] = Field("semantic", description="What happened, or a fact.")
    trust: Literal["user", "tool", "web", "model"] = Field("tool", description="Who it comes from.")
    source: RequestText = Field("", max_length=400, description="File, address or tool that it comes from.")
    outcome: Literal["", "success", "failure"] = Field("", description="How what it tells of went.")


class MemoryRequest(StrictRequest):
    """Which memory a chat has, and what it is to remember."""

    name: RequestName | None = Field(None, description="The memory; not needed where the server has one.")
    budget: int = Field(400, ge=1, le=100_000, description="Most tokens of what is pulled into the prompt.")
    write: list[MemoryWriteRequest] = Field(default=[], max_length=16, description="What is to be remembered.")


class ServedPoiseField(PoiseField):
    """What Poise adds to the requests of its own server."""

    knowledge: bool | KnowledgeRequest | None = Field(
        None, description="Answer the last turn from the server's documents; false where the rules say so for all."
    )

    memory: bool | RequestName | MemoryRequest | None = Field(
        None, description="Have what this memory knows of the last question in the prompt; true for the only one."
    )
    session: RequestName | None = Field(
        None, description="Run that this chat is a step of, by a name of the client's own; else its history says."
    )
    guardrail: RequestName | None = Field(
        None, description="Guardrail that the answer is to have, NAME or NAME/VERSION, where the key may choose."
    )


class OpenAIRequest(StrictRequest):
    """What chat and plain completions have in common."""

    model: RequestName
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=16)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Choice i is drawn with seed + i.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    frequency_penalty: OnlyZero = 0
    presence_penalty: OnlyZero = 0
    user: RequestText | None = Field(None, max_length=1000, description="Accepted without effect, and not kept.")
    safety_identifier: RequestText | None = Field(
        None, max_length=1000, description="Accepted without effect, like `user`."
    )
    prompt_cache_key: RequestText | None = Field(
        None, max_length=1000, description="Accepted without effect, like `user`."
    )
    metadata: dict[RequestName, Annotated[RequestText, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="Accepted without effect, like `user`."
    )
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        None, description="Accepted without effect: there is one."
    )
    store: Literal[False] | None = Field(None, description="Not supported; may only be false.")
    logit_bias: dict[str, float] = Field(default={}, max_length=0, description="Not supported; may only be empty.")
    poise: ServedPoiseField | None = None

    @property
    @abstractmethod
    def max_new_tokens(self) -> int | None:
        """Most tokens of the answer, where the request says."""

    @property
    @abstractmethod
    def logprobs_count(self) -> int | None:
        """Likeliest tokens to report, as a job has it."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> OpenAIRequest:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options may only be given with stream=true")
        return self


class ChatCompletionRequest(OpenAIRequest):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000, description="The newer name of max_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="Think before the reply, as much as the template has levels for; `none` switches it off."
    )
    chat_template_kwargs: TemplateSwitches = TemplateSwitches()
    response_format: Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")] | None = (
        Field(None, description="Hold the answer to JSON, or to a schema.")
    )
    tools: list[FunctionTool] = Field(default=[], max_length=128, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Which tools may or must be called.")
    parallel_tool_calls: bool = Field(True, description="Whether one answer may have several calls.")
    functions: Nothing = Field(default=[], max_length=0, description="Not supported; may only be empty.")
    function_call: Literal["none", "auto"] | None = Field(None, description="Without functions nothing is called.")
    modalities: list[Literal["text"]] | None = Field(None, max_length=1, description="Not supported beyond text.")

    @property
    def thinking(self) -> Thinking:
        """Whether the model is to think first, or how much; off where the request does not say."""
        switches = self.chat_template_kwargs
        effort = self.reasoning_effort or switches.reasoning_effort
        on = switches.thinking if switches.enable_thinking is None else switches.enable_thinking
        return bool(on) if effort is None or effort == "none" else effort

    @model_validator(mode="after")
    def _one_choice_of_thinking(self) -> ChatCompletionRequest:
        switches = self.chat_template_kwargs
        efforts = [e for e in (self.reasoning_effort, switches.reasoning_effort) if e]
        choices = {on for on in (switches.enable_thinking, switches.thinking) if on is not None}
        choices |= {effort != "none" for effort in efforts}
        if len(choices) > 1 or len(set(efforts)) > 1:
            raise ValueError("thinking is switched on and off, or to two efforts, at once; give one")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @model_validator(mode="after")
    def _tools_once_and_answered(self) -> ChatCompletionRequest:
        names = [tool.function.name for tool in self.tools]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise placed_fault(f"has two functions named {repeated[0]!r}; give each a name of its own", "tools")
        called: set[str] = set()
        for place, message in enumerate(self.messages):
            called |= {call.id for call in message.tool_calls}
            if message.tool_call_id is not None and message.tool_call_id not in called:
                text = f"is {message.tool_call_id!r}, a call that no turn before it has"
                raise placed_fault(text, "messages", place, "tool_call_id")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens of the answer, where the request says."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_count(self) -> int | None:
        """Likeliest tokens to report; ``None`` for no log-probabilities."""
        return self.top_logprobs if self.logprobs else None


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
CompletionPrompt = Annotated[
    Annotated[RequestText, Tag("as text")]
    | Annotated[TokenIds, Tag("as tokens")]
    | Annotated[list[RequestText], Field(min_length=1, max_length=64, fail_fast=True), Tag("as texts")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=64, fail_fast=True), Tag("as lists of tokens")],
    Discriminator(_shape_of_prompt),
]


class CompletionRequest(OpenAIRequest):
    """``POST /v1/completions``: the prompt as it is, without a chat template."""

    prompt: CompletionPrompt
    max_tokens: int = Field(16, ge=0, le=10_000_000, description="0, to score the prompt alone, only with echo.")
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = Field(False, description="Give the prompt back before the answer, with its own log-probabilities.")
    best_of: int | None = Field(None, ge=1, le=1, description="Not supported; may only be 1.")
    suffix: Literal[""] | None = Field(None, description="Not supported; may only be empty.")

    @model_validator(mode="after")
    def _something_to_do(self) -> CompletionRequest:
        if not self.max_tokens and not self.echo:
            raise ValueError("max_tokens may only be 0 with echo=true")
        if not self.max_tokens and self.poise and self.poise.watch:
            raise ValueError("poise.watch reads answers, and max_tokens is 0; ask for at least 1 token")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens of the answer, where the request says."""
        return self.max_tokens

    @property
    def logprobs_count(self) -> int | None:
        """Likeliest tokens to report; ``None`` for no log-probabilities."""
        return self.logprobs
