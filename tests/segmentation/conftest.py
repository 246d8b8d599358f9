from tests.evaluation.conftest import free_port  # noqa: F401
