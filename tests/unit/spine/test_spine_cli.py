"""What the command line makes of errors."""

import pytest
import typer

from robustly import cli


def test_ctrl_c_that_a_library_turned_into_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As where a package tries one import after another."""
    with pytest.raises(typer.Exit) as exit, cli.user_errors():
        try:
            raise KeyboardInterrupt
        except:  # noqa: E722
            import no_such_module  # noqa: F401
    assert exit.value.exit_code == cli.STOPPED
    assert "stopped" in capsys.readouterr().err


def test_errors_of_ours_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="ours"), cli.user_errors():
        raise RuntimeError("ours")
