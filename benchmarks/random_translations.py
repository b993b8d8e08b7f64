"""Random sentences of a test set, their translations, and the depth of each piece, as Markdown.

python benchmarks/random_translations.py BUNDLE examples/tatoeba_en_de/test.en examples/tatoeba_en_de/test.de
"""

from __future__ import annotations

import random
from pathlib import Path

import click

from edgeseq_runtime import Translation, Translator


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("ref", type=click.Path(path_type=Path))
@click.option("--depth", default="adaptive", show_default=True, help="Depth policy.")
@click.option("--count", default=20, show_default=True, help="Sentences.")
@click.option("--seed", default=1, show_default=True, help="Of the choice.")
def main(bundle: Path, src: Path, ref: Path, depth: str, count: int, seed: int) -> None:
    """Prints the list; the module's description is the command's help."""
    translator = Translator(bundle, depth=depth, device="cpu")
    sources, references = (path.read_text(encoding="utf-8").split("\n")[:-1] for path in (src, ref))
    for index in sorted(random.Random(seed).sample(range(len(sources)), count)):
        translation = translator.translate(sources[index])
        click.echo(f"* {sources[index]}  \n  {marked(translation)}  \n  *{references[index]}*")


def marked(translation: Translation) -> str:
    """Writes each piece with its depth below the line."""
    pairs = zip(translation.tokens, translation.depths, strict=True)
    text = "".join(f"{piece}<sub>{depth}</sub>" for piece, depth in pairs)
    return text.replace("▁", " ").replace("</s>", " EOS").strip()


if __name__ == "__main__":
    main()
