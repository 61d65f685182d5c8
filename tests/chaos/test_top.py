"""`sapflow top` on a real fleet: into a pipe, and in a terminal that is as it was when Ctrl-C ended it."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

from tools.fleet import running

COMMAND = (sys.executable, "-m", "sapflow", "top")
ALTERNATE, BACK = b"\x1b[?1049h", b"\x1b[?1049l"


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What a terminal shows, up to and with `wanted`."""
    seen, until = b"", time.monotonic() + 30
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, seen[-2000:]
        seen += os.read(terminal, 65536)
    return seen


def test_top_prints_once_into_a_pipe_and_ctrl_c_gives_a_terminal_back(tmp_path: Path) -> None:
    with running(tmp_path, collectors=2):
        arguments = ["--data", str(tmp_path), "--interval", "0.2"]
        piped = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=True)
        for name in ("balancer", "collector-1", "collector-2", "phloem-1", "no alarms"):
            assert name in piped.stdout
        assert "\x1b" not in piped.stdout
        missing = subprocess.run([*COMMAND, "nobody", *arguments], capture_output=True, text=True, timeout=60)
        assert missing.returncode == 1
        assert "there is no org 'nobody'" in missing.stderr

        mine, theirs = pty.openpty()
        before = termios.tcgetattr(theirs)
        live = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "50"},
            start_new_session=True,
        )
        seen = read_until(mine, ALTERNATE)
        if b"phloem-1" not in seen.partition(ALTERNATE)[2]:
            read_until(mine, b"phloem-1")
        live.send_signal(2)
        read_until(mine, BACK)
        assert live.wait(20) == 0
        assert termios.tcgetattr(theirs) == before
        for end in (mine, theirs):
            os.close(end)
