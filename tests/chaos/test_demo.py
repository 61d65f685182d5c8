"""The demo in a terminal: Ctrl-C ends the load, and what was sent is counted all the same."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A program that has a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.text = ""
        self._ended = False
        pid, self._fd = pty.fork()
        if pid == 0:
            os.environ |= {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
            os.execv(command[0], command)
        self._pid = pid

    def until(self, word: str, seconds: float = 60) -> None:
        """Read until the program has written a word."""
        deadline = time.monotonic() + seconds
        while word not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text

    def press(self, key: bytes) -> None:
        """As from the keyboard."""
        os.write(self._fd, key)

    def end(self) -> int:
        """Read what is left: the exit code."""
        while self._read():
            continue
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        self._ended = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End it, if it has not ended."""
        if not self._ended:
            os.kill(self._pid, signal.SIGTERM)
            self.end()

    def _read(self) -> bool:
        if not select.select([self._fd], [], [], 60)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # how a terminal whose program has gone says so
            return False
        self.text += COLOUR.sub("", data.decode("utf-8", "replace"))
        return bool(data)


@pytest.mark.parametrize("kill_after", ["0", "1000"], ids=["after the kill", "before the kill"])
def test_ctrl_c_ends_the_load_and_gives_the_summary(kill_after: str) -> None:
    demo = [sys.executable, "-m", "tools.demo", "--keep", "--meters", "10", "--kill-after", kill_after]
    with closing(Terminal(*demo)) as terminal:
        terminal.until("s later" if kill_after == "0" else "MB/s in")
        terminal.until("records sent")
        terminal.press(b"\x03")
        assert terminal.end() == 0, terminal.text
    assert "Traceback" not in terminal.text
    assert "found in the log" in terminal.text
    assert f"killed {'collector-1' if kill_after == '0' else 'nothing'}; lost 0" in terminal.text


def test_not_on_a_terminal_it_says_a_line_each_few_seconds_and_saves_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    command = [sys.executable, "-m", "tools.demo", "--seconds", "7", "--kill-after", "1", "--meters", "10"]
    found = subprocess.run(
        [*command, "--picture", str(picture)], capture_output=True, text=True, timeout=100, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    progress = [line for line in lines if line.startswith("   5 s  10 meters: ")]
    assert len(progress) == 1
    assert "collector-1 was killed with -9" in progress[0]
    assert any(line.startswith("share of bytes from then on: ") for line in lines)
    assert picture.read_text().startswith("<svg")
