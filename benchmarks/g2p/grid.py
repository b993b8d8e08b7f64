"""What is measured on g2p_cmudict: decoders, ways of training, predictors with their oracles, depth policies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

DECODERS = {
    "dynamic": [],  # as the configuration of examples/g2p_cmudict has it
    "attention": ['model.decoder={mixer="attention", windows=[0,0,0,0,0,0], feed_forward_dim=128}'],
}
"""Settings of each decoder."""

BLOCKS = 6

TRUNKS = {
    "aligned": [],
    "mixed_1": ["training.exits=mixed", "training.paths=1"],
    "mixed_3": ["training.exits=mixed", "training.paths=3"],
    "mixed_6": ["training.exits=mixed", "training.paths=6"],
    "weights_n": ["training.exit_weights=n"],
    "weights_sqrt_n": ["training.exit_weights=sqrt_n"],
    "weights_inverse_sqrt_n": ["training.exit_weights=inverse_sqrt_n"],
    "weights_inverse_n": ["training.exit_weights=inverse_n"],
    "gamma_0.3": ["training.gradient_scaling=0.3"],
    "gamma_0.5": ["training.gradient_scaling=0.5"],
    "gamma_0.7": ["training.gradient_scaling=0.7"],
    "gamma_0.9": ["training.gradient_scaling=0.9"],
    "gamma_1.1": ["training.gradient_scaling=1.1"],
}
"""Settings of each way to train the trunk, in the order of the paper's tables."""

PARTS = {
    "aligned": ["aligned"],
    "predictors": [],
    "forcing": [],
    "joint": [],
    "weights": ["weights_n", "weights_sqrt_n", "weights_inverse_sqrt_n", "weights_inverse_n"],
    "gradients": ["gamma_0.3", "gamma_0.5"],
    "mixed": ["mixed_1", "mixed_3", "mixed_6"],
    "more_gradients": ["gamma_0.7", "gamma_0.9", "gamma_1.1"],
}
"""Parts in the order in which they run, and the trunks of each; the others go on from the aligned trunk."""

SIGMAS = (0, 1, 4)
PENALTIES = (0.02, 0.1, 0.3)


@dataclass(frozen=True)
class Predictor:
    """An entry of `[[predictors]]`."""

    name: str
    kind: str
    oracle: str
    sigma: float
    depth_penalty: float
    units: str = "per_block"
    target: str = "depth"

    @property
    def stops_above_threshold(self) -> bool:
        """Whether it says after each block whether to stop; if not, it chooses a depth."""
        return self.kind in {"halting", "certainty"}

    @property
    def paper_rule(self) -> str:
        """The depth policy of the paper: τ = 0.5, or the likeliest depth."""
        return f"{self.name}:0.5" if self.stops_above_threshold else self.name


FAMILIES = {
    "shared": {"kind": "halting", "units": "shared"},
    "per-block": {"kind": "halting"},
    "gain": {"kind": "halting", "target": "gain"},
    "certainty": {"kind": "certainty", "target": "gain"},
    "multinomial": {"kind": "multinomial"},
    "sequence": {"kind": "sequence"},
}
"""Predictors: halting by one unit as the paper prints it, by a unit per block, by a unit per block that learns whether
to go on is worth it, and by one of these that reads how certain the exit is; a depth chosen after block 1; a depth
chosen for the sentence."""

ORACLES = ("likelihood", "correctness", "agreement")


def predictors() -> list[Predictor]:
    """Lists all predictors of the grid."""
    return [
        Predictor(
            predictor_name(family, oracle, sigma, penalty),
            oracle=oracle,
            sigma=sigma,
            depth_penalty=penalty,
            **settings,
        )
        for family, settings in FAMILIES.items()
        for oracle in ORACLES
        for sigma in SIGMAS
        for penalty in PENALTIES
        if is_measured(family, oracle, sigma, penalty)
    ]


def is_measured(family: str, oracle: str, sigma: float, penalty: float) -> bool:
    """Says whether a cell of the grid is one of its own."""
    if family == "sequence":  # sums over the sentence: there is nothing to smooth
        return sigma == 0
    # Scores of 0 and 1: every λ below 1/5 picks the lowest block that is right, and above 1/4 none picks the last two.
    return oracle == "likelihood" or sigma > 0 or penalty == 0.1


def predictor_name(family: str, oracle: str, sigma: float, penalty: float) -> str:
    """Names a predictor as depth policies spell it."""
    return f"{family}-{oracle}-s{sigma}-l{penalty}".replace(".", "p")


def predictors_setting(chosen: list[Predictor]) -> str:
    """Spells predictors as a `--set` of the command line."""
    # Strings and numbers are spelt alike in JSON and TOML.
    tables = (", ".join(f"{key}={json.dumps(value)}" for key, value in asdict(one).items()) for one in chosen)
    return "predictors=[" + ", ".join(f"{{{table}}}" for table in tables) + "]"


FIXED = [str(depth) for depth in range(1, BLOCKS + 1)]
THRESHOLDS = (0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95)
QUANTILES = (0.3, 0.5, 0.7, 0.9)
CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)


def swept_predictors() -> list[Predictor]:
    """Lists the predictors, one per family and oracle, that are measured at other thresholds than the paper's."""
    return [predictor for predictor in predictors() if (predictor.sigma, predictor.depth_penalty) == (0, 0.1)]


def thresholds_of(predictor: Predictor) -> tuple[float, ...]:
    """Lists what a predictor's signal is compared with."""
    return THRESHOLDS if predictor.stops_above_threshold else QUANTILES


def predictor_policies() -> list[str]:
    """Lists the depth policies under which the grid is measured."""
    policies = [predictor.paper_rule for predictor in predictors()]
    policies += [f"{swept.name}:{value}" for swept in swept_predictors() for value in thresholds_of(swept)]
    policies += [f"confidence:{value}" for value in CONFIDENCES]
    return list(dict.fromkeys(policies))


def forcing_policies() -> list[str]:
    """Lists the depth policies under which free-running and teacher-forced depth are compared."""
    return [*(swept.paper_rule for swept in swept_predictors()), "confidence:0.5", "confidence:0.8"]


JOINT_RUNS = {
    "joint": ["joint.alpha=1.0"],
    # The same updates of the trunk, by the decoder's loss alone: of the predictor's gradient nothing remains.
    "trunk_alone": ["joint.alpha=1e-6"],
}
"""Second phases. Both runs end with a second predictor, equal to the first, trained on their finished trunk."""

JOINT_PREDICTORS = [Predictor(name, "halting", "likelihood", 0, 0.1) for name in ("joint", "frozen")]


def joint_policies() -> list[str]:
    """Lists the depth policies under which second phases are compared."""
    return FIXED + [f"{predictor.name}:{value}" for predictor in JOINT_PREDICTORS for value in THRESHOLDS]
