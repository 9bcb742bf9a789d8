"""Correlation Mode Decomposition (CMD) of the weights of any model, while it trains or afterwards.

"Enhancing Neural Training via a Correlated Dynamics Model", ICLR 2024. The weights of a network
move together while it trains: each belongs to one of a few modes, in which it is an affine
function of the mode's reference weight, w_i(t) ≈ a_i · w_r(t) + b_i.

Alongside training, `OnlineCMD` is used as torch.optim.swa_utils.AveragedModel is:

    import torch

    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    cmd = OnlineCMD(model, modes=3, samples=100, warmup=10)
    for epoch in range(40):
        for x in torch.randn(8, 64, 8):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), x[:, :1] * x[:, 1:2]).backward()
            optimizer.step()
        cmd.update_parameters(model)  # once an epoch
    cmd(x)  # what the reconstructed model, cmd.module, makes of x

Lightning and transformers have callbacks in `callbacks`.

On a finished run, whose trajectory is float32 [T, N], one snapshot of all weights an epoch:

    sample = sample_weights(layer_sizes(model), k=1000)
    cmd = fit_cmd(trajectory, sample, modes=10)
    write_vector(cmd.reconstruct(cmd.reference_history[-1]), model)

This package imports nothing but torch, numpy and scipy, and safetensors and tqdm for files; it
works under any name.
"""

from .clustering import sample_weights
from .fitting import fit_cmd
from .model import CMDModel
from .online import OnlineCMD
from .vector import layer_names, layer_sizes, read_vector, write_vector

__all__ = [
    "CMDModel",
    "OnlineCMD",
    "fit_cmd",
    "layer_names",
    "layer_sizes",
    "read_vector",
    "sample_weights",
    "write_vector",
]
