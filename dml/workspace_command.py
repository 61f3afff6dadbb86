"""The command ``dml workspace``, which needs the extra ``workspaces``."""

import importlib.util
import json

from jsonargparse import ArgumentParser
from rich.console import Console


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml workspace``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 0.

    Raises:
        ValueError: If an argument is wrong, a package is missing, or nobody is logged in.
    """
    parser = parser_class(
        prog="dml workspace",
        description="Make the standard workspace and report of a project of Weights & Biases: runs grouped by loss.",
        allow_abbrev=False,
    )
    parser.add_argument("project", type=str, help="entity/project.")
    parser.add_argument("--name", type=str, default="dml", help="Of the workspace and of the report.")
    parser.add_argument("--dry_run", action="store_true", help="Print both as JSON; nothing is sent.")
    config = parser.parse_args(words)
    entity, _, project = config.project.partition("/")
    if not entity or not project or "/" in project:
        raise ValueError(f"project is {config.project!r}; it must be entity/project, as in the address of its page")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError("dml workspace needs wandb-workspaces: pip install 'dml[workspaces]'")
    from dml import workspace  # only who makes one has what it imports

    made = workspace.pages(entity, project, config.name)
    if config.dry_run:
        _print(json.dumps(made.specification(), indent=2))
        return 0
    import wandb  # takes a second, which other commands should not pay

    if not wandb.login(prompt=False):
        raise ValueError("nobody is logged in to Weights & Biases: wandb login, or add --dry_run")
    _print("\n".join(made.save()))
    return 0


def _print(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False, markup=False)
