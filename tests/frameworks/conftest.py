"""These tests are collected only if this folder is asked for by name: they need packages whose pins clash with each other's."""

import pathlib

HERE = pathlib.Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    asked = any(HERE.name in pathlib.Path(argument.split("::")[0]).parts for argument in config.args)
    return None if asked else True
