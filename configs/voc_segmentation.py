"""Semantic segmentation on PASCAL VOC 2012 by fine-tuning a dilated ResNet-FCN.

After MoCo's recipe (He et al. 2019, arXiv 1911.05722, appendix), from memory: what stands in
`moco_jax/segmentation/config.py` was not compared with the paper. `train_aug` is VOC's train with
SBD's masks, which do not come with VOC: a list and a folder of masks beside VOC's own, whose names
are keys. With VOC alone train on `train`. `baseline` trains the same from scratch as well and tells
the gain. Not run here to its end, so no result stands here.

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
    return c
