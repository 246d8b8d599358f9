"""The PyTorch side of `benchmarks.step`: MoCo's step, written from the papers; ResNets here.

`benchmarks.step` starts it. `--best` uses channels_last and torch.compile; huge pages are set by
the environment. SGD is fused and the EMA uses foreach with and without `--best`.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.step import torch_vit, worker

_SIDES = {"small": 32, "imagenet": 224}  # pixels of a view


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch norm over `groups` interleaved parts of the batch, computed on a view of the tensor."""

    groups = 1

    def forward(self, x):
        if self.groups == 1:
            return super().forward(x)
        n, c, h, w = x.shape
        mean, var = self.running_mean.repeat(self.groups), self.running_var.repeat(self.groups)
        y = F.batch_norm(
            x.reshape(-1, c * self.groups, h, w), mean, var, self.weight.repeat(self.groups),
            self.bias.repeat(self.groups), True, self.momentum, self.eps,
        )  # fmt: skip
        with torch.no_grad():
            self.running_mean.copy_(mean.view(self.groups, c).mean(0))
            self.running_var.copy_(var.view(self.groups, c).mean(0))
        return y.view(n, c, h, w)


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 if `bottleneck`."""

    def __init__(self, inputs, filters, stride, bottleneck):
        super().__init__()
        outputs = filters * (4 if bottleneck else 1)
        if bottleneck:
            shapes = ((inputs, filters, 1, 1), (filters, filters, 3, stride), (filters, outputs, 1))
        else:
            shapes = ((inputs, filters, 3, stride), (filters, filters, 3))
        layers = []
        for shape in shapes:
            layers += [conv(*shape), GroupedBatchNorm(shape[1]), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                conv(inputs, outputs, 1, stride), GroupedBatchNorm(outputs)
            )

    def forward(self, x):
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


def make_encoder(problem: worker.Problem) -> nn.Module:
    """Returns ResNet-18 for small images with a linear head, or ResNet-50 with v2's head."""
    small = problem.name == "small"
    sizes = (2, 2, 2, 2) if small else (3, 4, 6, 3)
    stem = [conv(3, 64, 3 if small else 7, 1 if small else 2), GroupedBatchNorm(64)]
    layers = [*stem, nn.ReLU(inplace=True)]
    if not small:
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, blocks in enumerate(sizes):
        for i in range(blocks):
            stride = 2 if stage and not i else 1
            layers.append(Block(channels, 64 * 2**stage, stride, bottleneck=not small))
            channels = 64 * 2**stage * (1 if small else 4)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if not small:
        layers += [nn.Linear(channels, channels), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(channels, 128))
    encoder = nn.Sequential(*layers)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, GroupedBatchNorm):
            module.groups = problem.bn_groups
    return encoder


def make_step(problem: worker.Problem, device: str, best: bool):
    """Returns a function of two views [B, 3, S, S] that trains one step and returns the loss."""
    small = problem.name == "small"
    momentum, temperature, lr = (0.99, 0.1, 0.06) if small else (0.999, 0.2, 0.03)
    size = -(-(4096 if small else 65536) // problem.batch) * problem.batch
    queries, keys = make_encoder(problem).to(device), make_encoder(problem).to(device)
    keys.load_state_dict(queries.state_dict())
    keys.requires_grad_(False)
    if best:
        queries, keys = (m.to(memory_format=torch.channels_last) for m in (queries, keys))
    pairs = [list(m.parameters()) for m in (keys, queries)]
    optimizer = torch.optim.SGD(
        queries.parameters(), lr, momentum=0.9, weight_decay=5e-4 if small else 1e-4, fused=True
    )
    queue = F.normalize(torch.randn(size, 128, device=device), dim=1)
    target = torch.zeros(problem.batch, dtype=torch.long, device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=problem.dtype == "bfloat16")
    if best:
        encode_queries, encode_keys = torch.compile(queries), torch.compile(keys)
    else:
        encode_queries, encode_keys = queries, keys
    pointer = 0

    def step(query_view, key_view):
        nonlocal pointer
        with torch.no_grad(), autocast:
            torch._foreach_lerp_(*pairs, 1 - momentum)
            order = torch.randperm(problem.batch, device=device)
            shuffled = encode_keys(key_view[order])
            k = F.normalize(shuffled.float(), dim=1)[torch.argsort(order)]
        with autocast:
            q = encode_queries(query_view)
        q = F.normalize(q.float(), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ queue.T], dim=1) / temperature
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[pointer : pointer + problem.batch] = k
        pointer = (pointer + problem.batch) % size
        return loss.detach()

    return step


def main() -> None:
    parser = worker.problem_parser(__doc__)
    parser.add_argument("--best", action="store_true")
    options = parser.parse_args()
    problem = worker.problem_of(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    side = _SIDES.get(problem.name) or torch_vit.SIZES[problem.name].image
    make = make_step if problem.name in _SIDES else torch_vit.make_step
    layout = torch.channels_last if options.best else torch.contiguous_format
    views = [
        torch.randn(problem.batch, 3, side, side, device=device).to(memory_format=layout)
        for _ in range(2)
    ]
    begun = time.perf_counter()
    step = make(problem, device, options.best)
    step(*views).item()

    def steps(count: int) -> float:
        for _ in range(count):
            loss = step(*views)
        return loss.item()

    facts = {
        "library": f"torch {torch.__version__}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "compile_seconds": time.perf_counter() - begun,
    }
    worker.serve(facts, steps, _closing)


def _closing() -> dict:
    if torch.cuda.is_available():
        return {"peak_megabytes": torch.cuda.max_memory_allocated() / 2**20}
    return {"peak_megabytes": worker.process_megabytes()}


if __name__ == "__main__":
    main()
