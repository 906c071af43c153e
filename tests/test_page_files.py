"""The page's files: small, from nowhere else, and the libraries that they bring along as their packages have them."""

from __future__ import annotations

import hashlib
import re

from stub_server import PAGE

OWN = sorted(path for path in PAGE.iterdir() if path.is_file())
VENDOR = PAGE / "vendor"


class TestThePageItself:
    def test_needs_nothing_from_elsewhere_and_holds_nothing_inline(self) -> None:
        for path in OWN:
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|wss?://|[\"'(`]//", text), path.name
            assert not {"innerHTML", "outerHTML", "insertAdjacentHTML", "eval("} & set(text.split("."))
            assert "innerHTML" not in text, path.name
            if path.suffix == ".html":
                assert " style=" not in text
                assert " onclick=" not in text
                assert text.count("<script") == text.count('<script type="module" src="')

    def test_is_of_small_files(self) -> None:
        assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in OWN) <= 260
        assert sum(path.stat().st_size for path in OWN) < 220_000

    def test_imports_what_is_there(self) -> None:
        for path in (path for path in OWN if path.suffix == ".js"):
            for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")):
                assert (PAGE / name).is_file(), (path.name, name)


class TestLibraries:
    def test_are_as_their_packages_have_them_with_their_licences(self) -> None:
        rows = re.findall(
            r"\| `(\w+\.js)` \|.*?`(\w+\.LICENSE\.txt)`.*?`([0-9a-f]{64})` \|", (VENDOR / "README.md").read_text()
        )
        files = {name for name, _, _ in rows}
        assert files == {path.name for path in VENDOR.glob("*.js")} == {"marked.js", "purify.js", "remend.js"}
        for name, licence, digest in rows:
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
            assert len((VENDOR / licence).read_text(encoding="utf-8")) > 500, licence

    def test_load_nothing_and_name_no_source_map(self) -> None:
        for path in VENDOR.glob("*.js"):
            text = path.read_text(encoding="utf-8")
            assert "sourceMappingURL" not in text
            assert not re.search(r"\bimport\s*\(|\bfetch\s*\(|XMLHttpRequest|new Worker", text), path.name
