"""Which client has which images."""

import numpy as np

from utils.system.errors import UserError

PARTITIONS = IID, DIRICHLET = ("iid", "dirichlet")
LEAST = 10  # images of a client
LARGEST_ALPHA = 1e6  # shares are alike long before
TRIES = 1000


def partition(
    labels: np.ndarray, clients: int, kind: str, alpha: float, seed: int
) -> list[np.ndarray]:
    """Deal out the images: int64 [n] for each client, in all every image once.

    With "iid" they are shuffled and dealt out evenly. With "dirichlet" the shares of each class are
    drawn from Dir(α), as in "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, and drawn again until every client has LEAST images.

    Args:
        labels: int64 [n], of the images.
        clients: how many clients there are.
        kind: one of PARTITIONS.
        alpha: α.
        seed: of the draws.

    Raises:
        UserError: there are too few images, or no draw gives each client LEAST of them.
    """
    if len(labels) < LEAST:
        raise UserError(
            f"{len(labels)} images are too few for a client; choose --limit {LEAST} or more"
        )
    if len(labels) < clients * LEAST:
        raise UserError(
            f"--clients {clients}: {len(labels):,} images are too few for {LEAST} each; choose "
            f"at most {len(labels) // LEAST}"
        )
    draw = np.random.default_rng([seed, clients])
    if kind == IID:
        return [np.sort(part) for part in np.array_split(draw.permutation(len(labels)), clients)]
    for _ in range(TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = draw.permutation(np.flatnonzero(labels == label))
            ends = draw.dirichlet(np.full(clients, alpha)).cumsum()[:-1] * len(members)
            for part, chosen in zip(parts, np.split(members, ends.astype(int)), strict=True):
                part.append(chosen)
        images = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, images)) >= LEAST:
            return images
    raise UserError(
        f"--alpha {alpha:g}: in {TRIES} draws some of {clients} clients had fewer than {LEAST} "
        "images; choose a larger one, or fewer --clients"
    )
