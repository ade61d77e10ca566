"""The parts of a text that list objects, brought into one order: items of a sentence, and lines."""

import functools
import re

LIST_MARK = re.compile(r"[^\S\n]*(?:[-*+•·][^\S\n]+)?")  # indentation and bullet
PARTS = (
    r"(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<end>[.;!?](?=\s|$)|\n)|(?P<colon>:(?=\s|$))"
    r"|(?P<part>,\s+(?:(?:and|or)\s+)?|\s+(?:and|or)\s+)"
)


class _Frame:
    """The text inside one pair of brackets, or outside of all: what is finished, and the items of the list that is being read."""

    def __init__(self) -> None:
        self.done, self.items, self.current = "", None, ""

    def start_list(self) -> None:
        self.close_list()
        self.done, self.items, self.current = self.done + self.current, [], ""

    def close_list(self) -> None:
        if self.items is None:
            return
        items = [*self.items, self.current]
        first, last = items[0], items[-1]
        if len(items) > 1:
            before, after = first[: len(first) - len(first.lstrip())], last[len(last.rstrip()) :]
            self.current = before + ", ".join(sorted((item.strip() for item in items), key=_by_words)) + after
        self.done, self.items, self.current = self.done + self.current, None, ""

    def finish(self) -> str:
        self.close_list()
        return self.done + self.current


def sort_inline(text: str, after: str | None) -> str:
    """`text` with the items of its lists sorted: of those behind `after`, or else behind every colon and opening bracket."""
    if not _SEPARATOR.search(text) or (after is not None and not _start(after).search(text)):
        return text  # no list of two items
    frames, place = [_Frame()], 0
    for found in _tokens(after).finditer(text):
        frame, kind = frames[-1], found.lastgroup
        frame.current += text[place : found.start()]
        place = found.end()
        if kind == "part" and frame.items is not None:
            frame.items.append(frame.current)
            frame.current = ""
            continue
        if kind == "close" and len(frames) > 1:
            inside = frames.pop().finish()
            frames[-1].current += inside + found[0]
            continue
        if kind in ("end", "close") or (kind == "colon" and after is None):
            frame.close_list()
        listing = after is None or frame.items is not None
        frame.current += found[0]
        if kind == "open":
            frames.append(_Frame())
        if kind == "start" or (kind == "open" and listing) or (kind == "colon" and after is None):
            frames[-1].start_list()
    frames[-1].current += text[place:]
    while len(frames) > 1:  # brackets that nobody closed
        inside = frames.pop().finish()
        frames[-1].current += inside
    return frames[0].finish()


_SEPARATOR = re.compile(r",\s|\s(?:and|or)\s")


@functools.lru_cache(maxsize=256)
def _start(after: str) -> re.Pattern:
    return re.compile(whole_words(after))


@functools.lru_cache(maxsize=256)
def _tokens(after: str | None) -> re.Pattern:
    return re.compile(PARTS if after is None else f"(?P<start>{whole_words(after)})|{PARTS}")


def whole_words(text: str) -> str:
    """A regular expression for `text`, with any blanks where it has some, and not as a part of longer words."""
    words = text.split()
    start, end = (r"(?<![^\W\d])" if words[0][0].isalpha() else ""), (r"(?![^\W\d])" if words[-1][-1].isalpha() else "")
    return start + r"\s+".join(map(re.escape, words)) + end


def sort_lines(text: str, after: str | None) -> str:
    """`text` with runs of list lines sorted: of indented or bulleted lines, or else of the lines that follow one ending in `after`."""
    done: list[str] = []
    block: list[list[str]] = []  # each item is a line and the lines indented below it
    mark, listing = "", after is None

    def close() -> None:
        whole = ("\n".join([first, sort_lines("\n".join(below), None)] if below else [first]) for first, *below in block)
        done.extend(sorted(whole, key=_by_words))
        block.clear()

    for line in text.split("\n"):
        own = LIST_MARK.match(line)[0]
        if not line.strip() or line.rstrip().endswith(":") or not listing or not (own or after):
            close()
            done.append(line)
            listing = after is None or line.rstrip().endswith(after.rstrip())
        elif block and _indent(line) > _indent(mark):
            block[-1].append(line)
        else:
            if own != mark:
                close()
            mark = own
            block.append([line])
    close()
    return "\n".join(done)


def _by_words(item: str) -> tuple[list[str], str]:
    return item.split(), item  # so that blanks, which may be taken out later, do not change the order


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
