"""Real exporters, readers and rivals that the tests and benchmarks run against.

python -m tools.peers list
python -m tools.peers install [NAME …]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

PACKAGES = {"softflowd": "softflowd", "ipfixDump": "libfixbuf-tools", "haproxy": "haproxy"}
"""The Debian package of each program."""

MODULES = {"goflow2": "github.com/netsampler/goflow2/v2/cmd/goflow2@latest"}
"""The Go module of each program; built into `.peers/bin`."""

FOR_TESTS = ("softflowd", "ipfixDump")
BIN = Path(__file__).parents[1] / ".peers" / "bin"


def find(name: str) -> str | None:
    """Where a peer is, if it is installed."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path)


def install_line(name: str) -> str:
    """What to type to have a peer."""
    by_hand = f"   (or: apt-get install {PACKAGES[name]})" if name in PACKAGES else ""
    return f"python -m tools.peers install {name}{by_hand}"


@click.group()
def main() -> None:
    """Peers for the tests and benchmarks."""


@main.command("list")
def list_peers() -> None:
    """Say what is there, and how to get what is not."""
    for name in (*PACKAGES, *MODULES):
        click.echo(f"{name:<12} {find(name) or 'missing: ' + install_line(name)}")


@main.command()
@click.argument("names", nargs=-1, type=click.Choice([*PACKAGES, *MODULES]))
@click.option("--all", "everything", is_flag=True, help="Also those that only benchmarks need.")
def install(names: tuple[str, ...], everything: bool) -> None:
    """Install peers: those named, or those that the tests need."""
    wanted = names or ((*PACKAGES, *MODULES) if everything else FOR_TESTS)
    missing = [name for name in wanted if find(name) is None]
    packages = [PACKAGES[name] for name in missing if name in PACKAGES]
    if packages:
        _from_debian(packages)
    for name in missing:
        if name in MODULES:
            _from_go(MODULES[name])
    still = [name for name in missing if find(name) is None]
    if still:
        sys.exit(f"not found after installing: {', '.join(still)}")
    if missing:
        click.echo(f"installed: {', '.join(missing)}")


def _from_debian(packages: list[str]) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"installing needs root and apt-get; ask for: {', '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    _run(["apt-get", "-qq", "update"], environment)
    _run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages], environment)


def _from_go(module: str) -> None:
    if shutil.which("go") is None:
        sys.exit(f"building {module} needs Go; install it, or leave this peer out")
    BIN.mkdir(parents=True, exist_ok=True)
    _run(["go", "install", module], {**os.environ, "GOBIN": str(BIN)})


def _run(command: list[str], environment: dict[str, str]) -> None:
    found = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")


if __name__ == "__main__":
    main()
