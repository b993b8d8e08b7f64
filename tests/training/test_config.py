"""Configuration: strict, all mistakes at once, stored and read back; and every example in the repository builds."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import run_edgeseq
from edgeseq.config import RunConfig
from edgeseq.config_files import load_config, load_resolved_config, parse_override, save_config
from edgeseq.errors import ConfigError
from edgeseq.models import build_model

ROOT = Path(__file__).resolve().parents[2]
DATA = '[data]\nsrc = "a.en"\ntgt = "sub/a.de"\nvalid_src = "v.en"\nvalid_tgt = "v.de"\n'

ATTENTION = {"mixer": "attention"}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def mistakes(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> list[str]:
    first, *lines = message(lambda: load_config(write(folder, text), overrides)).split("\n")
    assert first == f"{folder / 'config.toml'} has {len(lines)} mistake(s):"
    return [line.removeprefix("  ") for line in lines]


# --- What is read


def test_a_file_needs_nothing_but_its_data(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, DATA))
    assert config.model == RunConfig(data=config.data).model
    assert config.data.tokenizer is None


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, DATA + 'tokenizer = "/elsewhere/t.model"\n'))
    assert config.data.src == str(tmp_path / "a.en")
    assert config.data.tgt == str(tmp_path / "sub" / "a.de")
    assert config.data.tokenizer == "/elsewhere/t.model"


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, DATA + "[model]\ndim = 64\nattention_heads = 8\n[training]\nseed = 5\n")
    config = load_config(path, {"model.dim": 128, "model.encoder.kernel_sizes": [5], "training.epochs": 3})
    assert (config.model.dim, config.model.attention_heads, config.model.norm) == (128, 8, "pre")
    assert config.model.encoder.kernel_sizes == [5]
    assert (config.training.seed, config.training.epochs) == (5, 3)


def test_overridden_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, DATA), {"data.src": "/given/a.en"}).data.src == "/given/a.en"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.dim=128", ("model.dim", 128)),
        ("training.epochs = 0.5", ("training.epochs", 0.5)),
        ("model.decoder.kernel_sizes=[3, 7]", ("model.decoder.kernel_sizes", [3, 7])),
        ("model.decoder.glu=true", ("model.decoder.glu", True)),
        ("model.norm=post", ("model.norm", "post")),
        ('model.norm="post"', ("model.norm", "post")),
        ("data.src=some/file=1.en", ("data.src", "some/file=1.en")),
        ("data.description=", ("data.description", "")),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["model.dim", "=3", " = 3"])
def test_an_override_without_key_or_value_is_named(text: str) -> None:
    assert message(lambda: parse_override(text)) == (f"--set {text!r} is not key=value; example: --set model.dim=128")


def test_a_resolved_configuration_comes_back(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"training.adam_betas": [0.8, 0.9], "training.valid_depths": [1, 4], "joint.alpha": 2}
    overrides["model.decoder"] = {**ATTENTION, "windows": [0, 3, 0, 3]}
    config = load_config(write(tmp_path, DATA), overrides)
    (tmp_path / "config.json").write_bytes(save_config(config))
    assert load_resolved_config(tmp_path / "config.json") == config
    assert config.training.adam_betas == (0.8, 0.9)


# --- What is refused


def test_unknown_keys_are_listed_all_at_once_with_the_known_ones(tmp_path: Path) -> None:
    text = (
        DATA + 'tokeniser = "x"\n[model]\nwidth = 3\n[model.decoder]\nkernel_sizes = [3, 3]\nkernels = 1\n[trainer]\n'
    )
    lines = mistakes(tmp_path, text)
    assert [line.partition(": ")[0] for line in lines] == [
        "data.tokeniser",
        "model.decoder.kernels",
        "model.width",
        "trainer",
    ]
    assert lines[0].startswith("data.tokeniser: unknown key; known here: src, tgt, valid_src, valid_tgt, tokenizer, ")
    assert lines[1] == (
        "model.decoder.kernels: unknown key; known here: mixer, kernel_sizes, windows, convolution_heads, "
        "feed_forward_dim, glu"
    )
    assert lines[3] == "trainer: unknown key; known here: data, model, training, joint, frozen, predictors"


def test_mistakes_of_both_stacks_are_listed(tmp_path: Path) -> None:
    """As they are where someone takes the key of the other mixer for the only one there is."""
    stack = {**ATTENTION, "kernel_sizes": [3]}
    lines = mistakes(tmp_path, DATA, {"model.encoder": stack, "model.decoder": stack})
    assert [line.partition(": ")[0] for line in lines] == ["model.encoder", "model.decoder"]


def test_a_stack_has_as_many_blocks_as_its_mixer_has_numbers(tmp_path: Path) -> None:
    overrides = {"model.encoder": {**ATTENTION, "windows": [0, 5, 0]}, "model.decoder.kernel_sizes": [3, 7]}
    config = load_config(write(tmp_path, DATA), overrides).model
    assert (config.encoder.reaches, config.decoder.reaches) == ([0, 5, 0], [3, 7])


def test_mistakes_of_all_kinds_are_listed_together(tmp_path: Path) -> None:
    text = DATA.replace('tgt = "sub/a.de"\n', "") + '[model]\nnorm = "middle"\ndropout = 1\n[training]\nseed = "one"\n'
    lines = mistakes(tmp_path, text, {"training.epochs": 0, "model.colour": "red"})
    assert len(lines) == 6
    assert "data.tgt: Field required" in lines
    assert "model.norm: Input should be 'pre' or 'post', got 'middle'" in lines
    assert "model.dropout: Input should be less than 1, got 1" in lines
    assert "training.seed: Input should be a valid integer, got 'one'" in lines
    assert "training.epochs: Input should be greater than 0, got 0" in lines
    assert any(line.startswith("model.colour: unknown key; known here: dim, ") for line in lines)


@pytest.mark.parametrize("value", ["128", True, 1.5])
def test_types_are_not_guessed(tmp_path: Path, value: object) -> None:
    (line,) = mistakes(tmp_path, DATA, {"model.dim": value})
    assert line.startswith("model.dim: Input should be a valid integer")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model.attention_heads": 3}, "dim = 256 is not a multiple of attention_heads = 3"),
        (
            {"model.encoder.convolution_heads": 5, "model.encoder.kernel_sizes": [3]},
            "dim = 256 is not a multiple of encoder.convolution_heads = 5",
        ),
        (
            {"model.decoder.convolution_heads": 5, "model.decoder.kernel_sizes": [3, 3]},
            "dim = 256 is not a multiple of decoder.convolution_heads = 5",
        ),
        ({"model.encoder.kernel_sizes": [3, 4]}, "encoder.kernel_sizes holds 4; a centred convolution needs odd"),
        ({"model.encoder.kernel_sizes": [-1]}, "encoder.kernel_sizes holds -1; a centred convolution needs odd"),
        ({"model.decoder.kernel_sizes": [3, 0]}, "decoder.kernel_sizes holds 0; expected positive numbers"),
        ({"model.encoder": {**ATTENTION, "windows": [0, 4]}}, "encoder.windows holds 4; centred attention needs odd"),
        ({"model.encoder": {**ATTENTION, "windows": [-1]}}, "encoder.windows holds -1; centred attention needs odd"),
        ({"model.decoder": {**ATTENTION, "windows": [0, -2]}}, "decoder.windows holds -2; expected positive numbers"),
        (
            {"model.decoder": {**ATTENTION, "kernel_sizes": [3, 3]}},
            (
                "model.decoder: kernel_sizes do not belong to mixer = 'attention', which has windows; "
                "mixer = 'attention' needs windows, a number for each block"
            ),
        ),
        (
            {"model.decoder": {"kernel_sizes": [3, 3], "windows": [0, 0]}},
            "model.decoder: windows do not belong to mixer = 'dynamic', which has kernel_sizes",
        ),
        ({"model.encoder.glu": True}, "model.encoder: mixer = 'dynamic' needs kernel_sizes, a number for each block"),
        (
            {"model.decoder": {**ATTENTION, "windows": [0, 0], "glu": True}},
            "model.decoder: glu belongs to convolutions, not to mixer = 'attention'",
        ),
        (
            {"model.decoder": {**ATTENTION, "windows": [0, 0], "convolution_heads": 2}},
            "model.decoder: convolution_heads belongs to convolutions, not to mixer = 'attention'",
        ),
        (
            {"model.decoder": {**ATTENTION, "windows": [0]}},
            "a decoder of one block has nowhere to stop; set predictors",
        ),
        ({"model.decoder.kernel_sizes": [3]}, "a decoder of one block has nowhere to stop; set predictors = []"),
        ({"training.valid_depths": [1, 7]}, "training.valid_depths holds 7; the decoder has blocks 1 to 6"),
        ({"training.average_checkpoints": 6}, "training.average_checkpoints = 6 exceeds training.keep_checkpoints = 5"),
        ({"joint.average_checkpoints": 9}, "joint.average_checkpoints = 9 exceeds training.keep_checkpoints = 5"),
        ({"joint": {}, "predictors": []}, "[joint] trains the first of [[predictors]], and there is none"),
        ({"predictors": [{}, {"kind": "halting"}]}, "two predictors are called 'halting'; give each a name of its own"),
        (
            {"predictors": [{"prices": [1.0, 2.0]}]},
            "predictors.prices = [1.0, 2.0]; expected 6 numbers, one per depth, none below the one before",
        ),
        (
            {"predictors": [{"prices": [1.0, 2.0, 4.0, 3.0, 5.0, 6.0]}]},
            "expected 6 numbers, one per depth, none below the one before",
        ),
        (
            {"predictors": [{"kind": "multinomial", "target": "gain"}]},
            "predictors.0: target = 'gain' is for units of each block; multinomial chooses one depth: set 'depth'",
        ),
        ({"predictors": [{"kind": "sequence", "target": "gain"}]}, "sequence chooses one depth: set 'depth'"),
        *(
            (
                {"predictors": [{"name": name}]},
                f"name = {name!r} cannot name a predictor; use a small letter, then small letters, digits",
            )
            for name in ("full", "adaptive", "confidence", "3", "Halting", "a:b", "ä", "a" * 51)
        ),
        (
            {"predictors": [{"kind": "confidence"}]},
            "predictors.0.kind: Input should be 'halting', 'certainty', 'multinomial' or",
        ),
        ({"predictors": [{"sigma": -1.0}]}, "predictors.0.sigma: Input should be greater than or equal to 0"),
        ({"predictors": [{"depth_penalti": 1.0}]}, "predictors.0.depth_penalti: unknown key; known here: name, kind, "),
        ({"training.exits": "mixed", "training.gradient_scaling": 0.5}, "with exits = 'mixed' it has one; leave them"),
        ({"training.exits": "mixed", "training.exit_weights": "n"}, "and exit_weights are of all exits of a token"),
        ({"training.seed": -1}, "training.seed: Input should be greater than or equal to 0"),
        ({"training.adam_betas": [0.9, 1.5]}, "training.adam_betas.1: Input should be less than 1"),
        ({"predictors": [{"kind": "multinomial", "units": "shared"}]}, "units = 'shared' is for kind = 'halting', not"),
        ({"predictors": [{"kind": "sequence", "sigma": 1.0}]}, "sigma smooths over tokens, and kind = 'sequence'"),
        (
            {"training.exits": "mixed", "training.self_distillation": 0.5},
            "training.gradient_scaling, self_distillation and exit_weights are of all exits of a token",
        ),
        *(
            (
                {"training.exits": "last", **overrides},
                "training.exits = 'last' trains one exit: leave out gradient_scal",
            )
            for overrides in (
                {},
                {"predictors": [], "training.gradient_scaling": 0.5},
                {"predictors": [], "training.self_distillation": 0.5},
                {"predictors": [], "training.exit_weights": "n"},
            )
        ),
        ({"training.paths": 3}, "training.paths = 3 is for exits = 'mixed'"),
        ({"training.self_distillation": 1.0}, "training.self_distillation: Input should be less than 1"),
        ({"frozen.tokens": 0}, "frozen.tokens: Input should be greater than or equal to 1"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, overrides: dict[str, Any], expected: str) -> None:
    (line,) = mistakes(tmp_path, DATA, overrides)
    assert expected in line


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.decoder.kernel_sizes": [3], "predictors": []},
        {"predictors": [{}, {"kind": "multinomial"}, {"name": "other", "kind": "halting", "target": "gain"}]},
        {"predictors": [{"prices": [1.0, 2.0, 2.0, 4.0, 5.0, 6.0]}], "joint": {}},
        {"training.exits": "mixed", "training.paths": 3},
        {"training.exits": "last", "predictors": []},
        {"training.gradient_scaling": 0.5, "training.self_distillation": 0.3},
        {"model.decoder.kernel_sizes": [4, 2]},
        {"model.encoder": {**ATTENTION, "windows": [0, 5]}, "model.decoder": {**ATTENTION, "windows": [4, 0, 1]}},
        # Heads of convolutions are those of stacks that have them.
        {
            "model.dim": 6,
            "model.attention_heads": 3,
            "model.encoder": {**ATTENTION, "windows": [0]},
            "model.decoder": {**ATTENTION, "windows": [0, 0]},
        },
        {"training.valid_depths": [1, 6]},
        {"training.average_checkpoints": 6, "training.keep_checkpoints": 6},
    ],
)
def test_what_is_no_contradiction_is_accepted(tmp_path: Path, overrides: dict[str, Any]) -> None:
    """Control of the test above."""
    load_config(write(tmp_path, DATA), overrides)


def test_a_predictor_without_a_name_is_called_by_its_kind(tmp_path: Path) -> None:
    text = (
        DATA + '[[predictors]]\n[[predictors]]\nkind = "sequence"\n[[predictors]]\nname = "x"\nkind = "multinomial"\n'
    )
    config = load_config(write(tmp_path, text))
    assert [predictor.name for predictor in config.predictors] == ["halting", "sequence", "x"]
    (tmp_path / "config.json").write_bytes(save_config(config))
    assert load_resolved_config(tmp_path / "config.json") == config


def test_the_first_predictor_is_trained_with_the_trunk_where_there_is_a_joint_phase(tmp_path: Path) -> None:
    text = DATA + '[[predictors]]\nkind = "sequence"\n[[predictors]]\nkind = "multinomial"\n'
    for joint, expected in (("", []), ("[joint]\nepochs = 1\n", ["sequence"])):
        config = load_config(write(tmp_path, text + joint))
        assert [predictor.name for predictor in config.joint_predictors] == expected
        assert config.joint_predictors + config.frozen_predictors == config.predictors


def test_a_value_is_not_taken_for_a_table(tmp_path: Path) -> None:
    assert message(lambda: load_config(write(tmp_path, DATA), {"data.src.encoding": "x"})) == (
        "cannot set data.src.encoding: src is a value, not a table"
    )


def test_a_list_of_tables_is_set_whole(tmp_path: Path) -> None:
    path = write(tmp_path, DATA)
    assert message(lambda: load_config(path, {"predictors.kind": "certainty"})) == (
        "cannot set predictors.kind: predictors is a list of tables; set the whole of it, as in "
        "--set 'predictors=[{kind=\"certainty\"}]'"
    )
    assert load_config(path, {"predictors": [{"kind": "certainty"}]}).predictors[0].kind == "certainty"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert message(lambda: load_config(path)) == f"cannot read the configuration {path}: No such file or directory"


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, DATA + "[model\n")
    text = message(lambda: load_config(path))
    assert text.startswith(f"{path} is not valid TOML: ")
    assert "line 6" in text


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(DATA.encode() + b'description = "\xe4"\n')
    assert message(lambda: load_config(path)).startswith(f"{path} is not valid TOML: 'utf-8' codec can't decode")


def test_a_missing_or_broken_resolved_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert message(lambda: load_resolved_config(path)) == (
        f"cannot read {path}: No such file or directory; is it the folder of a training run?"
    )
    path.write_text("{")
    assert message(lambda: load_resolved_config(path)).startswith(f"{path} is not valid JSON: ")
    path.write_text("{}")
    assert message(lambda: load_resolved_config(path)) == f"{path} has 1 mistake(s):\n  data: Field required"


# --- Examples

EXAMPLES = sorted((ROOT / "examples").glob("**/*.toml"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_loads_and_builds(path: Path) -> None:
    """Its data need not be there; the width is cut to eight."""
    config = load_config(path, {"model.dim": 8})
    model = build_model(config.model, 32, config.predictors)
    assert len(model.encoder.blocks) == len(config.model.encoder.reaches)
    assert len(model.decoder.blocks) == len(config.model.decoder.reaches)
    assert list(model.predictors) == [predictor.name for predictor in config.predictors]


def test_all_settings_are_listed_as_they_can_be_set() -> None:
    outcome = run_edgeseq("train", "--list-settings")
    assert (outcome.code, outcome.stderr) == (0, "")
    text = "\n".join(outcome.lines)
    listed = dict(re.findall(r"^  (\S+) = (.*)\n      \S", text, re.MULTILINE))  # each with a meaning
    assert len(listed) == len(re.findall(r"^  \S+ = ", text, re.MULTILINE))
    for key, default in {
        "data.src": "(to be given)",
        "data.tokenizer": "(none)",
        "training.epochs": "10.0",
        "joint.epochs": "2.0",
        "model.encoder.kernel_sizes": "[3, 7, 15, 31]",
        "model.decoder.mixer": '"dynamic"',
        "predictors.kind": '"halting"',
    }.items():
        assert listed[key] == default
    assert "One of: inverse_sqrt, cosine." in text
    assert run_edgeseq("distill", "--list-settings").lines == outcome.lines


def test_listed_defaults_are_those_of_a_file_that_sets_none(tmp_path: Path) -> None:
    lines = run_edgeseq("train", "--list-settings").lines
    found = (line.strip().partition(" = ") for line in lines if re.match(r"  (model|training)\.", line))
    defaults = {key: tomllib.loads(f"value = {value}")["value"] for key, _, value in found if value != "(none)"}
    path = write(tmp_path, DATA)
    assert load_config(path, defaults) == load_config(path)
