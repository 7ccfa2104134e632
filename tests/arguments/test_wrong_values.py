"""Every public function and method with wrong values: an error of ours that says what is wrong, never a number."""

import ast
import importlib
import inspect
import itertools
import os
import pkgutil
import signal
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from calls import CALLS, ERRORS, RESULTS, TYPES, WITHOUT_DATA, Call
from wrong_values import WRONG_VALUES

import nlcompanion

SECONDS = 10
NUMBERS = itertools.count()
PACKAGE = Path(nlcompanion.__file__).parent
FOLDERS = [found.name for found in pkgutil.iter_modules([str(PACKAGE)]) if found.ispkg and found.name[0] != "_"]
CASES = [(name, argument) for name, call in CALLS.items() for argument in call.arguments]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("wrong_values")


@pytest.fixture(autouse=True)
def _elsewhere(folders, monkeypatch):
    """Some of the values are taken for names of files; one folder for all would not do, and tmp_path takes longer."""
    folder = folders / str(next(NUMBERS))
    folder.mkdir()
    monkeypatch.chdir(folder)


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


class Answer(NamedTuple):
    """What a call made of a value: ``answered``, ``refused`` by an error of ours, or ``failed``."""

    how: str
    text: str


def answer(call: Call, argument: str, value) -> Answer:
    signal.signal(signal.SIGALRM, stop_it)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = call(**{argument: value})
    except TooLong:
        return Answer("failed", f"works on it for more than {SECONDS} s")
    except Exception as error:
        return answer_by(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Answer("answered", f"answers with {str(given)[:60]!r}")


def where_it_was_raised(error: Exception) -> tuple[str, int]:
    """File and line of the last frame; ``traceback.extract_tb`` looks up the source of all of them."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame.f_code.co_filename, last.tb_lineno


def answer_by(error: Exception) -> Answer:
    """A bare error comes from another library, or from Python without a ``raise`` of this package."""
    file, line = where_it_was_raised(error)
    ours = file.startswith(f"{PACKAGE}{os.sep}")
    text = f"{type(error).__name__} from {os.path.basename(file)}:{line}: {str(error)[:90]!r}"
    if not ours or line not in raising_lines(file):
        return Answer("failed", f"bare {text}")
    own = type(error).__module__.startswith("nlcompanion")
    if not (own or isinstance(error, ValueError | TypeError | MemoryError)):
        return Answer("failed", f"an error that is no kind of error for an argument, {text}")
    return Answer("refused", text)


def complaint(call: Call, argument: str, kind: str) -> str:
    """What is wrong with the answer to a kind of value, as the table has it; empty where nothing is."""
    right, either = kind in call.right.get(argument, ()), kind in call.either.get(argument, ())
    how, text = answer(call, argument, WRONG_VALUES[kind]())
    if how == "failed" or (how == "answered" and not (right or either)):
        return text
    if how == "refused" and right and not text.startswith("DataError"):
        return f"is refused, and the table says that it is right: {text}"
    return ""


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_wrong_values_are_refused_by_an_error_of_ours_and_right_ones_answered(name, argument):
    call, found = CALLS[name], []
    for kind in WRONG_VALUES:
        if kind not in call.untried.get(argument, ()) and (said := complaint(call, argument, kind)):
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


def public_methods() -> dict[str, list[str]]:
    """The public methods of public classes that are written in this package, ``__call__`` among them: their arguments.

    Those of errors and of results too, whoever makes them.
    """
    found = {}
    for name, kind in public_names().items():
        if not isinstance(kind, type) or issubclass(kind, Exception):
            continue
        for method in dir(kind):
            if method.startswith("_") and method != "__call__":
                continue
            function = inspect.getattr_static(kind, method)
            function = function.__func__ if isinstance(function, staticmethod | classmethod) else function
            if not inspect.isfunction(function) or function.__module__.split(".")[0] != "nlcompanion":
                continue
            if parameters := list(inspect.signature(function).parameters.values())[1:]:
                found[f"{name}.{method}"] = [x.name for x in parameters if x.kind is not x.VAR_KEYWORD]
    return found


def test_every_public_method_with_arguments_is_in_the_table():
    known = {name.split(" ")[0] for name in CALLS}
    assert not (missing := set(public_methods()) - known), sorted(missing)


def test_every_argument_of_a_method_is_tried():
    rows: dict[str, set[str]] = {}
    for name, call in CALLS.items():
        rows.setdefault(name.split(" ")[0], set()).update(call.arguments)
    missing = {name: set(of) - rows[name] for name, of in public_methods().items() if set(of) - rows[name]}
    assert not missing, missing


def test_the_table_speaks_of_arguments_and_values_that_there_are():
    for name, call in CALLS.items():
        for listed in (call.right, call.either, call.untried):
            assert set(listed) <= set(call.arguments), (name, set(listed) - set(call.arguments))
            assert set().union(*listed.values()) <= set(WRONG_VALUES), name
        both = {argument for argument, kinds in call.right.items() if kinds & call.either.get(argument, set())}
        assert not both, (name, both)


def test_errors_are_errors_and_results_are_made_by_calls():
    public = public_names()
    assert all(issubclass(public[name], Exception) for name in ERRORS)
    assert all(isinstance(public[name], type) and not issubclass(public[name], Exception) for name in RESULTS)


def test_the_judge_of_errors():
    """Controls: what must count as bare, and what must not."""

    def of_python(x):
        return float("not a number")

    assert "bare ValueError" in answer(Call(of_python, {"x": 1}), "x", 1).text
    assert "bare TypeError" in answer(Call(lambda x: nlcompanion.sgd(0.1).gamma("t"), {"x": 1}), "x", 1).text
    assert answer(Call(nlcompanion.sgd, {"lr": 0.1}), "lr", "text").how == "refused"
    assert answer(Call(nlcompanion.sgd, {"lr": 0.1}), "lr", 0.2).how == "answered"


def test_the_judge_of_the_table():
    """Controls: a value that is listed as right and refused, one that is answered and not listed, one either way."""
    rate = {"lr": 0.1}
    assert "is refused" in complaint(Call(nlcompanion.sgd, rate, {"lr": {"zero"}}), "lr", "zero")
    assert complaint(Call(nlcompanion.sgd, rate), "lr", "three").startswith("answers")
    assert complaint(Call(nlcompanion.sgd, rate, {"lr": {"three"}}), "lr", "three") == ""
    either = Call(nlcompanion.sgd, rate, {}, {"lr": {"three", "zero"}})
    assert complaint(either, "lr", "three") == complaint(either, "lr", "zero") == ""
    bare = Call(lambda x: [][x], {"x": 0}, {}, {"x": {"three"}})
    assert complaint(bare, "x", "three").startswith("bare")
