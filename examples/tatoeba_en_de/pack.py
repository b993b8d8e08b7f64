"""Makes model/ from a finished run: 16-bit weights, the tokenizer, and the configuration without this machine's paths.

python examples/tatoeba_en_de/pack.py runs/student
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from edgeseq.config_files import load_config, save_config
from edgeseq.training.checkpoints import save_model
from edgeseq.training.run import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, load_run
from edgeseq_runtime.atomic import write_file

HERE = Path(__file__).resolve().parent
MAX_BYTES = 12 * 2**20


def pack(run: Path, folder: Path) -> None:
    """Writes the three files that export needs.

    Args:
        run: a finished run of student.toml.
        folder: where they go; made if missing.
    """
    config, tokenizer, model = load_run(run)
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_BYTES:
        sys.exit(f"{run} has {size:,} bytes of 16-bit weights; a shipped model may have {MAX_BYTES:,}")
    folder.mkdir(exist_ok=True)
    # Paths as student.toml writes them, relative to this folder, and the teacher's as README.md does. The tokenizer is
    # that of the run.
    plain = load_config(HERE / "student.toml").data
    names = ("src", "tgt", "valid_src", "valid_tgt")
    paths: dict[str, str | None] = {name: str(Path(getattr(plain, name)).relative_to(HERE)) for name in names}
    paths["tokenizer"] = None
    training = config.training.model_copy(update={"start_from": "runs/teacher"})
    config = config.model_copy(update={"data": config.data.model_copy(update=paths), "training": training})
    write_file(folder / CONFIG_FILE, save_config(config))
    write_file(folder / TOKENIZER_FILE, tokenizer.model_bytes)
    save_model(model, folder / MODEL_FILE, torch.float16)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]), HERE / "model")
