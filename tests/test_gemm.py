"""The products of a head in low precision: with an fp32 result where the device has one, and with the logits gone where they are large."""

import contextlib
import gc
import weakref
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gigpo_fast.logprob import linear_token_log_probs
from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.objective import PolicyObjective
from gigpo_fast.ops import gemm, passes
from tests.tolerance import assert_same_bits


def test_low_precision_operands_stay_low_on_a_gpu():
    """bf16 operands with an fp32 result: widening them first is what makes others slow. On fake CUDA tensors."""
    seen = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function._schema.name == "aten::mm":
                seen.append((arguments[0].dtype, arguments[1].dtype, arguments[2] if len(arguments) > 2 else None))
            return function(*arguments, **(keywords or {}))

    with mock.patch.object(gemm, "_has_out_dtype", lambda device, dtype: True), FakeTensorMode(), Products():
        hidden, weight, d_logits = (torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in ((32, 8), (48, 8), (32, 48)))
        assert gemm.head_logits(hidden, weight, None).dtype == torch.float32
        assert gemm.d_hidden_of(d_logits, weight).dtype == gemm.add_d_weight(None, d_logits, hidden, None).dtype == torch.float32
    assert seen == [(torch.bfloat16, torch.bfloat16, torch.float32)] * 3


def test_every_device_and_dtype_is_asked_for_itself_whether_it_gives_float32(monkeypatch):
    """A Turing GPU multiplies fp16 into fp32 and knows no bf16; what one GPU can says nothing of another."""
    asked, exact = [], torch.mm

    def mm(a, b, *, out_dtype=None):
        if out_dtype is None:
            return exact(a, b)
        asked.append((a.device.type, a.dtype))
        if a.dtype == torch.bfloat16 and a.device.type == "cpu":
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return exact(a.to(out_dtype), b.to(out_dtype))

    gemm._has_out_dtype.cache_clear()
    monkeypatch.setattr(torch, "mm", mm)
    try:
        for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
            a, b = torch.randn(5, 7).to(dtype), torch.randn(7, 3).to(dtype)
            assert_same_bits("product", gemm._low_precision_mm(a, b), exact(a.float(), b.float()))
            assert gemm._low_precision_mm(a.to("meta"), b.to("meta")).dtype == torch.float32
    finally:
        gemm._has_out_dtype.cache_clear()
    probe_alone, with_product = [("cpu", torch.bfloat16)], [("cpu", torch.float16)] * 2
    assert [each for each in asked if each[0] == "cpu"] == [*probe_alone, *with_product]
    assert asked.count(("meta", torch.bfloat16)) == 3 and asked.count(("meta", torch.float16)) == 2  # one probe each, and the products


def test_the_question_is_no_part_of_a_graph_that_is_captured(monkeypatch):
    """It is asked on another stream than the one that is being captured."""
    entered, streams = [], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.append(device) or "aside")

    @contextlib.contextmanager
    def stream(which):
        entered.append(which)
        try:
            yield
        finally:
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch, "ones", lambda *size, **keywords: entered.append("probe") or torch.zeros(size))
    gemm._has_out_dtype.cache_clear()
    try:
        gemm._has_out_dtype(torch.device("cuda", 1), torch.float16)
    finally:
        gemm._has_out_dtype.cache_clear()
    assert streams == [torch.device("cuda", 1)] and entered == ["aside", "probe", "left"]


def test_logits_are_gone_before_the_product_that_is_the_size_of_the_weight(monkeypatch):
    """On a GPU dlogits of low-precision operands are memory of their own, so nothing needs the logits any more."""
    exact_logits, exact_weight, seen = passes.d_logits_of, passes.add_d_weight, []

    def d_logits_of(logits, *rest):
        seen.append(weakref.ref(logits))
        d_logits, factor = exact_logits(logits, *rest)
        return d_logits.clone(), factor  # as on a GPU

    def add_d_weight(*arguments):
        gc.collect()
        assert seen[-1]() is None, "somebody still holds the logits"
        seen.append(True)
        return exact_weight(*arguments)

    monkeypatch.setattr(passes, "d_logits_of", d_logits_of)
    monkeypatch.setattr(passes, "add_d_weight", add_d_weight)
    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    ids, mask = torch.randint(64, (40,)), torch.ones(40, dtype=torch.bool)
    out = linear_policy_loss(hidden, weight, ids, torch.randn(40), mask, objective=PolicyObjective())
    assert seen.count(True) == 1
    linear_token_log_probs(hidden, weight, ids).log_probs.sum().backward()
    assert seen.count(True) == 2 and out.loss.isfinite()
