"""The Flower client app, which takes in a package, trains, and answers with what is to be sent."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from utils.base_utils import get_model
from utils.cmd.vector import read_vector, write_vector
from utils.data.datasets import Dataset
from utils.federated.contenders import Contender
from utils.federated.exchange import OutOfStepError, Package
from utils.federated.flower import ClientApp, Context, Message
from utils.federated.leftovers import forget_others, leave_over, run_of, take_up
from utils.federated.lent import lent_model
from utils.federated.messages import (
    METRICS,
    content_of,
    metrics_record,
    order_of,
    package_of,
    recall,
    remember,
)
from utils.federated.partition import partition
from utils.federated.settings import FederatedSettings
from utils.system.devices import choose_device
from utils.system.errors import UserError
from utils.training.compute import Compute
from utils.training.epochs import TrainingBatches, train_epoch
from utils.training.optimizers import make_optimizer
from utils.training.precision import Arithmetic
from utils.training.seeding import epoch_generator

app = ClientApp()


@app.query()
def who(message: Message, context: Context) -> Message:
    """Answer which part of the images this client has."""
    return Message(content_of(Package(), part=_part(context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Play a round on this client."""
    order = order_of(message.content)
    settings, method = FederatedSettings.parse(order["settings"]), order["method"]
    device = choose_device(str(context.node_config.get("device", order["device"])))
    data_dir = str(context.node_config.get("data-dir", order["data_dir"]))
    dataset, fingerprint = images_of(
        settings.model, settings.dataset, data_dir, settings.limit, str(device)
    )
    if fingerprint != settings.data:
        raise UserError(f"the images in {data_dir} are not those of the server")
    with lent_model(settings, len(dataset.classes), device) as model:
        part = _part(context)
        client = Contender.named(method).client(settings, model, part)
        run = run_of(settings, method)
        forget_others(context.state, run)
        memory = recall(context.state, run)
        if memory is not None:
            client.load_state_dict(memory)
        try:
            client.receive(package_of(message.content))
        except OutOfStepError:
            return Message(content_of(Package(), behind=1), reply_to=message)
        told = {"part": part}
        speaks_on = client.sender is not None and client.version > 0
        if speaks_on and not take_up(context.state, run, client.sender):
            told["anew"] = 1  # it never took part, or has lost what it had still to say

        images = images_by_part(settings, dataset)[part]
        split = dataset.train.take(torch.from_numpy(images).to(device))
        write_vector(torch.from_numpy(client.theta), model)
        optimizer = make_optimizer(settings.optimizer, model, settings.lr, settings.momentum)
        compute = Compute(device, Arithmetic(settings.precision))
        restraint = client.restraint(model)
        after = [] if restraint is None else [restraint]
        for epoch in range(settings.local_epochs):
            draw = (client.version * settings.clients + part) * settings.local_epochs + epoch
            batches = TrainingBatches(
                replace(dataset, train=split),
                settings.entry.transform_of(dataset),
                settings.batch_size,
                epoch_generator(settings.seed, draw, device),
            )
            loss, _ = train_epoch(model, batches, optimizer, None, compute, after)
        trained = read_vector(model).cpu().numpy()

    content = content_of(client.up(trained), **told)
    remember(context.state, run, client.state_dict())
    if client.sender is not None:
        leave_over(context.state, run, client.sender)
    content[METRICS] = metrics_record(len(split), loss)
    return Message(content, reply_to=message)


@cache
def images_of(
    model: str, dataset: str, data_dir: str, limit: int | None, device: str
) -> tuple[Dataset, str]:
    """Load the images onto the device; returns them and their fingerprint.

    Raises:
        UserError: the images are not there.
    """
    images = get_model(model).load_dataset(dataset, data_dir, limit)
    return images.to(torch.device(device)), images.fingerprint()


def images_by_part(settings: FederatedSettings, dataset: Dataset) -> list[np.ndarray]:
    """Deal out the training images: int64 [n] for each client, by its part."""
    return partition(
        dataset.train.labels.cpu().numpy(),
        settings.clients,
        settings.partition,
        settings.alpha,
        settings.seed,
    )


def _part(context: Context) -> int:
    return int(context.node_config["partition-id"])
