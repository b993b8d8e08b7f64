"""Reading parallel text: what a line is, and what every kind of bad file is called."""

import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.data.text import count_lines, read_lines, read_parallel
from edgeseq.errors import DataError

LINES = ["one", "", "zwei und drei", "fünf 六"]
TEXT = "".join(f"{line}\n" for line in LINES).encode()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".txt", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_plain_and_compressed_text_gives_the_same_lines(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / f"text{suffix}", compress(TEXT))
    assert list(read_lines(path)) == LINES
    assert count_lines(path) == len(LINES)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path / "text", f"a{separator}b\nc\n".encode())
    assert list(read_lines(path)) == [f"a{separator}b", "c"]
    assert path.read_text().splitlines() != [f"a{separator}b", "c"]  # control: str.splitlines would cut here


def test_one_carriage_return_before_the_line_feed_is_dropped(tmp_path: Path) -> None:
    assert list(read_lines(write(tmp_path / "text", b"a\r\nb\r\r\nc\r"))) == ["a", "b\r", "c"]


def test_a_byte_order_mark_is_dropped_where_a_file_begins(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffDas\n\ufeffist\n".encode())
    assert list(read_lines(tmp_path / "a")) == ["Das", "\ufeffist"]


def test_the_last_line_needs_no_line_feed(tmp_path: Path) -> None:
    assert list(read_lines(write(tmp_path / "text", b"a\nb"))) == ["a", "b"]


@given(st.lists(st.text("aß六😀\u2028\x85\x00\t "), max_size=8))
def test_any_unicode_text_comes_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = write(tmp_path_factory.mktemp("text") / "text", "".join(f"{line}\n" for line in lines).encode())
    assert list(read_lines(path)) == lines


# --- Bad files


def message(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    return str(caught.value)


def test_invalid_utf8_is_named_by_file_line_and_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "text.en", b"fine\nalso fine\nnot \xe4 fine\n")
    assert message(lambda: list(read_lines(path))) == (
        f"{path}, line 3: not valid UTF-8 at byte 4 (invalid continuation byte); "
        "convert the file, e.g. with iconv, or remove the line"
    )


def test_invalid_utf8_in_compressed_text_is_named_too(tmp_path: Path) -> None:
    path = write(tmp_path / "text.gz", gzip.compress(b"fine\n\xff\n"))
    assert message(lambda: list(read_lines(path))).startswith(f"{path}, line 2: not valid UTF-8 at byte 0")


@pytest.mark.parametrize("name", ["text", "text.gz", "text.xz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert message(lambda: list(read_lines(path))) == f"cannot read {path}: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert message(lambda: list(read_lines(tmp_path))) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_truncated_archive_is_named_with_the_lines_it_gave(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress("".join(f"line {number}\n" for number in range(20_000)).encode())
    path = write(tmp_path / f"text{suffix}", whole[: len(whole) // 2])
    text = message(lambda: list(read_lines(path)))
    assert re.fullmatch(rf"{re.escape(str(path))}, after line \d+: .*ended before.*; is the archive complete\?", text)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_damaged_archive_is_named(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes], share: float
) -> None:
    whole = bytearray(compress("".join(f"line {number}\n" for number in range(20_000)).encode()))
    start = int(share * len(whole))
    whole[start : start + 64] = b"\xff" * len(whole[start : start + 64])
    path = write(tmp_path / f"text{suffix}", bytes(whole))
    text = message(lambda: list(read_lines(path)))
    assert re.match(rf"{re.escape(str(path))}, after line \d+: ", text)
    assert text.endswith("; is the archive complete?")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_plain_text_with_the_suffix_of_an_archive_is_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"text{suffix}", TEXT)
    assert message(lambda: list(read_lines(path))).startswith(f"{path}, after line 0: ")


# --- Two files


def test_pairs_are_lines_of_equal_number(tmp_path: Path) -> None:
    src = write(tmp_path / "a", b"one\ntwo\n")
    tgt = write(tmp_path / "b.gz", gzip.compress(b"eins\nzwei\n"))
    assert list(read_parallel(src, tgt)) == [("one", "eins"), ("two", "zwei")]


@pytest.mark.parametrize(("source_lines", "target_lines"), [(5, 3), (3, 5), (1, 2)])
def test_different_line_counts_name_both_files_both_counts_and_the_line(
    tmp_path: Path, source_lines: int, target_lines: int
) -> None:
    src = write(tmp_path / "a.en", b"x\n" * source_lines)
    tgt = write(tmp_path / "a.de", b"y\n" * target_lines)
    assert message(lambda: list(read_parallel(src, tgt))) == (
        f"{src} has {source_lines} lines, {tgt} has {target_lines}: line {min(source_lines, target_lines) + 1} "
        "has no counterpart; parallel files need the same number of lines"
    )


def test_two_empty_files_are_named(tmp_path: Path) -> None:
    src, tgt = write(tmp_path / "a", b""), write(tmp_path / "b", b"")
    assert message(lambda: list(read_parallel(src, tgt))) == (
        f"{src} and {tgt} are empty (0 lines); give files with at least one sentence pair"
    )


@pytest.mark.parametrize("empty_side", [0, 1])
def test_one_empty_file_is_named(tmp_path: Path, empty_side: int) -> None:
    paths = [write(tmp_path / "a", b"x\ny\n"), write(tmp_path / "b", b"x\ny\n")]
    paths[empty_side].write_bytes(b"")
    assert message(lambda: list(read_parallel(*paths))) == (
        f"{paths[empty_side]} is empty (0 lines), its counterpart has 2 lines"
    )


def test_invalid_utf8_is_named_before_the_line_counts(tmp_path: Path) -> None:
    src, tgt = write(tmp_path / "a", b"x\ny\n"), write(tmp_path / "b", b"\xff\n")
    assert message(lambda: list(read_parallel(src, tgt))).startswith(f"{tgt}, line 1: not valid UTF-8")
