"""The command line: one verb per stage, each a thin call of the Python API.

Verbs are loaded when they are used, so that `planner --help` stays fast. stdout carries the
result, stderr everything else. Exit codes: DESIGN section 9, set by the error's class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from planner.errors import ConfigError, PlannerError, did_you_mean

__all__ = ["VERBS", "main"]

VERBS: Final[dict[str, str]] = {
    "plan": "What a study would run and cost; starts nothing.",
    "rehearse": "A study's sweep in simulated time, before anything is spent.",
    "sweep": "Run a study's trials with Ray Tune, or resume one.",
    "status": "Where a run stands.",
    "fit": "Fit scaling curves to finished trials or a table.",
    "predict": "Predict losses from a fitted law.",
    "recommend": "The configuration to train at a budget.",
    "report": "Write a run's report.",
    "submit": "Run a study on a Ray cluster.",
    "jobs": "List, follow, stop and fetch submitted jobs.",
    "estimate": "Memory, time and money of a model, without a study.",
    "list": "Shipped studies, search spaces and local runs.",
    "doctor": "What this machine has.",
}
"""Verb -> its one line in the list; the command lives in `planner/cli/<verb>.py`."""


_TRAIN: Final = ("cmaes", "optuna", "ray", "tensorboardX", "torch")
"""What `planner[train]` brings."""


class _Verbs(click.Group):
    """Loads a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"planner.cli.{cmd_name}").command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"no verb {args[0]!r}. {did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([*VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="planner")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def _planner(debug: bool) -> None:
    """I have this much compute: what should I train, and how?

    \b
    Example:
      planner plan quickstart
      planner sweep quickstart
      planner recommend quickstart --budget "2e15 flops"
    """  # noqa: D301 -- click's mark for lines that it must not wrap


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Not list(): once the verb `list` is loaded, that name is its module here.
    args = [*(sys.argv[1:] if arguments is None else arguments)]
    debug = "--debug" in args
    try:
        result = _planner.main(args=args, prog_name="planner", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 0
    except (PlannerError, ModuleNotFoundError, OSError) as error:
        shown = _as_planner_error(error)
        if debug or shown is None:
            raise
        _show(shown, as_json="--json" in args)
        return shown.exit_code
    return result if isinstance(result, int) else 0


def _as_planner_error(error: Exception) -> PlannerError | None:
    """Return an error as planner says it: also of files, and of packages for running trials.

    None is an error of our own.
    """
    if isinstance(error, PlannerError):
        return error
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return ConfigError(f"{place}{error.strerror or error}.")
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if name not in _TRAIN:
        return None
    return ConfigError(
        f"trials cannot run here: {name} is not installed.", hint="pip install 'planner[train]'"
    )


def _show(error: PlannerError, as_json: bool) -> None:
    if as_json:
        body = {
            "kind": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps({"error": body}, indent=2))
        return
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
