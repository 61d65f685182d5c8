"""Bringing peers: Debian packages by apt-get, Go modules by go, jars by Maven, C programs by gcc.

Each client is used as the machine has it set up, so its mirrors, proxies and caches apply; no host is named here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from tools.peers import jars
from tools.peers.catalog import BIN, PEERS, Compiled, Debian, GoModule, Jars, find

_TOOLS = {"mvn": "maven", "java": "default-jre-headless"}
"""The Debian package of each program that Java peers need."""


def install(names: Iterable[str]) -> list[str]:
    """Bring those that are not there yet, and name them. Exits, and says why, when one cannot be had."""
    missing = [PEERS[name] for name in names if find(name) is None]
    packages = [peer.source.package for peer in missing if isinstance(peer.source, Debian)]
    java = [peer.name for peer in missing if isinstance(peer.source, Jars)]
    if java:
        packages += [package for program, package in _TOOLS.items() if shutil.which(program) is None]
    compiled = {peer.name: peer.source for peer in missing if isinstance(peer.source, Compiled)}
    packages += [
        package for source in compiled.values() if not _has_library(source.library) for package in source.packages
    ]
    if packages:
        _from_debian(list(dict.fromkeys(packages)))
    for peer in missing:
        if isinstance(peer.source, GoModule):
            _from_go(peer.source.path)
    for name in java:
        _from_maven(name)
    for name, source in compiled.items():
        _from_c(name, source)
    still = [peer.name for peer in missing if find(peer.name) is None]
    if still:
        sys.exit(f"not found after installing: {', '.join(still)}")
    return [peer.name for peer in missing]


def _from_debian(packages: list[str]) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"installing needs root and apt-get; ask for: {', '.join(packages)}")
    # Runlevel 1, so that no package's service is started.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    _run(["apt-get", "-qq", "update"], environment)
    _run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages], environment)


def _from_go(module: str) -> None:
    if shutil.which("go") is None:
        sys.exit(f"building {module} needs Go; install it, or leave this peer out")
    BIN.mkdir(parents=True, exist_ok=True)
    _run(["go", "install", module], {**os.environ, "GOBIN": str(BIN)})


def _has_library(library: str) -> bool:
    if shutil.which("gcc") is None or shutil.which("pkg-config") is None:
        return False
    return subprocess.run(["pkg-config", "--exists", library]).returncode == 0


def _from_c(name: str, source: Compiled) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    said = subprocess.run(["pkg-config", "--cflags", "--libs", source.library], capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"{name} needs {source.library}: {said.stderr}")
    with tempfile.TemporaryDirectory(dir=BIN, prefix="building-") as work:
        built = Path(work, name)
        _run(["gcc", "-O1", "-o", str(built), str(source.path(name)), *said.stdout.split()], os.environ)
        built.rename(source.program(name))


def _from_maven(name: str) -> None:
    """Copy a peer's jars beside their place, check every one, then move them there at once."""
    wanted, target = jars.pins(name), jars.place(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="bringing-") as work:
        libs = Path(work, "libs")
        Path(work, "pom.xml").write_text(jars.project(wanted, libs))
        _copy_jars(Path(work), f"{target.parent.name}, {len(wanted)} jars")
        if found := jars.faults(wanted, libs):
            sys.exit(f"{name} is not what is pinned, and was not installed:\n  " + "\n  ".join(found))
        shutil.rmtree(target, ignore_errors=True)
        libs.rename(target)


def _copy_jars(work: Path, label: str) -> None:
    # Updating, so that Maven asks again for what it remembers as not found.
    command = ["mvn", "--batch-mode", "--update-snapshots", "--file", str(work / "pom.xml"), "dependency:copy"]
    said = []
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    copied = 0
    for line in process.stdout:
        said.append(line)
        if "Copying " in line:
            copied += 1
            if sys.stderr.isatty():
                click.echo(f"\r{label}: {copied} ", nl=False, err=True)
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    if process.wait():
        sys.exit(f"{' '.join(command)} failed:\n{''.join(said)[-4000:]}")


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    found = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
