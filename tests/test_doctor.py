"""The doctor says which path runs and why, in text and in JSON, and its self-test sees a wrong operation."""

import json

import pytest
import torch

from gigpo_fast import __main__ as command_line
from gigpo_fast import backend, doctor, logprob, selftest

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _auto(monkeypatch):
    monkeypatch.delenv("GIGPO_FAST_BACKEND", raising=False)


def _row(found: dict, operation: str) -> dict:
    return next(row for row in found["paths"] if row["device"] == "cpu" and operation in row["operation"])


def test_json_is_one_object(capsys):
    assert command_line.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"gigpo_fast", "python", "packages", "devices", "native_library", "paths", "environment"} <= set(found)
    assert found["packages"]["torch"] == torch.__version__
    assert {"cpu"} <= set(found["devices"])


def test_every_operation_has_a_path_and_a_slow_one_a_reason():
    for row in doctor.report()["paths"]:
        assert row["path"] in ("triton", "cuda", "native", "torch"), row
        only_torch = "objectives" in row["operation"]
        assert (row["reason"] is None) == (only_torch or row["path"] != "torch"), row


def test_a_missing_library_is_explained(monkeypatch, capsys):
    monkeypatch.setattr(backend, "native_library", lambda: None)
    backend._load_native.cache_clear()
    try:
        found = doctor.report()
        assert _row(found, "row kernels")["path"] == "torch"
        assert "was not built" in _row(found, "row kernels")["reason"]
        assert "was not built" in _row(found, "anchor grouping")["reason"]
        assert command_line.main(["doctor"]) == 0
        text = capsys.readouterr().out
        assert "pip install --no-build-isolation" in text, "the fix must be in the text"
        assert text.count("was not built") == 1, "one reason is printed once"
        assert command_line.main(["doctor", "--native"]) == 0
        assert "pure torch" in capsys.readouterr().out
    finally:
        backend._load_native.cache_clear()


def test_a_path_asked_for_is_named_as_the_reason(monkeypatch):
    monkeypatch.setenv("GIGPO_FAST_BACKEND", "torch")
    found = doctor.report()
    for operation in ("row kernels", "anchor grouping"):
        assert (_row(found, operation)["path"], _row(found, operation)["reason"]) == ("torch", "backend 'torch' was asked for")
    assert found["environment"]["GIGPO_FAST_BACKEND"] == "torch"


def test_a_path_that_cannot_run_is_an_error_and_not_a_crash(monkeypatch, capsys):
    monkeypatch.setenv("GIGPO_FAST_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    row = _row(doctor.report(), "row kernels")
    assert row["path"] == "error"
    assert "cannot run on cpu" in row["reason"]
    assert command_line.main(["doctor"]) == 0
    assert "error" in capsys.readouterr().out


def test_selftest_agrees_on_this_machine():
    results = list(selftest.results([CPU]))
    wrong = [f"{result.name}: {result.note}" for result in results if not result.ok]
    assert not wrong, "\n".join(wrong)
    names = [result.name for result in results]
    assert len(set(names)) == len(names) >= 2 * len(selftest.OPERATIONS) + 2 * len(selftest.OBJECTIVES)
    for operation in ("token_log_probs", "linear_token_log_probs", "policy_loss", "linear_policy_loss", "group_states", "GiGPO advantages"):
        assert any(operation in name for name in names)


@pytest.mark.parametrize("fault", ["digits", "nan", "raises", "dtype"])
def test_selftest_sees_a_wrong_operation(fault, monkeypatch, capsys):
    honest = logprob.token_log_probs

    def wrong(*args, **keywords):
        if fault == "raises":
            raise RuntimeError("a compiler fault")
        found = honest(*args, **keywords)
        if fault == "dtype":
            return found._replace(log_probs=found.log_probs.bfloat16())
        return found._replace(log_probs=found.log_probs + (1e-5 if fault == "digits" else float("nan")))

    monkeypatch.setattr(logprob, "token_log_probs", wrong)
    monkeypatch.setattr(selftest, "OPERATIONS", selftest.OPERATIONS[:1])
    monkeypatch.setattr(selftest, "OBJECTIVES", {})
    monkeypatch.setenv("GIGPO_FAST_BACKEND", "torch")
    assert command_line.main(["doctor", "--selftest"]) == 1
    text = capsys.readouterr().out
    assert "WRONG  cpu torch  token_log_probs, float32" in text and "ok     cpu torch  group_states" in text
    seen = {"digits": "(error 1", "nan": "log_probs: got nan, expected -", "raises": "a compiler fault", "dtype": "must be (6, 8)"}
    assert seen[fault] in text
    assert command_line.main(["doctor", "--selftest", "--json"]) == 1
    assert not all(result["ok"] for result in json.loads(capsys.readouterr().out)["selftest"])
