"""The helper that finds the code on a Markdown page."""

from pathlib import Path

import pytest

from markdown_blocks import Block, find_blocks

PAGE = """\
# Title

```python
print("one")

```

Text with `code` and ```inline``` fences.

1. A list:

   ~~~ Console title="x"
   $ edgeseq translate \\
       --model b
   output
     $ not a command
   $ make test
   ~~~

````text
```bash
nested
```
````

```bash
# a comment

ls | head
```

```
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "PAGE.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_blocks_carry_line_language_and_text(page: Path) -> None:
    python, console, text, bash, empty = find_blocks(page)
    assert python == Block(page, 3, "python", 'print("one")\n\n')
    assert (console.line, console.language) == (12, "console")
    assert console.text.startswith("$ edgeseq translate \\\n    --model b\noutput\n")
    assert text.text == "```bash\nnested\n```\n"
    assert bash.language == "bash"
    assert (empty.language, empty.text) == ("", "")


def test_languages_are_kept_as_asked(page: Path) -> None:
    assert [block.language for block in find_blocks(page, "bash", "console")] == ["console", "bash"]


def test_commands_are_what_a_reader_types(page: Path) -> None:
    console, bash = find_blocks(page, "console", "bash")
    assert console.commands == ["edgeseq translate      --model b", "make test"]
    assert bash.commands == ["ls | head"]


def test_blocks_that_call_make_are_told_apart(page: Path) -> None:
    assert [block.calls_make for block in find_blocks(page, "console", "bash")] == [True, False]


def test_name_says_where_to_look(page: Path) -> None:
    assert str(find_blocks(page, "bash")[0]) == "PAGE.md:26:bash"


def test_open_fence_is_an_error_that_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "open.md"
    path.write_text("a\n```bash\nls\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"open\.md:2: the fence opened here is never closed"):
        find_blocks(path)
