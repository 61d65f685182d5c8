"""Java peers as pinned lists of jars: what each list says, and whether a directory holds exactly that.

A list is a data file beside this one, `kafka.jars`: one jar a line, `group:artifact:version sha256`. Its first jar
says the version of the whole. Nothing is resolved when installing, so every machine runs the same bytes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from attrs import frozen

DIRECTORY = Path(__file__).parents[2] / ".peers"
"""What peers are installed into, where they are not the system's."""

_LINE = re.compile(r"([\w.-]+):([\w.-]+):([\w.-]+) ([0-9a-f]{64})")
_PLUGIN_VERSION = "3.8.1"


@frozen
class Jar:
    """One jar: its Maven coordinates, and what its bytes must be."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """What Maven calls it."""
        return f"{self.artifact}-{self.version}.jar"


def parse_pins(text: str) -> tuple[Jar, ...]:
    """The jars of a pinned list. Raises ValueError, with the line, for one that is not a pin or is there twice."""
    found: dict[tuple[str, str], Jar] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"line {number}: {line!r} is not 'group:artifact:version sha256'")
        jar = Jar(*match.groups())
        if (jar.group, jar.artifact) in found:
            raise ValueError(f"line {number}: {jar.group}:{jar.artifact} is there twice")
        found[jar.group, jar.artifact] = jar
    if not found:
        raise ValueError("the list pins no jar")
    return tuple(found.values())


def pins(name: str) -> tuple[Jar, ...]:
    """The pinned list of a peer."""
    return parse_pins((Path(__file__).parent / f"{name}.jars").read_text())


def place(name: str) -> Path:
    """Where a peer's jars belong; the directory appears whole, or not at all."""
    return DIRECTORY / f"{name}-{pins(name)[0].version}" / "libs"


def installed(name: str) -> Path | None:
    """Where a peer's jars are, if they are there and there is a Java to run them."""
    libs = place(name)
    return libs if libs.is_dir() and shutil.which("java") is not None else None


def faults(jars: tuple[Jar, ...], directory: Path) -> list[str]:
    """What is wrong with a directory that should hold exactly these jars: one line each."""
    found = []
    for jar in jars:
        path = directory / jar.file_name
        if not path.is_file():
            found.append(f"{jar.file_name} is missing")
        elif (actual := hashlib.sha256(path.read_bytes()).hexdigest()) != jar.sha256:
            found.append(f"{jar.file_name} has sha256 {actual}, not the pinned {jar.sha256}")
    pinned = {jar.file_name for jar in jars}
    return found + [f"{path.name} is not pinned" for path in sorted(directory.iterdir()) if path.name not in pinned]


def project(jars: tuple[Jar, ...], directory: Path) -> str:
    """A Maven project whose only goal copies these jars into a directory, without their dependencies."""
    items = "".join(
        f"<artifactItem><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version></artifactItem>\n"
        for jar in jars
    )
    return f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>sapflow</groupId><artifactId>peers</artifactId><version>1</version><packaging>pom</packaging>
<build><plugins><plugin>
<groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId>
<version>{_PLUGIN_VERSION}</version>
<configuration><outputDirectory>{directory}</outputDirectory><artifactItems>
{items}</artifactItems></configuration>
</plugin></plugins></build></project>
"""
