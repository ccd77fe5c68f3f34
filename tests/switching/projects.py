"""The projects: what is fetched, which tests of theirs are run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Project:
    """A source distribution on PyPI whose tests use ``torch.func``.

    Attributes:
        name: the file on PyPI, without ``.tar.gz``.
        sha256: of that file.
        package: the name on PyPI's index.
        source: the folder that goes on ``PYTHONPATH``.
        tests: files and folders given to pytest.
    """

    name: str
    sha256: str
    package: str
    source: str
    tests: tuple[str, ...]


PROJECTS = (
    # Hessians, Gauss-Newton matrices and Jacobians of networks as linear operators. Left out are its Monte Carlo tests,
    # up to 10,000 draws each, which are optional there, and those of KFAC, of inverses, and of the base class.
    Project(
        name="curvlinops_for_pytorch-3.0.1",
        sha256="916dd1f1a145d2fed062fcbbcc860561164bbe28b3e02174f8c7d78a006f54a7",
        package="curvlinops-for-pytorch",
        source=".",
        tests=(
            "test/test_hessian.py",
            "test/test_ggn.py",
            "test/test_gradient_moments.py",
            "test/test_jacobian.py",
            "test/test_submatrix.py",
        ),
    ),
    Project(  # eigenvalues of Hessians, Gauss-Newton and Fisher matrices of networks
        name="hessian_eigenthings-1.0.0a5",
        sha256="741ec286623875d16006cd8a72b53738a6db2584b2135da922d17f396910c18c",
        package="hessian-eigenthings",
        source=".",
        tests=(
            "tests/test_ggn_operator.py",
            "tests/test_fisher_operator.py",
            "tests/test_hessian_operator.py",
            "tests/test_trace.py",
            "tests/test_batching.py",
            "tests/test_loss_fns.py",
        ),
    ),
    Project(  # finite elements: stiffness matrices of hyperelastic materials by jacrev under vmap
        name="torch_fem-0.9.0",
        sha256="31e651d569ddedf3366a186bb7972637c66edd45d11968453b96c2730454b986",
        package="torch-fem",
        source="src",
        tests=("tests/test_materials.py", "tests/test_gradients.py", "tests/test_stabilization.py"),
    ),
    Project(  # differential privacy: gradients of each sample by vmap(grad)
        name="opacus-1.6.0",
        sha256="20d77252c1e8528cd5826fbaba345cd39ed5c3edb841707eafb6403fe276140a",
        package="opacus",
        source=".",
        tests=(
            "opacus/tests/grad_samples/linear_test.py",
            "opacus/tests/grad_samples/conv1d_test.py",
            "opacus/tests/grad_samples/embedding_test.py",
            "opacus/tests/grad_samples/group_norm_test.py",
            "opacus/tests/grad_samples/layer_norm_test.py",
            "opacus/tests/grad_samples/dp_rnn_test.py",
        ),
    ),
    Project(  # data attribution: inverse Hessians and Fisher matrices times vectors
        name="dattri-0.3.0",
        sha256="4e0a139da2b22610ea2fbe0302c35b2acd72b58efc13644bc77357df60455816",
        package="dattri",
        source=".",
        tests=("test/dattri/func/test_hessian.py", "test/dattri/func/test_fisher.py"),
    ),
)
