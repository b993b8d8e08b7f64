"""What a run says: lines on stderr where there is no terminal, a CSV file, TensorBoard."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import edgeseq.progress
from edgeseq.training.reporting import Reporter


def test_metrics_go_to_one_csv_file_with_one_header(tmp_path: Path) -> None:
    with Reporter(tmp_path, "aligned", 10, 0) as reporter:
        reporter.record(2, {"loss": 1.25, "nll": 0.1234567})
    with Reporter(tmp_path, "joint", 10, 0) as reporter:  # the next phase, or a resumed run
        reporter.record(4, {"loss": 1e-9})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "phase,step,name,value",
        "aligned,2,loss,1.25",
        "aligned,2,nll,0.123457",
        "joint,4,loss,1e-09",
    ]


def curve(run: Path, phase: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of the loss."""
    events = EventAccumulator(str(run / "tensorboard" / phase))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_shows_what_the_csv_file_holds(tmp_path: Path) -> None:
    """A phase that begins, or goes on, hides nothing but what it does again."""
    with Reporter(tmp_path, "exits", 10, 0) as reporter:
        for step in (2, 4, 6):
            reporter.record(step, {"loss": step})
    with Reporter(tmp_path, "exits", 10, 4) as reporter:
        reporter.record(6, {"loss": 0.5})
    with Reporter(tmp_path, "joint", 10, 0) as reporter:
        reporter.record(2, {"loss": 1.0})
    assert curve(tmp_path, "exits") == [(2, 2.0), (4, 4.0), (6, 0.5)]
    assert curve(tmp_path, "joint") == [(2, 1.0)]


def test_steps_that_come_again_are_listed_once(tmp_path: Path) -> None:
    """After a crash a run goes on from its newest checkpoint, and the last line may be a part of one."""
    with Reporter(tmp_path, "exits", 10, 0) as reporter:
        for step in (2, 4, 6):
            reporter.record(step, {"loss": step})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("exits,8,lo")
    with Reporter(tmp_path, "exits", 10, 4) as reporter:
        reporter.record(6, {"loss": 0.5})
    with Reporter(tmp_path, "joint", 10, 0) as reporter:
        reporter.record(2, {"loss": 1.0})
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [
        "exits,2,loss,2",
        "exits,4,loss,4",
        "exits,6,loss,0.5",
        "joint,2,loss,1",
    ]


def test_metrics_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    with Reporter(tmp_path, "aligned", 10, 0) as reporter:
        reporter.record(2, {"loss": 1.25})
        assert "aligned,2,loss,1.25" in (tmp_path / "metrics.csv").read_text()


def test_without_a_terminal_a_line_now_and_then_says_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(edgeseq.progress, "time", SimpleNamespace(monotonic=lambda: now))
    with Reporter(tmp_path, "aligned", total_steps=120, step=20) as reporter:
        for step in range(21, 81):
            now += 1.5
            reporter.advance(step, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    # After more than 30 seconds each; a step took 1.5 seconds since this session began, at step 20.
    assert lines == [
        "aligned 41/120  loss 41  2 min left",
        "aligned 62/120  loss 62  1 min left",
    ]


def test_text_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]no markup[/bold] " + "long " * 60
    with Reporter(tmp_path, "aligned", 10, 0) as reporter:
        reporter.say(text)
    assert capsys.readouterr().err == text + "\n"
