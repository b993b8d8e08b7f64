"""``edgeseq distill``: mistakes on the command line, and teachers that are none."""

from pathlib import Path

import pytest

from command_line import run_edgeseq
from small_corpora import write_texts


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    files = "".join(f"{name} = '{file}'\n" for name, file in write_texts(tmp_path).items())
    path.write_text(f"[data]\n{files}")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "closest"], "--select closest needs hypotheses to choose from: give --n-best 2 or more"),
        (["--length-ratio", "3", "0.5"], "--length-ratio 3 0.5 leaves nothing: give the smaller number first"),
        (["--min-score", "0.5"], "0.5 is not in the range x<=0"),
        (["--beam-size", "0"], "0 is not in the range x>=1"),
    ],
    ids=["closest of one", "ratio", "score", "beam"],
)
def test_a_mistake_on_the_command_line_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    outcome = run_edgeseq("distill", "c.toml", "--teacher", "t", "--out", tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_more_hypotheses_than_the_beam_holds_are_refused(config: Path, tmp_path: Path) -> None:
    outcome = run_edgeseq("distill", config, "--teacher", "t", "--out", tmp_path / "run", "--n-best", 5)
    assert outcome.code == 1
    assert outcome.stderr == "edgeseq: error: beam setting n_best is 5, expected 1 to the beam size, 4\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_teacher_that_is_none_is_named(config: Path, tmp_path: Path, exists: bool) -> None:
    teacher = tmp_path / "teacher"
    if exists:
        teacher.mkdir()
    outcome = run_edgeseq("distill", config, "--teacher", teacher, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert outcome.stderr == (
        f"edgeseq: error: the teacher {teacher} is neither a bundle (it has no manifest.json) nor a finished training "
        "run (it has no model.safetensors)\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_configuration_comes_before_any_work(config: Path, tmp_path: Path) -> None:
    outcome = run_edgeseq("distill", config, "--teacher", "t", "--out", tmp_path / "run", "--set", "data.sorce=x")
    assert outcome.code == 1
    assert "data.sorce: unknown key" in outcome.stderr
    assert not (tmp_path / "run").exists()
