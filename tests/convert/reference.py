"""Makes checkpoints of the reference (MoCo v1 and v2) with torch, in the published format.

The encoders are torchvision's ResNets with the head as `fc`; the columns of `queue` are keys.
"""

import math

from tests.weights.networks import library, randomise

BATCH, KEYS, DIM = 32, 128, 16  # as in tests.tiny


def encoder(head: str, seed: int = 0):
    """Returns a ResNet-10 with the stem for small images."""
    torch, models = library("torch"), library("torchvision").models.resnet
    network = models.ResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=DIM)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
    if head == "mlp":
        network.fc = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), network.fc)
    return randomise(network, seed)


def moco(head: str = "mlp", *, momentum: float = 0.9, temperature: float = 0.2):
    """Returns an untrained MoCo whose arrays have the reference's names and order.

    It follows the paper's algorithm 1. Calling it with two views returns the logits, updates the
    key encoder and puts the keys into the queue.
    """
    torch = library("torch")
    functional = torch.nn.functional

    class MoCo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder_q, self.encoder_k = encoder(head), encoder(head, seed=1)
            self.encoder_k.requires_grad_(False)
            generator = torch.Generator().manual_seed(2)
            keys = torch.randn(DIM, KEYS, generator=generator)
            self.register_buffer("queue", functional.normalize(keys, dim=0))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

        def forward(self, query_images, key_images):
            q = functional.normalize(self.encoder_q(query_images))
            with torch.no_grad():
                for key, query in zip(
                    self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True
                ):
                    key.copy_(momentum * key + (1 - momentum) * query)
                k = functional.normalize(self.encoder_k(key_images))
            positive = (q * k).sum(1, keepdim=True)
            logits = torch.cat([positive, q @ self.queue.clone()], 1) / temperature
            self.add(k)
            return logits

        def add(self, keys):
            start = int(self.queue_ptr)
            self.queue[:, start : start + len(keys)] = keys.T
            self.queue_ptr[0] = (start + len(keys)) % self.queue.shape[1]

    return MoCo()


def resume(path, model, *, double: bool = False):
    """Loads a checkpoint as the reference's --resume does; returns the optimizer and the epoch."""
    torch = library("torch")
    parallel = torch.nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), math.nan, momentum=0.0, weight_decay=0.0)
    content = torch.load(path, weights_only=True)
    parallel.load_state_dict(content["state_dict"])
    if double:
        model.double()
    optimizer.load_state_dict(content["optimizer"])
    return optimizer, content["epoch"]


def train(model, optimizer, query_images, key_images) -> float:
    """Takes one step; returns the loss."""
    torch = library("torch")
    model.train()
    logits = model(query_images, key_images)
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def checkpoint(model, *, epochs: int, epoch_steps: int) -> dict:
    """Returns the reference's checkpoint, with the counters of `epochs * epoch_steps` steps."""
    torch = library("torch")
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    model.encoder_q(x).square().mean().backward()
    optimizer.step()
    steps = epochs * epoch_steps
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(steps)
    model.queue_ptr[0] = steps * BATCH % KEYS
    return {
        "epoch": epochs,
        "arch": "resnet10",
        "state_dict": {f"module.{name}": x for name, x in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
