"""RunFolder: every path of one execution of a study, and nothing else knows their names.

runs/<name>/
    study.json          the resolved study            plan.json           what was planned
    ledger.jsonl        the truth while running       tune/               Ray Tune's own files
    checkpoints/        of the trials                 results.parquet     one row per trial
    curves.parquet      one row per report            laws.json           the fitted curves
    recommendation.json the answer                    report/             the page and its data
    job.json            where it was submitted        exports/            configs for trainers
    search.json         front, importances, gain      earlier.json        trials of former runs
    lineage.parquet     who copied whom
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from planner.errors import ConfigError, NotFoundError, did_you_mean
from planner.study import Study, study_from_json

__all__ = ["RunFolder", "default_root", "list_runs", "write_atomically"]


def default_root() -> Path:
    """Return the folder that holds all runs: `$PLANNER_RUNS`, or `./runs`."""
    return Path(os.environ.get("PLANNER_RUNS", "runs"))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a reader never sees half of it.

    Raises:
        ConfigError: The folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(
            f"cannot write {path}: {error.strerror}.",
            hint="Choose a folder that can be written: --runs DIR, or PLANNER_RUNS.",
        ) from error


def list_runs(root: Path | None = None) -> list[str]:
    """Return the names of the runs under a folder, sorted."""
    folder = root or default_root()
    return sorted(path.parent.name for path in folder.glob("*/study.json"))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one execution of a study."""

    path: Path

    @classmethod
    def open(cls, name: str, root: Path | None = None) -> RunFolder:
        """Return the folder of a run that exists, by name or by path.

        Raises:
            NotFoundError: There is no such run.
        """
        base = root or default_root()
        for path in (base / name, Path(name)):
            if (path / "study.json").is_file():
                return cls(path.resolve())
        raise NotFoundError(
            f"no run named {name!r} in {base}/. {did_you_mean(name, list_runs(root))}",
            hint="Start one with: planner sweep STUDY",
        )

    @classmethod
    def create(cls, study: Study, name: str | None = None, root: Path | None = None) -> RunFolder:
        """Return a new folder that holds the resolved study.

        Raises:
            ConfigError: The name is taken or no plain name, or the folder cannot be written.
        """
        base = root or default_root()
        plain = name or study.folder_name
        if plain in (".", "..") or set(plain) & set("/\\\0"):
            raise ConfigError(
                f"the name of a run is that of a folder in {base}/, without slashes: got {plain!r}.",
                hint="Give a plain name, and another place with --runs DIR.",
            )
        folder = cls((base / plain).resolve())
        if folder.study.exists():
            raise ConfigError(
                f"a run named {folder.name!r} exists already in {base}/.",
                hint=f"Continue it with: planner sweep --resume {folder.name}\n"
                f"  Or give this one a name of its own: --name NAME",
            )
        folder.write("study.json", study.model_dump_json(indent=2))
        return folder

    def undo_create(self) -> None:
        """Take back what `create` wrote, and the folder itself if it holds nothing else."""
        self.study.unlink()
        with suppress(OSError):  # it was there before, and holds what is not ours
            self.path.rmdir()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.path / "study.json"

    @property
    def plan(self) -> Path:
        """What was planned."""
        return self.path / "plan.json"

    @property
    def ledger(self) -> Path:
        """The append-only record of the sweep."""
        return self.path / "ledger.jsonl"

    @property
    def tune(self) -> Path:
        """Ray Tune's own files; never read back."""
        return self.path / "tune"

    @property
    def checkpoints(self) -> Path:
        """One folder per trial."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """One row per trial."""
        return self.path / "results.parquet"

    @property
    def lineage(self) -> Path:
        """One row per copy within a population."""
        return self.path / "lineage.parquet"

    @property
    def search(self) -> Path:
        """The front, the importances, and whether another trial pays."""
        return self.path / "search.json"

    @property
    def earlier(self) -> Path:
        """Trials of former runs that the search started from."""
        return self.path / "earlier.json"

    @property
    def curves(self) -> Path:
        """One row per report of a trial."""
        return self.path / "curves.parquet"

    @property
    def spend(self) -> Path:
        """Everything that was burnt."""
        return self.path / "spend.json"

    @property
    def laws(self) -> Path:
        """The fitted curves."""
        return self.path / "laws.json"

    @property
    def recommendation(self) -> Path:
        """The answer."""
        return self.path / "recommendation.json"

    @property
    def report(self) -> Path:
        """The page and its data."""
        return self.path / "report"

    @property
    def job(self) -> Path:
        """Where the study was submitted."""
        return self.path / "job.json"

    def load_study(self) -> Study:
        """Return the resolved study of the run.

        Raises:
            ConfigError: `study.json` does not hold one.
        """
        return study_from_json(self.study.read_text(encoding="utf-8"))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write one file of the folder whole or not at all, and return its path.

        Raises:
            ConfigError: The folder cannot be written.
        """
        path = self.path / name
        write_atomically(path, content)
        return path
