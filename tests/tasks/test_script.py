"""`tasks.run_script` in this process."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.programs import BRANCHES, assert_all_gone, program


def run_script(*args: Any, **kwargs: Any) -> Any:
    from tasks.script import run_script

    return run_script(*args, **kwargs)


def test_program_gets_its_arguments_without_a_shell(scripts: Path) -> None:
    name = program(scripts, 'printf "%s|" "$@"; echo; echo "  "')

    made = run_script(name, ["$HOME", "a b", "*", ";ls", os.fsdecode(b"\xff")])

    assert made == {"exit_code": 0, "output": "$HOME|a b|*|;ls|\\xff|"}


def test_program_gets_bytes_that_are_not_utf8(scripts: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"f\xffle")
    run_script(program(scripts, 'touch "$1"'), [str(strange)])
    assert strange.exists()


def test_program_has_no_input_and_no_urls(scripts: Path) -> None:
    assert run_script(program(scripts, "env | grep -c JOBHANDLE_; cat; echo end"))["output"] == "end"


@pytest.mark.parametrize("path", ["../outside", "link", "gone", "", ".", "/bin/sh", "a\0b", "folder"])
def test_program_outside_the_folder_is_refused(scripts: Path, path: str) -> None:
    program(scripts.parent, "touch ran", "outside")
    (scripts / "link").symlink_to("../outside")
    (scripts / "folder").mkdir()
    with pytest.raises(ValueError, match="is not a program of the folder"):
        run_script(path)
    assert not (scripts.parent / "ran").exists()


def test_program_that_cannot_be_run_is_an_error(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import app
    from tasks.script import ScriptError

    (scripts / "text").write_text("echo")
    with pytest.raises(ValueError, match="not executable"):
        run_script("text")
    (scripts / "text").chmod(0o755)
    with pytest.raises(ScriptError, match=r"exit code 126: .*Exec format error"):
        run_script("text")
    with pytest.raises(ValueError, match="list of text"):
        run_script("text", "-rf")
    monkeypatch.setitem(app.conf, "scripts_folder", None)
    with pytest.raises(ValueError, match="JOBHANDLE_SCRIPTS"):
        run_script("text")


def test_failure_has_the_exit_code_and_the_end_of_stderr(scripts: Path) -> None:
    from tasks.script import ScriptError

    noisy = program(scripts, "yes complaint | head -n 100000 >&2; echo the reason >&2; exit 3")
    with pytest.raises(ScriptError, match=r"'program' ended with exit code 3: (?s:.)*the reason$") as caught:
        run_script(noisy)
    assert len(str(caught.value)) < 2_200
    with pytest.raises(ScriptError, match=r"ended by signal 9 \(Killed\)"):
        run_script(program(scripts, "kill -9 $$"))


def test_long_line_is_cut(scripts: Path) -> None:
    output = run_script(program(scripts, "head -c 3000000 /dev/zero | tr '\\0' x"))["output"]
    assert output == "x" * 10_000


def test_timeout_ends_the_process_group(scripts: Path, tmp_path: Path) -> None:
    from tasks.script import ScriptTimeoutError

    name = program(scripts, f"{BRANCHES.format(tmp_path)} echo so far >&2; wait")
    with pytest.raises(ScriptTimeoutError, match=r"ended by its timeout of 0\.5 s: so far"):
        run_script(name, timeout=0.5)
    assert_all_gone(tmp_path, 2)


def test_orphans_end_with_the_program(scripts: Path, tmp_path: Path) -> None:
    run_script(program(scripts, BRANCHES.format(tmp_path)))
    assert_all_gone(tmp_path, 2)
