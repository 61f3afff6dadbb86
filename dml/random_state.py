"""The state of torch's global generators, on each process."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor


def gather_random_state(module: LightningModule) -> dict[str, Tensor]:
    """The states ``[processes, bytes]`` of the generators of the CPU and, where it is used, of the process's GPU."""
    states = {"cpu": torch.get_rng_state()}
    if module.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(module.device)
    gathered = {}
    for name, state in states.items():
        of_all = module.all_gather(state)
        assert isinstance(of_all, Tensor)
        gathered[name] = of_all.reshape(-1, len(state)).cpu()
    return gathered


def restore_random_state(states: dict[str, Tensor], module: LightningModule) -> None:
    """Go on from :func:`gather_random_state`. A process that was not there before keeps its own state."""
    rank = module.global_rank
    if rank < len(states["cpu"]):
        torch.set_rng_state(states["cpu"][rank].cpu().clone())  # of a view, torch would read past its end
    if module.device.type == "cuda" and rank < len(states.get("cuda", [])):
        torch.cuda.set_rng_state(states["cuda"][rank].cpu().clone(), module.device)
