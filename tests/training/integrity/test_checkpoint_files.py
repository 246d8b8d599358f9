"""Why a checkpoint can't be read, in one short line."""

import pytest

from moco_jax.training.integrity.checkpoint_files import reason

OPENING = 'Error opening "zarr" driver: '


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            f'DATA_LOSS: {OPENING}Error reading "step/.zarray" in OCDBT database at local file '
            '"/w/": Error decoding b-tree node: CRC-32C checksum verification failed: expected=42, '
            "actual=26 [tensorstore_spec='{}']",
            "CRC-32C checksum verification failed: expected=42, actual=26",
        ),
        (
            f'NOT_FOUND: {OPENING}Metadata at "a/.zarray" does not exist [source locations=x]',
            'Metadata at "a/.zarray" does not exist',
        ),
        ("one\n two", "one two"),
    ],
)
def test_the_last_error_of_a_chain_is_the_reason(error, shown):
    assert reason(error) == shown
