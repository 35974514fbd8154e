"""Nothing that is printed obeys the names and texts that it holds, whichever command prints it."""

from __future__ import annotations

import ast
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import Accelerator

from finetune import cli, demo
from finetune.kaggle import server
from harmonize import terminal
from harmonize.cli import main
from harmonize.errors import UserError
from harmonize.progress import Progress
from headspark.config import run_command
from headspark.run.checkpoint import SEAL, Checkpoint, load_newest, save_checkpoint
from headspark.run.device import say_once

ROOT = Path(__file__).resolve().parents[1]
EVIL = "\x1b[2J\u202eevil\nerror: all is well"

PRINTS = {
    "harmonize/terminal.py": "here all that is printed is escaped",
    "ssl/headspark/run/device.py": "accelerate's own print, of an escaped line",
    "ssl/headspark/run/output_streams.py": "hands on what was escaped",
    "harmonize/system.py": "words of its own, before anything else is imported",
    "harmonize/progress.py": "tqdm's, of escaped lines",
    "harmonize/fetch/download.py": "tqdm's, of escaped lines",
    "harmonize/fetch/openmind.py": "tqdm's, of escaped lines",
}
"""Where something is printed otherwise than by `harmonize.terminal.say`, `warn` and `emit`, and why it may be."""


def is_print(node: ast.AST) -> bool:
    """Whether a call writes to a terminal: ``print``, ``x.print``, ``sys.stdout.write``, ``tqdm.write``."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Name):
        return called.id == "print"
    if not isinstance(called, ast.Attribute):
        return False
    owner = ast.unparse(called.value)
    return called.attr == "print" or (
        called.attr == "write" and owner in ("sys.stdout", "sys.stderr", "tqdm", "self._bar", "self._stream", "out")
    )


def hands_print_on(node: ast.AST) -> bool:
    """Whether something that prints is given away: ``say=accelerator.print``, ``say=print``."""
    return isinstance(node, ast.Call) and any(
        (isinstance(one, ast.Attribute) and one.attr == "print") or (isinstance(one, ast.Name) and one.id == "print")
        for one in (*node.args, *(keyword.value for keyword in node.keywords))
    )


def is_talking_parser(node: ast.AST) -> bool:
    """Whether a parser is made that prints by itself what is wrong with a command line."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "argparse.ArgumentParser"


def test_all_that_is_printed_goes_through_the_terminal_module() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("harmonize", "ssl", "finetune")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if is_print(node) or hands_print_on(node) or is_talking_parser(node)
    }
    assert found == set(PRINTS)


def only_escaped(shown: str) -> bool:
    lines = shown.replace("\r", "").splitlines()
    return all(line.isprintable() for line in lines) and not any(line.startswith("error: all is") for line in lines)


class Terminal(io.StringIO):
    """One that draws bars."""

    def isatty(self) -> bool:
        return True


def test_a_bar_obeys_neither_its_label_nor_its_facts() -> None:
    for stream in (Terminal(), io.StringIO()):
        with Progress(f"cache {EVIL}", total=2, stream=stream, interval_s=0) as progress:
            progress.advance(stage=EVIL)
            progress.say(EVIL)
            progress.advance()
        shown = stream.getvalue().replace("\x1b[A", "")
        assert "\\x1b[2J\\u202eevil\\nerror: all is well" in shown
        assert only_escaped(shown)


def test_a_run_says_a_damaged_checkpoint_of_a_stranger_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = save_checkpoint(tmp_path, Checkpoint(step=1, model={}, ema=None, training={}), keep=1)
    text = (made / SEAL).read_text()
    (made / SEAL).write_text(text.replace('"training.pt"', '"\\u001b[2Jx\\nerror: all is well"'))
    accelerator = Accelerator(cpu=True)
    assert load_newest(tmp_path, say=lambda line: say_once(accelerator, line)) is None
    said = capsys.readouterr().out
    assert "\\x1b[2Jx\\nerror: all is well" in said
    assert said.count("\n") == 1
    assert only_escaped(said)


