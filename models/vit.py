"""ViT-B/16, pretrained on ImageNet, for 224 × 224 images.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; torchvision's implementation
and weights. The head has as many outputs as the data has classes. 85,806,346 parameters with ten.
"""

from torch import Tensor, nn


def vit_b_16(num_classes: int = 10, state: dict | str | None = None) -> nn.Module:
    """ViT-B/16 on images [B, 3, 224, 224] -> logits [B, num_classes].

    Args:
        state: of torchvision's vit_b_16, its head of any size, which is replaced where it is of
            another; "imagenet" for torchvision's download, None to start from scratch.

    Raises OSError if the weights cannot be downloaded, ValueError if they do not fit.
    """
    from torchvision import models  # takes a second or two, for this model only

    model = models.vit_b_16(num_classes=num_classes)
    if state is None:
        return model
    if state == "imagenet":
        try:
            weights = models.ViT_B_16_Weights.IMAGENET1K_V1
            state = weights.get_state_dict(progress=True, check_hash=True)
        except RuntimeError as error:  # what came is not the whole of it
            raise OSError(f"torchvision's download: {error}") from error
    own = model.state_dict()
    for name in ("heads.head.weight", "heads.head.bias"):
        if isinstance(state.get(name), Tensor) and state[name].shape != own[name].shape:
            state[name] = own[name]  # another data set's classes
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"not the state of torchvision's vit_b_16: {first}") from error
    return model
