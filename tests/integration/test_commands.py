"""The commands on a real run and bundle, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import run_edgeseq
from edgeseq_runtime import Translator
from edgeseq_runtime.bundle import load_bundle


def test_translate_gives_a_line_per_line(bundle: Path, sentences: list[str]) -> None:
    text = [*sentences[:20], "", "   ", "Ünïcödé ☃ 日本"]
    outcome = run_edgeseq("translate", "--model", bundle, stdin="".join(f"{line}\n" for line in text).encode())
    assert outcome.code == 0
    assert len(outcome.lines) == len(text)
    assert outcome.lines[20:22] == ["", ""]
    assert outcome.lines == [result.text for result in Translator(bundle).translate(text)]


def test_a_trace_holds_tokens_and_depths(bundle: Path, sentences: list[str], tmp_path: Path) -> None:
    source, output, trace = tmp_path / "in.en", tmp_path / "out.de", tmp_path / "trace.jsonl"
    source.write_text("".join(f"{line}\n" for line in sentences[:10]), encoding="utf-8")
    arguments = ("-i", source, "-o", output, "--depth", "halting:0.5", "--trace", trace)
    assert run_edgeseq("translate", "--model", bundle, *arguments).code == 0
    records = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert [record["line"] for record in records] == list(range(1, 11))
    assert all(len(record["tokens"]) == len(record["depths"]) for record in records)
    assert len(output.read_text(encoding="utf-8").splitlines()) == 10


def test_evaluate_ends_with_json_and_prints_a_table(bundle: Path, corpus_valid: tuple[Path, Path]) -> None:
    source, reference = corpus_valid
    depths = [argument for depth in ("1", "2", "3", "full", "halting:0.5") for argument in ("--depth", depth)]
    outcome = run_edgeseq("evaluate", "--model", bundle, "--src", source, "--ref", reference, *depths)
    assert outcome.code == 0, outcome.stderr
    results = json.loads(outcome.lines[-1])["results"]
    assert [result["depth"] for result in results] == ["1", "2", "3", "full", "halting:0.5"]
    assert [result["average_depth"] for result in results[:4]] == [1, 2, 3, 4]
    assert all(abs(sum(result["depth_shares"]) - 1) < 1e-9 for result in results)
    # FLOPs rise with depth.
    flops = [result["flops_per_token"] for result in results[:4]]
    assert results[0]["tokens"]
    assert flops[0] < flops[1] < flops[2] < flops[3]
    assert set(results[4]["line"]) == {"gain", "low", "high"}
    assert "nrefs:1|case:mixed" in results[0]["bleu_signature"]
    assert "onnxruntime:" in results[0]["signature"]
    assert "batch:32" in results[0]["signature"]
    assert "% of tokens that stop" in outcome.stderr


def test_a_shortlist_is_used_where_it_is_asked_for(
    bundle: Path, corpus_valid: tuple[Path, Path], sentences: list[str]
) -> None:
    files = ("--src", corpus_valid[0], "--ref", corpus_valid[1])
    found = []
    for options in ([], ["--shortlist"]):
        outcome = run_edgeseq("evaluate", "--model", bundle, *files, "--depth", "full", *options)
        assert outcome.code == 0, outcome.stderr
        found.append(json.loads(outcome.lines[-1])["results"][0])
    whole, listed = found
    assert listed["flops_per_token"] < whole["flops_per_token"]
    assert "|shortlist:on|" in listed["signature"]
    assert "shortlist" not in whole["signature"]
    report = load_bundle(bundle).manifest.shortlist
    assert report is not None
    assert report.report is not None
    assert (report.report.bleu, report.report.full_bleu) == pytest.approx((listed["bleu"], whole["bleu"]))
    text = "\n".join(sentences[:4]) + "\n"
    outcome = run_edgeseq("translate", "--model", bundle, "--shortlist", stdin=text.encode())
    assert outcome.code == 0, outcome.stderr
    translator = Translator(bundle, shortlist=True, device="cpu")
    assert outcome.lines == [result.text for result in translator.translate(sentences[:4])]
    assert report.report.describe() in run_edgeseq("inspect", bundle).lines


def test_evaluate_names_a_policy_that_the_bundle_lacks(bundle: Path, corpus_valid: tuple[Path, Path]) -> None:
    source, reference = corpus_valid
    outcome = run_edgeseq("evaluate", "--model", bundle, "--src", source, "--ref", reference, "--depth", "9")
    assert outcome.code == 1
    assert "depth policy '9' is not a depth of this model" in outcome.stderr


def test_evaluate_refuses_files_of_different_lengths(bundle: Path, corpus_valid: tuple[Path, Path]) -> None:
    source, _ = corpus_valid
    short = source.with_name("short.de")
    short.write_text("Nur eine Zeile.\n", encoding="utf-8")
    outcome = run_edgeseq("evaluate", "--model", bundle, "--src", source, "--ref", short)
    assert outcome.code == 1
    assert f"{source} has 60 lines, {short} has 1" in outcome.stderr


def test_evaluate_against_several_references(bundle: Path, sentences: list[str], tmp_path: Path) -> None:
    """What the bundle says at full depth is one of the references: no error there, and errors at depth 1."""
    words = sentences[:20]
    outputs = [result.text for result in Translator(bundle, depth="full").translate(words)]
    source, references = tmp_path / "words", tmp_path / "refs.tsv"
    source.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    references.write_text("".join(f"something else\t{output}\n" for output in outputs), encoding="utf-8")
    arguments = ("--src", source, "--refs", references, "--depth", "full", "--depth", 1)
    outcome = run_edgeseq("evaluate", "--model", bundle, *arguments)
    assert outcome.code == 0, outcome.stderr
    document = json.loads(outcome.lines[-1])
    assert document["refs"] == str(references)
    full, first = document["results"]
    assert (full["depth"], full["per"], full["wer"]) == ("full", 0, 0)
    assert first["per"] > 0
    assert first["wer"] > 0
    assert ["depth", "PER", "WER"] in [line.split()[:3] for line in outcome.stderr.splitlines()]
    assert "BLEU" not in outcome.stderr


def test_evaluate_wants_one_kind_of_references(bundle: Path, corpus_valid: tuple[Path, Path]) -> None:
    source, reference = corpus_valid
    for files in ((), ("--ref", reference, "--refs", reference)):
        outcome = run_edgeseq("evaluate", "--model", bundle, "--src", source, *files)
        assert outcome.code == 2
        assert "give either --ref, for BLEU and chrF, or --refs, for phone and word error rate" in outcome.stderr


def test_inspect_shows_the_bundle(bundle: Path) -> None:
    outcome = run_edgeseq("inspect", bundle)
    assert outcome.code == 0
    text = "\n".join(outcome.lines)
    for expected in ("CC BY 2.0 FR", "4 blocks, dynamic convolution", "block_3.onnx", "default = halting:"):
        assert expected in text


def test_a_truncated_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.bundle"
    shutil.copytree(bundle, broken)
    graph = broken / "block_2.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    outcome = run_edgeseq("translate", "--model", broken, stdin=b"Hello.\n")
    assert outcome.code == 1
    assert outcome.stdout == b""
    assert "block_2.onnx has" in outcome.stderr
    assert "export or copy it again" in outcome.stderr


def test_a_line_of_50000_characters_is_truncated_aloud(bundle: Path) -> None:
    line = "the cat sees the house " * 2200
    outcome = run_edgeseq("translate", "--model", bundle, "--max-length", 20, stdin=f"Hi!\n{line}\n".encode())
    assert outcome.code == 2
    assert len(outcome.lines) == 2
    assert outcome.stderr.startswith("edgeseq: warning: stdin, line 2: ")
    assert "of which only the first 1,024 are translated" in outcome.stderr
    assert outcome.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shortlist-best", "20"], "--shortlist-best belongs to --shortlist; give that too, or leave it out"),
        (["--keep-float32", "head"], "--keep-float32 belongs to a --compute-type of fewer bits"),
        (["--valid-src", "text"], "--valid-src and --valid-ref go together; give both or none"),
    ],
)
def test_export_refuses_options_that_would_say_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    outcome = run_edgeseq("export", tmp_path, "--out", tmp_path / "b", *options)
    assert outcome.code == 2
    assert message in outcome.stderr


def test_evaluating_on_blank_text_is_refused(bundle: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    outcome = run_edgeseq("evaluate", "--model", bundle, "--src", blank, "--ref", blank)
    assert outcome.code == 1
    assert outcome.stderr.endswith("all 2 lines to translate are blank; give text to measure on\n")


def test_export_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    outcome = run_edgeseq("export", tmp_path, "--out", tmp_path / "b")
    assert outcome.code == 1
    assert "config.json" in outcome.stderr
    assert "is it the folder of a training run?" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_shortlist_needs_validation_text(run: Path, tmp_path: Path) -> None:
    outcome = run_edgeseq("export", run, "--out", tmp_path / "b", "--shortlist")
    assert outcome.code == 1
    assert "what a shortlist changes is measured on validation text: give some (--valid-src and" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_replace_a_folder_that_is_no_bundle(run: Path, tmp_path: Path) -> None:
    """Nor one of a web page, which has a manifest.json as well."""
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"name": "Thesis"}')
    outcome = run_edgeseq("export", run, "--out", tmp_path)
    assert outcome.code == 1
    assert "exists and holds something else, so it is not replaced" in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "thesis.tex"]
