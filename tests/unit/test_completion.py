"""`netagent completion`, asked by real shells."""

import shutil
import subprocess
from pathlib import Path

import pytest

from netagent import cli
from netagent.commands.completion import SHELLS

BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
read -r _ _ _ _ function _ < <(complete -p netagent)
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    found = {}
    for shell in SHELLS:
        assert cli.main(["completion", shell]) == 0
        found[shell] = tmp_path / shell
        found[shell].write_text(capsys.readouterr().out)
    return found


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    command = ["bash", "--norc", "-c", BASH, "bash", str(script), *words]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_bash_completes_commands_options_and_words(scripts: dict[str, Path], tmp_path: Path) -> None:
    script = scripts["bash"]
    assert {"agent", "explain", "status", "doctor", "cleanup", "completion", "lab"} <= offered(script, "netagent", "")
    assert offered(script, "netagent", "doc") == {"doctor"}
    assert {"--config", "--no-api", "--output"} <= offered(script, "netagent", "doctor", "--")
    assert offered(script, "netagent", "doctor", "--output", "") == {"text", "json"}
    assert offered(script, "netagent", "agent", "--network-mode", "") == {"lease", "node", "auto", "off"}
    assert offered(script, "netagent", "agent", "--policy-enabled", "t") == {"true"}
    assert {"up", "down", "exec"} <= offered(script, "netagent", "lab", "")
    (tmp_path / "netagent.yaml").touch()
    assert offered(script, "netagent", "status", "--config", f"{tmp_path}/net") == {f"{tmp_path}/netagent.yaml"}


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@needs("fish")
def test_fish_completes_too(scripts: dict[str, Path]) -> None:
    def lines(text: str) -> list[str]:
        command = ["fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"', str(scripts["fish"]), text]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    assert lines("netagent doc") == ["doctor\twhat keeps the agent from doing its work on this node"]
    assert {line.split("\t")[0] for line in lines("netagent doctor --output ")} == {"text", "json"}


@needs("zsh")
def test_zsh_accepts_its_script(scripts: dict[str, Path]) -> None:
    subprocess.run(["zsh", "-f", "-n", str(scripts["zsh"])], check=True)
    assert scripts["zsh"].read_text().startswith("#compdef netagent")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["completion", "tcl"])
    assert "invalid choice: 'tcl'" in capsys.readouterr().err
