"""What the tests of reports share: small and hostile sources, and a reader of pages."""

from html.parser import HTMLParser

import torch
from oracles import peft_tensors, write_peft

HOSTILE = (
    "<script>window.pwned=1</script>",
    "\"'><img src=x onerror=window.pwned=1>",
    "a\u202eb\u2066c",
    "d\x1b[31m\x07\x00e",
    "{{ 7*7 }}{% include 'x' %}",
    "|`*_[x](javascript:alert(1))",
    "$\\frac{",
    "n" * 10_000,
)
_VOID = {"meta", "img", "input", "br", "link"}


def write_pair(folder, *, layers=2, ranks=(3, 4), out=48, in_=32):
    rng = torch.Generator().manual_seed(0)
    modules = [f"layers.{n}.{kind}_proj" for n in range(layers) for kind in "qv"]
    for name, rank in zip("ab", ranks, strict=True):
        write_peft(folder / name, peft_tensors(modules, rank, rng, out=out, in_=in_), r=rank)
    return folder / "a", folder / "b"


def hostile_pair():
    """Two sources in memory: files with such names are refused when they are read."""
    rng = torch.Generator().manual_seed(1)
    modules = [f"layers.{n}.{name}.q_proj" for n, name in enumerate(HOSTILE)]
    names = ("<img src=x onerror=window.pwned=1>\u202e", "b\x1b[31m")
    return {name: peft_tensors(modules, 2, rng, out=48, in_=32) for name in names}


class Page(HTMLParser):
    """A page as a list of elements, with the text of scripts, and the tags left open."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.scripts, self.styles, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> ends nothing"
        assert self.open[-1] == tag, f"</{tag}> ends <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(inside, self.text).append(data)

    def all(self, *tags):
        return [(tag, attributes) for tag, attributes, _ in self.elements if tag in tags]

    @property
    def words(self):
        return "".join(self.text)
