"""Turns a network into a list of steps that `engine.js` can compute."""

import base64
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from mnist_lightning.errors import OutputError

# torch's operations, and the functions of engine.js that compute the same.
FUNCTIONS = {
    "_softmax.default": "softmax",
    "_to_copy.default": "reshape",
    "add.Tensor": "add",
    "addmm.default": "addmm",
    "avg_pool2d.default": "averagePool",
    "convolution.default": "convolution",
    "div.Tensor": "div",
    "index.Tensor": "take",
    "max_pool2d_with_indices.default": "maxPool",
    "mean.dim": "mean",
    "mm.default": "matmul",
    "mul.Tensor": "mul",
    "relu.default": "relu",
    "sigmoid.default": "sigmoid",
    "sub.Tensor": "sub",
    "tanh.default": "tanh",
}
# Operations that copy all values, and change at most the shape.
SAME_VALUES = ("clone.default", "squeeze.dims", "unsqueeze.default", "view.default")
FUNCTIONS |= dict.fromkeys(SAME_VALUES, "reshape")


class Constants:
    """Tensors that do not depend on the image. Equal tensors are stored once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[bytes, tuple[int, ...]], int] = {}

    def add(self, tensor: Tensor) -> dict[str, int]:
        data = tensor.detach().float().numpy().astype("<f4").tobytes()
        return {"constant": self._numbers.setdefault((data, tuple(tensor.shape)), len(self._numbers))}

    def packed(self) -> dict[str, Any]:
        """Return the `shapes` of all tensors, and their `values`, joined: little-endian float32 in base64."""
        values = base64.b64encode(b"".join(data for data, _ in self._numbers)).decode()
        return {"shapes": [shape for _, shape in self._numbers], "values": values}


def steps_of(program: torch.export.ExportedProgram, constants: Constants) -> list[dict[str, Any]]:
    """Return the steps that a program computes for one image. The last step gives the probabilities.

    Args:
        program: The exported program of a `DigitReader`, for one image: uint8 `(1, 28, 28)`.
        constants: Receives all tensors that do not depend on the image.

    Returns:
        Each step names a function of engine.js, its arguments, and the shape of its result. The argument
        `{"constant": 3}` is one of `constants`. `{"step": 4}` is the result of step 4, and `{"step": -1}` is the image.

    Raises:
        OutputError: engine.js can't compute an operation of the network.
    """
    program = program.run_decompositions()
    inputs = program.graph_signature
    stored = {**inputs.inputs_to_parameters, **inputs.inputs_to_buffers, **inputs.inputs_to_lifted_tensor_constants}
    tensors = {**program.state_dict, **program.constants}
    results: dict[fx.Node, Any] = {}  # {"step": number}, or a tensor that does not depend on the image
    steps: list[dict[str, Any]] = []

    def add_step(run: str, shape: list[int], arguments: Any) -> dict[str, int]:
        steps.append({"run": run, "shape": shape, "arguments": tree_map_only(Tensor, constants.add, arguments)})
        return {"step": len(steps) - 1}

    for node in program.graph.nodes:
        arguments = tree_map_only(fx.Node, results.__getitem__, node.args)
        if node.op == "placeholder":
            results[node] = tensors[stored[node.name]] if node.name in stored else {"step": -1}
        elif node.op == "call_function" and not _has_step(arguments):
            results[node] = node.target(*arguments, **node.kwargs)
        elif "getitem" in str(node.target) and node.args[1] == 0:
            results[node] = arguments[0]  # the other results are used only in training
        elif node.op == "call_function" and "_assert" not in str(node.target):
            name, result = str(node.target).removeprefix("aten."), node.meta["val"]
            result = result if isinstance(result, Tensor) else result[0]
            shape = list(result.shape)
            if name == "_native_batch_norm_legit_no_training.default":
                x, weight, bias, mean, variance, _, epsilon = arguments
                scale = (1 if weight is None else weight) / (variance + epsilon).sqrt()
                shift = (0 if bias is None else bias) - mean * scale
                scale, shift = (value.view(-1, *[1] * (len(shape) - 2)) for value in (scale, shift))
                name, arguments = "add.Tensor", [add_step("mul", shape, [x, scale]), shift]
            if name == "slice.Tensor":
                x, axis, *bounds = arguments
                places = torch.arange(node.args[0].meta["val"].shape[axis])[slice(*bounds)]
                name, arguments = "index.Tensor", [x, [*[None] * (axis % len(shape)), places]]
            # A memory format changes no value. engine.js keeps all values in the order of their places.
            if node.kwargs.keys() - {"dtype", "memory_format"} or not _is_known(name, arguments, result):
                raise OutputError(
                    f"the network uses {name.partition('.')[0]}, which a page can't compute; export an .onnx file",
                    "output",
                )
            results[node] = add_step(FUNCTIONS[name], shape, arguments)
    return steps


def _is_known(name: str, arguments: Any, result: Tensor) -> bool:
    """Return whether engine.js can compute an operation with these arguments."""
    match name:
        case "convolution.default":
            return result.ndim == 4 and True not in arguments[6:7]  # not transposed
        case "avg_pool2d.default":
            return True not in arguments[4:5]  # no `ceil_mode`
        case "index.Tensor":
            lists = [index for index in arguments[1] if index is not None]
            return [index.ndim for index in lists if isinstance(index, Tensor)] == [1] and bool((lists[0] >= 0).all())
        case "mean.dim":
            return bool(arguments[1])  # over some axes
        case "_softmax.default":
            return result.shape[arguments[1]] == result.numel()  # over all values
    if name in SAME_VALUES:
        return True
    return name in FUNCTIONS and result.dtype == torch.float32  # other types round differently


def _has_step(value: Any) -> bool:
    return any(map(_has_step, value)) if isinstance(value, list | tuple) else isinstance(value, dict)
