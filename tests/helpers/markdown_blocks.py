"""Find the fenced code blocks of a Markdown page, so that tests can run what the page shows."""

import re
from dataclasses import dataclass
from pathlib import Path

_OPENING = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})\s*(?P<language>[^\s`{]*)[^`]*$")
_PROMPT = "$ "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        path: The page.
        line: Line number of the opening fence, from 1.
        language: First word after the fence, in lower case; "" when there is none.
        text: The content, without the fence's own indentation; ends with a newline unless empty.
    """

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Where to look when a test fails; also pytest's id of the block."""
        return f"{self.path.name}:{self.line}:{self.language}"

    @property
    def commands(self) -> list[str]:
        """The shell commands of the block.

        In a ``console`` block these are the lines after ``$``, the rest being output; in any
        other, all lines but blanks and comments. Lines that end in a backslash are joined.
        """
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix(_PROMPT) for line in lines if line.startswith(_PROMPT)]
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]

    @property
    def calls_make(self) -> bool:
        """Whether a command is make: those set up an environment and are not run inside one."""
        return any(re.match(r"\s*make\b", command) for command in self.commands)


def find_blocks(path: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Args:
        path: A Markdown file in UTF-8.
        *languages: Keep these; none given keeps all.

    Raises:
        ValueError: A fence is never closed; Markdown would take the rest of the page for code.
    """
    blocks: list[Block] = []
    lines = iter(enumerate(path.read_text(encoding="utf-8").split("\n"), start=1))
    for number, line in lines:
        opening = _OPENING.match(line)
        if not opening:
            continue
        content: list[str] = []
        for _, inner in lines:
            stripped = inner.strip()
            if stripped.startswith(opening["fence"]) and set(stripped) == {opening["fence"][0]}:
                break
            content.append(_dedent(inner, len(opening["indent"])) + "\n")
        else:
            message = f"{path}:{number}: the fence opened here is never closed"
            raise ValueError(message)
        blocks.append(Block(path, number, opening["language"].lower(), "".join(content)))
    return [block for block in blocks if not languages or block.language in languages]


def _dedent(line: str, width: int) -> str:
    """Take away up to ``width`` leading spaces."""
    return line[min(width, len(line) - len(line.lstrip(" "))) :]
