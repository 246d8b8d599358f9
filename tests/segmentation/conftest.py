from tests.supervised.conftest import free_port  # noqa: F401
