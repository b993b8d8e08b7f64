"""Who takes part: edgeseq's bundles at their depths, and Transformers in the systems that can run them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import click

from translations import Translate


def _late(module: str, function: str, **settings: str) -> Callable[..., Any]:
    """A function of a system's module, imported when it is called: what others need is not in memory while one runs."""

    def call(*arguments: object) -> Any:
        return getattr(import_module(module), function)(*arguments, **settings)

    return call


@dataclass(frozen=True)
class Rival:
    """A system that runs the Transformer of a training run; Marian, a student of its own."""

    write: Callable[[Path, Path], None]
    """Makes of a run a folder, in the system's own form."""
    load: Callable[[Path, int], Translate]
    """Makes such a folder ready, on so many threads."""
    packages: tuple[str, ...]
    """What has to be installed to translate."""
    shares_batches: bool = False
    """Whether it divides batches between threads by itself; where not, several processes do, as edgeseq does it."""
    requirements: str = "benchmarks/peers/requirements.txt"
    """Names them, and what `write` needs."""

    def check_installed(self, name: str) -> None:
        """Refuses what could only fail later.

        Raises:
            click.ClickException: a package is missing.
        """
        for package in self.packages:
            try:
                metadata.distribution(package.partition("[")[0])
            except metadata.PackageNotFoundError as error:
                raise click.ClickException(
                    f"{name} needs {package}, which is not installed: pip install -r {self.requirements}"
                ) from error


RIVALS = {
    **{
        f"ctranslate2-{compute_type}": Rival(
            _late("ctranslate2_system", "write", compute_type=compute_type),
            _late("ctranslate2_system", "load", compute_type=compute_type),
            ("ctranslate2", "sentencepiece"),
            shares_batches=True,
        )
        for compute_type in ("int8", "float32")
    },
    **{
        f"onnxruntime-{compute_type}": Rival(
            _late("onnxruntime_system", "write", compute_type=compute_type),
            _late("onnxruntime_system", "load"),
            ("onnxruntime", "numpy", "sentencepiece"),
        )
        for compute_type in ("int8", "float32")
    },
    **{
        f"torch-{how}": Rival(
            _late("torch_system", f"write_{how}"),
            _late("torch_system", f"load_{how}"),
            ("torch", "numpy", "sentencepiece"),
        )
        for how in ("eager", "compiled")
    },
    **{
        f"marian-{compute_type}": Rival(
            _late("marian_system", "write"),
            _late("marian_system", "load", compute_type=compute_type),
            ("pymarian", "sentencepiece"),
            shares_batches=True,
            requirements="benchmarks/peers/requirements-marian.txt",
        )
        for compute_type in ("int8", "float32")
    },
    **{
        f"optimum-{compute_type}": Rival(
            _late("optimum_system", "write", compute_type=compute_type),
            _late("optimum_system", "load"),
            ("optimum-onnx[onnxruntime]", "sentencepiece"),
            requirements="benchmarks/peers/requirements-optimum.txt",
        )
        for compute_type in ("int8", "float32")
    },
}


@dataclass(frozen=True)
class Contestant:
    """Something that translates. Is sent to a process of its own."""

    system: str
    """`edgeseq`, or one of RIVALS."""
    model: str
    depth: str
    """Of a bundle; empty for rivals."""
    folder: Path
    """What is loaded."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What has to be installed to translate."""
        return RIVALS[self.system].packages if self.system in RIVALS else ("edgeseq[cpu]",)

    @property
    def shares_batches(self) -> bool:
        """Whether it divides batches between threads by itself."""
        return self.system not in RIVALS or RIVALS[self.system].shares_batches

    def load(self, threads: int) -> Translate:
        """Makes it ready."""
        if self.system in RIVALS:
            return RIVALS[self.system].load(self.folder, threads)
        import edgeseq_system

        return edgeseq_system.load(self.folder, self.depth, threads)

    def __str__(self) -> str:
        """As messages call it."""
        return " ".join(filter(None, (self.system, self.model, self.depth)))


def prepare_rival(system: str, run: Path, models: Path) -> Contestant:
    """Makes a system's form of a run, unless an earlier call has.

    Args:
        system: one of RIVALS.
        run: a finished training run.
        models: where folders are made.

    Raises:
        click.ClickException: a package is missing, or the run is no Transformer that others can run.
    """
    rival = RIVALS[system]
    rival.check_installed(system)
    folder = models / f"{run.name}.{system}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        rival.write(run, unfinished)
        unfinished.rename(folder)
    return Contestant(system, run.name, "", folder)
