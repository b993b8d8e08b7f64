"""The whole of edgeseq in a few minutes: `make demo`.

Trains a small model on the sample of Tatoeba in this repository, exports it and translates a dozen sentences,
to show the chain. Then it does the same with the model that comes with the repository, with each output token
tinted by the number of decoder blocks it took, and measures that model.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from edgeseq.evaluation.policies import PolicyResult, evaluate_policies
from edgeseq_runtime import Translation, Translator

EXAMPLES = Path(__file__).resolve().parent.parent
TATOEBA = EXAMPLES / "tatoeba_en_de"
WORK = Path("runs") / "demo"

SENTENCES = [
    "Good morning!",
    "Where is the station?",
    "I don't know what to say.",
    "The children are playing in the garden.",
    "Could you please close the window?",
    "She has lived in Berlin for three years.",
    "If it rains tomorrow, we will stay at home.",
    "He told me that he had lost his keys.",
    "This book is more interesting than that one.",
    "What time does the next train leave?",
    "My brother wants to become a doctor.",
    "Tom was too tired to finish his homework, so he went to bed.",
]

# From cool to warm: few blocks to many, readable on dark and light terminals.
TINTS = [39, 37, 71, 178, 208, 196]
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def main() -> None:
    """Runs the demo; stops at the first command that fails."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    sentences = WORK / "sentences.en"
    sentences.write_text("".join(f"{line}\n" for line in SENTENCES), encoding="utf-8")
    valid = [f"--valid-src={TATOEBA / 'valid.en'}", f"--valid-ref={TATOEBA / 'valid.de'}"]

    announce("1. Train a small model on 20,000 sentence pairs, export it, translate")
    small = WORK / "small.bundle"
    edgeseq("train", str(EXAMPLES / "demo" / "config.toml"), "--out", str(WORK / "run"))
    edgeseq("export", str(WORK / "run"), "--out", str(small))
    edgeseq("translate", "--model", str(small), "--input", str(sentences))
    print("\nThe chain works; two minutes of training are not enough for good German.")

    announce("2. The same with the model in this repository, trained on all of Tatoeba")
    bundle = WORK / "en-de.bundle"
    edgeseq("export", str(TATOEBA / "model"), "--out", str(bundle), *valid)
    translator = Translator(bundle)
    blocks = translator.manifest.model.decoder_blocks
    print(f"\nEach token is marked by its depth: {legend(blocks)} of {blocks} decoder blocks. ∎ ends the sentence.\n")
    for source, translation in zip(SENTENCES, translator.translate(SENTENCES), strict=True):
        print(f"  {source}\n  {tinted(translation)}\n")

    announce("3. What depth buys: the 2,000 test sentences, one at a time, one thread")
    sources = (TATOEBA / "test.en").read_text(encoding="utf-8").split("\n")[:-1]
    references = (TATOEBA / "test.de").read_text(encoding="utf-8").split("\n")[:-1]
    policies = ["full", str(blocks // 2), "adaptive"]
    for line in table(evaluate_policies(translator, sources, references, policies, batch_size=1)):
        print(line)
    print(f"\nThe bundle is {bundle}; try:\n  echo 'How are you?' | edgeseq translate --model {bundle}")


def edgeseq(*arguments: str) -> None:
    """Shows a command and runs it."""
    print(f"\n$ edgeseq {shlex.join(arguments)}", flush=True)
    program = Path(sysconfig.get_path("scripts")) / "edgeseq"
    status = subprocess.run([program, *arguments], check=False).returncode
    if status:
        sys.exit(status)


def announce(title: str) -> None:
    """Prints a heading."""
    print(f"\n{title}\n{'=' * len(title)}", flush=True)


def tinted(translation: Translation) -> str:
    """Marks each piece by its depth: by colour on a terminal, by a raised figure elsewhere."""
    pairs = zip(translation.tokens, translation.depths, strict=True)
    shown = ((piece.replace("▁", " ").replace("</s>", " ∎"), depth) for piece, depth in pairs)
    return "".join(mark(text, depth) for text, depth in shown).strip()


def mark(text: str, depth: int) -> str:
    """Marks one piece of text by its depth."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\033[38;5;{TINTS[(depth - 1) % len(TINTS)]}m{text}\033[0m"
    return text + "".join(SUPERSCRIPTS[int(digit)] for digit in str(depth))


def legend(blocks: int) -> str:
    """Shows the marks of all depths."""
    return " ".join(mark(str(depth), depth) for depth in range(1, blocks + 1))


def table(results: list[PolicyResult]) -> list[str]:
    """Lays out quality, depth and speed of each policy."""
    lines = [f"  {'depth':<14} {'BLEU':>6} {'average depth':>14} {'tokens/s':>9}"]
    lines += [
        f"  {result.depth:<14} {result.scores.bleu:>6.1f} {result.average_depth:>14.2f} "
        f"{result.tokens_per_second:>9,.0f}"
        for result in results
    ]
    return lines


if __name__ == "__main__":
    main()
