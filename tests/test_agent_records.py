"""Records of a run that are damaged, another program's, or huge; and calls that an answer has too many of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_server import ScriptedModel, finish
from poise.agent import AgentResult, AgentSettings, EndpointModel, Nobody, replay_run, run_agent, write_run_page
from poise.agent.function_tools import function_tool
from poise.agent.records import RunRecords, read_records
from poise.errors import InvalidRun
from poise.storage.journal import Journal

DONE: list[str] = []


def pay(who: str) -> str:
    """Pay somebody."""
    DONE.append(who)
    return f"paid {who[:20]}"


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    DONE.clear()
    scripted = ScriptedModel([("pay", {"who": "Anna"}), finish()])
    yield scripted
    scripted.stop()


def go(server: ScriptedModel, folder: Path, approve: frozenset[str] = frozenset()) -> AgentResult:
    tools = {"pay": function_tool(pay, touches=["network"], repeatable=False)}
    settings = AgentSettings(approve=approve)
    return run_agent("a goal", EndpointModel(server.url), tools, folder, settings, person=Nobody())


def without_line(number: int) -> Callable[[bytes], bytes]:
    return lambda text: b"".join(line for n, line in enumerate(text.splitlines(keepends=True), 1) if n != number)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a line torn in the middle": lambda text: text.replace(b'"intent"', b'"int', 1),
    "a line gone": without_line(3),
    "a line twice": lambda text: text + text.splitlines(keepends=True)[-1],
    "zeros": lambda text: text[:200] + b"\0" * 60 + text[260:],
    "the head gone": without_line(1),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_is_told_and_nothing_is_done_again(
        self, damage: Callable[[bytes], bytes], server: ScriptedModel, tmp_path: Path
    ) -> None:
        go(server, tmp_path)
        path = tmp_path / "steps.jsonl"
        path.write_bytes(damage(path.read_bytes()))
        before = path.read_bytes()
        for work in (lambda: go(server, tmp_path), lambda: replay_run(tmp_path)):
            with pytest.raises(InvalidRun, match=r"Line \d+ of .* is not record \d+ of a run"):
                work()
        assert DONE == ["Anna"]
        assert path.read_bytes() == before

    @pytest.mark.parametrize("text", [b"My own notes", b"a,b\n1,2\n", b'{"id": 1}\n', b"\x89PNG", b"[]\n"])
    def test_of_no_run_leaves_the_file(self, text: bytes, server: ScriptedModel, tmp_path: Path) -> None:
        (tmp_path / "steps.jsonl").write_bytes(text)
        with pytest.raises(InvalidRun, match=r"nothing was changed"):
            go(server, tmp_path)
        assert (tmp_path / "steps.jsonl").read_bytes() == text

    def test_by_a_kill_is_mended_by_going_on(self, server: ScriptedModel, tmp_path: Path) -> None:
        go(server, tmp_path)
        path = tmp_path / "steps.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])
        assert go(server, tmp_path).outcome == "done"
        assert DONE == ["Anna"]

    def test_of_a_record_s_fields_is_a_sentence(self, server: ScriptedModel, tmp_path: Path) -> None:
        go(server, tmp_path)
        path = tmp_path / "steps.jsonl"
        path.write_text(path.read_text().replace('"prompt_tokens"', '"tokens_of_the_prompt"'))
        with pytest.raises(InvalidRun, match="lacks what its kind has"):
            replay_run(tmp_path)

    def test_reading_leaves_a_line_that_is_being_written(self, server: ScriptedModel, tmp_path: Path) -> None:
        go(server, tmp_path)
        path = tmp_path / "steps.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"key": "0000')
        assert len(read_records(tmp_path)) == len(whole.splitlines())
        assert path.read_bytes() == whole + b'{"key": "0000'
        journal = Journal(path, read_only=True)
        with pytest.raises(RuntimeError, match="read alone"):
            journal.append([("x", 1)])


class TestManyCalls:
    def test_are_made_up_to_the_limit_and_the_rest_is_told(self, server: ScriptedModel, tmp_path: Path) -> None:
        server.script = [[("pay", {"who": f"nr {n}"}) for n in range(200)], finish()]
        go(server, tmp_path)
        assert [f"nr {n}" for n in range(8)] == DONE
        [row] = [row for row in read_records(tmp_path) if row["kind"] == "left_out"]
        assert (row["asked"], row["made"]) == (200, 8)
        told = str(server.requests[-1]["messages"])
        assert "Your answer had 200 calls, and only the first 8 were made" in told
        page = replay_run(tmp_path)
        assert "200 calls in one answer: the first 8 are made, the others are left out" in [s.title for s in page.steps]
        assert next(s.title for s in page.steps if s.kind == "answer").endswith("and 192 more")
        asked = len(server.requests)
        assert go(server, tmp_path).outcome == "done"
        assert len(server.requests) == asked

    def test_with_finish_among_them_do_not_end_the_run_unsaid(self, server: ScriptedModel, tmp_path: Path) -> None:
        server.script = [[finish(), *(("pay", {"who": f"nr {n}"}) for n in range(9))], finish()]
        assert go(server, tmp_path).outcome == "done"
        assert len(DONE) == 7


class TestHugeArguments:
    def test_are_on_record_once_and_short_on_the_page(self, server: ScriptedModel, tmp_path: Path) -> None:
        server.script = [("pay", {"who": "x" * 300_000}), ("pay", {"what": "y" * 300_000}), finish()]
        go(server, tmp_path, frozenset({"network"}))
        rows = read_records(tmp_path)
        sizes = {row["kind"]: len(json.dumps(row)) for row in rows}
        assert max(sizes["approval"], sizes["rejected"]) < 10_000
        page = write_run_page(tmp_path).read_text()
        assert len(page) < 120_000
        assert go(server, tmp_path, frozenset({"network"})).use.calls == 0
        assert DONE == []

    def test_that_are_made_stay_whole(self, server: ScriptedModel, tmp_path: Path) -> None:
        server.script = [("pay", {"who": "x" * 50_000}), finish()]
        go(server, tmp_path)
        assert [len(who) for who in DONE] == [50_000]
        [row] = [row for row in RunRecords(tmp_path / "steps.jsonl", read_only=True).rows if row["kind"] == "intent"]
        assert row["arguments"]["who"] == "x" * 50_000
        shown = [text for step in replay_run(tmp_path).steps for _, text in step.parts]
        assert max(map(len, shown)) < 21_000
        assert any("more characters are in the run's records" in text for text in shown)
