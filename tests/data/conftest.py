from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real data sets, where they lie beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
