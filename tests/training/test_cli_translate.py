"""``edgeseq translate`` around a translator: lines, files, messages, exit codes."""

import contextlib
import gzip
import json
import lzma
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgeseq_runtime
from command_line import Outcome, run_edgeseq
from edgeseq.cli.depth_view import DepthView
from edgeseq.cli.streams import LenientLines, open_output
from edgeseq.errors import DataError
from edgeseq_runtime.beam import BeamOptions
from edgeseq_runtime.errors import BundleError
from fake_translator import FakeTranslator

HELPERS = Path(__file__).resolve().parents[1] / "helpers"


@pytest.fixture(autouse=True)
def _fake_translator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(vars(edgeseq_runtime), "Translator", FakeTranslator)
    monkeypatch.setitem(vars(edgeseq_runtime), "TranslatorPool", FakeTranslator)
    yield
    FakeTranslator.calls.clear()
    FakeTranslator.lines.clear()
    FakeTranslator.error = BundleError("bundle 'b' is broken")


def translate(*arguments: object, stdin: bytes = b"") -> Outcome:
    return run_edgeseq("translate", "--model", "b", *arguments, stdin=stdin)


# Lines


def test_one_line_out_per_line_in() -> None:
    outcome = translate(stdin=b"a b\n\nc\n")
    assert outcome == Outcome(0, b"A B\n\nC\n", "")


def test_last_line_needs_no_line_end() -> None:
    assert translate(stdin=b"a\nb").stdout == b"A\nB\n"


def test_no_input_gives_no_output() -> None:
    assert translate(stdin=b"") == Outcome(0, b"", "")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\r"])
def test_only_line_feeds_end_lines(separator: str) -> None:
    text = f"a{separator}b"
    outcome = translate(stdin=f"{text}\nc\n".encode())
    assert FakeTranslator.lines == [text, "c"]
    assert len(outcome.lines) == 2


def test_carriage_return_before_a_line_feed_is_dropped() -> None:
    assert translate(stdin=b"a\r\n\r\nb\r\r\n").code == 0
    assert FakeTranslator.lines == ["a", "", "b\r"]


def test_byte_order_mark_is_dropped_from_the_first_line_only() -> None:
    translate(stdin="\ufeffa\n\ufeffb\n".encode())
    assert FakeTranslator.lines == ["a", "\ufeffb"]


def test_line_ends_in_a_translation_become_spaces() -> None:
    assert translate(stdin=b"!break\nb\n").lines == ["one two  three", "B"]


# Closed streams


def test_closed_stdin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match=r"^stdin is closed; open it, or give --input FILE$"):
        LenientLines("-")


def test_closed_stdout_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(DataError, match=r"^stdout is closed; open it, or give --output FILE$"), open_output("-"):
        pass


@pytest.mark.parametrize(
    ("closed", "arguments", "message"),
    [("<&-", ["translate", "--model", "none"], "stdin is closed"), (">&-", ["inspect", "none"], "is not a folder")],
)
def test_with_a_closed_stream_an_error_is_one_line(closed: str, arguments: list[str], message: str) -> None:
    """Services are started so; Python has no such stream then."""
    shell = f'exec "$0" -c "from edgeseq.cli import main; main()" "$@" {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("edgeseq: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# Input files


