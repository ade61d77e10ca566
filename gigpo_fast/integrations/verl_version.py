"""Which verl this works with: one version, whose internals it replaces parts of."""

TESTED = "0.9.1"


def check_verl(function: str) -> None:
    """Raise ImportError for any other version than the one that the tests ran with."""
    import verl

    if verl.__version__ != TESTED:
        raise ImportError(
            f"{function}: verl must be {TESTED}, got {verl.__version__}; parts of it change between versions (pip install 'verl=={TESTED}')"
        )
