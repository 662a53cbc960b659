# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.0", "timm>=0.9"]
# ///
"""A network of timm by its name (Wightman, github.com/huggingface/pytorch-image-models), with its published weights, a checkpoint of the
user's, or none. Size, mean and std are those of its configuration."""

import lightbox as lb


@lb.model(name="timm")
def timm_model(
    options,
    network: str = lb.param("resnet18", text="of timm.list_models()"),
    pretrained: bool = lb.param(False, text="its published weights, which timm downloads"),
    checkpoint: str = lb.param("", text="a file that timm loads"),
    size: int = lb.param(0, range=(0, 4096), unit="px", text="of the input; 0 for its own"),
):
    import timm
    import torch

    if network not in timm.list_models():
        raise lb.Error(f"timm has no network {network}")
    torch.manual_seed(options.seed)
    more = {"num_classes": options.classes} if options.classes else {}
    if size:
        # Networks with a grid of their own take it; those without do not know the word.
        try:
            net = timm.create_model(network, pretrained=pretrained, checkpoint_path=checkpoint, img_size=size, **more)
        except TypeError:
            net = timm.create_model(network, pretrained=pretrained, checkpoint_path=checkpoint, **more)
    else:
        net = timm.create_model(network, pretrained=pretrained, checkpoint_path=checkpoint, **more)
    config = timm.data.resolve_model_data_config(net)
    channels, height, width = config["input_size"]
    return lb.model(net.eval(), size=(size or height, size or width), channels=channels, mean=config["mean"], std=config["std"],
                    title=network, reference=lb.Reference("Wightman", "PyTorch Image Models", "GitHub", 2019, ""),
                    own_weights=pretrained or bool(checkpoint))  # fmt: skip
