"""Correlation Mode Decomposition (CMD), for any model: the algorithm's public face.

"Enhancing Neural Training via a Correlated Dynamics Model", ICLR 2024. The weights of a network
move together while it trains: each belongs to one of a few modes, in which it is an affine
function of the mode's reference weight, w_i(t) ≈ a_i · w_r(t) + b_i.

On a finished run, whose trajectory is float32 [T, N], one snapshot of all weights an epoch:

    sample = sample_weights(layer_sizes(model), k=1000)
    cmd = fit_cmd(trajectory, sample, modes=10)
    theta = cmd.reconstruct(cmd.reference_history[-1])    # float32 [N]

Alongside training, as torch.optim.swa_utils.AveragedModel is used:

    online = OnlineCMD(model, modes=10, samples=1000, warmup=20)
    for epoch in range(epochs):
        train(model)
        online.update_parameters(model)
    test(online.module)

`read_vector` and `write_vector` turn a model into its vector θ and back.

On a series of checkpoints, from the command line:

    python -m utils.cmd_utils epoch_*.pt --modes 10
"""

if __name__ == "__main__":  # before anything large is imported
    from utils.system.interrupts import end_quietly

    end_quietly()

from utils.cmd.clustering import sample_weights
from utils.cmd.fitting import CMDModel, fit_cmd
from utils.cmd.online import OnlineCMD
from utils.cmd.vector import layer_names, layer_sizes, read_vector, write_vector

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

if __name__ == "__main__":
    from utils.cmd.fit_files import main
    from utils.system.interrupts import leave

    leave(main())
