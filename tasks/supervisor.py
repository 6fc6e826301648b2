"""Runs a program whose processes must not outlive the caller: ``supervisor.py TIMEOUT PROGRAM [ARG ...]``.

The caller holds the other end of this process's standard input open. When the caller closes it or dies, the
supervisor sends SIGTERM to the program's process group, and SIGKILL after TIMEOUT seconds; at once if the
caller is dead, because its job may already run elsewhere. Processes that a program leaves in its group when
it exits end in the same way. The exit code is the program's. A process with a session of its own escapes.

This is a script of the standard library only: in a worker with threads no Python code may run between fork
and exec, so that code runs here.
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

CALLER = 0
"""The file descriptor that reaches its end when the caller closes it or dies."""

CANNOT_RUN = 126
"""The exit code of a program that cannot be run, as in a shell."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(timeout: float, command: list[str]) -> int:
    """Run the program until it exits or the caller ends it; return its exit code, as `subprocess` has it."""
    caller = os.getppid()
    child_exited = _wake_on_child()
    # Orphans of the program become our children, and can be waited for without an init process.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_us,  # noqa: PLW1509  # this process has no threads
        )
    except OSError as error:
        print(f"{command[0]!a} cannot be run: {error.strerror}", file=sys.stderr)
        return CANNOT_RUN
    while program.poll() is None:
        if CALLER in select.select([CALLER, child_exited], [], [])[0]:
            break
        os.read(child_exited, 4096)
    _end_group(program, timeout, caller)
    return program.wait()


def _wake_on_child() -> int:
    """Return a file descriptor that is readable after a child has exited."""
    readable, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return readable


def _die_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if this process is killed itself


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":  # other systems have no equivalent
        ctypes.CDLL(None).prctl(option, value)


def _end_group(program: "subprocess.Popen[bytes]", timeout: float, caller: int) -> None:
    deadline = time.monotonic() + timeout
    if _signal_group(program.pid, signal.SIGTERM):
        while time.monotonic() < deadline:
            _reap(program)
            if not _signal_group(program.pid, 0):
                return
            if os.getppid() != caller:  # changes a moment after the end of standard input
                break
            time.sleep(0.02)
        _signal_group(program.pid, signal.SIGKILL)


def _reap(program: "subprocess.Popen[bytes]") -> None:
    """Reap exited processes of the group; the program first, so that its exit code is kept."""
    with contextlib.suppress(ChildProcessError):
        while program.poll() is not None and os.waitpid(-program.pid, os.WNOHANG)[0]:
            pass


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; return False if it does not exist any more."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _exit_as(code: int) -> None:
    """Exit with a code; if it is negative, by that signal and without a core dump."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    _exit_as(main(float(sys.argv[1]), sys.argv[2:]))
