"""The winners of a sweep, as a comparison takes them: from `best.json`, checked."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engram.agents.common.experiment import Experiment
from engram.agents.registry import spec_of
from engram.configs import store
from engram.errors import BadRequest, UnknownName
from engram.experiments.space import Settings, refuse_common
from engram.regular_files import is_number, read_json
from engram.training.yaml_files import shown

BEST = "best.json"
"""Name of the file in the folder of a sweep."""
SCHEMA = 1
"""Version of its form."""


@dataclass(frozen=True)
class Tuned:
    """What a sweep found for each memory or algorithm."""

    path: Path
    seeds: tuple[int, ...]
    """Seeds of the search, none of which may be in the comparison."""
    planned: int
    """Trials of each."""
    match: str
    """Size that memories were made equal in, or "none"."""
    winners: dict[str, dict[str, Any]]
    """`fields`, `settings` and number of `ended` trials, by label."""

    @classmethod
    def read(cls, path: Path, config: Experiment) -> "Tuned":
        """The winners in a file, for a comparison of `config`.

        Raises:
            BadRequest: there is none, it is damaged, or of another agent.
        """
        try:
            found = read_json(path)
        except OSError as error:
            raise BadRequest(f"cannot read {path}: {error.strerror}") from None
        if not _is_whole(found):
            raise BadRequest(
                f"{path} is no best.json of a sweep, or damaged: the sweep, when repeated, writes it again"
            )
        if found["schema"] != SCHEMA:
            raise BadRequest(f"{path} has version {shown(found['schema'])}; this version of Engram reads {SCHEMA}")
        if found["agent"] != config.agent:
            raise BadRequest(f"{path} has settings of {found['agent']}, and the preset is of {config.agent}")
        known = {config.choice, spec_of(config).second_choice}
        for label, winner in found["winners"].items():
            if not {*winner["fields"]} <= known or replace(config, **winner["fields"]).label != label:
                raise BadRequest(f"{path} is damaged: {label} is not what its fields choose")
        return cls(path, tuple(found["seeds"]), found["trials"], found.get("match", "none"), found["winners"])

    def refuse_match(self, match: str) -> None:
        """Raises BadRequest where memories would have other sizes than in the search."""
        if self.match not in ("none", match):
            raise BadRequest(
                f"the search in {self.path} gave memories one size: compare them with --match {self.match} too"
            )

    def refuse_seeds(self, config: Experiment) -> None:
        """Raises BadRequest where seeds of `config` were used in the search."""
        used = [seed for seed in self.seeds if config.seed <= seed < config.seed + config.seeds]
        if used:
            raise BadRequest(
                f"the search in {self.path} used seed {used[0]}, by which its winner looks better than it is: compare "
                f"on other seeds, such as --seed {max(self.seeds) + 1}"
            )

    @property
    def columns(self) -> list[dict[str, str]]:
        """Fields of the experiment that choose each of them."""
        return [winner["fields"] for winner in self.winners.values()]

    @property
    def all_settings(self) -> dict[str, Settings]:
        """The settings of each of them."""
        return {label: winner["settings"] for label, winner in self.winners.items()}

    def apply(self, config: Any) -> Any:
        """`config`, which has chosen a memory or algorithm, with the settings of its winner. Raises BadRequest."""
        settings = self.settings(config.label)
        try:
            for name in settings:
                refuse_common(name, config)
            return store.override(config, settings)
        except UnknownName:
            raise
        except BadRequest as error:
            raise BadRequest(f"{self.path}: {error}") from None

    def settings(self, label: str) -> Settings:
        """The settings of a column. Raises BadRequest where the sweep has none, or is not complete."""
        if label not in self.winners:
            raise UnknownName.among(f"winner in {self.path}", label, self.winners)
        ended = self.winners[label]["ended"]
        if ended != self.planned:
            raise BadRequest(f"{self.path}: {label} has {ended} of {self.planned} trials: finish the sweep first")
        return self.winners[label]["settings"]


def _is_whole(found: Any) -> bool:
    """Whether JSON has what a file of winners has."""
    if not isinstance(found, dict) or not isinstance(found.get("agent"), str) or "schema" not in found:
        return False
    seeds, winners = found.get("seeds"), found.get("winners")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        return False
    if type(found.get("trials")) is not int or not isinstance(winners, dict) or not winners:
        return False
    if not isinstance(found.get("match", "none"), str):
        return False
    return all(
        isinstance(winner, dict)
        and isinstance(winner.get("fields"), dict)
        and all(isinstance(value, str) for value in winner["fields"].values())
        and isinstance(winner.get("settings"), dict)
        and is_number(winner.get("score"))
        and type(winner.get("ended")) is int
        for winner in winners.values()
    )
