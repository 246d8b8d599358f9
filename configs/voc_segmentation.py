"""Semantic segmentation on PASCAL VOC 2012 by fine-tuning a dilated ResNet-FCN.

Paper: He et al. 2019, arXiv 1911.05722, appendix. The recipe is written from memory and was not
compared with the paper; the length of the run is the least certain value.
Reported: no number is recorded for this recipe.
Measured: not run here to its end.
Wall time: not measured.

`train_aug` is VOC's train split with the masks of SBD. VOC does not include them: add a list and a
folder of masks beside VOC's own and name them by `data.train_split` and `data.masks`. With VOC
alone, train on `train`. `baseline` trains the same network from scratch too and prints the gain.

Commands:
  python -m moco_jax.main --config=configs/voc_segmentation.py --config.pretrained=runs/x \\
    --config.data.path=VOCdevkit/VOC2012 --config.data.masks=SegmentationClassAug
  python -m moco_jax.main --config=configs/voc_segmentation.py --config.pretrained=runs/x \\
    --config.data.path=VOCdevkit/VOC2012 --config.data.train_split=train --config.baseline=True
"""

from moco_jax.segmentation import config


def get_config():
    c = config.base()
    c.name = "voc_segmentation"
    c.pretrained = "runs/imagenet_v2"
    c.epochs = 50
    c.batch_size = 16  # crops
    c.bn_groups = 1
    c.classes = 21
    c.head.width = 256
    c.head.dilation = 6

    c.lr = 0.003
    c.lr_batch = 16
    c.lr_schedule = "step"
    c.lr_update = "step"
    c.lr_drops = (0.7, 0.9)
    c.warmup_epochs = 0.0
    c.sgd_momentum = 0.9
    c.weight_decay = 1e-4

    c.data.train_split = "train_aug"
    c.data.test_split = "val"
    c.data.image_size = 513
    c.data.scale = (0.5, 2.0)
    c.data.flip = 0.5
    return c
