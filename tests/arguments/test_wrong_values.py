"""Every public function with wrong values: an error of ours that says what is wrong, never a number."""

import ast
import importlib
import pkgutil
import signal
import traceback
import warnings
from functools import cache
from pathlib import Path

import pytest
from valid_calls import CALLS, ERRORS, RESULTS, TYPES, WITHOUT_DATA
from wrong_values import WRONG_VALUES

import nlcompanion

SECONDS = 10
PACKAGE = Path(nlcompanion.__file__).parent
FOLDERS = [found.name for found in pkgutil.iter_modules([str(PACKAGE)]) if found.ispkg and found.name[0] != "_"]
CASES = [(name, argument) for name, call in CALLS.items() for argument in call.arguments]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Some of the values are taken for names of files."""
    monkeypatch.chdir(tmp_path)


@cache
def raising_lines(file: str) -> frozenset[int]:
    """The lines of a module that belong to a ``raise``."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return frozenset(lines)


class TooLong(BaseException):
    pass


def stop_it(number, frame):
    raise TooLong


def complaint(call, argument: str, value) -> str:
    """What is wrong with the answer to a wrong value; empty where it is an error of ours."""
    signal.signal(signal.SIGALRM, stop_it)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = call(**{argument: value})
    except TooLong:
        return f"works on it for more than {SECONDS} s"
    except Exception as error:
        return complaint_about(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return f"answers with {str(answer)[:60]!r}"


def complaint_about(error: Exception) -> str:
    """A bare error comes from another library, or from Python without a ``raise`` of this package."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(PACKAGE)
    if not ours or last.lineno not in raising_lines(last.filename):
        return f"bare {type(error).__name__} from {Path(last.filename).name}:{last.lineno}: {str(error)[:90]!r}"
    own = type(error).__module__.startswith("nlcompanion")
    if not (own or isinstance(error, ValueError | TypeError | MemoryError)):
        return f"bare {type(error).__name__}, which is no kind of error for an argument: {str(error)[:90]!r}"
    return ""


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_wrong_values_are_refused_by_an_error_of_ours(name, argument):
    call, found = CALLS[name], []
    for kind, make in WRONG_VALUES.items():
        if kind in call.untried.get(argument, ()):
            continue
        said = complaint(call, argument, make())
        if said.startswith("bare") or (said and kind not in call.right.get(argument, ())):
            found.append(f"{kind}: {said}")
    assert not found, f"{name}({argument}=...):\n" + "\n".join(found)


@pytest.mark.parametrize("name", CALLS)
def test_the_valid_calls_are_valid(name):
    if name in WITHOUT_DATA:
        with pytest.raises(nlcompanion.DataError):
            CALLS[name]()
        return
    CALLS[name]()


def public_names() -> dict[str, object]:
    """What the package and its folders offer, without the folders themselves."""
    names = {name: getattr(nlcompanion, name) for name in nlcompanion.__all__ if name not in FOLDERS}
    for folder in FOLDERS:
        module = importlib.import_module(f"nlcompanion.{folder}")
        names |= {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return names


def test_every_public_name_is_in_the_table():
    """A function that is added without a valid call here fails, and so does a name that is no longer there."""
    known = {name.split(" ")[0].split(".")[0] for name in CALLS} | RESULTS | ERRORS | TYPES
    assert known == set(public_names()), sorted(known ^ set(public_names()))


def test_errors_are_errors_and_results_are_made_by_calls():
    public = public_names()
    assert all(issubclass(public[name], Exception) for name in ERRORS)
    assert all(isinstance(public[name], type) and not issubclass(public[name], Exception) for name in RESULTS)


def test_the_judge_of_errors():
    """Controls: what must count as bare, and what must not."""
    from valid_calls import Call

    def of_python(x):
        return float("not a number")

    assert "bare ValueError" in complaint(Call(of_python, {"x": 1}), "x", 1)
    assert "bare TypeError" in complaint(Call(lambda x: nlcompanion.sgd(0.1).gamma("t"), {"x": 1}), "x", 1)
    assert complaint(Call(nlcompanion.sgd, {"lr": 0.1}), "lr", "text") == ""
    assert complaint(Call(nlcompanion.sgd, {"lr": 0.1}), "lr", 0.2).startswith("answers")
