"""--show-split: lines at the end, and below the text in a terminal, as a terminal of our own shows them."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

RUN = ["run", "-p", "Once upon a time", "-n", "40", "-s", "1", "--show-split"]
GGRUN = [sys.executable, "-c", "import ggrun.cli; ggrun.cli.main()"]
TWO = ["--devices", "cpu:0:1GB,cpu:1:1GB", "-ts", "1,1"]


def test_lines_at_the_end() -> None:
    done = subprocess.run([*GGRUN, *RUN, *TWO, "-sm", "row"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()[-2:]
    for name, line in zip(("cpu:0:1GB", "cpu:1:1GB"), lines, strict=True):
        shares = [int(found) for found in re.findall(r"(?:work|copies|sums) (\d+) %", line)]
        assert line.startswith(f"{name}  [")
        assert "MiB of 1.00 GiB" in line
        assert "of these key-value heads" in line
        assert len(shares) == 3
        assert 0 < sum(shares) <= 101
        assert shares[0] > 0 < shares[2]


def test_nothing_of_it_without_the_flag() -> None:
    done = subprocess.run([*GGRUN, *RUN[:-1], *TWO], capture_output=True, text=True, check=True)
    assert "work" not in done.stderr


class Screen:
    """What a terminal shows: text, scrolling regions, moves and saved places of the cursor."""

    def __init__(self, lines: int, columns: int) -> None:
        self.rows = [""] * lines
        self.columns, self.at, self.saved, self.region = columns, (0, 0), (0, 0), (0, lines - 1)
        self.most_below = 0

    def feed(self, text: str) -> None:
        for part in re.split(r"(\x1b\[[\d;]*[A-Za-z]|\x1b[78D]|\r|\n)", text):
            if part.startswith("\x1b["):
                self._command(part[-1], [int(n or 1) for n in part[2:-1].split(";")])
            elif part == "\x1b7":
                self.saved = self.at
            elif part == "\x1b8":
                self.at = self.saved
            elif part == "\x1bD":
                column = self.at[1]
                self._newline()
                self.at = (self.at[0], column)
            elif part == "\r":
                self.at = (self.at[0], 0)
            elif part == "\n":
                self._newline()
            else:
                for letter in part:
                    self._put(letter)

    def _command(self, letter: str, numbers: list[int]) -> None:
        if letter == "r":
            self.region = (numbers[0] - 1, numbers[1] - 1) if len(numbers) > 1 else (0, len(self.rows) - 1)
            self.at = (0, 0)
        elif letter == "H":
            self.at = (numbers[0] - 1, numbers[-1] - 1 if len(numbers) > 1 else 0)
        elif letter == "K":
            self.rows[self.at[0]] = ""
        elif letter == "A":
            self.at = (max(0, self.at[0] - numbers[0]), self.at[1])
        elif letter == "J":
            self.rows[self.at[0] :] = [self.rows[self.at[0]][: self.at[1]]] + [""] * (
                len(self.rows) - self.at[0] - 1
            )
        else:
            assert letter == "m"

    def _newline(self) -> None:
        row = self.at[0]
        if row == self.region[1]:
            top, bottom = self.region
            self.rows[top : bottom + 1] = [*self.rows[top + 1 : bottom + 1], ""]
        else:
            row = min(row + 1, len(self.rows) - 1)
        self.at = (row, 0)

    def _put(self, letter: str) -> None:
        if self.at[1] >= self.columns:
            self._newline()
        row, column = self.at
        self.rows[row] = self.rows[row][:column].ljust(column) + letter + self.rows[row][column + 1 :]
        self.at = (row, column + 1)


@pytest.mark.parametrize(("lines", "shown"), [(24, True), (6, False)])
def test_a_terminal_shows_them_below_the_text(lines: int, shown: bool) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 60, 0, 0))
    running = subprocess.Popen([*GGRUN, *RUN, *TWO], stdin=child, stdout=child, stderr=child)
    os.close(child)
    screen, seen = Screen(lines, 60), []
    received = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:  # what a closed terminal says
            break
        if not data:
            break
        received += data
        # A control sequence may be cut in two: the screen gets whole ones.
        whole = received.rfind(b"\x1b") if b"\x1b" in received[-20:] else len(received)
        screen.feed(received[:whole].decode(errors="replace"))
        received = received[whole:]
        seen.append(list(screen.rows))
    screen.feed(received.decode(errors="replace"))
    assert running.wait() == 0
    os.close(parent)
    below = [rows for rows in seen if "cpu:0:1GB" in rows[-2] and "cpu:1:1GB" in rows[-1]]
    # The last lines of the final screen are those of the end.
    live = [rows for rows in below if not any("first token" in row for row in rows)]
    assert bool(live) == shown
    for rows in live:
        assert max(map(len, rows)) <= 60
        assert any("Once upon a time" in row for row in rows)
    assert screen.region == (0, lines - 1)
    text = "\n".join(screen.rows)
    plain = subprocess.run([*GGRUN, *RUN[:-1], *TWO], capture_output=True, text=True, check=True).stdout
    if shown:  # nothing of the text is lost
        assert "".join(plain.split()) in "".join(text.split())
    assert ("first token" in text) == shown  # the screen may be too small for all lines of the end
    assert text.count("cpu:1:1GB") == 1
