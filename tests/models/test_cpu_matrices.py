"""Kernels turned for the CPU compiler against numpy's products of the kernels as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.models import cpu_matrices as subject
from gemma_keras.models.cpu_matrices import OutputMajor, output_major
from gemma_keras.models.weight_table import kind_of

KERNELS = {
    "token_embedding/embeddings": ((50, 24), "rd,vd->rv"),
    "decoder_block_0/attention/query/kernel": ((4, 24, 6), "rd,ndh->rnh"),
    "decoder_block_0/attention/key/kernel": ((1, 24, 7), "rd,ndh->rnh"),  # 7 rows: none is left over in a pair
    "decoder_block_1/attention/attention_output/kernel": ((4, 6, 24), "rnh,nhd->rd"),
    "decoder_block_1/ffw_gating/kernel": ((24, 80), "rd,df->rf"),
    "decoder_block_1/ffw_linear/kernel": ((2000, 24), "rf,fd->rd"),  # longer rows than those that are paired
}


def kernel_of(path, rng):
    return rng.standard_normal(KERNELS[path][0], np.float32)


def turned(path, kernel, halves) -> OutputMajor:
    found = output_major({path: jnp.asarray(kernel)}, halves=halves)[path]
    assert isinstance(found, OutputMajor)
    return found


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("path", KERNELS)
def test_products_are_those_of_the_kernel(path, halves):
    rng = np.random.default_rng(0)
    kernel, equation = kernel_of(path, rng), KERNELS[path][1]
    matrix = turned(path, kernel, halves)
    project = jax.jit(lambda rows: matrix.project(rows, kind_of(path)))
    for count in (*range(1, 10), 16, subject.FEW_ROWS, subject.FEW_ROWS + 1):
        inner = {"rd": (24,), "rnh": (4, 6), "rf": (2000,)}[equation.split(",")[0]]
        rows = rng.standard_normal((count, *inner), np.float32)
        expected = np.einsum(equation, rows.astype(np.float64), kernel.astype(np.float64))
        np.testing.assert_allclose(project(rows), expected, atol=1e-3 if path.endswith("ffw_linear/kernel") else 2e-5)


@pytest.mark.parametrize("path", KERNELS)
def test_the_kernel_comes_back(path):
    kernel = kernel_of(path, np.random.default_rng(1))
    np.testing.assert_array_equal(turned(path, kernel, True).dense(jnp.float32), kernel)


def test_rows_of_the_embeddings_are_looked_up_in_both_halves():
    path = "token_embedding/embeddings"
    kernel = kernel_of(path, np.random.default_rng(2))
    ids = np.array([[0, 24, 25], [49, 26, 3]])
    np.testing.assert_array_equal(turned(path, kernel, True).lookup(jnp.asarray(ids), jnp.float32), kernel[ids])


def test_a_row_of_nan_leaves_the_others_alone():
    """Also where it shares a product of pairs with them."""
    path = "decoder_block_1/ffw_gating/kernel"
    rng = np.random.default_rng(3)
    kernel, rows = kernel_of(path, rng), rng.standard_normal((3, 24), np.float32)
    rows[1] = np.nan
    product = np.asarray(turned(path, kernel, True).project(jnp.asarray(rows), kind_of(path)))
    np.testing.assert_allclose(product[[0, 2]], rows[[0, 2]] @ kernel, atol=2e-5)
    assert np.isnan(product[1]).all()


def test_adapters_and_other_weights_stay_as_they_are():
    others = {"decoder_block_0/ffw_gating/lora/lora_A": jnp.ones((2, 3)), "final_normalization/scale": jnp.ones(3)}
    assert all(output_major(others, halves=True)[path] is value for path, value in others.items())
