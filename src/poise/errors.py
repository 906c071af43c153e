"""Every error that Poise raises on purpose.

PoiseError
├── UserError                  shown as one sentence, exit code 2, no traceback
│   ├── UnknownTrait           no trait of that name, no file at that path
│   ├── InvalidTrait           a trait file breaks the schema: file, field and line
│   ├── DraftFailed            no complete trait could be got from the endpoint
│   ├── InvalidExemplars       a pairs file breaks its shape, or a side is empty
│   ├── InvalidSettings        a settings file cannot be read or breaks its schema: file, line and field
│   ├── InvalidStatement       a rule or a claim that cannot be read over a policy's variables
│   ├── TranslationFailed      a model wrote no statements that can be reasoned about
│   ├── SolverGaveUp           a question is too complex for z3 in the work that it is given
│   ├── BrokenYAML             a text is no YAML document: line and reason
│   ├── InvalidData            a data set is missing or empty, has no columns that fit, or too many broken rows
│   ├── InvalidRow             one row of a data set cannot be used; runs count and list such rows
│   ├── InvalidDocument        a document cannot be read; builds of a knowledge base list and skip it
│   ├── InvalidKnowledge       a knowledge base is missing, damaged, or of another encoder
│   ├── InvalidMemory          a memory is missing, damaged, another program's, or of another encoder
│   ├── InvalidRegistry        a registry or a record is missing, damaged, or not what was recorded
│   ├── EncoderUnavailable     the endpoint for embeddings cannot be reached or answers nonsense
│   ├── ToolFailed             a tool could not do what an agent called it for; the model is told
│   ├── InvalidRun             an agent's run is missing, damaged, or of another goal
│   ├── EndpointUnavailable    the endpoint of a model that is asked cannot be reached or answers nonsense
│   ├── ModelNotFound          neither a bundled name, a folder, a GGUF file nor a hub id that answers
│   ├── BrokenModelFile        the file is there and cannot be read as a model
│   ├── UnsuitableModel        decoder blocks, tokenizer or template cannot be used
│   ├── InvalidVector          a vector file is cut short, not finite, or breaks the schema
│   ├── OtherModel             the vector was computed on another model
│   ├── InvalidSteering        a steering expression, layer, strength or phase makes no sense here
│   ├── JudgeUnavailable       the judge cannot be reached or answers nonsense
│   ├── TooFewResponses        too few usable responses on a side, or normal answers for a rate
│   ├── TrainingFailed         training cannot go on: a loss that is no number; the last good checkpoint is kept
│   ├── SaveFailed             the disk refused; what was there before is untouched
│   ├── OutputExists           writing would destroy an input, another program's file, or a certificate
│   ├── FolderInUse            another run is at work in the folder
│   ├── MissingExtra           a part of Poise that is not installed
│   └── InvalidArgument        the value of an argument or setting out of range
├── RequestError               a request that a server answers with an HTTP error
└── InternalError              a bug or a broken invariant; shown with its traceback
    ├── HookDidNotFire         a forward pass ended and a steered or read block was not visited
    └── NonFiniteActivation    NaN or infinity came out of the model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PoiseError(Exception):
    """Base of all errors raised on purpose; catch it to catch them all."""


class UserError(PoiseError):
    """Something the user can fix; the message names the value, the limit and the remedy."""

    faults: tuple[tuple[tuple[int | str, ...], str], ...] = ()
    """The place of each setting that is at fault, and what is wrong in words that follow its name."""


class InternalError(PoiseError):
    """Something that must not happen; worth a bug report."""


class UnknownTrait(UserError):
    """No trait of that name and no file at that path."""


class InvalidTrait(UserError):
    """A trait file breaks the schema."""


class DraftFailed(UserError):
    """The endpoint cannot be reached, or what it writes does not make a complete trait."""


class InvalidExemplars(UserError):
    """Exemplar pairs break their shape or one of their sides is empty."""


class InvalidSettings(UserError):
    """A settings file cannot be read or breaks its schema."""


class InvalidStatement(UserError):
    """A rule or a claim is no statement over a policy's variables."""


class TranslationFailed(UserError):
    """A model wrote no statements that can be reasoned about."""


class SolverGaveUp(UserError):
    """A question is too complex for z3 in the work that it is given."""


