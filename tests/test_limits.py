"""The limits of tests/limits.py hold, and a file beyond each of them is found."""

import limits


def test_the_project_keeps_its_limits() -> None:
    found = limits.violations()
    assert not found, "\n".join(found)


def test_a_file_of_one_line_too_many_is_found() -> None:
    assert not list(limits.long_files("a.py", "x = 1\n" * limits.FILE_LINES))
    assert list(limits.long_files("a.py", "x = 1\n" * (limits.FILE_LINES + 1))) == [
        "a.py: 401 lines; at most 400"
    ]


def test_a_function_of_one_line_too_many_is_found() -> None:
    body = "    pass\n" * (limits.FUNCTION_LINES - 1)
    assert not list(limits.long_functions("a.py", f"def f():\n{body}"))
    for start in ("def", "async def"):
        found = list(limits.long_functions("a.py", f"\n{start} f():\n{body}    pass\n"))
        assert found == ["a.py:2: f has 61 lines; at most 60"]


def test_a_parameter_too_many_is_found() -> None:
    names = ", ".join(f"p{n}" for n in range(limits.PARAMETERS))
    for given in (names, f"self, {names}", f"cls, *, {names}"):
        assert not list(limits.long_functions("a.py", f"def f({given}): pass"))
    for given in (f"{names}, q", f"p, /, *, {names}", f"self, {names}, *, q"):
        text = f"def f({given}): pass"
        assert list(limits.long_functions("a.py", text)) == ["a.py:1: f has 8 parameters; at most 7"]
        assert not list(limits.long_functions(limits.KERNELS[0], text))


def test_untyped_dictionaries_are_counted_wherever_they_stand() -> None:
    text = "x: dict[str, Any] = {}\ny: list[dict[str, Any]]\nz: dict[str, int]\n"
    assert list(limits.untyped("a.py", text)) == ["a.py:1: dict[str, Any]", "a.py:2: dict[str, Any]"]
