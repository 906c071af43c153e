"""What an agent's tools refuse, whatever a model writes: paths, links, addresses, arithmetic."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from poise.agent import AgentTool, ToolContext
from poise.agent.calculator import calculate
from poise.agent.folder_files import FolderFiles, file_tools
from poise.agent.web_fetch import WebFetch, is_public_number, named_address
from poise.errors import InvalidArgument, ToolFailed

OUTSIDE_PATHS = [
    "../secret.txt",
    "../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    "a/../../secret.txt",
    "a/../secret.txt",
    "./../secret.txt",
    "..",
    ".",
    "./",
    "a/..",
    "a/.",
    "a//b.txt",
    "a/",
    "",
    " ",
    " ../secret.txt",
    "../secret.txt ",
    "~/secret.txt",
    "~root/.ssh/id_rsa",
    "C:\\secret.txt",
    "C:/secret.txt",
    "\\\\host\\share",
    "..\\secret.txt",
    "a\\..\\..\\secret.txt",
    "file:///etc/passwd",
    "secret.txt\x00.png",
    "a\nb.txt",
    "a\x1b[2Jb.txt",
    "\x7f",
    ".env",
    ".ssh/authorized_keys",
    ".git/hooks/pre-commit",
    "a/.hidden/b.txt",
    "....//secret.txt",
    "..;/secret.txt/..",
    "/".join(["a"] * 20),
    "x" * 300,
    "\ud800.txt",
    "a/\udfff/b.txt",
    "link-to-file",
    "link-to-folder/secret.txt",
    "link-to-link/secret.txt",
    "hard-link.txt",
    "inner/link-up/secret.txt",
    "dangling",
    "link-to-itself",
    "pipe",
    "inner",
]
"""None of these is read, and none written; the last ones are what ``trapped`` puts into the folder."""


@pytest.fixture
def trapped(tmp_path: Path) -> Iterator[FolderFiles]:
    """A folder with links and a pipe in it that lead out; ``secret.txt`` lies beside it."""
    box = tmp_path / "box"
    (box / "inner").mkdir(parents=True)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (box / "plain.txt").write_text("plain")
    (box / "link-to-file").symlink_to(secret)
    (box / "link-to-folder").symlink_to(tmp_path)
    (box / "link-to-link").symlink_to("link-to-folder")
    (box / "inner" / "link-up").symlink_to("../..")
    (box / "dangling").symlink_to(tmp_path / "new.txt")
    (box / "link-to-itself").symlink_to("link-to-itself")
    os.link(secret, box / "hard-link.txt")
    os.mkfifo(box / "pipe")
    files = FolderFiles(box, may_write=True)
    yield files
    files.close()


def outside(files: FolderFiles) -> dict[str, str]:
    """What lies around the folder."""
    return {path.name: path.read_text() for path in files.folder.parent.iterdir() if path.is_file()}


class TestPaths:
    @pytest.mark.parametrize("path", OUTSIDE_PATHS)
    def test_that_lead_out_are_not_read(self, path: str, trapped: FolderFiles) -> None:
        with pytest.raises(ToolFailed):
            trapped.read_file(path)

    @pytest.mark.parametrize("verb", ["write_file", "append_file"])
    @pytest.mark.parametrize("path", OUTSIDE_PATHS)
    def test_that_lead_out_are_not_written(self, path: str, verb: str, trapped: FolderFiles) -> None:
        before = outside(trapped)
        with pytest.raises(ToolFailed):
            getattr(trapped, verb)(path, "overwritten")
        assert outside(trapped) == before == {"secret.txt": "secret"}

    def test_in_a_listing_are_those_of_plain_files_alone(self, trapped: FolderFiles) -> None:
        listed = [line.partition("\t")[0] for line in trapped.list_files().splitlines()]
        assert listed == ["hard-link.txt", "plain.txt"]
        with pytest.raises(ToolFailed):
            trapped.list_files("link-to-folder")
        with pytest.raises(ToolFailed):
            trapped.list_files("..;")

    def test_are_walked_from_the_folder_that_was_opened(self, trapped: FolderFiles, tmp_path: Path) -> None:
        """Whoever puts another folder in its place changes nothing."""
        trapped.folder.rename(tmp_path / "moved")
        (tmp_path / "box").symlink_to("/etc")
        assert trapped.read_file("plain.txt") == "plain"

    def test_that_change_while_they_are_walked_lead_nowhere_else(self, trapped: FolderFiles, tmp_path: Path) -> None:
        """A folder that turns into a link and back, as fast as it can, while files in it are written and read."""
        box, stop = trapped.folder, threading.Event()
        (tmp_path / "target").mkdir()

        def swap() -> None:
            moves: list[Callable[[], Any]] = [
                lambda: (box / "d").rename(box / "spare"),
                lambda: (box / "d").symlink_to(tmp_path / "target"),
                lambda: (box / "d").unlink(),
                lambda: (box / "spare").rename(box / "d"),
            ]
            while not stop.is_set():
                for move in moves:
                    with contextlib.suppress(OSError):  # the writer may have made the folder anew
                        move()

        (box / "d").mkdir()
        thread = threading.Thread(target=swap)
        thread.start()
        wrote = 0
        try:
            for _ in range(300):
                try:
                    trapped.write_file("d/a.txt", "x")
                    wrote += 1
                except ToolFailed:
                    pass
        finally:
            stop.set()
            thread.join()
        assert list((tmp_path / "target").iterdir()) == []
        assert wrote > 0

    def test_of_a_link_put_where_a_file_is_written_are_replaced(self, trapped: FolderFiles, tmp_path: Path) -> None:
        trapped.write_file("new.txt", "one")
        (trapped.folder / "new.txt").unlink()
        (trapped.folder / "new.txt").symlink_to(tmp_path / "secret.txt")
        with pytest.raises(ToolFailed, match="not a regular file"):
            trapped.write_file("new.txt", "two")
        assert (tmp_path / "secret.txt").read_text() == "secret"

    def test_too_much_is_neither_read_nor_written(self, trapped: FolderFiles) -> None:
        (trapped.folder / "big.txt").write_bytes(b"x" * 1_000_001)
        with pytest.raises(ToolFailed, match="more than"):
            trapped.read_file("big.txt")
        with pytest.raises(ToolFailed, match="at most"):
            trapped.write_file("a.txt", "x" * 1_000_001)
        (trapped.folder / "full.txt").write_bytes(b"x" * 999_999)
        with pytest.raises(ToolFailed, match="more than"):
            trapped.append_file("full.txt", "xx")

    def test_of_a_folder_that_is_only_read_have_no_tool_that_writes(self, tmp_path: Path) -> None:
        files = FolderFiles(tmp_path, may_write=False)
        assert [tool.name for tool in file_tools(files)] == ["list_files", "read_file"]
        files.close()

    def test_of_no_folder_are_said(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="cannot use the folder"):
            FolderFiles(tmp_path / "none", may_write=False)


def append_tool(files: FolderFiles) -> AgentTool:
    return next(tool for tool in file_tools(files) if tool.name == "append_file")


class TestAppending:
    """The same call with what was prepared for it, twice, has the effect of one."""

    @pytest.mark.parametrize("before", ["", "line\n", "line\nline\n"])
    def test_twice_adds_once(self, before: str, trapped: FolderFiles) -> None:
        tool, values = append_tool(trapped), {"path": "log.txt", "text": "line\n"}
        if before:
            trapped.write_file("log.txt", before)
        assert tool.prepare is not None
        context = ToolContext(key="k", seconds=9, prepared=tool.prepare(values))
        for _ in range(3):
            tool.call(values, context)
        assert (trapped.folder / "log.txt").read_text() == f"{before}line\n"

    def test_after_somebody_else_wrote_is_refused(self, trapped: FolderFiles) -> None:
        tool, values = append_tool(trapped), {"path": "log.txt", "text": "line\n"}
        assert tool.prepare is not None
        context = ToolContext(key="k", seconds=9, prepared=tool.prepare(values))
        trapped.write_file("log.txt", "theirs\n")
        with pytest.raises(ToolFailed, match="somebody else"):
            tool.call(values, context)


REFUSED_ADDRESSES = [
    "http://evil.example/data/x",
    "http://localhost.evil.example/data/x",
    "http://{host}.evil.example/data/x",
    "http://{host}@evil.example/data/x",
    "http://user:pw@{host}:{port}/data/x",
    "http://{host}:{other}/data/x",
    "https://{host}:{port}/data/x",
    "ftp://{host}:{port}/data/x",
    "file:///etc/passwd",
    "gopher://{host}:{port}/data/x",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "//{host}:{port}/data/x",
    "{host}:{port}/data/x",
    "",
    "http://",
    "http:///data/x",
    "http://{host}:{port}",
    "http://{host}:{port}/",
    "http://{host}:{port}/dat",
    "http://{host}:{port}/database",
    "http://{host}:{port}/data/../secret",
    "http://{host}:{port}/data/./x",
    "http://{host}:{port}/data/%2e%2e/secret",
    "http://{host}:{port}/data/%2E%2E/secret",
    "http://{host}:{port}/data/%252e%252e/secret",
    "http://{host}:{port}/data/..%2fsecret",
    "http://{host}:{port}/data/%5c..%5csecret",
    "http://{host}:{port}/data//x",
    "http://{host}:{port}//data/x",
    "http://{host}:{port}/data/x?steal=1",
    "http://{host}:{port}/data/x?",
    "http://{host}:{port}/data/x#part",
    "http://{host}:{port}/data/x;v=1",
    "http://{host}:{port}\\@evil.example/data/x",
    "http://{host}:{port}/data\\..\\secret",
    "http://{host}:{port}/data/x\r\nHost: evil.example",
    "http://{host}:{port}/data/x\tY",
    " http://{host}:{port}/data/x",
    "http://{host}:{port}/data/\u2025/secret",
    "http://\u24d4xample.com/data/x",
    "http://{host}:99999/data/x",
    "http://{host}:-1/data/x",
    "http://[::1/data/x",
    "http://2130706433:{port}/data/x",
    "http://0x7f000001:{port}/data/x",
    "http://0177.0.0.1:{port}/data/x",
    "http://127.1:{port}/data/x",
    "http://[::ffff:127.0.0.1]:{port}/data/x",
    "http://0.0.0.0:{port}/data/x",
    "http://169.254.169.254/latest/meta-data",
    "http://{host}:{port}/data/" + "x" * 3000,
]


class Web(ThreadingHTTPServer):
    """A small site on the loopback; ``paths`` are those that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _WebHandler)
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _WebHandler(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        moves = {
            "/data/away": "http://evil.example/data/x",
            "/data/secret": "/secret",
            "/data/home": "/data/x",
            "/data/loop": "/data/loop",
            "/data/scheme": "file:///etc/passwd",
            "/data/inside": "http://169.254.169.254/latest/meta-data",
            "/data/none": "",
        }
        if self.path in moves:
            self.send_response(302)
            self.send_header("location", moves[self.path])
            self.send_header("content-length", "0")
            self.end_headers()
            return
        body = b"x" * 600_000 if self.path == "/data/big" else b"hello"
        status = {"/data/gone": 404, "/data/busy": 503}.get(self.path, 200)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def site() -> Iterator[Web]:
    server = Web()
    yield server
    server.shutdown()
    server.server_close()


class TestAddresses:
    @pytest.mark.parametrize("address", REFUSED_ADDRESSES)
    def test_that_were_not_named_are_refused_before_anything_is_sent(self, address: str, site: Web) -> None:
        web = WebFetch([f"http://127.0.0.1:{site.port}/data"])
        with pytest.raises(ToolFailed):
            web.fetch(address.format(host="127.0.0.1", port=site.port, other=site.port + 1))
        assert site.paths == []

    @pytest.mark.parametrize("path", ["/data", "/data/x", "/data/home"])
    def test_that_were_named_are_read(self, path: str, site: Web) -> None:
        assert WebFetch([f"http://127.0.0.1:{site.port}/data"]).fetch(f"http://127.0.0.1:{site.port}{path}") == "hello"

    @pytest.mark.parametrize("path", ["away", "secret", "loop", "scheme", "inside", "none"])
    def test_that_redirect_to_others_are_refused(self, path: str, site: Web) -> None:
        with pytest.raises(ToolFailed):
            WebFetch([f"http://127.0.0.1:{site.port}/data"]).fetch(f"http://127.0.0.1:{site.port}/data/{path}")
        assert "/secret" not in site.paths

    def test_of_a_name_that_leads_to_a_private_number_are_refused(
        self, site: Web, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve: Callable[..., Any] = socket.getaddrinfo

        def rebound(host: str, *args: Any, **more: Any) -> Any:
            return resolve("127.0.0.1" if host == "public.example" else host, *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        address = f"http://public.example:{site.port}/data"
        with pytest.raises(ToolFailed, match="private address"):
            WebFetch([address]).fetch(f"{address}/x")
        assert site.paths == []
        assert WebFetch([address], private=True).fetch(f"{address}/x") == "hello"

    def test_are_looked_up_once(self, site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name whose number changes after it was checked leads where it was checked."""
        resolve: Callable[..., Any] = socket.getaddrinfo
        asked: list[str] = []

        def changing(host: str, *args: Any, **more: Any) -> Any:
            if host != "twice.example":
                return resolve(host, *args, **more)
            asked.append(host)
            return resolve("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", changing)
        address = f"http://twice.example:{site.port}/data"
        assert WebFetch([address], private=True).fetch(address) == "hello"
        assert asked == ["twice.example"]

    @pytest.mark.parametrize(("path", "kind"), [("gone", "failed"), ("busy", "passing"), ("big", "failed")])
    def test_that_fail_say_whether_waiting_may_help(self, path: str, kind: str, site: Web) -> None:
        with pytest.raises(ToolFailed) as error:
            WebFetch([f"http://127.0.0.1:{site.port}/data"]).fetch(f"http://127.0.0.1:{site.port}/data/{path}")
        assert error.value.kind == kind

    @pytest.mark.parametrize(
        "number",
        [
            "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
            "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
            "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "not-a-number",
        ],
    )  # fmt: skip
    def test_of_private_networks_are_known(self, number: str) -> None:
        assert not is_public_number(number)

    @pytest.mark.parametrize("number", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"])
    def test_of_the_internet_are_known_too(self, number: str) -> None:
        assert is_public_number(number)

    def test_that_make_no_sense_are_refused_in_the_settings(self) -> None:
        with pytest.raises(InvalidArgument, match="cannot be used"):
            WebFetch(["http://a.example/?q="])
        assert named_address("https://A.example.").host == "a.example"


BAD_EXPRESSIONS = [
    "__import__('os').system('id')",
    "().__class__",
    "open('/etc/passwd')",
    "(lambda: 1)()",
    "[x for x in (1, 2)]",
    "x",
    "'a' * 10",
    "True + 1",
    "1 if 1 else 2",
    "1 < 2",
    "9 ** 9 ** 9",
    "2 ** 100000",
    "(2 ** 500) ** 500",
    "10 ** -100000",
    "1 / 0",
    "1 // 0",
    "1 % 0",
    "0 ** -1",
    "sqrt(-1)",
    "(-8) ** 0.5",
    "1e999999999",
    "1e-999999999",
    "sum()",
    "max([])",
    "[1, 2]",
    "[1] + [2]",
    "round(1, 99)",
    "round(1, 2, 3)",
    "sum(x=1)",
    "1; 2",
    "1 = 2",
    "",
    "(" * 500,
    "1+" * 3000 + "1",
    "-" * 3000 + "1",
    "1j",
    "0x",
    "1 << 100000",
    "f'{1}'",
    "a.b",
    "max(1)(2)",
]


class TestCalculator:
    @pytest.mark.parametrize("expression", BAD_EXPRESSIONS)
    def test_refuses_what_is_no_bounded_arithmetic(self, expression: str) -> None:
        with pytest.raises(ToolFailed):
            calculate(expression)

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("0.1 + 0.2", "0.3"),
            ("1/3", "≈ 0.333333333333"),
            ("-1/8", "-0.125"),
            ("2 ** 10", "1024"),
            ("2 ** -2", "0.25"),
            ("7 // 2", "3"),
            ("-7 % 3", "2"),
            ("sum([1.10, 2.20], 3)", "6.3"),
            ("mean(1, 2, 4)", "≈ 2.333333333333"),
            ("round(2.5)", "3"),
            ("round(-2.675, 2)", "-2.68"),
            ("sqrt(2.25)", "1.5"),
            ("round(sqrt(2), 4)", "1.4142"),
            ("max((3, 9, 4)) - min(1, 2)", "8"),
            ("abs(-1_000.5)", "1000.5"),
            ("1e3", "1000"),
            ("0x10", "16"),
        ],
    )
    def test_is_exact(self, expression: str, value: str) -> None:
        assert calculate(expression) == value
