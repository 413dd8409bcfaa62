"""What a browser would make of a page, as far as tests ask."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class View(HTMLParser):
    """Elements with their attributes, and the text outside of style and script, blanks between elements."""

    page: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._raw = ""
        self.feed(self.page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._raw = tag if tag in ("style", "script") else ""
        self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""
        self.pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]