class BrokenYAML(UserError):
    """A text is not a YAML document; whoever reads the file adds its name.

    Attributes:
        line: Line of the mistake, from 1; ``None`` where there is no one line.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


class InvalidData(UserError):
    """A data set is missing or empty, has no columns that fit, or too many broken rows."""


class InvalidRow(UserError):
    """One row of a data set cannot be used; the message is the reason that the list of rejected rows gives.

    Attributes:
        content: What the row holds, for whoever keeps rejected rows; ``None`` where it is known or cannot be read.
    """

    def __init__(self, reason: str, content: Any = None) -> None:
        super().__init__(reason)
        self.content = content


class InvalidDocument(UserError):
    """A document cannot be read; the message is the reason that the list of skipped documents gives."""


class InvalidKnowledge(UserError):
    """A knowledge base is missing, damaged, or was built with another encoder."""


class InvalidMemory(UserError):
    """A memory is missing, damaged, another program's file, or was begun with another encoder."""


class InvalidRegistry(UserError):
    """A registry or a record is missing or damaged, or an artefact is not what was recorded."""


class EncoderUnavailable(UserError):
    """The endpoint for embeddings cannot be reached, or what it answers is not embeddings."""


class ToolFailed(UserError):
    """A tool could not do what an agent called it for; the model is told, and may try another way.

    Args:
        message: What went wrong, for the model.
        kind: What may help: other ``arguments``, waiting (``passing``), or another way (``failed``, ``refused``).
    """

    def __init__(self, message: str, *, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


class InvalidRun(UserError):
    """The folder of an agent's run is missing, damaged, or holds a run of another goal."""


class EndpointUnavailable(UserError):
    """The endpoint of a model that is asked cannot be reached, or what it answers is no chat completion.

    Attributes:
        passing: Whether the same request may be answered a little later.
    """

    passing: bool = False


class ModelNotFound(UserError):
    """Neither a bundled name, a folder, a GGUF file nor a hub id that answers."""


class BrokenModelFile(UserError):
    """The file is there and cannot be read as a model."""


class UnsuitableModel(UserError):
    """The model loads, but its blocks, tokenizer or template cannot be used."""


class InvalidVector(UserError):
    """A vector file is cut short, not finite, or breaks the schema."""


class OtherModel(UserError):
    """The vector was computed on another model than the one it is used on."""


class InvalidSteering(UserError):
    """A steering expression, layer, strength or phase makes no sense here."""


class JudgeUnavailable(UserError):
    """The judge cannot be reached, or what it answers cannot be read."""


class TooFewResponses(UserError):
    """Too few usable responses on a side to take a mean, or too few normal answers to promise a rate."""


class TrainingFailed(UserError):
    """Training cannot go on; the last good checkpoint is kept."""


class SaveFailed(UserError):
    """The disk refused a write; what was there before is untouched."""


class OutputExists(UserError):
    """Writing would destroy an input, a file that this kind of job did not write, or a certificate or alarms."""


class FolderInUse(UserError):
    """Another run is at work in the folder."""


class MissingExtra(UserError):
    """A part of Poise that is not installed; the message names the extra."""

    @classmethod
    def of(cls, need: str, extra: str) -> MissingExtra:
        """Says what needs which package, and how its extra is installed.

        Args:
            need: A clause without its full stop, such as "Training needs peft".
            extra: Name of the extra in Poise's ``pyproject.toml``.
        """
        remedy = f"in a checkout of Poise run pip install -e '.[{extra}]', or install the wheel with [{extra}]"
        return cls(f"{need}; {remedy}.")


class InvalidArgument(UserError):
    """The value of an argument or setting is out of range; names the argument, the value and the limit.

    Arguments are named in backticks, which the command line turns into its own options: `rate` into --rate.
    """


class RequestError(PoiseError):
    """A request that a server answers with an error, in the shape that OpenAI's clients expect.

    Args:
        status: The HTTP status.
        message: One sentence.
        code: A short code for programs.
        param: The field of the request at fault.
        headers: HTTP headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class HookDidNotFire(InternalError):
    """A forward pass ended and a steered or read block was not visited."""


class NonFiniteActivation(InternalError):
    """NaN or infinity came out of the model."""


def why_unread(error: OSError | UnicodeDecodeError) -> str:
    """Why a text file could not be read, in words."""
    return getattr(error, "strerror", None) or "it is not UTF-8 text"


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type where it has none."""
    try:
        text = str(error)
    except Exception:  # other people's errors can fail to say what they are
        text = ""
    return next(iter(text.strip().splitlines()), type(error).__name__)
