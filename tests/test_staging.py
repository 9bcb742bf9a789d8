import torch

from utils.cmd.staging import stage

PARTS = [slice(0, 40), slice(40, 80), slice(80, 93)]


def test_every_part_arrives(device):
    rows = torch.randn(7, 93)
    got = []
    for part, columns in stage(rows, PARTS, device):
        assert columns.device.type == device.type and torch.equal(columns.cpu(), rows[:, part])
        got.append(columns.sum().cpu())  # before the next part takes the room
    assert len(got) == len(PARTS)
    torch.testing.assert_close(torch.stack(got).sum(), rows.sum())
