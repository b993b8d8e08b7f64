"""From a student's configuration to the one that names the distilled text."""

import logging
from pathlib import Path

import pytest

from edgeseq.config import DataConfig, RunConfig
from edgeseq.distillation.run import check_run, distill
from edgeseq.distillation.selection import Selection
from edgeseq.errors import CheckpointError, ConfigError, DataError
from edgeseq_runtime import BeamOptions, Translator
from small_corpora import write_lines
from tiny_bundle import tiny_sentences, write_tiny_bundle

# Random weights know no lengths.
ANY_LENGTH = Selection(shortest=0.0, longest=100.0)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Translator]:
    """Two different ones."""
    folder = tmp_path_factory.mktemp("teachers")
    bundles = [write_tiny_bundle(folder / str(seed), seed=seed) for seed in (1, 2)]
    return [Translator(bundle, depth="full", device="cpu") for bundle in bundles]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    for name, seed in (("src", 0), ("tgt", 1), ("valid_src", 2), ("valid_tgt", 3)):
        write_lines(tmp_path / name, tiny_sentences(30, seed=seed))
    data = DataConfig(
        src=str(tmp_path / "src"),
        tgt=str(tmp_path / "tgt"),
        valid_src=str(tmp_path / "valid_src"),
        valid_tgt=str(tmp_path / "valid_tgt"),
        licence="CC BY 4.0",
        description="words",
        max_pieces=50,
    )
    return RunConfig(data=data)


def run_distill(
    config: RunConfig,
    teacher: Translator,
    run: Path,
    *,
    beam: BeamOptions | None = None,
    selection: Selection = ANY_LENGTH,
    training_begun: bool = False,
) -> RunConfig:
    return distill(
        config, teacher, run, beam or BeamOptions(size=2), selection, batch_size=8, training_begun=training_begun
    )


def test_the_student_is_given_the_distilled_text_and_told_its_origin(
    config: RunConfig, teachers: list[Translator], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="edgeseq"):
        student = run_distill(config, teachers[0], tmp_path / "run")
    assert "distilled: " in caplog.text
    assert "and 30 of the original text; of 30 lines 0 are blank and 0 overlong" in caplog.text
    assert student.data == config.data.model_copy(
        update={
            "src": str(tmp_path / "run" / "distilled" / "train.src"),
            "tgt": str(tmp_path / "run" / "distilled" / "train.tgt"),
            "description": f"words; distilled from the teacher {teachers[0].bundle.sha256}, which was trained on: "
            "random numbers (licence: CC0-1.0)",
        }
    )
    assert student.data.licence == "CC BY 4.0"
    lines = [Path(path).read_text().split("\n")[:-1] for path in (student.data.src, student.data.tgt)]
    assert len(lines[0]) == len(lines[1]) > 30
    assert (student.model, student.training) == (config.model, config.training)


def test_distilling_again_gives_the_same(config: RunConfig, teachers: list[Translator], tmp_path: Path) -> None:
    first = run_distill(config, teachers[0], tmp_path / "run")
    assert run_distill(config, teachers[0], tmp_path / "run", training_begun=True) == first


@pytest.mark.parametrize("change", ["teacher", "source_text", "beam_size", "n_best", "length_penalty", "max_pieces"])
def test_what_translations_depend_on_must_stay(
    config: RunConfig, teachers: list[Translator], tmp_path: Path, change: str
) -> None:
    run_distill(config, teachers[0], tmp_path / "run")
    teacher, beam = teachers[change == "teacher"], BeamOptions(size=2)
    if change == "source_text":
        write_lines(tmp_path / "src", tiny_sentences(30, seed=9))
    elif change == "max_pieces":
        config = config.model_copy(update={"data": config.data.model_copy(update={"max_pieces": 49})})
    elif change != "teacher":
        beam = {
            "beam_size": BeamOptions(size=3),
            "n_best": BeamOptions(size=2, n_best=2),
            "length_penalty": BeamOptions(size=2, length_penalty=0.5),
        }[change]
    with pytest.raises(CheckpointError, match=rf"translations was begun with other settings: {change} was \S+ and is"):
        run_distill(config, teacher, tmp_path / "run", beam=beam)


def test_another_depth_is_another_teacher(config: RunConfig, teachers: list[Translator], tmp_path: Path) -> None:
    run_distill(config, teachers[0], tmp_path / "run")
    shallow = Translator(teachers[0].bundle.path, depth=1, device="cpu")
    with pytest.raises(CheckpointError, match="other settings: depth was full and is 1"):
        run_distill(config, shallow, tmp_path / "run")


def test_other_references_are_seen(config: RunConfig, teachers: list[Translator], tmp_path: Path) -> None:
    run_distill(config, teachers[0], tmp_path / "run")
    write_lines(tmp_path / "tgt", tiny_sentences(30, seed=9))
    with pytest.raises(CheckpointError, match=r"selected with other settings: references was \S+ and is \S+\. Cont"):
        run_distill(config, teachers[0], tmp_path / "run", training_begun=True)


@pytest.mark.parametrize("name", ["tgt", "valid_tgt"])
def test_bad_text_is_found_before_anything_is_translated(
    config: RunConfig, teachers: list[Translator], tmp_path: Path, name: str
) -> None:
    write_lines(tmp_path / name, ["one line"])
    with pytest.raises(DataError, match=f"{name} has 1: line 2 has no counterpart"):
        run_distill(config, teachers[0], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_had_begun_to_write_is_removed(
    config: RunConfig, teachers: list[Translator], tmp_path: Path
) -> None:
    (tmp_path / "run" / ".distilled.0123456789ab.tmp").mkdir(parents=True)
    run_distill(config, teachers[0], tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["distilled", "translations"]


def test_a_folder_with_translations_needs_resume(tmp_path: Path) -> None:
    (tmp_path / "translations").mkdir()
    check_run(tmp_path, resume=False, training_begun=False)  # a start that failed can be repeated
    (tmp_path / "translations" / "part-00000.jsonl").touch()
    with pytest.raises(ConfigError) as caught:
        check_run(tmp_path, resume=False, training_begun=False)
    assert str(caught.value) == f"{tmp_path} holds a run already; give --resume to continue it, or another --out"
    check_run(tmp_path, resume=True, training_begun=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_was_not_distilled_is_left_alone(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(tmp_path, resume=resume, training_begun=True)
    assert str(caught.value) == f"{tmp_path} holds a run that was not distilled; give another --out"
