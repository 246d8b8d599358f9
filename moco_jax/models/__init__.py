"""Networks: ResNet backbones, projection heads and their layers."""
