"""Networks: ResNet backbones, projection heads, and their layers.

A new ResNet is an entry of `BACKBONES` in resnet.py, a new projection head one of `HEADS` in
heads.py; their keys are the values of `config.model.name` and `config.model.head`. A backbone of
another family is a Flax module with the attributes and methods of `resnet.ResNet`, returned by
`resnet.resnet`.
"""
