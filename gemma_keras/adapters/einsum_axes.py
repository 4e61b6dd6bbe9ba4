"""Which axes of a projection's kernel are input features and which are output features.

A keras-hub projection is an einsum such as `btd,ndh->btnh` (query) or `btnh,nhd->btd` (attention output). Adapters see
it as a plain matrix [d_out, d_in], with the features of either side flattened in the order of the activations; that
is the order of Hugging Face's `q_proj.weight` and `o_proj.weight`.
"""

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EinsumAxes:
    """Letters and sizes of one projection's input and output features.

    >>> EinsumAxes.of("btd,ndh->btnh", (4, 16, 8))
    EinsumAxes(kernel='ndh', inputs='d', outputs='nh', input_dims=(16,), output_dims=(4, 8))
    """

    kernel: str
    inputs: str
    outputs: str
    input_dims: tuple[int, ...]
    output_dims: tuple[int, ...]

    @classmethod
    def of(cls, equation: str, kernel_shape: tuple[int, ...]) -> "EinsumAxes":
        left, result = equation.split("->")
        activations, kernel = left.split(",")
        sizes = dict(zip(kernel, kernel_shape, strict=True))
        inputs = "".join(axis for axis in activations if axis in sizes and axis not in result)
        outputs = "".join(axis for axis in result if axis in sizes)
        input_dims, output_dims = (tuple(sizes[axis] for axis in side) for side in (inputs, outputs))
        return cls(kernel, inputs, outputs, input_dims, output_dims)

    def to_kernel(self, matrix):
        """[d_out, d_in] -> the kernel's own shape."""
        split = jnp.reshape(matrix, (*self.output_dims, *self.input_dims))
        return jnp.einsum(f"{self.outputs}{self.inputs}->{self.kernel}", split)
