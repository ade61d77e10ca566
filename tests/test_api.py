"""The public names and signatures, compared with the snapshot tests/api.txt, so that a change of the API is a decision and not an accident.

After a change that is meant: `python tests/test_api.py --write`, and a line in CHANGELOG.md.
"""

import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable

SNAPSHOT = pathlib.Path(__file__).with_name("api.txt")


def public_signatures() -> list[str]:
    """One line for each public name: modules in `gigpo_fast.__all__`, the names they define, the public methods of classes."""
    import gigpo_fast

    lines = []
    for name in sorted(gigpo_fast.__all__):
        value = getattr(gigpo_fast, name)
        if not inspect.ismodule(value):
            lines.append(f"gigpo_fast.{name}{_arguments(value)}")
            continue
        for member in sorted(_public_names(value)):
            lines += _lines(f"gigpo_fast.{name}.{member}", getattr(value, member))
    return lines


def _public_names(module) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    package = module.__name__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (getattr(value, "__module__", None) or "").startswith(package)
    ]


def _lines(name: str, value) -> list[str]:
    if not callable(value):
        return [f"{name} = {type(value).__name__}"]
    lines = [f"{name}{_arguments(value)}"]
    if inspect.isclass(value):
        for method, body in sorted(vars(value).items()):
            body = body.__func__ if isinstance(body, (staticmethod, classmethod)) else body
            if inspect.isfunction(body) and not method.startswith("_"):
                lines.append(f"{name}.{method}{_arguments(body)}")
    return lines


def _arguments(function: Callable) -> str:
    """Names, kinds and defaults. Annotations are left out: how they print depends on the Python version."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a built-in without a signature
        return "(...)"
    parameters = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else _Shown(p.default)) for p in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters))


class _Shown:
    """A default value as text that is the same in every process: no addresses."""

    def __init__(self, value):
        self.text = getattr(value, "__name__", None) or repr(value)

    def __repr__(self) -> str:
        return self.text


def test_public_signatures_are_the_recorded_ones():
    recorded, now = SNAPSHOT.read_text(encoding="utf-8").splitlines(), public_signatures()
    gone, new = sorted(set(recorded) - set(now)), sorted(set(now) - set(recorded))
    assert recorded == now, "\n".join(
        [
            "the public API differs from tests/api.txt (if that is meant: python tests/test_api.py --write)",
            *[f"  - {line}" for line in gone],
            *[f"  + {line}" for line in new],
        ]
    )


def test_every_public_name_says_what_it_does():
    import gigpo_fast

    silent = []
    for name in gigpo_fast.__all__:
        value = getattr(gigpo_fast, name)
        members = [(f"{name}.{member}", getattr(value, member)) for member in _public_names(value)] if inspect.ismodule(value) else []
        for full_name, member in [(name, value), *members]:
            if callable(member) or inspect.ismodule(member):
                # A dataclass without a docstring is given its own signature as one: that says nothing.
                text = inspect.getdoc(member) or ""
                if len(text.split()) < 3 or text.startswith(f"{getattr(member, '__name__', '')}("):
                    silent.append(full_name)
    assert not silent, f"these public names have no docstring: {silent}"


def test_public_lists_name_what_exists():
    import gigpo_fast

    for name in gigpo_fast.__all__:
        value = getattr(gigpo_fast, name)
        if inspect.ismodule(value):
            assert importlib.import_module(f"gigpo_fast.{name}") is value
            missing = [member for member in getattr(value, "__all__", []) if not hasattr(value, member)]
            assert not missing, f"gigpo_fast.{name}.__all__ names {missing}, which do not exist"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_api.py --write")
    # A script has its own folder on the path, not the repository: add the root before ours is imported.
    sys.path.insert(0, str(SNAPSHOT.parent.parent))
    SNAPSHOT.write_text("\n".join(public_signatures()) + "\n", encoding="utf-8")
    print(f"wrote {len(SNAPSHOT.read_text(encoding='utf-8').splitlines())} signatures to {SNAPSHOT.name}")
