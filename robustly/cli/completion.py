"""What a shell completes to a CONFIG; typer leaves out what does not begin with what was typed."""

from glob import escape, iglob

import typer

from robustly.config import SHIPPED_CONFIGS


def configs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Shipped configs by the names that `robustly.config.load` knows, such as tiny or delta/lora;
    YAML files of the folder that was typed so far and of those in it, since a shell offers no
    folders of its own beside what a program offers."""
    folder = "delta/" if "delta" in ctx.command_path.split() else ""
    shipped = [folder + config.stem for config in SHIPPED_CONFIGS.glob(f"{folder}*.yaml")]
    patterns = [f"{escape(incomplete)}{end}" for end in ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml")]

    # Path.glob would respell what was typed and look into hidden folders
    return sorted(shipped) + [file for each in patterns for file in sorted(iglob(each))]  # noqa: PTH207
