"""How a command ends: one line for a person's mistake, the right exit code, no traceback."""

import errno

import pytest

from music_training.errors import UserError, run_command


def ended(main, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("a.yaml: lr: too large"), 2, "error: a.yaml: lr: too large\n"),
        (FileNotFoundError(errno.ENOENT, "x", "songs/a.wav"), 2, "error: songs/a.wav: no such file or folder\n"),
        (
            OSError(errno.ENOSPC, "x", "out/b"),
            2,
            "error: out/b: the disk is full; free some space and run the same command again\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
    ],
)
def test_one_line_and_a_code(error, code, text, capsys):
    assert ended(raising(error), capsys) == (code, text)


@pytest.mark.parametrize("value, code", [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_code_of_main_is_the_exit_code(value, code, capsys):
    assert ended(lambda: value, capsys) == (code, "")


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(PermissionError):
        run_command(raising(PermissionError(errno.EACCES, "no", "x")))
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_a_notebook_shows_a_mistake_as_one_line():
    assert UserError("take another")._render_traceback_() == ["UserError: take another"]
