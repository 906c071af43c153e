"""HTML to blocks under their headings, by lxml: the main part, without scripts, menus and what is not shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from poise.errors import InvalidDocument, MissingExtra
from poise.knowledge.documents import DocumentBlock, SourceDocument

__all__ = ["html_document"]

_LEFT_OUT = {"script", "style", "noscript", "template", "nav", "footer", "svg", "head"}
_CONTROLS = {"select", "button", "textarea", "datalist"}  # a form's; its text is the page's
_AROUND_MAIN = {"header", "aside"}  # in the main part they hold its title and its notes
_MAIN_TAGS = {"main", "article", "section"}
_BLOCK_TAGS = {"p", "li", "pre", "dd", "dt", "blockquote", "tr", "figcaption", "caption", "summary"}
_CONTAINERS = {"div", "section", "article", "main", "header", "aside", "form", "fieldset", "address", "details"} | {
    *("table", "td", "th", "ul", "ol", "dl")
}
_NOT_IN_ROWS = {"table", "li", "pre", "h1", "h2", "h3", "h4", "h5", "h6"}  # a row that has these is for the layout
_STYLED_AWAY = re.compile(
    r"(display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(px|pt|em|rem|%)?\s*(;|$))", re.I
)
_HEADING_TAG = re.compile(r"h[1-6]")


def html_document(name: str, data: bytes) -> SourceDocument:
    """A page; its title is its ``title``, else its first heading, else ``name``.

    Raises:
        InvalidDocument: there is no HTML in it.
    """
    try:
        from lxml import etree, html
    except ImportError as error:
        raise MissingExtra.of("Reading HTML needs lxml", "knowledge") from error
    if not data.strip():
        raise InvalidDocument("it is empty")
    try:
        parser = html.HTMLParser(encoding="utf-8" if _is_utf8(data) else None, no_network=True, huge_tree=False)
        root = html.document_fromstring(data, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise InvalidDocument(f"it cannot be read as HTML: {str(error)[:120]}") from error
    title = " ".join((root.findtext(".//title") or "").split())
    _drop_what_is_not_shown(root)
    blocks = list(_page_blocks(_main_part(root)))
    first = next((block.headings[0] for block in blocks if block.headings), "")
    return SourceDocument(title or first or name, "html", blocks)


def _drop_what_is_not_shown(root: Any) -> None:
    """Take out scripts, menus, controls and what is hidden, also inside paragraphs; what begins a line parts words."""
    for node in list(root.iterdescendants()):
        if not isinstance(node.tag, str):
            continue
        if node.tag == "br":
            node.tail = f"\n{node.tail or ''}"
        elif _is_left_out(node) or "hidden" in node.attrib or _STYLED_AWAY.search(node.get("style") or ""):
            node.drop_tree()
        elif node.tag in ("div", "p"):
            node.text, node.tail = f"\n{node.text or ''}", f"\n{node.tail or ''}"


def _is_left_out(node: Any) -> bool:
    is_around = node.tag in _AROUND_MAIN and not any(above.tag in _MAIN_TAGS for above in node.iterancestors())
    return node.tag in _LEFT_OUT or node.tag in _CONTROLS or is_around


def _main_part(root: Any) -> Any:
    """What is marked as the page's main part; its article, where it has one; else all of it."""
    main = root.xpath("//main | //*[@role='main']")
    articles = root.xpath("//article")
    return main[0] if main else articles[0] if len(articles) == 1 else root


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _page_blocks(root: Any) -> Iterator[DocumentBlock]:
    """Text of the innermost block elements and of loose text, in the order of the page."""
    levels: dict[int, str] = {}
    waiting: list[Any] = [None, root]  # None: a block ends
    loose: list[str] = []

    def headings() -> tuple[str, ...]:
        return tuple(levels[level] for level in sorted(levels))

    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            loose.append(node)
            continue
        if node is not None and not isinstance(node.tag, str):
            continue
        is_heading = node is not None and bool(_HEADING_TAG.fullmatch(node.tag))
        if node is None or is_heading or node.tag in _BLOCK_TAGS or node.tag in _CONTAINERS:
            if text := " ".join("".join(loose).split()):
                yield DocumentBlock(text, headings())
            loose = []
        if node is None:
            continue
        if is_heading:
            depth = int(node.tag[1])
            levels = {level: words for level, words in levels.items() if level < depth}
            levels[depth] = " ".join(node.text_content().replace("¶", " ").split())
        elif _is_block(node):
            yield DocumentBlock(_text_of_element(node), headings())
        else:
            if node.tag in _BLOCK_TAGS or node.tag in _CONTAINERS:
                waiting.append(None)
            for child in reversed(node):
                waiting += [child.tail or "", child]
            waiting.append(node.text or "")


def _is_block(node: Any) -> bool:
    """Whether an element is one block: it holds no other; a table's row may hold paragraphs."""
    inner = _NOT_IN_ROWS if node.tag == "tr" else _BLOCK_TAGS
    return node.tag in _BLOCK_TAGS and not any(child.tag in inner for child in node.iterdescendants())


def _text_of_element(node: Any) -> str:
    text = str(node.text_content())
    if node.tag == "pre":
        return text.strip("\n")
    if node.tag == "tr":
        return " | ".join(" ".join(cell.text_content().split()) for cell in node if isinstance(cell.tag, str))
    return " ".join(text.replace("¶", " ").split())