@pytest.mark.parametrize(("name", "compress"), [("a.txt", bytes), ("a.gz", gzip.compress), ("a.xz", lzma.compress)])
def test_plain_and_compressed_files_are_read(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(compress(b"a\nb\n"))
    assert translate("-i", tmp_path / name).lines == ["A", "B"]


def test_dash_means_stdin_and_stdout() -> None:
    assert translate("-i", "-", "-o", "-", stdin=b"a\n").lines == ["A"]


def test_missing_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    outcome = translate("-i", path)
    expected = f"edgeseq: error: cannot read {path}: No such file or directory\n"
    assert outcome == Outcome(1, b"", expected)
    assert FakeTranslator.calls == []


def test_folder_as_input_is_named(tmp_path: Path) -> None:
    outcome = translate("-i", tmp_path)
    assert outcome == Outcome(1, b"", f"edgeseq: error: cannot read {tmp_path}: Is a directory\n")


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_truncated_archive_is_an_error_that_leaves_no_output(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    source, output = tmp_path / f"a{suffix}", tmp_path / "out.txt"
    lines = b"".join(b"%d\n" % number for number in range(50_000))
    source.write_bytes(compress(lines)[:-1000])
    outcome = translate("-i", source, "-o", output)
    assert outcome.code == 1
    assert outcome.stderr.startswith(f"edgeseq: error: cannot read {source} after line ")
    assert "Compressed file ended before the end-of-stream marker" in outcome.stderr
    assert outcome.stderr.endswith("is the file complete?\n")
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_wrong_suffix_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"plain text\n")
    outcome = translate("-i", path)
    assert outcome.code == 1
    assert f"cannot read {path} after line 0: " in outcome.stderr


def test_invalid_utf8_is_repaired_named_and_told_by_the_exit_code(tmp_path: Path) -> None:
    source, output = tmp_path / "a.txt", tmp_path / "out.txt"
    source.write_bytes(b"good\nna\xefve\ngood\n\xff\xfe\n")
    outcome = translate("-i", source, "-o", output)
    assert output.read_text(encoding="utf-8") == "GOOD\nNA\ufffdVE\nGOOD\n\ufffd\ufffd\n"
    assert outcome.code == 2
    warning = f"edgeseq: warning: {source}, line {{}}: not valid UTF-8 (byte 0x{{}} at offset {{}})"
    assert outcome.stderr.splitlines() == [
        warning.format(2, "ef", 2) + "; its best decoding is used",
        warning.format(4, "ff", 0) + "; its best decoding is used",
        f"edgeseq: warning: {source}: lines that were not valid UTF-8, named above: 2",
    ]


def test_lines_cut_short_are_named_and_told_by_the_exit_code() -> None:
    outcome = translate(stdin=b"!long\na\n!long\n")
    assert outcome.lines == ["!LONG", "A", "!LONG"]
    assert outcome.code == 2
    cut = "edgeseq: warning: stdin, line {}: 5 pieces, of which only the first 2 are translated; split the line"
    assert outcome.stderr.splitlines() == [
        cut.format(1) + " into sentences",
        cut.format(3) + " into sentences",
        "edgeseq: warning: stdin: lines cut short, named above: 2",
    ]


def test_invalid_utf8_in_prefixes_is_told_by_the_exit_code(tmp_path: Path) -> None:
    prefixes = tmp_path / "prefixes.txt"
    prefixes.write_bytes(b"\xff\n")
    outcome = translate("--prefix", prefixes, stdin=b"a\n")
    assert outcome.code == 2
    assert f"{prefixes}: lines that were not valid UTF-8, named above: 1" in outcome.stderr


# Output files


def test_output_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    assert translate("-o", path, stdin=b"a\n") == Outcome(0, b"", "")
    assert path.read_bytes() == b"A\n"
    assert list(tmp_path.iterdir()) == [path]


def test_input_may_be_the_output(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\nb\n")
    assert translate("-i", path, "-o", path).code == 0
    assert path.read_bytes() == b"A\nB\n"


def test_failure_leaves_the_old_files_and_nothing_else(tmp_path: Path) -> None:
    path, trace = tmp_path / "out.txt", tmp_path / "trace.jsonl"
    path.write_bytes(b"old\n")
    outcome = translate("-o", path, "--trace", trace, stdin=b"a\n!raise\n")
    assert outcome == Outcome(1, b"", "edgeseq: error: bundle 'b' is broken\n")
    assert path.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_output_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old\n")
    (tmp_path / "link").symlink_to("real")
    translate("-o", tmp_path / "link", stdin=b"a\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"A\n"


def test_output_to_a_pipe_is_written_directly(tmp_path: Path) -> None:
    """A rename would put a file in the pipe's place, and would do the same to /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert translate("-o", pipe, stdin=b"a\n").code == 0
    reader.join(timeout=10)
    assert received == [b"A\n"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("option", ["-o", "--trace"])
def test_missing_output_folder_is_named(tmp_path: Path, option: str) -> None:
    path = tmp_path / "none" / "out.txt"
    outcome = translate(option, path, stdin=b"a\n")
    assert outcome.code == 1
    assert outcome.stderr == f"edgeseq: error: cannot write {path}: its folder does not exist\n"


def test_folder_as_output_is_named(tmp_path: Path) -> None:
    outcome = translate("-o", tmp_path, stdin=b"a\n")
    assert outcome.stderr == f"edgeseq: error: cannot write {tmp_path}: Is a directory\n"


def test_full_disk_is_named() -> None:
    outcome = translate("-o", "/dev/full", stdin=b"a\n")
    assert outcome.code == 1
    assert outcome.stderr == "edgeseq: error: cannot write /dev/full: No space left on device\n"


def test_trace_holds_tokens_and_depths_of_each_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    outcome = translate("--trace", path, stdin="dä b\n\nc\n".encode())
    assert outcome.lines == ["DÄ B", "", "C"]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"line": 1, "tokens": ["DÄ", "B", "</s>"], "depths": [1, 2, 6]},
        {"line": 2, "tokens": [], "depths": []},
        {"line": 3, "tokens": ["C", "</s>"], "depths": [1, 6]},
    ]
    assert '"DÄ"' in lines[0]


def test_trace_with_a_beam_holds_scores_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    translate("--trace", path, "--beam-size", 2, stdin=b"a\n")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"line": 1, "tokens": ["A", "</s>"], "depths": [1, 6], "score": -1.0, "token_scores": [-1.0, -1.0]}
    ]


def test_several_hypotheses_are_lines_of_their_own() -> None:
    outcome = translate("--beam-size", 3, "--n-best", 2, stdin=b"a b\nc\n")
    assert outcome.lines == [
        "1 ||| A B ||| -1.0000",
        "1 ||| a b ||| -2.0000",
        "2 ||| C ||| -1.0000",
        "2 ||| c ||| -2.0000",
    ]


# Depths shown

NUMBERED = "depth: the number after each token, of 6 blocks; · joins pieces of a word\n"


def test_depths_are_shown_as_numbers_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = "▁mei ne ▁leiter\n\n▁x\n".encode()
    assert translate("--show-depth", stdin=text) == Outcome(0, "MEI/1·NE/2 LEITER/3\n\nX/1\n".encode(), NUMBERED)
    assert translate("--show-depth", "-o", tmp_path / "out.txt", stdin=text) == Outcome(0, b"", NUMBERED)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "MEI/1·NE/2 LEITER/3\n\nX/1\n"


def translate_in_terminal(stdin: str, **environment: str) -> list[str]:
    """What a terminal shows of a command that reads a pipe: lines of stderr and stdout."""
    terminal, of_process = pty.openpty()
    with start_process(
        "--show-depth", stdout=of_process, environment={"TERM": "xterm", "NO_COLOR": ""} | environment
    ) as process:
        os.close(of_process)
        process.communicate(stdin.encode())
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal without a process ends
            while chunk := os.read(terminal, 4096):
                shown += chunk
    os.close(terminal)
    return shown.decode().splitlines()


def test_a_terminal_gets_tints_and_the_text_as_it_is() -> None:
    legend, line = translate_in_terminal("▁mei ne ▁leiter\n")
    assert re.sub(r"\x1b\[[^m]*m", "", line) == "MEINE LEITER"
    backgrounds = re.findall(r"48;5;(\d+);", line)
    assert len(backgrounds) == len(set(backgrounds)) == 3
    assert line.count("\x1b[0m") == 3
    assert re.findall(r"48;5;(\d+);", legend)[:3] == backgrounds
    assert re.sub(r"\x1b\[[^m]*m", "", legend) == "depth:  1   2   3   4   5   6  (darker is deeper)"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colours_gets_numbers(environment: dict[str, str]) -> None:
    assert translate_in_terminal("▁a ▁b\n", **environment) == [NUMBERED.strip(), "A/1 B/2"]


def test_a_given_beginning_has_no_depths() -> None:
    view = DepthView(6, tinted=False)
    assert view.line(["▁uhr", "</s>"], [2, 6], prefix=["▁um", "▁se", "chs"]) == "um sechs uhr/2"
    assert view.line(["chs", "</s>"], [2, 6], prefix=["▁um", "▁se"]) == "um se·chs/2"


def test_depths_and_several_hypotheses_do_not_go_together() -> None:
    outcome = translate("--show-depth", "--beam-size", 3, "--n-best", 2)
    assert outcome.code == 2
    assert "--show-depth shows one translation a line, --n-best 2 writes several; leave one of them" in outcome.stderr


# Options


def test_options_reach_the_translator() -> None:
    translate(
        *("--depth", "halting:0.4", "--batch-size", 7, "--threads", 2),
        *("--device", "cpu", "--max-length", 50, "--shortlist"),
        *("--beam-size", 5, "--length-penalty", 0.6, "--n-best", 3, "--min-length", 2, "--no-repeat-ngram", 4),
    )
    beam = BeamOptions(size=5, length_penalty=0.6, n_best=3, min_length=2, no_repeat_ngram=4)
    assert FakeTranslator.calls == [
        {"path": "b", "depth": "halting:0.4", "device": "cpu", "processes": 2, "shortlist": True},
        {"batch_size": 7, "max_length": 50, "beam": beam, "prefixes": None},
        {"closed": True},
    ]


def test_defaults_leave_the_choice_to_the_bundle() -> None:
    translate()
    assert FakeTranslator.calls == [
        {"path": "b", "depth": None, "device": "auto", "shortlist": False},
        {"batch_size": 32, "max_length": None, "beam": BeamOptions(size=1), "prefixes": None},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "'--batch-size': 0 is not in the range x>=1"),
        (["--threads", "two"], "'--threads': 'two' is not a valid integer"),
        (["--max-length", "-1"], "'--max-length': -1 is not in the range x>=1"),
        (["--device", "tpu"], "'--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["-o", "x", "--trace", "x"], "--output and --trace both name 'x'; give them different"),
        (["-o", "x", "--trace", "./x"], "--output and --trace both name './x'; give them different"),
        (["--trace", "-"], "--output and --trace both name '-'; give them different"),
        (["--prefix", "-"], "--input and --prefix both read stdin; name a file for one of them"),
        (["extra"], "unexpected extra argument (extra)"),
    ],
)
def test_mistaken_options_are_named(arguments: list[str], message: str) -> None:
    outcome = translate(*arguments)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert FakeTranslator.calls == []


def test_missing_model_is_named() -> None:
    outcome = run_edgeseq("translate")
    assert outcome.code == 2
    assert "Missing option '--model'" in outcome.stderr


# As a process: pipes

PROCESS = """
import sys
import edgeseq_runtime
from fake_translator import FakeTranslator
vars(edgeseq_runtime)["Translator"] = FakeTranslator
from edgeseq.cli import main
main(["translate", "--model", "b", *sys.argv[1:]])
"""


def start_process(
    *arguments: str, stdout: int = subprocess.PIPE, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stdout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]), **(environment or {})},
    )


def test_each_line_is_answered_before_the_next_is_read() -> None:
    with start_process("--batch-size", "1") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"a\n", b"b\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == word.upper()
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_reader_that_leaves_ends_the_command_quietly() -> None:
    with start_process() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"A\n"
        process.stdout.close()
        process.stdin.write(b"b\n" * 100)
        process.stdin.close()
        assert process.wait(timeout=10) == 141
        assert process.stderr.read() == b""
