"""The Transformers' activation against transformers' own, in values, gradients and memory."""

import pytest
import torch
from transformers.activations import ACT2FN

from clip_hf.model.modeling_clip_hf_transformer import quick_gelu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_quick_gelu_equals_transformers(dtype):
    inputs = torch.linspace(-30, 30, 600, dtype=dtype).view(3, -1)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    weights = torch.linspace(-1, 2, 600, dtype=dtype).view(3, -1)
    (quick_gelu(ours) * weights).sum().backward()
    (ACT2FN["quick_gelu"](theirs) * weights).sum().backward()
    assert torch.equal(quick_gelu(inputs), ACT2FN["quick_gelu"](inputs))
    # Where the derivative changes its sign, bfloat16 leaves transformers' no digit.
    tolerance = {"rtol": 0.02, "atol": 1e-3} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


def test_quick_gelu_has_its_first_and_second_derivative():
    inputs = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quick_gelu, inputs)
    assert torch.autograd.gradgradcheck(quick_gelu, inputs)


def test_quick_gelu_keeps_its_input_alone():
    inputs, saved = torch.randn(5, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        quick_gelu(inputs)
    assert [tensor.data_ptr() for tensor in saved] == [inputs.data_ptr()]


def test_quick_gelu_compiles():
    inputs = torch.randn(5, requires_grad=True)
    compiled = torch.compile(quick_gelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), quick_gelu(inputs))
