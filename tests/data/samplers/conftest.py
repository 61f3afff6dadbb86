import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def sop_labels(real_data):
    """Product and category ``[59551, 2]`` of the training list of Stanford Online Products."""
    table = np.loadtxt(real_data / "sop_lists" / "Ebay_train.txt.gz", skiprows=1, usecols=(1, 2), dtype=np.int64)
    return torch.from_numpy(table)
