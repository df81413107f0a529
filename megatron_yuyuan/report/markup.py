"""HTML in which every text is escaped: only what `element` made gets in as markup."""

from collections.abc import Sequence
from html import escape

VOID = {"meta", "path", "polyline", "polygon"}
"""Elements that hold nothing; SVG's are written without an end too."""


class Html(str):
    """Markup. Made here alone: a text from data is a plain str, and is escaped."""

    __slots__ = ()


def element(name: str, /, *children: str | None, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`.

    children: texts, escaped unless they are `Html`; None is left out. attributes: `class_` is class, _
    in a name is -; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*children: str | None) -> Html:
    """Texts and markup one after another."""
    parts = (child if isinstance(child, Html) else escape(child) for child in children if child)
    return Html("".join(parts))


def table(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], class_: str | None = None
) -> Html:
    """A table in a box that scrolls sideways where the screen is narrower."""
    first = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    inner = element("table", element("thead", first), element("tbody", *body), class_=class_)
    return element("div", inner, class_="scroll", tabindex="0")
