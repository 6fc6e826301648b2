"""The public names, by inspection: what others rely on does not change by accident."""

import re

import jobhandle_celery
from jobhandle_celery import errors


def test_error_tree_of_docstring_is_the_tree_of_classes() -> None:
    parents: list[str] = []
    bases = {}
    line = re.compile(r"    ((?:│   )*)(?:[├└]── )?(\w+(?:Error|Requested))(?: \((\w+)\))?(?: |$)")
    for drawn in (errors.__doc__ or "").splitlines():
        if match := line.match(drawn):
            branch, name, builtin = match.groups()
            depth = len(branch) // 4 + ("──" in drawn)
            bases[name] = {*parents[depth - 1 : depth], *([builtin] if builtin else [])}
            parents[depth:] = [name]
    assert len(bases) == len([name for name in jobhandle_celery.__all__ if name in bases])
    del bases["JobHandleError"]
    for name, expected in bases.items():
        assert {base.__name__ for base in getattr(jobhandle_celery, name).__bases__} == expected, name
    assert bases["UnknownJobError"] == {"ApiUsageError", "LookupError"}
    assert {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)} >= bases.keys()