def test_what_ends_a_training_is_shown_with_its_text_but_obeys_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert run_command(lambda words: 0, []) == 0
    try:
        raise RuntimeError("CUDA error: no kernel\n\x1b[2J")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "RuntimeError: CUDA error: no kernel\n  \\x1b[2J\n" in shown
    assert only_escaped(shown)


def push() -> ModuleType:
    spec = importlib.util.spec_from_file_location("push_script", ROOT / "ssl" / "push.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_command_line_that_is_wrong_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    script = push()
    commands = {
        "harmonize": lambda words: main(["verify", *words]),
        "finetune": lambda words: cli.main(["report", *words]),
        "demo": demo.main,
        "push": lambda words: run_command(script.main, words),
    }
    for name, command in commands.items():
        assert command([f"--{EVIL}"]) == 2, name
        shown = capsys.readouterr().err
        assert shown.startswith("error: "), name
        assert shown.count("\n") == 1, name
        assert only_escaped(shown), name


def test_locate_shows_names_of_a_raw_tree_in_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, corpus = tmp_path / "raw", tmp_path / "corpus"
    assert main(["phantom", "--source", "tcia", "--out", str(raw), "--scans", "1", "--size", "24"]) == 0
    for file in list((raw / "tcia").rglob("*.dcm")):
        file.rename(file.with_name(f"{EVIL}{file.name}"))
    words = ["--out", str(corpus), "--workers", "0", "--spacing", "8", "--mri-norm", "zscore"]
    assert main(["tcia", str(raw / "tcia"), *words]) == 0
    capsys.readouterr()
    name = layout_id(corpus)
    assert main(["locate", "tcia", str(raw / "tcia"), str(corpus), name]) == 0
    shown = capsys.readouterr().out
    assert "/\\x1b[2J\\u202eevil\\nerror: all is well" in shown
    assert shown.count("\n") == 1
    assert only_escaped(shown)


def layout_id(corpus: Path) -> str:
    from harmonize.corpus import Corpus

    return str(Corpus.open(corpus).scans["scan_id"].iloc[0])


@pytest.mark.parametrize("command", ["harmonize", "finetune", "demo"])
def test_commands_that_open_raw_files_end_without_the_texts_of_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    (tmp_path / "file").write_text("")
    {
        "harmonize": lambda: main(["verify", str(tmp_path)]),
        "finetune": lambda: cli.main(["report", str(tmp_path)]),
        "demo": lambda: demo.main(["--out", str(tmp_path / "file")]),
    }[command]()
    capsys.readouterr()
    sys.excepthook(KeyError, KeyError("Zqxjkv^Ann"), None)
    assert capsys.readouterr().err == "Traceback (most recent call last):\nKeyError\n"


def test_the_competitions_server_says_of_a_fault_what_it_is_and_no_text_of_a_header(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def __init__(self, folder: Path) -> None:
            pass

        def answer(self, series: Path) -> None:
            raise ValueError("Zqxjkv^Ann is no number")

    monkeypatch.setattr(server, "Predictor", Failing)
    server.make_predict(tmp_path)("series")
    shown = capsys.readouterr().err
    assert "series: ValueError; answered with the default row" in shown
    assert "Zqxjkv" not in shown


def test_the_hook_of_a_thread_is_careful_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import threading

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    terminal.hide_texts_of_errors()

    def fail() -> None:
        raise ValueError("Zqxjkv^Ann")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    shown = capsys.readouterr().err
    assert "Zqxjkv" not in shown.replace('raise ValueError("Zqxjkv^Ann")', "")
    assert "ValueError" in shown


def test_errors_of_a_parser_are_ours() -> None:
    from harmonize.parser import Parser

    with pytest.raises(UserError, match="see `x --help`") as error:
        Parser(prog="x").parse_args(["--nope"])
    assert error.value.exit_code == 2
