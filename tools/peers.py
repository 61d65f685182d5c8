"""Real exporters and readers that the tests run against, from Debian's packages.

python -m tools.peers list
python -m tools.peers install [NAME …]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import click

PACKAGES = {"softflowd": "softflowd", "ipfixDump": "libfixbuf-tools"}
"""The Debian package of each program."""


def find(name: str) -> str | None:
    """Where a peer is, if it is installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path)


def install_line(name: str) -> str:
    """What to type to have a peer."""
    return f"apt-get install {PACKAGES[name]}   (or: python -m tools.peers install {name})"


@click.group()
def main() -> None:
    """Peers for the tests and benchmarks."""


@main.command("list")
def list_peers() -> None:
    """Say what is there, and how to get what is not."""
    for name in PACKAGES:
        click.echo(f"{name:<12} {find(name) or 'missing: ' + install_line(name)}")


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(PACKAGES)))
def install(names: tuple[str, ...]) -> None:
    """Install peers from Debian's packages (all of them, if none is named)."""
    missing = [name for name in names or PACKAGES if find(name) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"installing needs root and apt-get; ask for: {', '.join(PACKAGES[name] for name in missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    packages = [PACKAGES[name] for name in missing]
    for command in (
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages],
    ):
        found = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if found.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    still = [name for name in missing if find(name) is None]
    if still:
        sys.exit(f"not found after installing: {', '.join(still)}")
    click.echo(f"installed: {', '.join(missing)}")


if __name__ == "__main__":
    main()
