"""A matplotlib SVG made fit for a page: no styles, no foreign names, nothing that loads."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from rankscope.errors import printable

__all__ = ["inline_svg"]

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# What XML forbids, whatever it is escaped as.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DROPPED = {"metadata", "style"}
_FONTS = "system-ui, sans-serif"


def inline_svg(svg: bytes, prefix: str, label: str) -> str:
    """Return the SVG as an element for HTML.

    Its styles become attributes, since the page's policy allows no style of their own; its
    names get `prefix`, since a page has one space of names; `label` is what a screen reader
    says.

    Parameters
    ----------
    svg : bytes
        As `rankscope.plots.figure_bytes` makes it.
    prefix : str
        Different for every figure of a page.
    label : str
        What the figure shows.

    Returns
    -------
    str
        One ``<svg>`` element with a viewBox and no size.
    """
    label = printable(label)
    root = ET.fromstring(_FORBIDDEN.sub("�", svg.decode("utf-8", "replace")))
    used = set(re.findall(r"#([\w.-]+)", svg.decode("utf-8", "replace")))
    _clean(root, prefix, used)
    kept = {"viewBox": root.get("viewBox", "0 0 1 1")}
    root.attrib.clear()
    root.attrib.update(kept | {"role": "img", "aria-label": label, "font-family": _FONTS})
    # As the style that is taken out says of everything.
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})
    title = ET.Element("title")
    title.text = label
    root.insert(0, title)
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, prefix: str, used: set[str]) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    for child in list(element):
        if child.tag.removeprefix(_SVG) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, prefix, used)
    _attributes(element, prefix, used)
    if element.tag in ("text", "tspan") and (element.text or "").strip():
        element.text = printable(element.text or "")
    else:
        element.text = None
    element.tail = None


def _attributes(element: ET.Element, prefix: str, used: set[str]) -> None:
    style = element.attrib.pop("style", "")
    for entry in filter(str.strip, style.split(";")):
        name, _, value = entry.partition(":")
        if name.strip() != "font-family":
            element.set(name.strip(), value.strip())
    if (link := element.attrib.pop(_LINK, None)) is not None:
        element.set("href", link.replace("#", f"#{prefix}-") if link[:1] == "#" else link)
    for name, value in element.attrib.items():
        if "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{prefix}-"))
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{prefix}-{own}")
    if "d" in element.attrib:
        element.set("d", " ".join(element.get("d", "").split()))
