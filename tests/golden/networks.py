"""The torch network of the golden files: a small ResNet-10 with split batch norm and a head.

It shares nothing with `moco_jax`; see `tests.golden.generate`.
"""

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 8  # batch-norm groups; GPUs in the papers
CHANNELS = 2  # of the first stage
DIM = 8  # D, numbers per key
FEATURES = 8 * CHANNELS


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm on `GROUPS` equal parts of the batch, each normalized alone as on its own GPU.

    The running averages are the mean over the groups (a departure from torch, which keeps those of
    the first GPU).
    """

    def forward(self, x):
        outputs, means, variances = [], [], []
        for part in x.chunk(GROUPS):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            outputs.append(
                F.batch_norm(
                    part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps
                )
            )
            means.append(mean)
            variances.append(variance)
        self.running_mean.copy_(torch.stack(means).mean(0))
        self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(outputs)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = SplitBatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = SplitBatchNorm(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), SplitBatchNorm(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Encoder(nn.Module):
    """A ResNet-10 and a head; maps images [B, 3, S, S] to unit vectors [B, D].

    `stem` is 'imagenet' or 'cifar'; `mlp` adds a hidden layer to the head (MoCo v2).
    """

    def __init__(self, stem, mlp):
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, CHANNELS, 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = SplitBatchNorm(CHANNELS)
        self.layer1 = nn.Sequential(Block(CHANNELS, CHANNELS, 1))
        self.layer2 = nn.Sequential(Block(CHANNELS, 2 * CHANNELS, 2))
        self.layer3 = nn.Sequential(Block(2 * CHANNELS, 4 * CHANNELS, 2))
        self.layer4 = nn.Sequential(Block(4 * CHANNELS, FEATURES, 2))
        if mlp:
            self.fc = nn.Sequential(
                nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, DIM)
            )
        else:
            self.fc = nn.Linear(FEATURES, DIM)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.normalize(self.fc(x.mean((2, 3))), dim=1)
