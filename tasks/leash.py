"""Runs a program on a leash: ``leash.py GRACE PROGRAM [ARGUMENT ...]``.

The holder keeps the other end of our standard input open. When it lets go, on purpose or by dying, however
it dies, the program's whole process group is told to end (SIGTERM), and ended (SIGKILL) after GRACE
seconds; at once if the holder is dead, for its work may be another's already. What a program that has ended
by itself leaves running in its group ends in the same way. Exits as the program did. A process that makes
itself a session of its own gets away.

Run as a script, with the standard library alone: between a fork and an exec in a worker that has threads,
no Python code may run, so what has to happen there happens here.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time

LEASH = 0
"""The descriptor that comes to its end when the holder lets go."""

NOT_STARTED = 126
"""Exit code, as a shell's, for a program that cannot be run."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(publish_grace: float, command: list[str]) -> int:
    """Run the program until it ends or the leash is let go; return its exit code, as `subprocess` has it."""
    holder = os.getppid()
    ended = _wake_on_child()
    # What outlives the program is then our child, which we see end at once, without an init that sees to it.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_us,  # noqa: PLW1509  # there are no threads here
        )
    except OSError as error:
        print(f"{command[0]!a} cannot be run: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    while program.poll() is None:
        if LEASH in select.select([LEASH, ended], [], [])[0]:
            break
        os.read(ended, 4096)
    _end_group(program, publish_grace, holder)
    return program.wait()


def _wake_on_child() -> int:
    """Return a descriptor that has something to read after a child has ended."""
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return ended


def _die_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should we be killed ourselves


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":  # elsewhere there is nothing like it
        ctypes.CDLL(None).prctl(option, value)


def _end_group(program: "subprocess.Popen[bytes]", publish_grace: float, holder: int) -> None:
    until = time.monotonic() + publish_grace
    if _signal_group(program.pid, signal.SIGTERM):
        while time.monotonic() < until:
            _reap(program)
            if not _signal_group(program.pid, 0):
                return
            if os.getppid() != holder:  # a moment after the leash was let go
                break
            time.sleep(0.02)
        _signal_group(program.pid, signal.SIGKILL)


def _reap(program: "subprocess.Popen[bytes]") -> None:
    """Take those that have ended out of the group; the leader first, whose exit code is kept."""
    with contextlib.suppress(ChildProcessError):
        while program.poll() is not None and os.waitpid(-program.pid, os.WNOHANG)[0]:
            pass


def _signal_group(group: int, which: int) -> bool:
    """Signal a process group; False if it is gone."""
    try:
        os.killpg(group, which)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _exit_as(code: int) -> None:
    """Exit with that code; below zero, by that signal, without a core dump of ours."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler to be reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    _exit_as(main(float(sys.argv[1]), sys.argv[2:]))
